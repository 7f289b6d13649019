"""The Fréchet mean: the point with the least mean of squared geodesic distances."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, describe, to_points, to_tensor
from ..errors import ConvergenceWarning, InvalidArgumentError
from ..machine import working_memory
from ..metric import Metric, MetricParts
from .acceleration import solve_metric
from .curves import even
from .guard import guard
from .options import check_integer, check_positive
from .solution import Solution
from .solve import geodesic
from .star import Star, stars
from .status import Status

#: spans of the curves to a mean, at first and at most
_SPANS, _MOST = 32, 256
#: residual to which they are relaxed, over the norm of the gradient that will do
_STILL = 0.1
#: first and smallest radius in which steps are believed, over the spread of the points
_RADIUS, _SMALLEST = 0.1, 1e-8
#: shares of the decrease promised from which on a step is taken, and the next may be longer
_ENOUGH, _GOOD = 1e-2, 0.7


@dataclass(frozen=True)
class FrechetMean:
    """A Fréchet mean and how it was found.

    Attributes:
        point: (d,).
        distances: of the points to it (N,).
        variance: weighted mean of the squared distances.
        gradient_norm: Riemannian norm of the mean logarithm, over the root of the variance; zero at a mean.
        steps: Newton steps.
        status: of the geodesic from the mean to every point, N of them.
        converged: whether ``gradient_norm`` is within the tolerance and every geodesic converged.
    """

    point: Any
    distances: Any
    variance: float
    gradient_norm: float
    steps: int
    status: tuple[Status, ...]
    converged: bool


def frechet_mean(
    metric: Metric,
    points: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    tol: float = 1e-3,
    max_steps: int = 30,
    **options: Any,
) -> FrechetMean:
    """The point with the least weighted mean of squared geodesic distances to ``points`` (N, d).

    Newton's method in a trust region, from the nearest of the points to their average: discrete geodesics to all points
    are moved along with their common end, and give the gradient (the mean logarithm, Pennec 2006) and the second
    derivatives of the mean of their energies.  Where that is least, geodesics are looked for anew, with four
    times the nodes.

    Args:
        weights: (N,) non-negative; equal if not given.
        tol: ``gradient_norm`` at which it is found.
        max_steps: Newton steps.
        **options: of :func:`geodesic`.
    """
    check_positive(tol, "tol")
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
    task = _Task(metric, guard(metric.parts()), z, share, _STILL * tol, options)
    spans, number = _SPANS, 0
    place = task.at(z[(z - average).norm(dim=1).argmin()], spans)
    while True:
        point, steps = _descend(task, place, tol / 2, max_steps - number, spread)
        number, before, spans = number + steps, spans, min(4 * spans, _MOST)
        place = task.at(point, spans)
        if place.norm <= tol or number >= max_steps or (steps == 0 and spans == before):
            break
    cast, lengths = rows.dtype, place.solution.double_length
    return FrechetMean(
        restore(place.point.to(cast)),
        restore(lengths.to(cast)),
        float(share @ lengths.nan_to_num(nan=0.0).square()),
        place.norm,
        number,
        place.solution.status,
        place.norm <= tol and all(s is Status.CONVERGED for s in place.solution.status),
    )


@dataclass(frozen=True)
class _Place:
    """A point, the geodesics from it, and the curves of those that have a length, with the weights of their ends.

    Attributes:
        energy: weighted mean of the curves' energies.
        gradient, bend: its first and second derivatives by the point (d,), (d, d).
        norm: of half that gradient, over the root of the energy.
    """

    point: Tensor
    solution: Solution
    curves: Star
    weights: Tensor
    energy: float
    gradient: Tensor
    bend: Tensor
    norm: float


@dataclass(frozen=True)
class _Task:
    """What stays the same while the point moves; ``still`` is the residual to which curves are relaxed."""

    metric: Metric
    parts: MetricParts
    points: Tensor
    share: Tensor
    still: float
    options: dict[str, Any]

    def at(self, here: Tensor, spans: int) -> _Place:
        """With the shortest curves that can be found."""
        solution = geodesic(self.metric, here.expand_as(self.points), self.points, **self.options)
        rows = torch.isfinite(solution.double_length).nonzero().flatten()
        spline, clock = solution.curve[0].take(rows), solution.curve[1].take(rows)
        nodes, _ = spline.at(clock.at(even(spline.nodes, spans)))
        return self._place(here, solution, nodes, self.share[rows], None)

    def beside(self, place: _Place, step: Tensor) -> _Place:
        """With the curves of another place moved along."""
        curves = place.curves
        return self._place(place.point + step, place.solution, curves.moved(step), place.weights, curves)

    def _place(self, here: Tensor, solution: Solution, nodes: Tensor, weights: Tensor, before: Star | None) -> _Place:
        limit = self.options.get("memory_limit", working_memory())
        curves = stars(self.parts, nodes, self.still, limit, before)
        energy, gradient = float(weights @ curves.energy), weights @ curves.gradient
        force = float(gradient @ solve_metric(self.parts.tensor(here[None]), gradient[None])[0])
        norm = (max(force, 0.0) / energy) ** 0.5 / 2 if energy > 0 else 0.0
        bend = torch.einsum("p,pij->ij", weights, curves.bend)
        return _Place(here, solution, curves, weights, energy, gradient, bend, norm)


def _descend(task: _Task, place: _Place, tol: float, most: int, spread: float) -> tuple[Tensor, int]:
    """Where the mean energy of a place's curves is least, and after how many steps."""
    radius = _RADIUS * spread
    for number in range(most):
        if place.norm <= tol or radius < _SMALLEST * spread or not bool(torch.isfinite(place.bend).all()):
            return place.point, number
        step = _step(place.bend, place.gradient, radius)
        promised = float(-(place.gradient @ step) - step @ place.bend @ step / 2)
        there = task.beside(place, step)
        gain, length = place.energy - there.energy, float(step.norm())
        if gain > _GOOD * promised:
            radius = max(radius, 2 * length)
        if gain > _ENOUGH * promised and bool(torch.isfinite(there.bend).all()):
            place = there
        else:
            radius = length / 4
    return place.point, most


def _step(bend: Tensor, gradient: Tensor, radius: float) -> Tensor:
    """The minimiser of the quadratic model in the ball of so large a ``radius`` (Moré & Sorensen 1983)."""
    values, vectors = torch.linalg.eigh(bend)
    along = vectors.mT @ gradient

    def step(damping: float) -> Tensor:
        return -vectors @ (along / (values + damping))

    least = max(0.0, -float(values[0]))
    low, high = least, least + float(gradient.norm()) / radius
    if least == 0.0 and float(step(0.0).norm()) <= radius:
        return step(0.0)
    for _ in range(60):
        damping = (low + high) / 2
        low, high = (damping, high) if float(step(damping).norm()) > radius else (low, damping)
    return step(high)


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
