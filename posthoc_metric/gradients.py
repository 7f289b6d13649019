"""Gradients of what a metric says by the latents it is asked at, for callers who differentiate through it.

A weighted sum of the entries of ``M(z)`` is a sum of squares ``vᵀ M(z) v`` along the eigenvectors of the weights, and
the gradient of such a square takes of the embedding's second derivatives only the one along ``v``:

    ∂_z (vᵀ M v) = 2 ∂_v (J_Fᵀ c) + ‖v‖² ∇w + ∂_z (vᵀ U v),    c = J_F v held fixed,

which is a difference of two vector-Jacobian products whatever d is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._arrays import computes_in_single
from .field_derivative import FieldDerivative
from .machine import working_memory
from .metric_parts import MetricParts
from .smooth_map import SmoothMap, in_float64

#: difference steps over the size of the coordinates: the cube root of the precision, double and single; and the least
#: size that a point alone is taken to tell, below which steps would be lost in the rounding of what they change
_STEPS, _LEAST = (6e-6, 5e-3), (1e-3, 0.1)


def wanted(*values: Any) -> bool:
    """Whether the caller records what is made of any of ``values``."""
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def recorded(value: Any, points: Tensor) -> Tensor:
    """``value`` itself, for the caller's graph, where that is wanted; else ``points``, which are its detached rows."""
    return value if wanted(value) else points


def matrices(parts: MetricParts, z: Tensor, support: Tensor | None) -> Tensor:
    """``M(z)`` (B, d, d) in the caller's graph, once differentiable by z (B, d) float64.

    Args:
        parts: of the metric.
        support: latents (N, d) whose spread difference steps follow; the size of each row of z if there are none.
    """
    return _Matrices.apply(z, parts, support)  # type: ignore[no-untyped-call, no-any-return]


def attach(value: Tensor, stand_in: Tensor) -> Tensor:
    """``value`` with the gradient of ``stand_in``, two tensors of one shape."""
    return _Attached.apply(value, stand_in) if stand_in.requires_grad else value  # type: ignore[no-untyped-call, no-any-return]


class _Matrices(torch.autograd.Function):
    @staticmethod
    def forward(z: Tensor, parts: MetricParts, support: Tensor | None) -> Tensor:
        return parts.tensor(z.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, ctx.parts, ctx.support = inputs
        ctx.save_for_backward(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        return _pulled(ctx.parts, ctx.saved_tensors[0].detach(), weights, ctx.support), None, None


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, stand_in: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[None, Tensor]:
        return None, weights


def _pulled(parts: MetricParts, z: Tensor, weights: Tensor, support: Tensor | None) -> Tensor:
    """``∂_z Σ_ij G_ij M_ij(z)`` (B, d) for weights G (B, d, d); NaN where they are not finite."""
    bad = ~torch.isfinite(weights).flatten(1).all(1)
    weights = (0.5 * (weights + weights.mT)).masked_fill(bad[:, None, None], 0.0)
    found = torch.zeros_like(z)
    if parts.weight is not None:
        found += weights.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) * parts.weight.value_and_gradient(z)[1]
    embedding = parts.embedding and (in_float64(parts.embedding) or parts.embedding)
    field = FieldDerivative(parts.field, z) if parts.field is not None and len(z) else None
    single = embedding is not None and computes_in_single(embedding, z)
    size = _sizes(z, support, _LEAST[single])
    # six tables of outputs are kept, and two of a field's matrices
    width = 0 if embedding is None else 6 * embedding.output_dim
    width += 0 if field is None else 2 * z.shape[1] ** 2 * field.places
    shares, ways = torch.linalg.eigh(weights)
    # the weights of an inner product are of rank two
    least = z.shape[1] * torch.finfo(z.dtype).eps * shares.abs().amax(1)
    for share, way in zip(shares.unbind(1), ways.unbind(2), strict=True):
        told = (share.abs() > least).nonzero().flatten()
        for rows in told.split(max(1, working_memory() // (8 * max(width, 1)))) if len(told) else ():
            at, along, long = z[rows], way[rows].contiguous(), size[rows]
            if embedding is not None:
                found[rows] += share[rows, None] * _of_square(embedding, at, along, _STEPS[single] * long)
            if field is not None:
                # its own difference steps follow the size of what it is multiplied by
                found[rows] += share[rows, None] * field.pull(at, long * along)[1] / long.square()
    return found.masked_fill(bad[:, None], float("nan"))


def _sizes(z: Tensor, support: Tensor | None, least: float) -> Tensor:
    """How far from each of z (B, d) a metric varies much, (B, 1)."""
    if support is None:
        return z.abs().amax(1, keepdim=True).clamp_min(least)
    spread = support.double().std(0, correction=0).mean().to(z)
    return torch.where(spread > 0, spread, 1.0).expand(len(z), 1)


def _of_square(embedding: SmoothMap, z: Tensor, v: Tensor, step: Tensor) -> Tensor:
    """``∂_z ‖J_F(z) v‖²`` (B, d) along unit vectors v (B, d), by differences of length ``step`` (B, 1)."""
    _, pushed = embedding.jvp(z, v)
    _, pulled = embedding.vjp(torch.cat([z + step * v, z - step * v]), pushed.repeat(2, 1))
    ahead, behind = pulled.chunk(2)
    return (ahead - behind) / step
