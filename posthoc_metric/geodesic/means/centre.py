"""The centre of a star of geodesics, on its way to where the mean of their energies is least."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...machine import working_memory
from ...metric import Metric, MetricParts
from ..acceleration import solve_metric
from ..curves.placement import even
from ..options import RelaxationOptions, solver_options
from ..solution import Solution
from ..solve import geodesic
from .star import Star, stars

#: spans of the curves to a mean, at first and at most
SPANS, MOST = 16, 256
#: variance of a mean, over the least seen, that is too large to go on from
WORSE = 1.01
#: residual to which curves are relaxed, over the norm of the gradient that will do
_STILL = 0.1
#: relative error of lengths that say where to look
_LOOSE = 1e-2
#: share of the variance whose curves have kinks from which on the mean is looked for as theirs are
_KINKED = 0.5
#: least second derivative, over the largest, below which a point where the gradient vanishes is a saddle or a summit:
#: differences know them to some thousandths
SADDLE = -0.01
#: shares of the decrease promised from which on a step is taken, and the next may be longer
_ENOUGH, _GOOD = 1e-2, 0.7


@dataclass(frozen=True)
class Found:
    """A point, the geodesics from it, how many of them there are not, and what the others' squared lengths come to.

    Attributes:
        kinked: whether most of that is of geodesics with kinks.
        options: that they were found with.
    """

    point: Tensor
    solution: Solution
    lost: int
    variance: float
    kinked: bool
    options: dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A point, and curves from it to those ends that have a geodesic, with the weights of these.

    Attributes:
        found: the geodesics that the curves come from, from this point or one nearby.
        energy: weighted mean of the curves' energies.
        gradient, bend: its first and second derivatives by the point (d,), (d, d).
        norm: of half that gradient, over the root of the energy.
    """

    point: Tensor
    found: Found
    curves: Star
    weights: Tensor
    energy: float
    gradient: Tensor
    bend: Tensor
    norm: float


@dataclass(frozen=True)
class Ended:
    """Where a descent has ended.

    Attributes:
        norm: of half the variance's gradient there, over its root.
        error: how far that gradient lay, measured like it, from the one before geodesics were last found anew there.
        steps: steps taken or tried.
    """

    found: Found
    norm: float
    error: float
    steps: int


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

    @property
    def memory_limit(self) -> int:
        """Bytes that curves may take at once."""
        limit: int = self.options.get("memory_limit", working_memory())
        return limit

    def found(self, here: Tensor) -> Found:
        """With the shortest curves that can be found."""
        solution = geodesic(self.metric, here.expand_as(self.points), self.points, **self.options)
        squares = self.share * solution.double_length.square()
        variance = float(squares.nansum())
        kinked = float(squares[solution.rough].nansum()) > _KINKED * variance
        return Found(here, solution, int(squares.isnan().sum()), variance, kinked, self.options)

    def again(self, found: Found) -> Found:
        """What :meth:`found` gives at a point where it may have been found by another task."""
        return found if found.options == self.options else self.found(found.point)

    def loosened(self) -> Task:
        """The same with lengths that need be known to a hundredth only; itself where those asked for are no better."""
        own = {name: value for name, value in self.options.items() if name not in ("solver", "support", "n_jobs")}
        chosen = solver_options(self.options.get("solver", "relaxation"), own)
        if not isinstance(chosen, RelaxationOptions) or min(chosen.rtol, chosen.rough_rtol) >= _LOOSE:
            return self
        loose = {"rtol": max(chosen.rtol, _LOOSE), "rough_rtol": max(chosen.rough_rtol, _LOOSE)}
        return replace(self, options={**self.options, **loose})

    def better(self, one: Tensor, other: Tensor) -> Found:
        """The one of two points with the smaller variance, or from which more can be reached."""
        both = [self.found(point) for point in (one, other)[: 1 if torch.equal(one, other) else 2]]
        return min(both, key=lambda found: (found.lost, found.variance))

    def curves(self, found: Found, spans: int) -> tuple[Tensor, Tensor]:
        """The geodesics that count, as so many spans at even times: nodes (P, spans+1, d) and weights (P,)."""
        rows = (torch.isfinite(found.solution.double_length) & (self.share > 0)).nonzero().flatten()
        spline, clock = found.solution.curve[0].take(rows), found.solution.curve[1].take(rows)
        nodes, _ = spline.at(clock.at(even(spline.nodes, spans)))
        return nodes, self.share[rows]

    def at(self, found: Found, spans: int) -> Place:
        """With so many spans of curves that were found."""
        return self._place(found.point, found, *self.curves(found, spans), None)

    def beside(self, place: Place, step: Tensor) -> Place:
        """With the curves of another place moved along."""
        curves = place.curves
        return self._place(place.point + step, place.found, curves.moved(step), place.weights, curves)

    def _place(self, here: Tensor, found: Found, nodes: Tensor, weights: Tensor, before: Star | None) -> Place:
        curves = stars(self.parts, nodes, _STILL * self.tol, self.memory_limit, before)
        energy, gradient = float(weights @ curves.energy), weights @ curves.gradient
        bend = torch.einsum("p,pij->ij", weights, curves.bend)
        return Place(here, found, curves, weights, energy, gradient, bend, self.norm(here, gradient, energy))

    def norm(self, here: Tensor, gradient: Tensor, energy: float) -> float:
        """Of half a ``gradient`` (d,) at a point, over the root of the energy."""
        force = float(gradient @ solve_metric(self.parts.tensor(here[None]), gradient[None])[0])
        return (max(force, 0.0) / energy) ** 0.5 / 2 if energy > 0 else 0.0


def descend(task: Task, place: Place, most: int, radius: float, smallest: float) -> tuple[Place, int, float]:
    """Where the mean energy of a place's curves is least, after how many steps, and the radius of the next."""
    for number in range(most):
        known = bool(torch.isfinite(place.bend).all())
        if not known or radius < smallest or (place.norm <= task.tol / 2 and not _saddle(place.bend)):
            return place, number, radius
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
    return place, most, radius


def _saddle(bend: Tensor) -> bool:
    """Whether second derivatives (d, d) say that the energy falls on some way out, however small the gradient is."""
    values = torch.linalg.eigvalsh(bend)
    return float(values[0]) < SADDLE * float(values.abs().max())


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
    found = step(high)
    if least == 0.0:
        return found
    # where the gradient has little of the lowest way, as on a summit, the rest of the step leads along that
    found = found if float(found.norm()) <= 2 * radius else torch.zeros_like(gradient)
    rest = max(radius**2 - float(found @ found), 0.0) ** 0.5
    return found + (-rest if float(along[0]) > 0 else rest) * vectors[:, 0]
