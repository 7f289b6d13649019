"""Preconditioned L-BFGS for curves in many dimensions, all curves at once, each for itself.

A Gauss-Newton step needs the Jacobian at every node, ``d`` products each, and still knows nothing of the
decoder's bend.  Two gradients show how the energy bends along a step whatever bends it, kinks that are finer than the
step included, and so the limited-memory BFGS method (Nocedal 1980; Liu & Nocedal 1989) learns the Hessian from what
the steps cost anyway, beginning from the metric somewhere on the curve (:mod:`.preconditioner`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..curves.batch import Batch
from ..status import CODES, Status
from .doubles import couples_of, parted_by_no_hill
from .gauss_newton import Relaxed
from .limited_memory import Memory
from .matrix_free import Slope

#: pairs of moves and changes of gradient that are remembered
MEMORY = 20
#: steps over which the fall of the energy is watched
_WATCH = 8
#: steps from which to which is looked whether the curves of a pair have come into one valley
_LOOK = 8
#: what a residual is multiplied by that only the model vouches for
_UNSURE = 5.0
#: share of the slope that a step must bring in energy
_ENOUGH = 1e-4
#: curvature along a step, relative to the preconditioner's, that is not undercut (Powell's damping)
_SOFTEST = 0.02
#: step sizes at which a curve is given up
_SMALLEST = 1e-6
#: slowest fall of the energy from which is still told what is left of it
_SLOWEST = 0.97
#: a residual this many times the tolerance will do where rounding error lets no step be judged
_NEAR = 8.0
#: rounding errors of the energy below which a decrease of it is taken from its gradients, and the share of such a step
#: below which no shorter one is tried
_HIDDEN, _SHORT = 10.0, 0.01


class Energy(Protocol):
    """What is minimised, of P curves each for itself; see :class:`~.matrix_free.MatrixFreeEnergy`."""

    def elements(self, nodes: Tensor, h: Tensor) -> Any:
        """A :class:`~..curves.batch.Batch` of what curves keep while their inner nodes move, or ``None``."""

    def slope_on(self, elements: Any, nodes: Tensor) -> Slope:
        """At nodes (P, n+1, d)."""

    def energies(self, nodes: Tensor, h: Tensor) -> Tensor:
        """Energies (P,) alone."""


class Inverse(Protocol):
    """An approximate inverse of the Hessian of P curves; see :class:`~.preconditioner.Preconditioner`."""

    def take(self, index: Tensor) -> Inverse:
        """That of some of the curves."""

    def solve(self, gradient: Tensor) -> Tensor:
        """Its product with (P, n-1, d)."""

    def times(self, move: Tensor) -> Tensor:
        """The product with what it is the inverse of."""


@dataclass
class _Active(Batch):
    """The curves still at work.

    Attributes:
        row: which curve each is (P,).
        nodes: (P, n+1, d).
        elements, slope: of :class:`Energy`, at ``nodes``.
        direction: of the next step (P, n-1, d).
        descent: how fast the energy falls along it (P,).
        size: the share of it that is tried (P,).
        solved: the preconditioner's inverse times the gradient (P, n-1, d).
        memory: of the steps that were taken.
        falls: what the last steps gained, the last one last (P, 2 * _WATCH).
        fresh: whether the last step was taken, so that the direction is to be found anew (P,).
        blind: whether it was not, as far as the gradients tell, while rounding hid what it gained in energy (P,).
    """

    row: Tensor
    nodes: Tensor
    elements: Any
    slope: Slope
    direction: Tensor
    descent: Tensor
    size: Tensor
    solved: Tensor
    memory: Memory
    falls: Tensor
    fresh: Tensor
    blind: Tensor


def relax_matrix_free(
    energy: Energy,
    preconditioner: Inverse,
    nodes: Tensor,
    knots: Tensor,
    *,
    tol: float,
    max_steps: int,
    pair: Tensor,
    memory: int = MEMORY,
) -> Relaxed:
    """Minimise the discrete energy over the inner nodes; see :func:`~.gauss_newton.relax`.

    The residual is the larger of ``sqrt(gᵀ H g / E)``, ``H`` the inverse Hessian as far as it is learnt, and of the
    root of what the energy, falling on as it fell over the last 16 steps, has still to lose twice over.  With fewer
    steps to look at, only a residual of a fifth of that counts: along soft directions ``H`` is at first too small.
    """
    count, total, _ = nodes.shape
    elements = energy.elements(nodes, knots.diff(dim=1))
    slope = energy.slope_on(elements, nodes)
    row = torch.arange(count, device=nodes.device)
    final = Relaxed(
        nodes.clone(),
        slope.energy.clone(),
        torch.full_like(slope.energy, float("inf")),
        torch.zeros_like(slope.energy),
        None,
        nodes.new_zeros(count, total - 2, 0),
        torch.full_like(row, CODES[Status.STEP_LIMIT]),
        torch.zeros_like(row),
        torch.full_like(row, total),
        torch.zeros_like(row, dtype=torch.bool),
    )
    couples = couples_of(pair)
    active = _Active(
        row,
        nodes.clone(),
        elements,
        slope,
        direction=torch.zeros_like(slope.gradient),
        descent=torch.zeros_like(slope.energy),
        size=torch.ones_like(slope.energy),
        solved=torch.zeros_like(slope.gradient),
        memory=Memory.empty(slope.gradient.flatten(1), memory),
        falls=nodes.new_full((count, 2 * _WATCH), float("inf")),
        fresh=torch.ones_like(row, dtype=torch.bool),
        blind=torch.zeros_like(row, dtype=torch.bool),
    )
    broken = ~_finite(slope)
    _leave(final, active.take(broken), Status.NOT_FINITE)
    active, preconditioner = active.take(~broken), preconditioner.take(~broken)
    if len(active.row):
        active.solved = preconditioner.solve(active.slope.gradient)
        _aim(active, active.solved)
    for number in range(max_steps + 1):
        if len(active.row) == 0:
            break
        residual = _residual(active)
        final.residual[active.row] = residual
        # what rounding hides in the energy shows in the gradient, until that is lost in rounding too
        lost = (active.blind & (active.size < _SHORT)) | (active.size < _SMALLEST)
        done = (residual <= tol) | (active.slope.energy <= 0) | (lost & (residual <= _NEAR * tol))
        stuck = ~done & lost
        _leave(final, active.take(done), Status.CONVERGED)
        _leave(final, active.take(stuck), Status.STALLED)
        if number == max_steps:
            _leave(final, active.take(~done & ~stuck), Status.STEP_LIMIT)
            break
        if bool((done | stuck).any()):
            active, preconditioner = active.take(~done & ~stuck), preconditioner.take(~done & ~stuck)
        if len(active.row):
            _advance(energy, preconditioner, active, final, number)
        if number % _LOOK == _LOOK - 1 and len(active.row):
            final.nodes[active.row], final.energy[active.row] = active.nodes, active.slope.energy
            mark_doubles(energy, final, knots, couples)
            single = ~final.doubled[active.row]
            active, preconditioner = active.take(single), preconditioner.take(single)
    mark_doubles(energy, final, knots, couples)
    return final


def mark_doubles(energy: Energy, final: Relaxed, knots: Tensor, couples: Tensor) -> None:
    """Mark the curves that run in one valley with another of their pair (``couples`` (2, k)), which is as short."""
    alive = couples[:, ~final.doubled[couples].any(0)]
    found, asked = parted_by_no_hill(energy.energies, final.nodes, knots, final.energy, alive)
    final.doubled[found] = True
    final.evaluations[asked] += knots.shape[1]


def _aim(active: _Active, towards: Tensor) -> None:
    """Directions ``-H g`` of the curves that have moved; after a failed step the old one stays."""
    fresh = active.fresh
    active.direction[fresh] = -towards[fresh]
    active.descent[fresh] = _dot(towards, active.slope.gradient)[fresh]


def _residual(active: _Active) -> Tensor:
    late, early = active.falls[:, _WATCH:].sum(1), active.falls[:, :_WATCH].sum(1)
    keep = (late / early.clamp_min(1e-300)).clamp(0.0, _SLOWEST)
    left = late * keep / (1 - keep)
    # before there is a fall to look at, all that is known is the model
    guess = torch.where(torch.isfinite(early), torch.maximum(active.descent, 2 * left), _UNSURE**2 * active.descent)
    return (guess.clamp_min(0) / active.slope.energy.clamp_min(1e-300)).sqrt()


def _advance(energy: Energy, preconditioner: Inverse, active: _Active, final: Relaxed, number: int) -> None:
    """Try the steps, and remember those that are taken."""
    here = active.slope
    move = active.size[:, None, None] * active.direction
    moved = active.nodes.clone()
    moved[:, 1:-1] += move
    there = energy.slope_on(active.elements, moved)
    final.steps[active.row] += 1
    final.evaluations[active.row] += moved.shape[1] - 2
    gain = here.energy - there.energy
    wanted = active.size * active.descent
    # what rounding hides in the two energies shows in the slopes between them (Hager & Zhang 2005)
    unsure = wanted <= _HIDDEN * here.grain
    gain = torch.where(unsure, -_dot(here.gradient + there.gradient, move) / 2, gain)
    accept = _finite(there) & (gain >= _ENOUGH * wanted - torch.where(unsure, 0.0, here.grain))
    # where the parabola through energy, slope and new energy has its minimum
    shrink = (wanted / (2 * (wanted - gain)).clamp_min(1e-300)).nan_to_num(nan=0.1).clamp(0.1, 0.5)
    active.size = torch.where(accept, torch.ones_like(shrink), active.size * shrink)
    active.fresh, active.blind = accept, unsure & ~accept
    if not bool(accept.all()):
        # most steps are taken, and copies of the few others cost less
        there.put(~accept, here)
        moved[~accept], move[~accept] = active.nodes[~accept], 0.0
    step, bend, before = move, there.gradient - here.gradient, active.solved
    active.nodes, active.slope, active.solved = moved, there, preconditioner.solve(there.gradient)
    along, plain = _dot(step, bend), preconditioner.times(step)
    stiff = _dot(step, plain)
    # a step along which the energy hardly bends, or bends down, is remembered as a soft one
    share = torch.where(along < _SOFTEST * stiff, (1 - _SOFTEST) * stiff / (stiff - along).clamp_min(1e-300), 1.0)
    share = share[:, None, None]
    bend = share * bend + (1 - share) * plain
    turned = share * (active.solved - before) + (1 - share) * step
    known = (step, bend, turned, active.slope.gradient, active.solved)
    towards = active.memory.enter(number, *(part.flatten(1) for part in known))
    _aim(active, towards.view_as(step))
    active.falls = torch.where(
        accept[:, None], torch.cat([active.falls[:, 1:], gain[:, None].clamp_min(0)], dim=1), active.falls
    )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _finite(slope: Slope) -> Tensor:
    return torch.isfinite(slope.energy) & torch.isfinite(slope.gradient).flatten(1).all(1)


def _leave(final: Relaxed, curves: _Active, why: Status) -> None:
    rows = curves.row
    final.nodes[rows], final.energy[rows] = curves.nodes, curves.slope.energy
    final.status[rows] = CODES[why]
