"""Trust-region Gauss-Newton steps with a structured secant correction, all curves at once, each for itself.

The Gauss-Newton model of the discrete energy is banded and positive semi-definite.  What it lacks is
block diagonal for the chords (the decoder's second derivative along the curve's bend), and is learnt from
Jacobians at successive nodes as in NL2SOL (Dennis, Gay & Welsch 1981), node by node.  Every curve has a trust
radius of its own, in the metric's L² norm, held by Levenberg-Marquardt damping (Moré 1978), and leaves the batch
when it is done.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..curves.batch import Batch
from ..curves.elements import Model, node_masses
from ..curves.image import Image
from ..status import CODES, Status
from .doubles import couples_of, doubles
from .energy import CurveEnergy
from .frame import Frame
from .linearisation import Linearisation
from .saddle import escapes
from .trust_region import UNDAMPED, Step, step_in_region

#: trust radius, relative to the curve's own length, at which no step is possible
_SMALLEST = 1e-9
#: a residual this many times the tolerance will do where rounding error lets no step be judged
_NEAR = 8.0
#: convergence slower than this counts as this
_SLOWEST = 0.97
#: what a residual under a field is multiplied by where only the model's convex part, too stiff by far, gives a step
_NO_BOWL = 20.0
#: rounding errors of the energy below which a decrease of it is taken from its gradients
_HIDDEN = 10.0
#: share of the predicted decrease that a step must bring
_ENOUGH = 1e-3


@dataclass
class Relaxed(Batch):
    """What :func:`relax` made of P curves.

    Attributes:
        nodes: (P, n+1, d).
        energy: (P,).
        residual: ``sqrt(gᵀ H⁻¹ g / E)`` (P,): twice the relative energy still to be gained, as a root; ``H`` is the
            model, corrected by how much slower than by its prediction the residual falls.
        rate: factor by which the last step changed the uncorrected residual (P,).
        image: what is known of an embedding along the curve.
        secant: what was learnt of the Hessian, for a unit of time at the inner nodes (P, n-1, d, d).
        status: indices into ``STATUSES`` (P,).
        steps: accepted and rejected steps (P,).
        evaluations: points at which the metric was linearised (P,).
        doubled: which curves left because another of their pair had come as near as makes no difference (P,),
            where that was asked for.
    """

    nodes: Tensor
    energy: Tensor
    residual: Tensor
    rate: Tensor
    image: Image | None
    secant: Tensor
    status: Tensor
    steps: Tensor
    evaluations: Tensor
    doubled: Tensor


@dataclass
class _Active(Batch):
    """The curves still at work.

    Attributes:
        row: which curve each is (P,).
        here, frame: of :class:`CurveEnergy`, at the present nodes.
        radius, damping: of the trust region (P,).
        secant: what was learnt of the Hessian (P, n-1, d, d).
        rate, last: of :class:`Relaxed`, and the uncorrected residual before the last step (P,).
        full: whether the last step was taken undamped (P,).
        hidden: whether rounding hid what it gained in energy (P,); ``blind``: and it was not taken (P,).
    """

    row: Tensor
    here: Linearisation
    frame: Frame
    radius: Tensor
    damping: Tensor
    secant: Tensor
    rate: Tensor
    last: Tensor
    full: Tensor
    hidden: Tensor
    blind: Tensor


def relax(
    energy: CurveEnergy,
    nodes: Tensor,
    knots: Tensor,
    *,
    tol: float,
    max_steps: int,
    rate: Tensor | None = None,
    secant: Tensor | None = None,
    pair: Tensor | None = None,
    ends: Tensor | None = None,
) -> Relaxed:
    """Minimise the discrete energy over the inner nodes.

    Args:
        nodes: start curves (P, n+1, d).
        knots: their times (P, n+1).
        tol: residual at which a curve is done.
        max_steps: steps for each curve.
        rate, secant: of :class:`Relaxed`, from the same curves with fewer nodes.
        pair: whose curve each is (P,), where of several in one valley one is enough.
        ends: of :meth:`CurveEnergy.ends`, where that has been asked.
    """
    count, total, _ = nodes.shape
    h = knots.diff(dim=1)
    frame = energy.frame(nodes, h, ends)
    here = energy.linearise(nodes.clone(), frame)
    row = torch.arange(count, device=nodes.device)
    final = Relaxed(
        here.nodes.clone(),
        here.energy.clone(),
        torch.full_like(here.energy, float("inf")),
        torch.zeros_like(here.energy),
        None if here.image is None else here.image.take(row),
        torch.zeros_like(here.convex.diagonal),
        torch.full_like(row, CODES[Status.STEP_LIMIT]),
        torch.zeros_like(row),
        torch.full_like(row, total if ends is None else total - 2),
        torch.zeros_like(row, dtype=torch.bool),
    )
    couples = None if pair is None else couples_of(pair)
    radius = torch.full_like(here.energy, float("inf"))
    mass = node_masses(h)[:, :, None, None]
    secant = torch.zeros_like(here.convex.diagonal) if secant is None else secant * mass
    rate = torch.zeros_like(here.energy) if rate is None else rate.clone()
    none, never = torch.zeros_like(here.energy), torch.zeros_like(row, dtype=torch.bool)
    active = _Active(row, here, frame, radius, none, secant, rate, none.clone(), never, never.clone(), never.clone())
    broken = ~_finite(here)
    if bool(broken.any()):
        _leave(final, active, broken, Status.NOT_FINITE)
        active = active.take(~broken)
    for number in range(max_steps + 1):
        if len(active.row) == 0:
            break
        step, active.damping, active.radius = step_in_region(
            active.here, _model(active), _inertia(active), active.radius, active.damping
        )
        # what rounding hides in the energy shows in the gradient, until that is lost in rounding too
        falling = step.residual <= 0.7 * active.last
        lost = active.blind & ~falling
        _correct(active, step)
        if energy.embedding is None:
            step.residual = torch.where(step.bowl, step.residual, _NO_BOWL * step.residual)
        final.residual[active.row], final.rate[active.row] = step.residual, active.rate
        done = (step.residual <= tol) | (active.here.energy <= 0)
        done |= active.hidden & ~falling & (step.residual <= _NEAR * tol)
        if number < max_steps:
            done &= ~_escape(active, step, done & (active.here.energy > 0) & ~step.bowl, tol)
        stuck = ~done & ((active.radius < _SMALLEST) | lost)
        _leave(final, active, done, Status.CONVERGED)
        _leave(final, active, stuck, Status.STALLED)
        if number == max_steps:
            _leave(final, active, ~done & ~stuck, Status.STEP_LIMIT)
            break
        if bool((done | stuck).any()):
            active, step = active.take(~done & ~stuck), step.take(~done & ~stuck)
        if len(active.row):
            active = _advance(energy, active, step, final)
            if couples is not None and couples.numel():
                active = _single(active, final, couples)
    final.secant /= mass
    return final


def _correct(active: _Active, step: Step) -> None:
    """Correct the residual for a model that is stiffer than the energy, as Gauss-Newton's is along a soft direction.

    Where ``H = c E''`` full steps leave the share ``q = 1 - 1/c`` of the residual, and
    ``gᵀ E''⁻¹ g = gᵀ H⁻¹ g / (1 - q)``.
    """
    # a step that was damped or not taken tells nothing about the model
    known = active.full & (active.last > 0) & torch.isfinite(step.residual)
    seen = step.residual / active.last.clamp_min(1e-300)
    active.rate = torch.where(known, seen, active.rate).clamp(0.0, _SLOWEST)
    active.last = step.residual.clone()
    step.residual = step.residual / (1 - active.rate).sqrt()


def _escape(active: _Active, step: Step, still: Tensor, tol: float) -> Tensor:
    """Give those of the curves ``still`` (P,) that stand on a saddle a step off it, in place; mask of them (P,)."""
    freed = torch.zeros_like(still)
    if bool(still.any()):
        here = active.here
        ways = escapes(
            _model(active),
            _inertia(active),
            here.gradient,
            active.radius,
            tol**2 * here.energy,
            still.nonzero().flatten(),
        )
        step.move[ways.rows], step.predicted[ways.rows], step.size[ways.rows] = ways.move, ways.gain, ways.size
        # not a Newton step: its effect on the residual says nothing about the model
        active.damping[ways.rows] = UNDAMPED
        freed[ways.rows] = True
    return freed


def _advance(energy: CurveEnergy, active: _Active, step: Step, final: Relaxed) -> _Active:
    """Try the steps."""
    here = active.here
    moved = here.nodes.clone()
    moved[:, 1:-1] += step.move
    there = energy.linearise(moved, active.frame, here)
    final.steps[active.row] += 1
    final.evaluations[active.row] += moved.shape[1] - 2
    gain = here.energy - there.energy
    unsure = torch.zeros_like(gain, dtype=torch.bool)
    if here.grain is not None:
        # what rounding hides in the two energies shows in the slopes between them (Hager & Zhang 2005)
        unsure = step.predicted <= _HIDDEN * here.grain
        slopes = -((here.gradient + there.gradient) * step.move).sum((1, 2)) / 2
        gain = torch.where(unsure, slopes, gain)
    ratio = gain / step.predicted.clamp_min(1e-300)
    accept = _finite(there) & (ratio > _ENOUGH)
    active.hidden, active.blind = unsure, unsure & ~accept
    active.full = accept & (active.damping == 0)
    active.secant = _update_secant(active.secant, here, there, step.move, accept)
    # where the parabola through energy, slope and new energy has its minimum
    shrink = (step.predicted / (2 * (step.predicted - gain)).clamp_min(1e-300)).nan_to_num(nan=0.25).clamp(0.1, 0.5)
    active.radius = torch.where(
        (ratio > 0.7) | active.blind,
        torch.maximum(active.radius, 2.5 * step.size),
        torch.where(accept & (ratio > 0.25), active.radius, shrink * step.size),
    )
    if not bool(accept.all()):
        # most steps are taken, and copies of the few others cost less
        there.put(~accept, here)
    active.here = there
    return active


def _single(active: _Active, final: Relaxed, couples: Tensor) -> _Active:
    """The curves at work without those that have come near a shorter one of their pair."""
    final.nodes[active.row], final.energy[active.row] = active.here.nodes, active.here.energy
    alive = couples[:, ~final.doubled[couples].any(0)]
    final.doubled[doubles(final.nodes, final.energy, alive)] = True
    double = final.doubled[active.row]
    return active.take(~double) if bool(double.any()) else active


def _leave(final: Relaxed, active: _Active, which: Tensor, why: Status) -> None:
    """Write down what is known of the curves in the mask ``which`` (P,), which are done."""
    if not bool(which.any()):
        return
    here, some = active.here, which.nonzero().flatten()
    rows = active.row[some]
    final.nodes[rows], final.energy[rows] = here.nodes[some], here.energy[some]
    if final.image is not None and here.image is not None:
        final.image.put_rows(rows, here.image.take(some))
    final.secant[rows] = active.secant[some]
    final.status[rows] = CODES[why]


def _finite(state: Linearisation) -> Tensor:
    return torch.isfinite(state.energy) & torch.isfinite(state.gradient).flatten(1).all(1)


def _inertia(active: _Active) -> Tensor:
    """Blocks of the metric's L² norm of a step, relative to the curve's length; zero where there is none."""
    h, energy = active.frame.h, active.here.energy
    share = torch.where(energy > 0, 1 / energy, torch.zeros_like(energy))
    return active.here.convex.diagonal * (h[:, :-1] * h[:, 1:] * share[:, None])[..., None, None]


def _model(active: _Active) -> Model:
    """All that is known of the Hessian."""
    model = active.here.convex + active.here.rest
    model.diagonal += active.secant
    return model


def _update_secant(secant: Tensor, here: Linearisation, there: Linearisation, move: Tensor, accept: Tensor) -> Tensor:
    """Powell's symmetric update in the metric's scale, block by block, where the step was taken."""
    if there.pull is None or there.pull_before is None:
        return secant
    miss = 2 * (there.pull - there.pull_before) - (secant @ move[..., None])[..., 0]
    weighted = (there.convex.diagonal @ move[..., None])[..., 0]
    length = (weighted * move).sum(-1).clamp_min(1e-300)[..., None, None]
    outer = miss[..., :, None] * weighted[..., None, :]
    along = (miss * move).sum(-1)[..., None, None] * weighted[..., :, None] * weighted[..., None, :]
    updated = secant + (outer + outer.mT) / length - along / length**2
    usable = accept[:, None, None, None] & torch.isfinite(updated).flatten(2).all(-1)[..., None, None]
    return torch.where(usable, updated, secant)
