"""Discrete geodesics from one centre to many points, as functions of where the centre is.

The least energy of curves from ``c`` to a given end is a function of ``c``.  By the implicit function theorem its
derivative is that of the energy by the first node alone, and its second derivative a Schur complement: of the energy's
Hessian by all free nodes, with the inner ones eliminated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...metric import MetricParts
from ..curves.batch import Batch, in_blocks
from ..curves.elements import Model, node_masses
from ..curves.linear import solve_model
from ..curves.placement import even
from ..relaxation.energy import CurveEnergy
from ..relaxation.gauss_newton import Relaxed, relax
from ..relaxation.matrix_free import MatrixFreeEnergy

#: spans, each so many times the time of a whole curve long, that make an inner node of the first and cost nothing
_IDLE = 1e6
#: nodes whose equations the first one enters, and those that enter these
_NEAR, _AROUND = 2, 5
#: difference step of gradients, relative to the extent of a curve
_STEP = 1e-4
#: for a relaxation, which begins near its end
_STEPS = 30


@dataclass
class Star(Batch):
    """P curves of n spans that are settled, and what becomes of them when the centre moves.

    Attributes:
        nodes: (P, n+1, d).
        energy: (P,).
        gradient: of the least energy by the centre (P, d).
        bend: its second derivatives (P, d, d).
        response: derivatives of the inner nodes by the centre (P, n-1, d, d).
        rate, secant: of :class:`~.gauss_newton.Relaxed`.
    """

    nodes: Tensor
    energy: Tensor
    gradient: Tensor
    bend: Tensor
    response: Tensor
    rate: Tensor
    secant: Tensor

    def moved(self, step: Tensor) -> Tensor:
        """The nodes, to first order, with the centre moved by ``step`` (d,)."""
        inner = self.nodes[:, 1:-1] + self.response @ step
        return torch.cat([self.nodes[:, :1] + step, inner, self.nodes[:, -1:]], dim=1)


def stars(parts: MetricParts, nodes: Tensor, tol: float, limit: int, before: Star | None = None) -> Star:
    """Curves through ``nodes`` (P, n+1, d) at even times, relaxed to a residual of ``tol``.

    Args:
        limit: bytes that they may take at once.
        before: what is known of them with another centre.
    """
    count, total, dim = nodes.shape
    if count == 0:
        none, blocks = nodes.new_zeros(0), nodes.new_zeros(0, total - 2, dim, dim)
        return Star(nodes, none, nodes[:, 0], nodes.new_zeros(0, dim, dim), blocks, none, blocks)
    energy = CurveEnergy(parts, nodes[:, ::8].flatten(0, 1)[:512], limit)
    # a curve of no extent has a bend, too
    extent = (nodes - nodes[:, :1]).flatten(1).abs().amax(1)
    step = _STEP * extent.clamp_min(1e-3 * float(extent.max()))

    def settled(rows: Tensor) -> Star:
        some = nodes[rows]
        rate, secant = (None, None) if before is None else (before.rate[rows], before.secant[rows])
        found = relax(energy, some, even(some, total - 1), tol=tol, max_steps=_STEPS, rate=rate, secant=secant)
        return _star(parts, energy, found, step[rows])

    return in_blocks(torch.arange(count, device=nodes.device), energy.at_once(total, dim), settled)


def _star(parts: MetricParts, energy: CurveEnergy, relaxed: Relaxed, step: Tensor) -> Star:
    """Of curves (P), by differences over ``step`` (P,)."""
    nodes = relaxed.nodes
    h = even(nodes, nodes.shape[1] - 1).diff(dim=1)
    here = energy.linearise(nodes, energy.frame(nodes, h))
    model = here.convex + here.rest
    model.diagonal += relaxed.secant * node_masses(h)[:, :, None, None]
    gradient, by_centre = _of_the_first(parts, energy, nodes, h, step)
    own, coupled = by_centre[:, 0], by_centre[:, 1:]
    response = -_solved(model, here.convex, _spread(coupled, nodes))
    bend = own + torch.einsum("pmil,pmik->plk", coupled, response[:, :_NEAR])
    return Star(nodes, relaxed.energy, gradient, (bend + bend.mT) / 2, response, relaxed.rate, relaxed.secant)


def _of_the_first(
    parts: MetricParts, energy: CurveEnergy, nodes: Tensor, h: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives of the energy by the first node (P, d); and of these and of the next nodes' (P, 3, d, d) by it."""
    count, _, dim = nodes.shape
    first = torch.cat([nodes[:, :1].expand(-1, 2, -1), nodes[:, :_AROUND]], dim=1)
    times = torch.cat([torch.full_like(h[:, :2], _IDLE), h[:, : _AROUND - 1]], dim=1)
    step = step[:, None, None]
    ways = step * torch.eye(dim, dtype=nodes.dtype, device=nodes.device)
    variants = first.repeat(2 * dim + 1, 1, 1, 1).transpose(0, 1).clone()
    variants[:, 1 : dim + 1, 2] += ways
    variants[:, dim + 1 :, 2] -= ways
    found = _gradient_of(parts, energy, first)(variants.flatten(0, 1), times.repeat_interleave(2 * dim + 1, dim=0))
    # inner nodes: the idle one, the first of the curve, and those after it
    found = found.view(count, 2 * dim + 1, *found.shape[1:])[:, :, 1 : 2 + _NEAR]
    change = (found[:, 1 : dim + 1] - found[:, dim + 1 :]) / (2 * step[..., None])
    return found[:, 0, 0], change.permute(0, 2, 3, 1)


def _gradient_of(parts: MetricParts, energy: CurveEnergy, probe: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """From nodes (P, n+1, d) and time steps (P, n) to the derivatives by the inner nodes (P, n-1, d)."""
    dim = probe.shape[2]
    if parts.embedding is not None and energy.dense(dim):
        # the same energy, by one product with the Jacobian a node
        lean = MatrixFreeEnergy(parts, probe[:, 2], energy.memory_limit)
        return lambda nodes, h: lean.slope(nodes, h).gradient
    return lambda nodes, h: energy.linearise(nodes, energy.frame(nodes, h)).gradient


def _spread(coupled: Tensor, nodes: Tensor) -> Tensor:
    """Right-hand sides (P, n-1, d, d), the last of them for each direction of the centre, from (P, 2, d, d)."""
    count, total, dim = nodes.shape
    full = nodes.new_zeros(count, total - 2, dim, dim)
    full[:, :_NEAR] = coupled
    return full


def _solved(model: Model, convex: Model, right: Tensor) -> Tensor:
    """By the whole Hessian, or by its Gauss-Newton part where that is not positive definite."""
    found, good = solve_model(model, right)
    if not bool(good.all()):
        bad = (~good).nonzero().flatten()
        found[bad] = solve_model(convex.take(bad), right[bad])[0]
    return found
