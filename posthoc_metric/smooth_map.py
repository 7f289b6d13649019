"""What a decoder is to everything after it: a smooth map with first derivatives."""

from __future__ import annotations

from typing import Any, Protocol


class SmoothMap(Protocol):
    """A map ``F: R^d -> R^D`` with first derivatives; batch axis first, rows independent."""

    latent_dim: int
    output_dim: int

    def __call__(self, z: Any) -> Any:
        """``F(z)``, (B, d) -> (B, D)."""

    def jvp(self, z: Any, v: Any) -> tuple[Any, Any]:
        """``F(z)`` and ``J(z) v``, each (B, D)."""

    def vjp(self, z: Any, u: Any) -> tuple[Any, Any]:
        """``F(z)`` (B, D) and ``J(z)ᵀ u`` (B, d)."""

    def value_and_jacobian(self, z: Any) -> tuple[Any, Any]:
        """``F(z)`` (B, D) and ``J(z)`` (B, D, d)."""
