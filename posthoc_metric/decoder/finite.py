"""Finite differences: the reference that every route is held to, and the last resort.

Central differences of fourth order, ``(8 (f(z+h) - f(z-h)) - (f(z+2h) - f(z-2h))) / 12h``, have an error of
order h⁴ + ε/h, least near ``h = ε^(1/5)`` in units of the length over which the function changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

#: what steps are divided by, the likeliest first
_SHRINKS = {torch.float64: (64.0, 8.0, 1.0)}
_SINGLE_SHRINKS = (1.0, 4.0, 16.0)
#: for latents some of whose coordinates are far smaller than the rest; only double precision has the digits
_SHORTER = {torch.float64: (512.0, 4096.0, 32768.0)}
_ACCURATE, _USABLE = 1e-6, 0.1


@dataclass(frozen=True)
class Difference:
    """A directional derivative with what is known of its accuracy.

    Attributes:
        value: (B, D).
        error: (B, D), an estimate of the absolute error of ``value``.
    """

    value: Tensor
    error: Tensor

    @property
    def relative_error(self) -> float:
        """Of all numbers together; infinite where the derivative is zero throughout."""
        size = float(self.value.norm())
        return float(self.error.norm()) / size if size > 0 else math.inf


def steps(z: Tensor, v: Tensor, shrink: float = 1.0, unit: float = 1.0) -> Tensor:
    """Step lengths (B, 1) along ``v``: a share of ``unit``, and 1,000 roundings of ``z`` more."""
    eps = torch.finfo(z.dtype).eps
    length = 0.5 * eps**0.2 * unit / shrink + 1e3 * eps * z.abs().amax(dim=1, keepdim=True)
    norm = v.norm(dim=1, keepdim=True)
    return length / torch.where(norm > 0, norm, torch.ones_like(norm))


def difference(
    function: Function, z: Tensor, v: Tensor, shrink: float = 1.0, unit: float = 1.0, here: Tensor | None = None
) -> Difference:
    """``J(z) v`` for ``z`` and ``v`` of shape (B, d), by one call of ``function`` on 4B rows.

    Args:
        function: (B, d) -> (B, D).
        shrink: divides the step; small steps stay clear of kinks, at the price of rounding.
        unit: the scale of the latents.
        here: ``function(z)``, (B, D); with it the error also tells of kinks right at ``z``, which look alike from
            all four rows.
    """
    h = steps(z, v, shrink, unit)
    rows = torch.cat([z + h * v, z - h * v, z + 2 * h * v, z - 2 * h * v])
    forward, backward, far_forward, far_backward = function(rows).to(z.dtype).chunk(4)
    near = (forward - backward) / (2 * h)
    far = (far_forward - far_backward) / (4 * h)
    eps = torch.finfo(z.dtype).eps
    rounding = eps * forward.abs().amax(dim=1, keepdim=True) / h
    # the latents of the four rows are rounded too
    moved = eps * z.abs().amax(dim=1, keepdim=True) / h * near.abs().amax(dim=1, keepdim=True)
    error = (near - far).abs() + 4 * rounding + moved
    if here is not None:
        # the slopes on the two sides differ by as much over both steps at a kink, by twice as much where all is smooth
        here = here.to(z.dtype)
        bend, far_bend = (forward - 2 * here + backward) / h, (far_forward - 2 * here + far_backward) / (2 * h)
        error = error + (2 * bend - far_bend).abs()
    return Difference(value=(4 * near - far) / 3, error=error)


def best_difference(function: Function, z: Tensor, v: Tensor, unit: float = 1.0) -> tuple[float, Difference]:
    """The shrink whose estimated error is least, and the difference with it; the first that is accurate will do."""
    best: tuple[float, Difference] | None = None
    here = function(z)
    for shrink in (*_SHRINKS.get(z.dtype, _SINGLE_SHRINKS), *_SHORTER.get(z.dtype, ())):
        if best is not None and shrink in _SHORTER.get(z.dtype, ()) and best[1].relative_error < _USABLE:
            break
        found = difference(function, z, v, shrink, unit, here)
        if best is None or found.relative_error < best[1].relative_error:
            best = shrink, found
        if found.relative_error < _ACCURATE:
            break
    assert best is not None
    return best
