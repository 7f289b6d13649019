"""The Fréchet mean: the point with the least mean of squared geodesic distances."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._arrays import ArrayLike, Restore, describe, to_points, to_tensor
from ...errors import ConvergenceWarning, InvalidArgumentError
from ...metric import Metric
from ...outcome import advice, tally
from ..guard import guard
from ..options import check_integer, check_positive
from ..solve import geodesic
from ..status import Status
from .centre import FARTHER, Place, Task, descend, softness_between

#: spans of the curves to a mean, at first and at most
_SPANS, _MOST = 32, 256
#: and at most where they have kinks: what lies between nodes there, more of these hardly tell
_MOST_ROUGH = 128
#: first and smallest radius in which steps are believed, over the spread of the points
_RADIUS, _SMALLEST = 0.1, 1e-8
#: variance of a smooth mean, over the least seen, that is too large to go on from
_WORSE = 1.01
#: how often to begin again from the least
_RETURNS = 3


@dataclass(frozen=True, repr=False)
class FrechetMean:
    """A Fréchet mean and how it was found.  ``print(mean)`` says how well, and of how many geodesics.

    Attributes:
        point: (d,).
        distances: of the points to it (N,).
        variance: weighted mean of the squared distances.
        gradient_norm: Riemannian norm of the mean logarithm, over the root of the variance; zero at a mean.
        gradient_error: by how much the gradient, measured like that, changed when the geodesics were last found anew at
            the same point: how well it is known.  Far below ``tol`` where the metric is smooth; at kinks, as under
            ReLU, other curves are as short and leave otherwise, and the mean is located no better than that.
        rough: whether curves with kinks make up most of the variance, so that ``rough_tol`` will do.
        steps: Newton steps.
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
    is least, geodesics are looked for anew, with two or four times the nodes.  Where the curves have kinks, as under
    ReLU, this ends when ``rough_tol`` is met or geodesics found anew no longer bring a smaller variance; what is
    returned is then the best point at which they were.  In one dimension it is where the lengths from any of them are
    on average.

    Args:
        weights: (N,) non-negative; equal if not given.
        start: (d,) a point near the mean; if not given, the average or the nearest of the points to it, whichever
            has the smaller variance.
        tol: ``gradient_norm`` at which it is found.
        rough_tol: the one that will do where most curves have kinks; the variance is then about ``rough_tol²`` of
            itself above the least, by default as little as lengths are known to there.  Give ``tol`` to forbid it.
        max_steps: Newton steps.
        **options: of :func:`geodesic`.

    Raises:
        InvalidArgumentError: no points, weights that are negative, not finite or all zero, a start of another shape,
            or an option out of range.
        NumericalError, WorkerError: as :func:`geodesic`.
    """
    check_positive(tol, "tol")
    check_positive(rough_tol, "rough_tol")
    check_integer(max_steps, "max_steps", 0)
    rows, restore = to_points(points, "points", metric.dim)
    if len(rows) == 0:
        raise InvalidArgumentError("`points` must hold at least one point; got none.")
    z = rows.double()
    share = torch.ones_like(z[:, 0]) if weights is None else to_tensor(weights, "weights")[0].to(z)
    if share.shape != (len(z),) or not bool((share >= 0).all()) or not 0 < float(share.sum()) < float("inf"):
        raise InvalidArgumentError(
            f"`weights` must be {len(z)} non-negative, finite numbers, not all zero; got {describe(weights)}."
        )
    share = share / share.sum()
    if metric.dim == 1:
        return _on_a_line(metric, z, share, tol, max_steps, options, restore, rows.dtype, start)
    average = share @ z
    spread = float((share @ (z - average).square().sum(1)).sqrt())
    task = Task(metric, guard(metric.parts()), z, share, tol, max(tol, rough_tol), options)
    spans, number, radius, softness = _SPANS, 0, _RADIUS * spread, 1.0
    if start is None:
        # on a ring the average lies off the data, in many dimensions every point lies far from it
        begin = task.better(z[(z - average).norm(dim=1).argmin()], average)
    else:
        begin = task.found(_start(start, z))
    place = task.at(begin, spans)
    least, error, returns = place, float("inf"), 0
    while True:
        last = place
        moved, steps, radius = descend(task, last, max_steps - number, radius, _SMALLEST * spread, softness)
        number, before = number + steps, spans
        spans = min(4 * spans, _MOST_ROUGH) if last.rough else min(2 * spans, _MOST)
        if steps == 0 and spans == before:
            break
        place = task.at(task.found(moved.point), spans)
        if not place.rough and place.variance > _WORSE * least.variance and number < max_steps:
            # curves that were moved along have led where geodesics are longer than they said
            returns += 1
            if returns > _RETURNS:
                break
            radius = min(radius, float((place.point - least.point).norm())) / FARTHER
            place, spans = least, before
            continue
        change = task.norm(place.point, place.gradient - moved.gradient, place.energy)
        # what fewer nodes have told is no reason to end
        settled = place.rough and spans == before and not place.betters(least)
        found = _found(place, change)
        if found or place.variance <= (1.0 if place.rough else _WORSE) * least.variance:
            least, error = place, change
        if found or number >= max_steps or settled:
            break
        if place.rough:
            # curves moved along are held by the kinks they run through, and stop where those found anew would not
            softness = softness_between(last, place)
            radius = min(radius, max(FARTHER * float((place.point - last.point).norm()), _SMALLEST * spread))
    place = least
    cast, lengths = rows.dtype, place.solution.double_length
    return FrechetMean(
        restore(place.point.to(cast)),
        restore(lengths.to(cast)),
        place.variance,
        place.norm,
        error,
        place.rough,
        number,
        place.solution.status,
        _found(place, error) and all(s is Status.CONVERGED for s in place.solution.status),
    )


def _found(place: Place, error: float) -> bool:
    """Whether the gradient that will do is met, as far as can be told of one known to ``error``."""
    doubt = error if place.rough and error <= place.tol else 0.0
    return place.norm - doubt <= place.tol


def _on_a_line(
    metric: Metric,
    z: Tensor,
    share: Tensor,
    tol: float,
    max_steps: int,
    options: dict[str, Any],
    restore: Restore,
    dtype: torch.dtype,
    start: ArrayLike | None,
) -> FrechetMean:
    """In one dimension, of points (N, 1): where lengths from the first of them are on average, kinks or none."""
    if start is None:
        first, last = z.amin(0, keepdim=True), z.amax(0, keepdim=True)
        run = geodesic(metric, first.expand_as(z), z, **options).double_length
        whole = geodesic(metric, first, last, **options)
        part = share @ run / whole.double_length.clamp_min(1e-300)
        spline, clock = whole.curve
        here = spline.at(clock.at(part.nan_to_num(nan=0.5).clamp(0, 1)[:, None]))[0][0, 0]
    else:
        here = _start(start, z)
    for number in range(max_steps + 1):
        solution = geodesic(metric, here.expand_as(z), z, **options)
        lengths = solution.double_length
        known = torch.isfinite(lengths)
        signed = torch.where(known, lengths, 0.0) * (z - here)[:, 0].sign()
        variance, ahead = float(share @ signed.square()), float(share @ signed)
        norm = abs(ahead) / variance**0.5 if variance > 0 else 0.0
        if norm <= tol or number == max_steps:
            break
        speed = float(metric.parts().tensor(here[None])[0, 0, 0]) ** 0.5
        if not speed > 0:
            break
        here = here + ahead / speed
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
        warnings.warn(
            f"`mean` stopped after {found.steps} steps with a gradient norm of {found.gradient_norm:.2g}, or with "
            "geodesics that did not converge; see frechet_mean().",
            ConvergenceWarning,
            stacklevel=2,
        )
    return found.point
