"""Finite differences: the reference that every route is held to, and the last resort.

Central differences of fourth order, ``(8 (f(z+h) - f(z-h)) - (f(z+2h) - f(z-2h))) / 12h``, have an error of
order h⁴ + ε/h, least near ``h = ε^(1/5)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Difference:
    """A directional derivative with what is known of its accuracy.

    Attributes:
        value: (B, D).
        error: (B, D), an estimate of the absolute error of ``value``.
    """

    value: Tensor
    error: Tensor


def steps(z: Tensor, v: Tensor) -> Tensor:
    """Step lengths (B, 1) along ``v``: a fixed latent length, longer only where ``z`` itself is coarse."""
    eps = torch.finfo(z.dtype).eps
    length = 0.5 * eps**0.2 + eps**0.5 * z.abs().amax(dim=1, keepdim=True)
    norm = v.norm(dim=1, keepdim=True)
    return length / torch.where(norm > 0, norm, torch.ones_like(norm))


def difference(function: Function, z: Tensor, v: Tensor, shrink: float = 1.0) -> Difference:
    """``J(z) v`` for ``z`` and ``v`` of shape (B, d), by one call of ``function`` on 4B rows.

    Args:
        function: (B, d) -> (B, D).
        shrink: divides the step; small steps stay clear of kinks, at the price of rounding.
    """
    h = steps(z, v) / shrink
    rows = torch.cat([z + h * v, z - h * v, z + 2 * h * v, z - 2 * h * v])
    forward, backward, far_forward, far_backward = function(rows).to(z.dtype).chunk(4)
    near = (forward - backward) / (2 * h)
    far = (far_forward - far_backward) / (4 * h)
    rounding = torch.finfo(z.dtype).eps * forward.abs().amax(dim=1, keepdim=True) / h
    return Difference(value=(4 * near - far) / 3, error=(near - far).abs() + 4 * rounding)
