"""Shapes shrunk towards the identity, so that their condition number is bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..matrix_field import SlopedField, square


@dataclass(frozen=True)
class Evened:
    """``(1 - t) S(z) + t I`` for a shape S with eigenvalues in [0, 1]: its own lie between t and 1.

    Then their condition number is at most 1/t, and so is that of any sum with matrices of no larger one.

    Attributes:
        shape: S.
        share: t.
    """

    shape: Callable[[Tensor], Tensor]
    share: float

    def __call__(self, z: Tensor) -> Tensor:
        """(B, d) -> (B, d, d)."""
        return evened(self.shape(z), self.share)

    def square(self, z: Tensor, v: Tensor) -> Tensor:
        """``vᵀ U(z) v``, (B, d), (B, d) -> (B,)."""
        return (1 - self.share) * square(self.shape, z, v) + self.share * v.square().sum(1)

    def slope(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """``U(z)`` and ``∂_i (U(z) v)_a``, each (B, d, d), where S has closed forms."""
        found = self.shape.slope(z, v) if isinstance(self.shape, SlopedField) else None
        return None if found is None else (evened(found[0], self.share), (1 - self.share) * found[1])

    def pull(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """``U(z) v`` and ``∂_z (vᵀ U(z) v)``, each (B, d), where S has closed forms."""
        found = self.shape.pull(z, v) if isinstance(self.shape, SlopedField) else None
        if found is None:
            return None
        return (1 - self.share) * found[0] + self.share * v, (1 - self.share) * found[1]


def evened(shapes: Tensor, share: float) -> Tensor:
    """``(1 - t) S + t I`` of matrices (B, d, d)."""
    return (1 - share) * shapes + share * torch.eye(shapes.shape[1], dtype=shapes.dtype, device=shapes.device)
