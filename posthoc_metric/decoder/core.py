"""Decoder: any trained callable as a frozen, eval-mode, flat smooth map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._arrays import ArrayLike, to_points


class Decoder:
    """A first, thin wrapper; the probe and its routes come next."""

    def __init__(self, module: Any, latent_dim: int):
        self.module = module.eval().requires_grad_(False) if isinstance(module, nn.Module) else module
        self.latent_dim = latent_dim
        parameter = next(module.parameters(), None) if isinstance(module, nn.Module) else None
        self.dtype = parameter.dtype if parameter is not None else torch.get_default_dtype()
        self.output_dim = int(self._flat(torch.zeros(1, latent_dim, dtype=self.dtype)).shape[1])

    def _flat(self, z: Tensor) -> Tensor:
        return self.module(z).flatten(1)

    def __call__(self, z: ArrayLike) -> Any:
        """(B, d) -> (B, D)."""
        points, restore = to_points(z, "z", self.latent_dim)
        with torch.no_grad():
            return restore(self._flat(points.to(self.dtype)).to(points.dtype))

    def jvp(self, z: ArrayLike, v: ArrayLike) -> tuple[Any, Any]:
        """``f(z)`` and ``J(z) v``, each (B, D)."""
        points, restore = to_points(z, "z", self.latent_dim)
        tangents, _ = to_points(v, "v", self.latent_dim)
        value, pushed = torch.func.jvp(self._flat, (points.to(self.dtype),), (tangents.to(self.dtype),))
        return restore(value.to(points.dtype)), restore(pushed.to(points.dtype))

    def vjp(self, z: ArrayLike, u: ArrayLike) -> tuple[Any, Any]:
        """``f(z)`` (B, D) and ``J(z)ᵀ u`` (B, d)."""
        points, restore = to_points(z, "z", self.latent_dim)
        cotangents, _ = to_points(u, "u", self.output_dim)
        value, pull = torch.func.vjp(self._flat, points.to(self.dtype))
        return restore(value.to(points.dtype)), restore(pull(cotangents.to(self.dtype))[0].to(points.dtype))

    def value_and_jacobian(self, z: ArrayLike) -> tuple[Any, Any]:
        """``f(z)`` (B, D) and ``J(z)`` (B, D, d), by d forward-mode columns."""
        points, restore = to_points(z, "z", self.latent_dim)
        inner = points.to(self.dtype)
        columns = []
        for j in range(self.latent_dim):
            tangent = torch.zeros_like(inner)
            tangent[:, j] = 1
            value, column = torch.func.jvp(self._flat, (inner,), (tangent,))
            columns.append(column)
        jacobian = torch.stack(columns, dim=-1)
        return restore(value.to(points.dtype)), restore(jacobian.to(points.dtype))

    def jacobian(self, z: ArrayLike) -> Any:
        """``J(z)`` (B, D, d)."""
        return self.value_and_jacobian(z)[1]
