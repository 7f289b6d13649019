"""The Fréchet mean: the point with the least mean of squared geodesic distances."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, describe, to_points, to_tensor
from ..errors import ConvergenceWarning, InvalidArgumentError
from ..metric import Metric
from ..outcome import advice, tally
from .centre import FARTHER, Task, descend, softness_between
from .guard import guard
from .options import check_integer, check_positive
from .status import Status

#: spans of the curves to a mean, at first and at most
_SPANS, _MOST = 32, 256
#: and at most where they have kinks: what lies between nodes there, more of these hardly tell
_MOST_ROUGH = 128
#: first and smallest radius in which steps are believed, over the spread of the points
_RADIUS, _SMALLEST = 0.1, 1e-8


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
        converged: whether ``gradient_norm`` is within the tolerance and every geodesic converged.
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
    rough_tol: float = 1e-2,
    max_steps: int = 30,
    **options: Any,
) -> FrechetMean:
    """The point with the least weighted mean of squared geodesic distances to ``points`` (N, d).

    Newton's method in a trust region: discrete geodesics to all points are moved along with their common end, and give
    the gradient (the mean logarithm, Pennec 2006) and the second derivatives of the mean of their energies.  Where that
    is least, geodesics are looked for anew, with four times the nodes.  Where the curves have kinks, as under ReLU,
    this ends when ``rough_tol`` is met or geodesics found anew no longer bring a smaller variance; what is returned is
    then the best point at which they were.

    Args:
        weights: (N,) non-negative; equal if not given.
        start: (d,) a point near the mean; if not given, the nearest of the points to their average.
        tol: ``gradient_norm`` at which it is found.
        rough_tol: the one that will do where most curves have kinks; the variance is then about ``rough_tol²`` of
            itself above the least.  Give ``tol`` to forbid it.
        max_steps: Newton steps.
        **options: of :func:`geodesic`.
    """
    check_positive(tol, "tol")
    check_positive(rough_tol, "rough_tol")
    check_integer(max_steps, "max_steps", 0)
    rows, restore = to_points(points, "points", metric.dim)
    if len(rows) == 0:
        raise InvalidArgumentError("`points` must hold at least one point; got none.")
    z = rows.double()
    share = torch.ones_like(z[:, 0]) if weights is None else to_tensor(weights, "weights")[0].to(z)
    if share.shape != (len(z),) or not bool((share >= 0).all()) or not float(share.sum()) > 0:
        raise InvalidArgumentError(
            f"`weights` must be {len(z)} non-negative numbers, not all zero; got {describe(weights)}."
        )
    share = share / share.sum()
    average = share @ z
    spread = float((share @ (z - average).square().sum(1)).sqrt())
    task = Task(metric, guard(metric.parts()), z, share, tol, max(tol, rough_tol), options)
    spans, number, radius, softness = _SPANS, 0, _RADIUS * spread, 1.0
    place = task.at(z[(z - average).norm(dim=1).argmin()] if start is None else _start(start, z), spans)
    least, error = place, float("inf")
    while True:
        last = place
        moved, steps, radius = descend(task, last, max_steps - number, radius, _SMALLEST * spread, softness)
        number, before, spans = number + steps, spans, min(4 * spans, _MOST_ROUGH if last.rough else _MOST)
        if steps == 0 and spans == before:
            break
        place = task.at(moved.point, spans)
        change = task.norm(place.point, place.gradient - moved.gradient, place.energy)
        settled = place.rough and not place.betters(least)
        if not place.rough or place.norm <= place.tol or place.variance <= least.variance:
            least, error = place, change
        if place.norm <= place.tol or number >= max_steps or settled:
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
        place.norm <= place.tol and all(s is Status.CONVERGED for s in place.solution.status),
    )


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
