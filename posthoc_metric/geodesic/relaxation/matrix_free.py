"""The discrete energy and its gradient without a Jacobian, for many latent dimensions.

The energy is that of :mod:`.energy`.  Its gradient at an inner node is ``2 Jᵀ(f_{k-1} - f_k)``, ``f`` the flux through
the chords: one vector-Jacobian product a node, whatever ``d`` is.  Values live only as long as the piece of work
that needs them, and a piece is a few curves, one, or a stretch of one, as the memory limit lets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..._precision import computes_in_single
from ...field_derivative import FieldDerivative
from ...metric import MetricParts
from ...smooth_map import SmoothMap, pull_rows, value_and_pull
from ..curves.batch import Batch
from ..curves.elements import Elements, Places, Stiffness, add_gradient, add_weight
from ..curves.rows import aligned, alike, unpadded
from .energy import CANCELLED, rounding

#: arrays of D numbers a node that a piece holds at once: values, chords, flux, bends, and the copies between them
_HELD = 10
#: latent dimensions above which one product with the Jacobian is worth more than the Jacobian
MOST_COLUMNS = 8
#: rows of values and products in one evaluation from which pieces are cut to that size: two pieces share three rows
_WORTH = 24
#: what share of the rows whose evaluation the embedding would keep at once share a call, and how many rows at most
_SHARE, _MOST_ROWS = 20, 256


def matrix_free(parts: MetricParts, dim: int) -> bool:
    """Whether curves in ``dim`` dimensions are relaxed without their Jacobians."""
    return parts.embedding is not None and dim > MOST_COLUMNS


@dataclass
class Slope(Batch):
    """Energy (P,), its gradient at the inner nodes (P, n-1, d) and its rounding error (P,)."""

    energy: Tensor
    gradient: Tensor
    grain: Tensor


class MatrixFreeEnergy:
    """Energies and gradients under one metric; ``probe`` (N, d) are points it will be used near."""

    def __init__(self, parts: MetricParts, probe: Tensor, memory_limit: int = 512 * 2**20):
        assert parts.embedding is not None
        self.embedding: SmoothMap = parts.embedding
        self.weight = parts.weight
        self.field = None if parts.field is None else FieldDerivative(parts.field, probe)
        self.memory_limit = memory_limit
        self.rows = min(pull_rows(self.embedding) // _SHARE, _MOST_ROWS, self._fitting())
        some = probe[:: max(1, len(probe) // 16)]
        self.precision = rounding(computes_in_single(self.embedding, some))

    def _fitting(self) -> int:
        """Rows of which all that is held at once fits into the memory limit."""
        return self.memory_limit // (8 * _HELD * self.embedding.output_dim)

    def elements(self, nodes: Tensor, h: Tensor) -> Elements:
        """What curves ``nodes`` (P, n+1, d) with time steps ``h`` (P, n), n even, keep while their inner nodes move."""
        found = Elements.of(h)
        if nodes.device.type == "cpu" and self.together(nodes.shape[1] - 2) > 1:
            found.ends = torch.stack([self.embedding(ends) for ends in nodes[:, [0, -1]]])
        return found

    def slope(self, nodes: Tensor, h: Tensor) -> Slope:
        """At curves ``nodes`` (P, n+1, d) with time steps ``h`` (P, n), n even."""
        return self.slope_on(self.elements(nodes, h), nodes)

    def energies(self, nodes: Tensor, h: Tensor) -> Tensor:
        """Energies (P,) alone."""
        return self.slope(nodes, h).energy

    def slope_on(self, elements: Elements, nodes: Tensor) -> Slope:
        """The same, of curves that keep their time steps from call to call.

        On a processor as many curves share a call as make the cost of a call itself small, while they are in its
        cache.  Each takes a multiple of four rows, which rounds it as it would be alone; see :mod:`.rows`.
        """
        together = self.together(nodes.shape[1] - 2)
        if nodes.device.type != "cpu" or len(nodes) <= together:
            return self._slope(elements, nodes)
        found = []
        for some in torch.arange(len(nodes), device="cpu").split(together):
            found.append(self._slope(elements.take(some), nodes[some]))
        return Slope.join(found)

    def together(self, points: int) -> int:
        """How many curves share a call that asks for so many points of each."""
        return max(1, self.rows // aligned(points))

    def _slope(self, elements: Elements, nodes: Tensor) -> Slope:
        count, total, dim = nodes.shape
        out = Slope(nodes.new_zeros(count), nodes.new_zeros(count, total - 2, dim), nodes.new_zeros(count))
        rows, at_once = max(5, self._fitting()), pull_rows(self.embedding)
        if at_once >= _WORTH:
            rows = min(rows, at_once)
        if elements.ends is not None:
            self._add_together(out, nodes, elements.form, elements.ends)
        elif total <= rows:
            block = rows // total
            for start in range(0, count, block):
                self._add_chords(out, nodes, elements.form, slice(start, start + block), 0, total - 1)
        else:
            pieces = -(-(total - 1) // ((rows - 3) // 2 * 2))
            stretch = -(-(total - 1) // (2 * pieces)) * 2
            for start in range(count):
                one = slice(start, start + 1)
                for first in range(0, total - 1, stretch):
                    self._add_chords(out, nodes, elements.form, one, first, min(first + stretch, total - 1))
        out.grain = 2 * self.precision * out.grain.sqrt()
        if self.weight is not None:
            self._add_weight(out, nodes, elements.where)
        if self.field is not None:
            self._add_field(out, nodes, elements.where)
        return out

    def _add_together(self, out: Slope, nodes: Tensor, form: Stiffness, ends: Tensor) -> None:
        """Whole curves by one evaluation of their inner nodes; ``ends`` (P, 2, D) are known."""
        inner = nodes[:, 1:-1]
        values, pull = value_and_pull(self.embedding, alike(inner, apart=True))
        every = torch.cat([ends[:, :1], unpadded(values, inner, apart=True), ends[:, 1:]], dim=1)
        flux = self._flux(out, slice(None), nodes, every, form)
        bend = torch.zeros_like(values)
        torch.sub(flux[:, :-1], flux[:, 1:], out=unpadded(bend, inner, apart=True))
        out.gradient += 2 * unpadded(pull(bend), inner, apart=True)

    def _add_chords(self, out: Slope, nodes: Tensor, every: Stiffness, curves: slice, first: int, last: int) -> None:
        """The elements from node ``first`` to node ``last``, and the gradient at the inner nodes in [first, last)."""
        # the gradient at the first node needs the element before it
        begin = max(first - 2, 0)
        some, dim = nodes[curves, begin : last + 1], nodes.shape[2]
        form = every.between(curves, begin, last)
        flat = some.reshape(-1, dim)
        at_once = len(flat) <= pull_rows(self.embedding)
        values, pull = value_and_pull(self.embedding, flat) if at_once else (self.embedding(flat), None)
        values = values.view(*some.shape[:2], -1)
        flux = self._flux(out, curves, some, values, form, first - begin)
        low = max(first, 1)
        skip = low - begin
        if pull is None:
            inner = some[:, skip:-1].reshape(-1, dim)
            bend = flux[:, skip - 1 : -1] - flux[:, skip:]
            pulled = self.embedding.vjp(inner, bend.reshape(len(inner), -1))[1].view(len(some), -1, dim)
        else:
            bend = torch.empty_like(values)
            bend[:, :skip], bend[:, -1] = 0, 0
            torch.sub(flux[:, skip - 1 : -1], flux[:, skip:], out=bend[:, skip:-1])
            pulled = pull(bend.flatten(0, 1)).view_as(some)[:, skip:-1]
        out.gradient[curves, low - 1 : last - 1] += 2 * pulled

    def _flux(
        self, out: Slope, curves: slice, nodes: Tensor, values: Tensor, form: Stiffness, first: int = 0
    ) -> Tensor:
        """Flux through all chords between ``values`` (P, m, D) at ``nodes``; energy and error from chord ``first``."""
        chords = values.diff(dim=1)
        flux = form.flux(chords)
        # errors of different chords have nothing to do with one another
        grain = (values[:, 0].norm(dim=-1) * torch.linalg.vector_norm(flux[:, first:], dim=(1, 2))).square()
        out.grain[curves] += grain
        energy = (flux * chords)[:, first:].sum((1, 2))
        close = 2 * self.precision * grain.sqrt() > CANCELLED * energy
        if bool(close.any()):
            # the values of near nodes agree in most of their digits; their derivatives do not lose any; asked about
            # are all, so that a call has as many rows whoever is close
            chords[close] = self._pushed_chords(nodes)[close]
            flux = form.flux(chords)
            energy = (flux * chords)[:, first:].sum((1, 2))
        out.energy[curves] += energy
        return flux

    def _pushed_chords(self, nodes: Tensor) -> Tensor:
        dim = nodes.shape[2]
        step = nodes.diff(dim=1)
        flat = step.reshape(-1, dim)
        left = self.embedding.jvp(nodes[:, :-1].reshape(-1, dim), flat)[1]
        right = self.embedding.jvp(nodes[:, 1:].reshape(-1, dim), flat)[1]
        return ((left + right) / 2).view(*step.shape[:2], -1)

    def _add_weight(self, out: Slope, nodes: Tensor, where: Places) -> None:
        assert self.weight is not None
        add_weight(out.energy, out.gradient, self.weight, nodes, where)

    def _add_field(self, out: Slope, nodes: Tensor, where: Places) -> None:
        assert self.field is not None
        points, v = where.points(nodes)
        along, by_place = self.field.pull(points.flatten(0, 2), v.flatten(0, 2))
        share = where.weights[..., None]
        along, by_place = share * along.view_as(v), share * by_place.view_as(v)
        out.energy += (along * v).sum((1, 2, 3))
        add_gradient(out.gradient, where.shapes.mT @ by_place + where.slopes.mT @ (2 * along))
