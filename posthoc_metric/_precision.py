"""Whether a function computes in double precision or in single, told by its values."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: points that a function's precision is told by, and how far beside them, relative to their size
_ASKED, _BESIDE = 16, 3.1e-6
#: at how many of these it is told by how rough values are, and how rough they must be, relative to the largest
_ROUGH, _ROUNDED = 5, 1e-10
#: central difference steps of a first derivative, relative to the size of what varies: the cube root of the precision,
#: double and single
DIFFERENCE_STEPS = 6e-6, 5e-3


def is_single(values: torch.Tensor) -> bool:
    """Whether double values (n, ...) carry single precision only, as those that a float32 model computed do."""
    values = values[torch.isfinite(values).flatten(1).all(1)]
    return len(values) > 0 and bool((values.float().double() == values.double()).all())


def computes_in_single(function: Callable[[torch.Tensor], torch.Tensor], points: torch.Tensor) -> bool:
    """Whether ``function`` (n, d) -> (n, ...) computes in single precision near ``points`` (n, d), double ones.

    It is asked a little beside them: at the origin and at whole numbers exact values may happen to be short.
    """
    some = points[:_ASKED].double()
    size = float(some.abs().max()) if len(some) else 0.0
    beside = function(some + _BESIDE * (some.abs() + (size or 1.0)))
    usable = bool(torch.isfinite(beside).flatten(1).all(1).any())
    return is_single(beside if usable else function(some))


def rounds_in_single(field: Callable[[torch.Tensor], torch.Tensor], points: torch.Tensor) -> bool:
    """Whether a metric's ``field`` (n, d) -> (n, d, d) computes in single precision, or with what did."""
    return computes_in_single(field, points) or rounds_as_single(field, points)


def rounds_as_single(function: Callable[[torch.Tensor], torch.Tensor], points: torch.Tensor) -> bool:
    """Whether values near ``points`` (n, d) are as rough as single precision makes them.

    What is made in double of single values, as a metric of a float32 decoder's Jacobians, has more digits, but their
    rounding.  Third differences of what is smooth fall with the third power of the step, those of rounding stay; beside
    a kink, of which there are few, they fall with the first.
    """
    some = points[:_ROUGH].double()
    if not len(some):
        return False
    # a far neighbour does not set the scale, nor does how far all of them lie from the origin
    around = (some - some.median(0).values).abs().amax(1).median()
    size = some.abs().amax(1, keepdim=True)
    size = torch.where(around > 0, size.minimum(2 * around), size)
    step = _BESIDE * (some.abs().minimum(size) + torch.where(size > 0, size, float(size.max()) or 1.0))
    times = torch.tensor([0, 1, 2, 3, 8, 16, 24], dtype=torch.float64, device=some.device) / 8 + 1
    values = function((some + times[:, None, None] * step).flatten(0, 1)).double()
    values = values.unflatten(0, (7, len(some))).flatten(2)
    values = values[:, torch.isfinite(values).all(2).all(0)]
    if not values.numel():
        return False
    scale = values[0].abs().amax(1).clamp_min(torch.finfo(torch.float64).tiny)
    short, long = (
        ((values[a] - 3 * values[b] + 3 * values[c] - values[0]).abs().amax(1) / scale).median()
        for a, b, c in ((3, 2, 1), (6, 5, 4))
    )
    return bool((long > _ROUNDED) & (short > long / 8))
