"""The centre of a star of geodesics, on its way to where the mean of their energies is least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...machine import working_memory
from ...metric import Metric, MetricParts
from ..acceleration import solve_metric
from ..curves.placement import even
from ..solution import Solution
from ..solve import geodesic
from .star import Star, stars

#: residual to which curves are relaxed, over the norm of the gradient that will do
_STILL = 0.1
#: share of its second derivative by which the mean energy of curves with kinks bends, at least
_SOFTEST = 0.1
#: how many times as far as before a mean of curves with kinks may move at once
FARTHER = 4
#: share of the variance whose curves have kinks from which on the mean's gradient is as good as theirs
_KINKED = 0.5
#: shares of the decrease promised from which on a step is taken, and the next may be longer
_ENOUGH, _GOOD = 1e-2, 0.7


@dataclass(frozen=True)
class Place:
    """A point, the geodesics from it, and the curves of those that have a length, with the weights of their ends.

    Attributes:
        energy: weighted mean of the curves' energies.
        gradient, bend: its first and second derivatives by the point (d,), (d, d).
        norm: of half that gradient, over the root of the energy.
        variance: weighted mean of the squared lengths of the geodesics.
        rough: whether most of that is of geodesics with kinks.
        tol: norm that will do.
    """

    point: Tensor
    solution: Solution
    curves: Star
    weights: Tensor
    energy: float
    gradient: Tensor
    bend: Tensor
    norm: float
    variance: float
    rough: bool
    tol: float

    def betters(self, other: Place) -> bool:
        """Whether the variance is less than at another place by more than the norm that will do stands for."""
        return self.variance < other.variance * (1 - self.tol**2)


@dataclass(frozen=True)
class Found:
    """A point, the geodesics from it, how many of them there are not, and what the others' squared lengths come to."""

    point: Tensor
    solution: Solution
    lost: int
    variance: float


@dataclass(frozen=True)
class Task:
    """What stays the same while the point moves; the tolerances are those of smooth curves and of curves with kinks."""

    metric: Metric
    parts: MetricParts
    points: Tensor
    share: Tensor
    tol: float
    rough_tol: float
    options: dict[str, Any]

    def found(self, here: Tensor) -> Found:
        """With the shortest curves that can be found."""
        solution = geodesic(self.metric, here.expand_as(self.points), self.points, **self.options)
        squares = self.share * solution.double_length.square()
        return Found(here, solution, int(squares.isnan().sum()), float(squares.nansum()))

    def better(self, one: Tensor, other: Tensor) -> Found:
        """The one of two points with the smaller variance, or from which more can be reached."""
        both = [self.found(point) for point in (one, other)[: 1 if torch.equal(one, other) else 2]]
        return min(both, key=lambda found: (found.lost, found.variance))

    def at(self, found: Found, spans: int) -> Place:
        """With so many spans of curves that were found."""
        here, solution = found.point, found.solution
        rows = torch.isfinite(solution.double_length).nonzero().flatten()
        spline, clock = solution.curve[0].take(rows), solution.curve[1].take(rows)
        nodes, _ = spline.at(clock.at(even(spline.nodes, spans)))
        return self._place(here, solution, nodes, self.share[rows], None)

    def beside(self, place: Place, step: Tensor) -> Place:
        """With the curves of another place moved along."""
        curves = place.curves
        return self._place(place.point + step, place.solution, curves.moved(step), place.weights, curves)

    def _place(self, here: Tensor, solution: Solution, nodes: Tensor, weights: Tensor, before: Star | None) -> Place:
        squares = self.share * solution.double_length.nan_to_num(nan=0.0).square()
        variance = float(squares.sum())
        rough = float(squares[solution.rough].sum()) > _KINKED * variance
        tol = self.rough_tol if rough else self.tol
        limit = self.options.get("memory_limit", working_memory())
        curves = stars(self.parts, nodes, _STILL * tol, limit, before)
        energy, gradient = float(weights @ curves.energy), weights @ curves.gradient
        bend = torch.einsum("p,pij->ij", weights, curves.bend)
        norm = self.norm(here, gradient, energy)
        return Place(here, solution, curves, weights, energy, gradient, bend, norm, variance, rough, tol)

    def norm(self, here: Tensor, gradient: Tensor, energy: float) -> float:
        """Of half a ``gradient`` (d,) at a point, over the root of the energy."""
        force = float(gradient @ solve_metric(self.parts.tensor(here[None]), gradient[None])[0])
        return (max(force, 0.0) / energy) ** 0.5 / 2 if energy > 0 else 0.0


def softness_between(before: Place, after: Place) -> float:
    """Share of its second derivative by which the energy of curves with kinks has bent on the way between two places.

    What such curves give way by shows in no derivative, and steps by these alone are too short.
    """
    step = after.point - before.point
    bent, seen = float(step @ before.bend @ step), float(step @ (after.gradient - before.gradient))
    return min(max(seen / bent, _SOFTEST), 1.0) if bent > 0 else 1.0


def descend(
    task: Task, place: Place, most: int, radius: float, smallest: float, softness: float
) -> tuple[Place, int, float]:
    """Where the mean energy of a place's curves is least, after how many steps, and the radius of the next."""
    for number in range(most):
        if place.norm <= place.tol / 2 or radius < smallest or not bool(torch.isfinite(place.bend).all()):
            return place, number, radius
        bend = softness * place.bend
        step = _step(bend, place.gradient, radius)
        promised = float(-(place.gradient @ step) - step @ bend @ step / 2)
        there = task.beside(place, step)
        gain, length = place.energy - there.energy, float(step.norm())
        if gain > _GOOD * promised:
            # a model that is believed too far costs most where curves have kinks to be torn from
            radius = min(max(radius, 2 * length), FARTHER * length) if place.rough else max(radius, 2 * length)
        if gain > _ENOUGH * promised and bool(torch.isfinite(there.bend).all()):
            softness = softness_between(place, there) if place.rough else 1.0
            place = there
        else:
            radius = length / 4
    return place, most, radius


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
