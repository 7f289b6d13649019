"""Gradients of what a metric says by the latents it is asked at, for callers who differentiate through it.

A weighted sum of the entries of ``M(z)`` is a sum of squares ``vᵀ M(z) v`` along the eigenvectors of the weights, and
the gradient of such a square takes of the embedding's second derivatives only the one along ``v``:

    ∂_z (vᵀ M v) = 2 ∂_v (J_Fᵀ c) + ‖v‖² ∇w + ∂_z (vᵀ U v),    c = J_F v held fixed,

which is a difference of two vector-Jacobian products whatever d is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._precision import DIFFERENCE_STEPS, computes_in_single
from .errors import InvalidArgumentError, SecondDerivativeError
from .field_derivative import FieldDerivative
from .machine import working_memory
from .metric_parts import MetricParts
from .smooth_map import SmoothMap, in_float64

#: the least size of coordinates that a point alone is taken to tell, double and single precision: below it difference
#: steps would be lost in the rounding of what they change
_LEAST = 1e-3, 0.1
#: spread along a coordinate, over the largest, that is none
_SAME = 1e-12
#: latents, at most, whose spread they follow
_SPREAD = 2000


def wanted(*values: Any) -> bool:
    """Whether the caller records what is made of any of ``values``."""
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def refuse_batched(weights: Tensor) -> None:
    """Raise where a backward pass brings a batch of cotangents at once, which no batched rule is written for.

    Raises:
        InvalidArgumentError: it does.
    """
    if torch._C._functorch.is_legacy_batchedtensor(weights):
        raise InvalidArgumentError(
            "gradients of metrics and lengths are taken for one cotangent at a time; a batch of them was given. Leave "
            "out vectorize=True of torch.autograd.functional, or is_grads_batched=True of torch.autograd.grad."
        )


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


def recorded_field(field: Callable[[Tensor], Tensor], z: Tensor, support: Tensor | None) -> Tensor:
    """``M(z)`` (B, d, d) in the caller's graph: by what a field records, by differences where that is nothing."""
    try:
        found = field(z)
    except (RuntimeError, TypeError, AttributeError):
        # NumPy inside; whatever else is wrong is said again without a graph
        return matrices(MetricParts(field=field), z, support)
    nothing = z.requires_grad and not found.requires_grad
    return matrices(MetricParts(field=field), z, support) if nothing else found


def attach(value: Tensor, stand_in: Tensor) -> Tensor:
    """``value`` with the gradient of ``stand_in``, two tensors of one shape."""
    return _Attached.apply(value, stand_in) if stand_in.requires_grad else value  # type: ignore[no-untyped-call, no-any-return]


def once(found: Tensor, *sources: Tensor) -> Tensor:
    """Derivatives ``found`` of what ``sources`` are, which refuse to be differentiated again where that is recorded.

    torch's ``once_differentiable`` takes them for constants where the loss is linear, so that second derivatives come
    out as zero.
    """
    return _Once.apply(found, *sources) if torch.is_grad_enabled() else found  # type: ignore[no-untyped-call, no-any-return]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(found: Tensor, *sources: Tensor) -> Tensor:
        return found.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[None, ...]:
        raise SecondDerivativeError(
            "gradients of what a metric says by the latents must not be differentiated again; a second derivative was "
            "asked for. Detach the first, or take differences of it at latents a little apart."
        )


