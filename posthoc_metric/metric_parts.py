"""The structure of a metric that the geodesic solver can use: an embedding, a conformal weight, a field of matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .matrix_field import square
from .smooth_map import SmoothMap, gram


class ConformalWeight(Protocol):
    """A positive scalar field ``w(z)`` with its gradient."""

    def __call__(self, z: Tensor) -> Tensor:
        """``w(z)``, (B, d) -> (B,)."""

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``w(z)`` (B,) and ``∇w(z)`` (B, d)."""


@runtime_checkable
class CurvedWeight(ConformalWeight, Protocol):
    """A weight that also knows its second derivatives: geodesics take fewer steps."""

    def value_gradient_hessian(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """``w(z)`` (B,), ``∇w(z)`` (B, d), and ``∇∇w(z)`` (B, d, d) or ``None`` where it is not to be had."""


@dataclass(frozen=True)
class MetricParts:
    """``M(z) = J_F(z)ᵀ J_F(z) + w(z) I + U(z)``: the structure that a solver can use.

    Attributes:
        embedding: ``F``, whose chords measure energy without any derivative of the metric.
        weight: ``w``, the conformal part.
        field: ``U``, (B, d) -> (B, d, d), anything else; symmetric positive semi-definite. It may be a
            :class:`~posthoc_metric.matrix_field.DirectedField` or :class:`~posthoc_metric.matrix_field.SlopedField`.
    """

    embedding: SmoothMap | None = None
    weight: ConformalWeight | None = None
    field: Callable[[Tensor], Tensor] | None = None

    def tensor(self, z: Tensor) -> Tensor:
        """``M(z)``, (B, d) float64 -> (B, d, d) float64."""
        dim = z.shape[1]
        total = z.new_zeros(len(z), dim, dim)
        if self.embedding is not None:
            total = gram(self.embedding, z)
        if self.weight is not None:
            total = total + self.weight(z)[:, None, None] * torch.eye(dim, dtype=z.dtype, device=z.device)
        if self.field is not None:
            total = total + self.field(z)
        return total

    def inner(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """``uᵀ M(z) v`` (B,) by Jacobian-vector products: no (D, d) Jacobian is formed."""
        total = z.new_zeros(z.shape[0])
        if self.embedding is not None:
            _, left = self.embedding.jvp(z, u)
            right = left if v is u else self.embedding.jvp(z, v)[1]
            total = total + (left * right).sum(-1)
        if self.weight is not None:
            total = total + self.weight(z) * (u * v).sum(-1)
        if self.field is not None:
            total = total + (square(self.field, z, v) if v is u else torch.einsum("bi,bij,bj->b", u, self.field(z), v))
        return total
