"""Curves in many dimensions: what their relaxation costs in memory, and when they are done."""

from __future__ import annotations

import torch
from torch import Tensor

from ...metric import MetricParts
from ..curves.batch import in_blocks
from ..curves.chords import halved
from ..curves.quadrature import Measured
from ..curves.rows import few_rows
from ..curves.spline import Spline
from ..options import RelaxationOptions
from ..starts.start_curves import StartCurves
from .gauss_newton import Relaxed
from .matrix_free import MatrixFreeEnergy
from .preconditioner import precondition
from .quasi_newton import MEMORY, mark_doubles, relax_matrix_free

#: quasi-Newton steps for one Gauss-Newton step, which costs that many times as much or more
_STEPS = 6
#: spans from which on a curve that is not confirmed yet has kinks, and is as stationary as its length needs
_ROUGH_SPANS = 64
#: shares of the error asked for that are left to what the energy could still lose: of smooth curves and of others
_SMOOTH_SHARE, _ROUGH_SHARE = 0.25, 0.05
#: and to the chords
_CHORD_SHARE = 0.2
#: chords a span that a length is measured by, at most, where it can be the final one
_CHORDS = 32


def relax_in_blocks(
    parts: MetricParts, energy: MatrixFreeEnergy, nodes: Tensor, knots: Tensor, pair: Tensor, tol: float, steps: int
) -> Relaxed:
    """Relax as many curves (P, n+1, d) of pairs ``pair`` (P,) at once as the memory limit of ``energy`` lets."""
    # the memory twice, for it is copied as steps enter it and curves leave
    held = 8 * nodes[0].numel() * (4 * MEMORY + 24)

    def relaxed(rows: Tensor) -> Relaxed:
        part, times = nodes[rows], knots[rows]
        start, points = precondition(parts, part, times.diff(dim=1), energy.memory_limit)
        found = relax_matrix_free(energy, start, part, times, tol=tol, max_steps=steps, pair=pair[rows])
        found.evaluations += points
        return found

    return in_blocks(pair, max(1, energy.memory_limit // held), relaxed)


class ManyDimensions:
    """Stands in for the Gauss-Newton relaxation where :func:`~.matrix_free.matrix_free` says so."""

    def __init__(self, parts: MetricParts, starts: StartCurves, options: RelaxationOptions):
        self.parts = few_rows(parts, options.memory_limit)
        self.options = options
        self.energy = MatrixFreeEnergy(self.parts, starts.nodes[:16, ::16].flatten(0, 1), options.memory_limit)

    def relax(self, nodes: Tensor, knots: Tensor, pair: Tensor, tol: float, steps: int) -> Relaxed:
        """Relax as many curves (P, n+1, d) of pairs ``pair`` (P,) at once as the memory limit lets."""
        # a length errs by a quarter of the residual's square; digits beyond those asked for take as long as all others
        smooth = knots.shape[1] <= _ROUGH_SPANS
        spare = _SMOOTH_SHARE * self.options.rtol if smooth else _ROUGH_SHARE * self._rough()
        tol = max(tol, 2 * spare**0.5)
        return relax_in_blocks(self.parts, self.energy, nodes, knots, pair, tol, _STEPS * steps)

    def mark_doubles(self, relaxed: Relaxed, knots: Tensor, couples: Tensor) -> None:
        """See :func:`~.quasi_newton.mark_doubles`."""
        mark_doubles(self.energy, relaxed, knots, couples)

    def confirm(self, spline: Spline, known: Measured) -> tuple[Measured, Tensor]:
        """Lengths by chords where those are surer than ``known``, and how many points of each curve it took (P,)."""
        most = _CHORDS if spline.knots.shape[1] > _ROUGH_SPANS else 4
        wanted = _CHORD_SHARE * self._rough() * known.length
        return halved(self.parts, spline, known, wanted, most, self.options.memory_limit)

    @staticmethod
    def excess(length: Tensor, chords: Tensor, chords_before: Tensor) -> Tensor:
        """How much longer (P,) than the geodesic a curve is at most, that was relaxed at nodes which it runs between.

        The discrete geodesic is shorter than the geodesic and the curve through its nodes longer.  Where the curve is
        smooth the two agree in high order; at kinks the discrete length gains by the next doubling of the nodes what
        it gained by the last one halved, and so in the end no more than that last gain.
        """
        gap = (length - chords).clamp_min(0)
        return torch.maximum(gap - (chords - chords_before).abs(), gap / 2)

    def _rough(self) -> float:
        return max(self.options.rtol, self.options.rough_rtol)
