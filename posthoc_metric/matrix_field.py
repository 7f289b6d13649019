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


@runtime_checkable
class SlopedField(Protocol):
    """A field that knows its derivative for less than autograd takes, one backward pass a dimension."""

    def __call__(self, z: Tensor) -> Tensor:
        """``U(z)``, (B, d) -> (B, d, d)."""

    def slope(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """``U(z)`` (B, d, d) and ``P[n, a, i] = ∂_i (U(z_n) v_n)_a`` (B, d, d); ``None`` where there is no closed
        form."""

    def pull(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """``U(z) v`` (B, d) and ``∂_z (vᵀ U(z) v)`` (B, d), without the matrices; ``None`` as before."""


def square(field: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> Tensor:
    """``vᵀ U(z) v`` (B,) of any field ``U``."""
    if isinstance(field, DirectedField):
        return field.square(z, v)
    return ((field(z) @ v[..., None])[..., 0] * v).sum(-1)
