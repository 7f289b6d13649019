"""The energy of discrete curves, its gradient and its second-order model.

A curve is nodes ``z_0 .. z_n`` at times ``t_0 .. t_n``.  With ``h_k = t_{k+1} - t_k``, ``Δ_k = z_{k+1} - z_k`` and
``m_k`` the midpoint of a segment, the energy under the metric ``J_Fᵀ J_F + w I + U`` is

    E = Σ_k ( ‖F(z_{k+1}) - F(z_k)‖² + w(m_k) ‖Δ_k‖² + Δ_kᵀ U(m_k) Δ_k ) / h_k,

in d > 3 with ``w`` averaged over three Gauss points of the segment.  The chords of ``F`` need no derivative of
the metric, and every term couples neighbouring nodes only, so that the Hessian and its Gauss-Newton part are
block tridiagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..metric import MetricParts
from .batch import Batch
from .field import FieldDerivative

#: places and shares of the Gauss-Legendre rules on [0, 1]: a wall hides between the nodes from too few points
_GAUSS = {
    1: ((0.5, 1.0),),
    3: ((0.5 - 0.15**0.5, 5 / 18), (0.5, 8 / 18), (0.5 + 0.15**0.5, 5 / 18)),
}
#: latent dimensions in which a grid leads round walls
_FEW = 3
#: share of the energy that may be rounding error before chords are taken from Jacobians
_CANCELLED = 1e-4


@dataclass
class Model(Batch):
    """A block-tridiagonal matrix for each of P curves: (P, n-1, d, d) and (P, n-2, d, d)."""

    diagonal: Tensor
    coupling: Tensor

    def __add__(self, other: Model) -> Model:
        return Model(self.diagonal + other.diagonal, self.coupling + other.coupling)


@dataclass
class Linearisation(Batch):
    """All that is kept about P curves of n spans at their present nodes.

    Attributes:
        nodes: (P, n+1, d).
        energy: (P,).
        gradient: with respect to the inner nodes (P, n-1, d).
        convex: the Gauss-Newton model, positive semi-definite.
        rest: what the first derivatives at hand tell of the rest of the Hessian; indefinite.
        values, squares: ``F`` (P, n+1, D) and ``J_FᵀJ_F`` (P, n+1, d, d) at the nodes.
        jacobians, end_jacobians: ``J_F`` at the inner nodes (P, n-1, D, d) and the ends (P, 2, D, d).
        bend: ``r_{k-1}/h_{k-1} - r_k/h_k`` at the inner nodes, ``r`` the chords (P, n-1, D).
        pull: ``J_Fᵀ bend`` (P, n-1, d).
        grain: rounding error of the energy that comes from the precision of ``F`` (P,).
    """

    nodes: Tensor
    energy: Tensor
    gradient: Tensor
    convex: Model
    rest: Model
    values: Tensor | None = None
    jacobians: Tensor | None = None
    squares: Tensor | None = None
    bend: Tensor | None = None
    pull: Tensor | None = None
    end_jacobians: Tensor | None = None
    grain: Tensor | None = None


class CurveEnergy:
    """The discrete energy under one metric; ``probe`` (N, d) are points it will be used near.

    Where the Jacobians of a single curve would not fit into ``memory_limit`` bytes they are asked for a few nodes at
    a time and reduced to their (d, d) products at once; the secant correction, which needs them whole, is left out.
    """

    def __init__(self, parts: MetricParts, probe: Tensor, memory_limit: int = 512 * 2**20):
        self.embedding = parts.embedding
        self.memory_limit = memory_limit
        self.weight = parts.weight
        self.field = None if parts.field is None else FieldDerivative(parts.field, probe)

    def linearise(self, nodes: Tensor, h: Tensor, before: Linearisation | None = None) -> Linearisation:
        """Energy, gradient and models at ``nodes`` (P, n+1, d) with time steps ``h`` (P, n).

        ``before``, the same curves at earlier nodes, lends what is known of the two ends, which never move.
        """
        count, total, dim = nodes.shape
        zeros = nodes.new_zeros
        out = Linearisation(
            nodes,
            energy=zeros(count),
            gradient=zeros(count, total - 2, dim),
            convex=Model(zeros(count, total - 2, dim, dim), zeros(count, total - 3, dim, dim)),
            rest=Model(zeros(count, total - 2, dim, dim), zeros(count, total - 3, dim, dim)),
        )
        if self.embedding is not None and self.lean(total, dim):
            self._add_chords_leanly(out, h)
        elif self.embedding is not None:
            self._embed(out, before)
            self._add_chords(out, h)
        middle, step = (nodes[:, 1:] + nodes[:, :-1]) / 2, nodes.diff(dim=1)
        if self.weight is not None:
            self._add_weight(out, step, h)
        if self.field is not None:
            self._add_field(out, middle, step, h)
        return out

    def lean(self, nodes: int, dim: int) -> bool:
        """Whether the Jacobians of a curve of so many nodes are too large to be kept."""
        # those of this step, of the last, and a copy between them
        return self.embedding is not None and 24 * nodes * self.embedding.output_dim * dim > self.memory_limit

    def _add_chords_leanly(self, out: Linearisation, h: Tensor) -> None:
        assert self.embedding is not None
        count, total, dim = out.nodes.shape
        out.squares = out.nodes.new_zeros(count, total, dim, dim)
        out.grain = torch.zeros_like(out.energy)
        chunk = max(1, self.memory_limit // (24 * self.embedding.output_dim * dim))
        for p in range(count):
            values = torch.cat([self.embedding(part) for part in out.nodes[p].split(4 * chunk)])
            r = values.diff(dim=0)
            size = r.square().sum(-1)
            out.energy[p] += (size / h[p]).sum()
            out.grain[p] = 2 * _rounding(values[None])[0] * (size / h[p].square()).sum().sqrt()
            bend = r[:-1] / h[p, :-1, None] - r[1:] / h[p, 1:, None]
            last = None
            for first in range(0, total, chunk):
                stop = min(first + chunk, total)
                jacobians = self.embedding.value_and_jacobian(out.nodes[p, first:stop])[1]
                out.squares[p, first:stop] = jacobians.mT @ jacobians
                low, high = max(first, 1), min(stop, total - 1)
                inner = jacobians[low - first : high - first]
                out.gradient[p, low - 1 : high - 1] += 2 * (inner.mT @ bend[low - 1 : high - 1, :, None])[..., 0]
                # block k couples the inner nodes k and k + 1
                scale = -2 / h[p, 1:-1]
                if last is not None and 2 <= first < total - 1:
                    out.convex.coupling[p, first - 2] += scale[first - 2] * (last.mT @ jacobians[0])
                links = slice(low - 1, max(low, high - 1) - 1)
                out.convex.coupling[p, links] += scale[links, None, None] * (inner[:-1].mT @ inner[1:])
                last = jacobians[-1]
        squares = out.squares[:, 1:-1]
        out.convex.diagonal += (2 / h[:, :-1] + 2 / h[:, 1:])[..., None, None] * squares

    def _embed(self, out: Linearisation, before: Linearisation | None) -> None:
        """Values and Jacobians at the nodes; at the ends they are asked for once."""
        assert self.embedding is not None
        count, total, dim = out.nodes.shape
        inner, jacobians = self.embedding.value_and_jacobian(out.nodes[:, 1:-1].reshape(-1, dim))
        out.jacobians = jacobians.view(count, total - 2, -1, dim)
        if before is None:
            ends, at_ends = self.embedding.value_and_jacobian(out.nodes[:, [0, -1]].reshape(-1, dim))
            ends, out.end_jacobians = ends.view(count, 2, -1), at_ends.view(count, 2, -1, dim)
        else:
            assert before.values is not None
            ends, out.end_jacobians = before.values[:, [0, -1]], before.end_jacobians
        out.values = torch.cat([ends[:, :1], inner.view(count, total - 2, -1), ends[:, 1:]], dim=1)

    def _add_chords(self, out: Linearisation, h: Tensor) -> None:
        assert out.values is not None and out.jacobians is not None and out.end_jacobians is not None
        r = out.values.diff(dim=1)
        size = r.square().sum(-1)
        # errors of different chords have nothing to do with one another
        out.grain = 2 * _rounding(out.values) * (size / h.square()).sum(1).sqrt()
        close = out.grain > _CANCELLED * (size / h).sum(1)
        if bool(close.any()):
            # the values of near nodes agree in most of their digits; their derivatives do not lose any
            ends = out.end_jacobians[close]
            every = torch.cat([ends[:, :1], out.jacobians[close], ends[:, 1:]], dim=1)
            mean = (every[:, :-1] + every[:, 1:]) / 2
            r[close] = (mean @ out.nodes[close].diff(dim=1)[..., None])[..., 0]
            size = r.square().sum(-1)
        bend = r[:, :-1] / h[:, :-1, None] - r[:, 1:] / h[:, 1:, None]
        out.bend = bend
        out.energy += (size / h).sum(1)
        transposed = out.jacobians.mT
        squares = transposed @ out.jacobians
        at_ends = out.end_jacobians.mT @ out.end_jacobians
        out.squares = torch.cat([at_ends[:, :1], squares, at_ends[:, 1:]], dim=1)
        out.pull = (transposed @ bend[..., None])[..., 0]
        out.gradient += 2 * out.pull
        out.convex.diagonal += (2 / h[:, :-1] + 2 / h[:, 1:])[..., None, None] * squares
        out.convex.coupling -= (2 / h[:, 1:-1])[..., None, None] * (transposed[:, :-1] @ out.jacobians[:, 1:])

    def _add_weight(self, out: Linearisation, step: Tensor, h: Tensor) -> None:
        assert self.weight is not None
        square = step.square().sum(-1)
        eye = torch.eye(step.shape[-1], dtype=step.dtype, device=step.device)
        for place, share in _GAUSS[1 if step.shape[-1] <= _FEW else 3]:
            where = out.nodes[:, :-1] + place * step
            w, slope = self.weight.value_and_gradient(where.reshape(-1, where.shape[-1]))
            w, slope = share * w.view_as(h) / h, share * slope.view_as(where) / h[..., None]
            out.energy += (w * square).sum(1)
            _add_segments(
                out,
                place,
                by_step=2 * w[..., None] * step,
                by_place=slope * square[..., None],
                stiffness=2 * w[..., None, None] * eye,
                mixed=2 * slope[..., :, None] * step[..., None, :],
                # exact where log w is linear, as it is on the flank of a wall
                curvature=(square / w.clamp_min(1e-300))[..., None, None] * slope[..., :, None] * slope[..., None, :],
            )

    def _add_field(self, out: Linearisation, middle: Tensor, step: Tensor, h: Tensor) -> None:
        assert self.field is not None
        dim = step.shape[-1]
        tensors, pushed = self.field(middle.reshape(-1, dim), step.reshape(-1, dim))
        shape = (*h.shape, dim, dim)
        tensors, pushed = tensors.view(shape) / h[..., None, None], pushed.reshape(shape) / h[..., None, None]
        along = (tensors @ step[..., None])[..., 0]
        out.energy += (step * along).sum(-1).sum(1)
        solved = torch.linalg.solve_ex(tensors, pushed)[0]
        _add_segments(
            out,
            0.5,
            by_step=2 * along,
            by_place=(pushed.mT @ step[..., None])[..., 0],
            stiffness=2 * tensors,
            mixed=2 * pushed.mT,
            curvature=pushed.mT @ solved,
        )


def _add_segments(
    out: Linearisation,
    place: float,
    *,
    by_step: Tensor,
    by_place: Tensor,
    stiffness: Tensor,
    mixed: Tensor,
    curvature: Tensor,
) -> None:
    """Add terms ``e_k(p_k, Δ_k)``, ``p_k`` at the share ``place`` of a segment, from their derivatives.

    ``mixed`` has the place's coordinate first.  With ``U = RᵀR`` the Gauss-Newton model of ``‖R(p) Δ‖²`` holds
    half the mixed and half the curvature term.
    """
    left, right = 1 - place, place
    # a node is the right end of the segment before it and the left end of the one after
    out.gradient += by_step[:, :-1] - by_step[:, 1:] + right * by_place[:, :-1] + left * by_place[:, 1:]
    both = mixed + mixed.mT
    link = (left * mixed - right * mixed.mT + left * right * curvature)[:, 1:-1] / 2
    for model in (out.convex, out.rest):
        model.diagonal += right * (both + right * curvature)[:, :-1] / 2 - left * (both - left * curvature)[:, 1:] / 2
        model.coupling += link
    out.convex.diagonal += stiffness[:, :-1] + stiffness[:, 1:]
    out.convex.coupling -= stiffness[:, 1:-1]


def _rounding(values: Tensor) -> Tensor:
    """Absolute rounding error of a chord (P,), by whether the values of a curve are those of a float32 map."""
    single = (values.float().double() == values).flatten(1).all(1)
    unit = torch.where(single, torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps)
    return unit.to(values) * values[:, 0].norm(dim=-1)
