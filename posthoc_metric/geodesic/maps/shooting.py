"""The exponential map: the geodesic equation integrated with error control, every item at its own step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._arrays import ArrayLike, describe, to_points
from ...errors import InvalidArgumentError
from ...metric import Metric, MetricParts, check_metric
from ..acceleration import Acceleration
from ..curves.batch import Batch
from ..guard import guard
from ..options import check_integer, check_positive
from ..refinement.precision import finer
from ..status import Status, warn
from .kinks import ENOUGH, ROUGH, has_kinks, shoot_across

# Dormand & Prince (1980), 5(4): stage times, stage weights, and fifth order less fourth order
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_DIFFERENCE = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

#: longest step: where a metric is flat the errors of two orders agree on any, and it would leap over a ridge beyond
_LONGEST = 1 / 32
#: relative drift of the speed from which on a curve is no geodesic
_DRIFT = 1e-2


@dataclass(frozen=True)
class Shot:
    """Where geodesics of given initial velocities are at time one.

    Attributes:
        points: (B, d); NaN where the integration did not arrive.
        velocities: (B, d) there.
        speed_drift: ``|speed at the end / speed at the start - 1|`` (B,), zero for an exact geodesic.
        steps: accepted and rejected steps (B,).
        status: B of them; ``UNRESOLVED`` where the speed drifted by more than 1e-2, or across kinks smaller steps still
            change the end by more than 1e-3 of the way run.
        converged: arrived within the tolerance (B,), bool.
    """

    points: Any
    velocities: Any
    speed_drift: Any
    steps: Any
    status: tuple[Status, ...]
    converged: Any


@dataclass
class _State(Batch):
    """Geodesics under way (P): which, time, next step, position, velocity and acceleration."""

    row: Tensor
    time: Tensor
    step: Tensor
    z: Tensor
    v: Tensor
    a: Tensor


def shoot(metric: Metric, z: ArrayLike, v: ArrayLike, *, rtol: float = 1e-8, max_steps: int = 5000) -> Shot:
    """Integrate the geodesics that leave ``z`` with velocities ``v`` for unit time.

    Where the straight way leads across kinks of a decoder, as under ReLU, a geodesic is refracted at each of them, by
    rules in :mod:`~.kinks`; steps of equal size are doubled until the end changes by no more
    than 1e-4 of the way run.  Elsewhere no step is longer than 1/32 of the time; a ridge that fits between the points
    that such steps ask, some 1/64 of the way apart, may be missed.

    Args:
        metric: any metric.
        z: points (B, d).
        v: latent velocities (B, d); their Riemannian norm is the length that is run.
        rtol: local error of a step, relative to the velocity there; with a decoder in single precision no
            less than 1e-6, to which its second derivatives are known; across kinks see above.
        max_steps: steps for each item.

    Returns:
        A :class:`Shot` in the kind and dtype of ``z``.

    Raises:
        InvalidArgumentError: no metric, wrong width, rows that are not finite, different numbers of rows, an option out
            of range.
    """
    points, restore = to_points(z, "z", check_metric(metric).dim)
    vectors, _ = to_points(v, "v", metric.dim)
    if len(points) != len(vectors):
        raise InvalidArgumentError(
            f"`v` must hold one velocity for each of {len(points)} rows of `z`; got {describe(v)}."
        )
    check_positive(rtol, "rtol")
    check_integer(max_steps, "max_steps", 1)
    with torch.no_grad():
        end, velocity, drift, steps, codes = integrate(
            metric, points.double(), vectors.to(points.device).double(), rtol, max_steps
        )
    status = tuple(codes)
    converged = torch.tensor([code is Status.CONVERGED for code in codes], dtype=torch.bool, device=end.device)
    cast = points.dtype
    return Shot(
        restore(end.to(cast)),
        restore(velocity.to(cast)),
        restore(drift.to(cast)),
        restore(steps),
        status,
        restore(converged),
    )


def exp(metric: Metric, z: ArrayLike, v: ArrayLike, *, rtol: float = 1e-8, max_steps: int = 5000) -> Any:
    """Exponential map: where the geodesics from ``z`` (B, d) with velocities ``v`` (B, d) are at time one, (B, d).

    :func:`shoot` gives the velocities there, the drift of the conserved speed, the steps and a status as well.

    Raises:
        InvalidArgumentError: as :func:`shoot`.

    Warns:
        ConvergenceWarning: rows that did not arrive, which are NaN, or are not to be trusted.
    """
    shot = shoot(metric, z, v, rtol=rtol, max_steps=max_steps)
    warn("exp", shot.status, "are NaN or may be wrong; see shoot() for each row's status")
    return shot.points


def integrate(
    metric: Metric, z: Tensor, v: Tensor, rtol: float, max_steps: int, across: float = ENOUGH
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Status]]:
    """:func:`shoot` on float64 tensors; ``across`` is the tolerance across kinks."""
    parts = guard(metric.parts())
    kinked = has_kinks(parts, z, v)
    if not bool(kinked.any()):
        return _integrated(parts, z, v, rtol, max_steps)
    rows = [(~kinked).nonzero().flatten(), kinked.nonzero().flatten()]
    smooth, rough = ((z[some], v[some]) for some in rows)
    # across kinks by differences of values, which single precision would blur
    precise = finer(metric.parts()) or parts
    found = _integrated(parts, *smooth, rtol, max_steps), _across(precise, *rough, max(rtol, across))
    order = torch.cat(rows).argsort()
    end, velocity, drift, steps = (torch.cat(pair)[order] for pair in zip(*(part[:4] for part in found), strict=True))
    status = found[0][4] + found[1][4]
    return end, velocity, drift, steps, [status[row] for row in order.tolist()]


def _across(
    parts: MetricParts, z: Tensor, v: Tensor, tol: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Status]]:
    end, velocity, error, steps = shoot_across(parts, z, v, tol)
    drift, status = _drift(parts, z, v, end, velocity), []
    for row, off in enumerate(error.tolist()):
        sure = off <= ROUGH and float(drift[row]) <= _DRIFT
        status.append(Status.NOT_FINITE if off != off else Status.CONVERGED if sure else Status.UNRESOLVED)
    return end, velocity, drift, steps, status


def _integrated(
    parts: MetricParts, z: Tensor, v: Tensor, rtol: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Status]]:
    count = len(z)
    acceleration = Acceleration(parts, torch.cat([z, z + v]))
    rtol = max(rtol, acceleration.attainable)
    first, _ = acceleration(z, v)
    end, velocity = torch.full_like(z, float("nan")), torch.full_like(v, float("nan"))
    steps = torch.zeros(count, dtype=torch.long, device=z.device)
    status = [Status.STEP_LIMIT] * count
    speed = v.norm(dim=1)
    # a tenth of the time in which the acceleration would turn the velocity round
    guess = 0.1 * speed / first.norm(dim=1).clamp_min(1e-300)
    state = _State(torch.arange(count, device=z.device), torch.zeros_like(speed), guess.clamp(1e-6, 0.2), z, v, first)
    lost = ~torch.isfinite(first).all(1)
    for row in lost.nonzero().flatten().tolist():
        status[row] = Status.NOT_FINITE
    state = state.take(~lost)
    for _ in range(max_steps):
        if len(state.row) == 0:
            break
        state.step = torch.minimum(state.step.clamp_max(_LONGEST), 1 - state.time)
        new_z, new_v, new_a, error = _dormand_prince(acceleration, state)
        steps[state.row] += 1
        # coordinates may shrink or grow by orders of magnitude on the way, and velocities with them
        size = state.v.norm(dim=1)
        ratio = (error / (rtol * size.clamp_min(1e-300))).nan_to_num(nan=1e12, posinf=1e12)
        ratio = torch.where(size > 0, ratio, torch.zeros_like(ratio))
        accept = ratio <= 1
        keep = accept[:, None]
        state.z, state.v = torch.where(keep, new_z, state.z), torch.where(keep, new_v, state.v)
        state.a = torch.where(keep, new_a, state.a)
        state.time = torch.where(accept, state.time + state.step, state.time)
        arrived = accept & (1 - state.time <= 1e-14)
        state.step = state.step * (0.9 * ratio.clamp_min(1e-10).pow(-0.2)).clamp(0.2, 5.0)
        stuck = ~arrived & (state.step < 1e-13)
        for mask, why in ((arrived, Status.CONVERGED), (stuck, Status.NOT_FINITE)):
            for row in state.row[mask].tolist():
                status[row] = why
        end[state.row[arrived]], velocity[state.row[arrived]] = state.z[arrived], state.v[arrived]
        if bool((arrived | stuck).any()):
            state = state.take(~(arrived | stuck))
    drift = _drift(parts, z, v, end, velocity)
    for row in (drift > _DRIFT).nonzero().flatten().tolist():
        status[row] = Status.UNRESOLVED
    return end, velocity, drift, steps, status


def _drift(parts: MetricParts, z: Tensor, v: Tensor, end: Tensor, velocity: Tensor) -> Tensor:
    """Of the speeds at the ends, where there is one, from those at the starts (P,)."""
    drift = torch.full_like(end[:, 0], float("nan"))
    good = (torch.isfinite(end).all(1) & torch.isfinite(velocity).all(1)).nonzero().flatten()
    if len(good):
        first, last = parts.inner(z[good], v[good], v[good]), parts.inner(end[good], velocity[good], velocity[good])
        drift[good] = ((last / first).sqrt() - 1).abs().masked_fill(first == 0, 0.0)
    return drift


def _dormand_prince(acceleration: Acceleration, state: _State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h = state.step[:, None]
    velocities, accelerations = [state.v], [state.a]
    for weights in _STAGES:
        z, v = state.z, state.v
        for weight, dz, dv in zip(weights, velocities, accelerations, strict=True):
            z, v = z + h * weight * dz, v + h * weight * dv
        # a stage may leave the region where there is a metric; the step is then rejected, not raised
        inside = torch.isfinite(z).all(1) & torch.isfinite(v).all(1)
        a, _ = acceleration(torch.where(inside[:, None], z, state.z), torch.where(inside[:, None], v, state.v))
        accelerations.append(torch.where(inside[:, None], a, float("nan")))
        velocities.append(v)
    wrong_z = h * sum(weight * dz for weight, dz in zip(_DIFFERENCE, velocities, strict=True))
    wrong_v = h * sum(weight * dv for weight, dv in zip(_DIFFERENCE, accelerations, strict=True))
    error = torch.maximum(wrong_z.norm(dim=1), wrong_v.norm(dim=1))
    return z, v, accelerations[-1], error
