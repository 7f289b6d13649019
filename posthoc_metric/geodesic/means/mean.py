"""The Fréchet mean: the point with the least mean of squared geodesic distances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from ..._arrays import ArrayLike, Restore, describe, to_points, to_tensor
from ..._warn import warn_caller
from ...errors import ConvergenceWarning, InvalidArgumentError
from ...metric import Metric, check_metric
from ...outcome import advice, tally
from ..guard import guard
from ..options import check_integer, check_positive
from ..relaxation.matrix_free import matrix_free
from ..solve import geodesic
from ..status import Status
from .centre import MOST, SPANS, WORSE, Ended, Found, Task, descend
from .kinked import descend_across_kinks
from .together import descend_together

#: first and smallest radius in which steps are believed, over the spread of the points
_RADIUS, _SMALLEST = 0.1, 1e-8
#: how often to begin again from the least, and by what the radius is divided there
_RETURNS, _CLOSER = 3, 4


@dataclass(frozen=True, repr=False)
class FrechetMean:
    """A Fréchet mean and how it was found.  ``print(mean)`` says how well, and of how many geodesics.

    Attributes:
        point: (d,).
        distances: of the points to it (N,).
        variance: weighted mean of the squared distances, to which points that are not reached add nothing.
        gradient_norm: Riemannian norm of the mean logarithm, over the root of the variance; zero at a mean.
        gradient_error: by how much the gradient, measured like that, changed when the geodesics were last found anew at
            the same point: how well it is known.  Far below ``tol`` where the metric is smooth; at kinks, as under
            ReLU, other curves are as short and leave otherwise, and the mean is located no better than that.
        rough: whether curves with kinks make up most of the variance, so that ``rough_tol`` will do.
        steps: steps taken, Newton's or down the gradient; ten quasi-Newton steps count as one.
        status: of the geodesic from the mean to every point, N of them.
        converged: whether ``gradient_norm`` is within the tolerance, at kinks as far as ``gradient_error`` lets that be
            told if it is within the tolerance itself, and every geodesic converged.
    """

    point: Any
    distances: Any
    variance: float
    gradient_norm: float
    gradient_error: float
    rough: bool
    steps: int
    status: tuple[Status, ...]
    converged: bool

    def __repr__(self) -> str:
        known = f", known to {self.gradient_error:.2g} as curves have kinks" if self.rough else ""
        lines = [
            f"Fréchet mean of {len(self.status)} point{'' if len(self.status) == 1 else 's'}, d = {len(self.point)}: "
            f"{'converged' if self.converged else 'not converged'} after {self.steps} step"
            f"{'' if self.steps == 1 else 's'}; variance {self.variance:.4g}, gradient norm {self.gradient_norm:.2g}"
            f"{known}; {tally(self.status)}"
        ]
        return "\n".join(lines + advice(self.status, Status.CONVERGED))


def frechet_mean(
    metric: Metric,
    points: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    start: ArrayLike | None = None,
    tol: float = 1e-3,
    rough_tol: float = 3e-2,
    max_steps: int = 30,
    **options: Any,
) -> FrechetMean:
    """The point with the least weighted mean of squared geodesic distances to ``points`` (N, d).

    Newton's method in a trust region: discrete geodesics to all points are moved along with their common end, and give
    the gradient (the mean logarithm, Pennec 2006) and the second derivatives of the mean of their energies.  Where that
    is least, geodesics are looked for anew, with twice the nodes.  Beyond d = 8 with a decoder, quasi-Newton steps move
    the mean and all curves together instead.  Where the curves have kinks, as under ReLU, steps down the gradient find
    geodesics anew each time, and end when ``rough_tol`` is met or the variance falls no more.  In one dimension it is
    where the lengths from any of the points are on average.

    Args:
        weights: (N,) non-negative; equal if not given.
        start: (d,) a point near the mean; if not given, the average or the nearest of the points to it, whichever
            has the smaller variance.
        tol: ``gradient_norm`` at which it is found.
        rough_tol: the one that will do where most curves have kinks; the variance is then about ``rough_tol²`` of
            itself above the least, by default as little as lengths are known to there.  Give ``tol`` to forbid it.
        max_steps: steps at most, Newton's or down the gradient; ten quasi-Newton steps count as one.
        **options: of :func:`geodesic`.

    Raises:
        InvalidArgumentError: no points, weights that are negative, not finite or all zero, a start of another shape,
            or an option out of range.
        NumericalError, WorkerError: as :func:`geodesic`.
    """
    check_positive(tol, "tol")
    check_positive(rough_tol, "rough_tol")
    check_integer(max_steps, "max_steps", 0)
    rows, restore = to_points(points, "points", check_metric(metric).dim)
    if len(rows) == 0:
        raise InvalidArgumentError("`points` must hold at least one point; got none.")
    # geodesics are where the metric's latents are
    z = rows.to(rows.device if metric.support is None else metric.support.device).double()
    share = torch.ones_like(z[:, 0]) if weights is None else to_tensor(weights, "weights")[0].to(z)
    if share.shape != (len(z),) or not bool((share >= 0).all()) or not 0 < float(share.sum()) < float("inf"):
        raise InvalidArgumentError(
            f"`weights` must be {len(z)} non-negative, finite numbers, not all zero; got {describe(weights)}."
        )
    share = share / share.sum()
    near, counted = None if start is None else _start(start, z), z[share > 0]
    if bool((counted == counted[0]).all()):
        near = counted[0]  # wherever it is told to start: beside no variance no gradient is small
    if metric.dim == 1:
        return _on_a_line(metric, z, share, tol, max_steps, options, restore, rows.dtype, near)
    average = share @ z
    task = Task(metric, guard(metric.parts()), z, share, tol, max(tol, rough_tol), options)
    if near is None:
        # on a ring the average lies off the data, in many dimensions every point lies far from it
        begin = task.loosened().better(z[(z - average).norm(dim=1).argmin()], average)
    else:
        begin = task.loosened().found(near)
    # a start that is given may lie far from points that are close together
    spread = float((share @ (z - (average if near is None else near)).square().sum(1)).sqrt())
    ended = _descended(task, begin, max_steps, spread)
    here, norm = ended.found, ended.norm
    doubt = ended.error if here.kinked and ended.error <= task.rough_tol else 0.0
    met = norm - doubt <= (task.rough_tol if here.kinked else tol)
    status = here.solution.status
    return FrechetMean(
        restore(here.point.to(rows.dtype)),
        restore(here.solution.double_length.to(rows.dtype)),
        here.variance,
        norm,
        ended.error,
        here.kinked,
        ended.steps,
        status,
        met and all(one is Status.CONVERGED for one in status),
    )


def _descended(task: Task, begin: Found, most: int, spread: float) -> Ended:
    """To where the variance is least, in so many steps at most, of points that lie so far apart."""
    if begin.kinked or (begin := task.again(begin)).kinked:
        return descend_across_kinks(task, begin, most)
    if matrix_free(task.parts, len(begin.point)):
        return descend_together(task, begin, most)
    spans, number, radius, returns = SPANS, 0, _RADIUS * spread, 0
    place = task.at(begin, spans)
    least, error = place, inf
    while True:
        moved, steps, radius = descend(task, place, most - number, radius, _SMALLEST * spread)
        number, before = number + steps, spans
        spans = min(2 * spans, MOST)
        if steps == 0 and spans == before:
            break
        found = task.found(moved.point)
        if found.kinked:
            across = descend_across_kinks(task, found, most - number)
            return replace(across, steps=number + across.steps)
        place = task.at(found, spans)
        worse = found.variance > WORSE * least.found.variance
        if worse and number < most:
            # curves that were moved along have led where geodesics are longer than they said
            returns += 1
            if returns > _RETURNS:
                break
            radius = min(radius, float((place.point - least.point).norm())) / _CLOSER
            place, spans = least, before
            continue
        met = place.norm <= task.tol
        if met or not worse:
            least, error = place, task.norm(place.point, place.gradient - moved.gradient, place.energy)
        if met or number >= most:
            break
    return Ended(least.found, least.norm, error, number)


def _on_a_line(
    metric: Metric,
    z: Tensor,
    share: Tensor,
    tol: float,
    max_steps: int,
    options: dict[str, Any],
    restore: Restore,
    dtype: torch.dtype,
    near: Tensor | None,
) -> FrechetMean:
    """In one dimension, of points (N, 1): where lengths from any of them are on average, kinks or none."""
    if near is None:
        # what has no metric has no lengths either
        lies = torch.isfinite(guard(metric.parts()).tensor(z)).flatten(1).all(1) & (share > 0)
        near = z[(z - share @ z).norm(dim=1).masked_fill(~lies, inf).argmin()]
    here = near
    for number in range(max_steps + 1):
        solution = geodesic(metric, here.expand_as(z), z, **options)
        lengths = solution.double_length
        known = torch.isfinite(lengths)
        signed = torch.where(known, lengths, 0.0) * (z - here)[:, 0].sign()
        variance, ahead = float(share @ signed.square()), float(share @ signed)
        norm = abs(ahead) / variance**0.5 if variance > 0 else 0.0
        if norm <= tol or number == max_steps:
            break
        # an average of lengths lies on the longest curve that leads there: no step leaves where there is a metric
        most = (signed * (1 if ahead > 0 else -1)).argmax()
        part = abs(ahead) / float(share[known].sum()) / lengths[most]
        spline, clock = solution.curve[0].take(most[None]), solution.curve[1].take(most[None])
        here = spline.at(clock.at(part.view(1, 1)))[0][0, 0]
    sure = norm <= tol and all(status is Status.CONVERGED for status in solution.status)
    point, distances = restore(here.to(dtype)), restore(lengths.to(dtype))
    return FrechetMean(point, distances, variance, norm, 0.0, False, number, solution.status, sure)


def _start(start: ArrayLike, z: Tensor) -> Tensor:
    here = to_tensor(start, "start")[0].to(z)
    if here.shape != z.shape[1:] or not bool(torch.isfinite(here).all()):
        raise InvalidArgumentError(f"`start` must be a finite point ({z.shape[1]},); got {describe(start)}.")
    return here


def mean(metric: Metric, points: ArrayLike, **options: Any) -> Any:
    """Fréchet mean of ``points`` (N, d), a point (d,).  :func:`frechet_mean` takes the same options and gives facts.

    Warns:
        ConvergenceWarning: the mean was not reached to the tolerance.
    """
    found = frechet_mean(metric, points, **options)
    if not found.converged:
        warn_caller(
            f"`mean` stopped after {found.steps} steps with a gradient norm of {found.gradient_norm:.2g}, or with "
            "geodesics that did not converge; see frechet_mean().",
            ConvergenceWarning,
        )
    return found.point
