"""Fields of symmetric matrices, and what they say of single directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class DirectedField(Protocol):
    """A field that knows what its matrices say of single directions for less than the matrices cost."""

    def __call__(self, z: Tensor) -> Tensor:
        """``U(z)``, (B, d) -> (B, d, d)."""

    def square(self, z: Tensor, v: Tensor) -> Tensor:
        """``vᵀ U(z) v``, (B, d), (B, d) -> (B,); differentiable wherever the field is."""


def square(field: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> Tensor:
    """``vᵀ U(z) v`` (B,) of any field ``U``."""
    if isinstance(field, DirectedField):
        return field.square(z, v)
    return ((field(z) @ v[..., None])[..., 0] * v).sum(-1)
