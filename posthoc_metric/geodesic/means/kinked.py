"""The mean where curves have kinks, as under ReLU: steps down the gradient of the variance, geodesics found anew.

Curves that are moved along with their end are held by the kinks they run through, and say little of where the variance
falls.  Geodesics that are found anew give its gradient by the first variation of their lengths, to some hundredths:
enough for gradient steps of Barzilai & Borwein's (1988) length, not for second derivatives.  Rough lengths lead most of
the way; those as exact as was asked for have the last word.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from ..acceleration import solve_metric
from ..first_variation import slopes
from .centre import Ended, Found, Task

#: share of the decrease that a gradient promises from which on the next step need not be shorter
_ENOUGH = 0.1
#: first, shortest and longest step, over the mean logarithm, and by what a step that leads too far is divided
_FIRST, _SHORTEST, _LONGEST, _DIVISOR = 0.5, 0.25, 2.0, 3.0
#: steps in a row that do not gain what will do, after which no more are tried
_MOST_FAILED = 2
#: a gradient, over the one that will do, that is smaller than kinks leave it but by symmetry; and how far from there is
#: looked whether it is that of a summit, over the root of the variance
_VANISHED, _ASIDE = 0.1, 0.3


@dataclass(frozen=True)
class _Place:
    """A point that geodesics were found from; half the gradient of the variance there (d,), and its Riemannian norm
    over the root of the variance; the step against it."""

    found: Found
    gradient: Tensor
    step: Tensor
    norm: float

    def betters(self, other: _Place) -> bool:
        return (self.found.lost, self.found.variance) < (other.found.lost, other.found.variance)


def descend_across_kinks(task: Task, begin: Found, most: int) -> Ended:
    """From ``begin`` down to where the variance falls by no more than a share of ``rough_tol²``; ``most`` steps."""
    loose = task.loosened()
    first = _place(loose, loose.again(begin))
    if first.norm <= _VANISHED * task.rough_tol and most > 0:
        first = _off_a_summit(loose, first)
    there, length, steps = _descended(loose, first, _FIRST, most)
    place, error = there, inf
    if loose is not task:
        place = _place(task, task.found(there.found.point))
        error = _norm(task, place.found, place.gradient - there.gradient)
        place, _, more = _descended(task, place, length, most - steps)
        steps += more
    return Ended(place.found, place.norm, error, steps)


def _off_a_summit(task: Task, place: _Place) -> _Place:
    """A place on a drawn way out from where the gradient vanishes, if the variance is less there."""
    way = torch.randn(len(place.step), generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    way = way.to(place.step)
    size = float(way @ task.parts.tensor(place.found.point[None])[0] @ way) ** 0.5
    there = _place(task, task.found(place.found.point + _ASIDE * place.found.variance**0.5 / size * way))
    return there if there.betters(place) else place


def _descended(task: Task, place: _Place, length: float, most: int) -> tuple[_Place, float, int]:
    """The last place, the length of the next step, and how many were tried."""
    failed = number = 0
    while number < most and failed < _MOST_FAILED and task.rough_tol < place.norm < inf:
        there = _place(task, task.found(place.found.point + length * place.step))
        number += 1
        before, place = place, there if there.betters(place) else place
        gain = 1 - place.found.variance / before.found.variance
        failed = 0 if gain > task.rough_tol**2 else failed + 1
        long = place is there and gain >= _ENOUGH * length * before.norm**2
        length = _next_length(before, there, length) if long else length / _DIVISOR
    return place, length, number


def _next_length(before: _Place, after: _Place, length: float) -> float:
    """Of the next step, from how the gradient changed over the last (Barzilai & Borwein 1988, in the metric)."""
    bent = float(before.step @ (after.gradient - before.gradient))
    # the gradient is what the metric makes of the step against it
    square = -length * float(before.step @ before.gradient)
    return min(max(square / bent, _SHORTEST), _LONGEST) if bent > 0 else min(2 * length, _LONGEST)


def _place(task: Task, found: Found) -> _Place:
    lengths = found.solution.double_length
    known = torch.isfinite(lengths)
    by_centre, _ = slopes(found.solution, known)
    gradient = (task.share * lengths.masked_fill(~known, 0.0)) @ by_centre
    step = -solve_metric(task.parts.tensor(found.point[None]), gradient[None])[0]
    return _Place(found, gradient, step, _norm(task, found, gradient))


def _norm(task: Task, found: Found, gradient: Tensor) -> float:
    return task.norm(found.point, 2 * gradient, found.variance)