class _Matrices(torch.autograd.Function):
    @staticmethod
    def forward(z: Tensor, parts: MetricParts, support: Tensor | None) -> Tensor:
        return parts.tensor(z.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, ctx.parts, ctx.support = inputs
        ctx.save_for_backward(z)
        ctx.slope = None

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        refuse_batched(weights)
        with torch.no_grad():
            # who wants the derivative of every entry comes back as often
            ctx.slope = ctx.slope or _Slope(ctx.parts, z.detach(), ctx.support)
            found = ctx.slope.pull(weights)
        return once(found, z, weights), None, None


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


class _Slope:
    """Derivatives of ``M`` at points z (B, d), in rows that fit into memory."""

    def __init__(self, parts: MetricParts, z: Tensor, support: Tensor | None):
        self.z = z
        self.by_weight = None if parts.weight is None else parts.weight.value_and_gradient(z)[1]
        self.embedding = parts.embedding and (in_float64(parts.embedding) or parts.embedding)
        self.field = FieldDerivative(parts.field, z) if parts.field is not None and len(z) else None
        single = self.embedding is not None and computes_in_single(self.embedding, z)
        self.sizes, self.step = _sizes(z, support, _LEAST[single]), DIFFERENCE_STEPS[single]
        row_bytes = 0 if self.field is None else self.field.row_bytes
        row_bytes += 0 if self.embedding is None else 64 * self.embedding.output_dim
        self.rows = max(1, working_memory() // max(row_bytes, 1))

    def pull(self, weights: Tensor) -> Tensor:
        """``∂_z Σ_ij G_ij M_ij(z)`` (B, d) for weights G (B, d, d); NaN where they are not finite."""
        bad = ~torch.isfinite(weights).flatten(1).all(1)
        weights = (0.5 * (weights + weights.mT)).masked_fill(bad[:, None, None], 0.0)
        found = torch.zeros_like(self.z)
        if self.by_weight is not None:
            found += weights.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) * self.by_weight
        if self.embedding is not None or self.field is not None:
            shares, ways = torch.linalg.eigh(weights)
            # the weights of an inner product are of rank two
            least = self.z.shape[1] * torch.finfo(self.z.dtype).eps * shares.abs().amax(1, keepdim=True)
            terms = torch.zeros_like(weights)
            for some in (shares.abs() > least).nonzero().split(self.rows):
                if len(some):
                    rows, which = some.unbind(1)
                    terms[rows, which] = shares[rows, which, None] * self._of_squares(rows, ways[rows, :, which])
            found += terms.sum(1)
        return found.masked_fill(bad[:, None], float("nan"))

    def _of_squares(self, rows: Tensor, v: Tensor) -> Tensor:
        """``∂_z (vᵀ (M - w I) v)`` (n, d) at some rows, along unit vectors v (n, d)."""
        z, found = self.z[rows], torch.zeros_like(v)
        # how far along v
        size = 1 / (v / self.sizes[rows]).norm(dim=1, keepdim=True)
        if self.embedding is not None:
            found += _of_square(self.embedding, z, v, self.step * size)
        if self.field is not None:
            # its own difference steps follow the size of what it is multiplied by
            found += self.field.pull(z, size * v)[1] / size.square()
        return found


def _sizes(z: Tensor, support: Tensor | None, least: float) -> Tensor:
    """How far from each of z (B, d) along every coordinate a metric varies much, (B, d)."""
    if support is None:
        size = z.abs().amax(1, keepdim=True).clamp_min(least)
        # a large coordinate tells a unit, or how far from the origin: between the two either is near enough
        return torch.where(size > 1, size.sqrt(), size).expand_as(z)
    # of all of 200,000 it takes longer than the rest
    spread = support[:: 1 + len(support) // _SPREAD].double().std(0, correction=0).to(z)
    most = spread.max()
    return torch.where(spread > _SAME * most, spread, torch.where(most > 0, most, 1.0)).expand_as(z)


def _of_square(embedding: SmoothMap, z: Tensor, v: Tensor, step: Tensor) -> Tensor:
    """``∂_z ‖J_F(z) v‖²`` (B, d) along unit vectors v (B, d), by differences of length ``step`` (B, 1)."""
    _, pushed = embedding.jvp(z, v)
    _, pulled = embedding.vjp(torch.cat([z + step * v, z - step * v]), pushed.repeat(2, 1))
    ahead, behind = pulled.chunk(2)
    return (ahead - behind) / step
