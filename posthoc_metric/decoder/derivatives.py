"""The ways of differentiating a function of a batch, each a few lines; the probe settles which are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..surroundings import leaf, recording

Function = Callable[[Tensor], Tensor]


def forward(function: Function, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``f(z)`` and ``J(z) v`` by forward-mode AD."""
    with torch.no_grad():
        # torch makes no dual numbers of expanded tensors, whose rows share their memory
        return _pair(torch.func.jvp(function, (z.contiguous(),), (v.contiguous(),)))


def per_row(function: Function, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Forward-mode AD of one row at a time under ``vmap``, for models whose batched kernels lack it."""

    def one(point: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        return _pair(torch.func.jvp(lambda row: function(row[None])[0], (point,), (tangent,)))

    with torch.no_grad():
        value, pushed = torch.func.vmap(one)(z, v)
    return value, pushed


def double_backward(function: Function, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``J(z) v`` as the derivative in ``u`` of ``vᵀ J(z)ᵀ u``: reverse mode twice."""
    with recording():
        z = leaf(z)
        value = function(z)
        u = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(value, z, u, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, u, v.clone() if v.is_inference() else v)
    return value.detach(), pushed.detach()


def reverse(function: Function, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """``f(z)`` and ``J(z)ᵀ u`` by reverse-mode AD."""
    value, pull = reverse_later(function, z)
    return value, pull(u)


def reverse_later(function: Function, z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """``f(z)``, and what gives ``J(z)ᵀ u`` for one ``u`` by reverse-mode AD of the same evaluation.

    What the evaluation left behind is freed on the way back, so that there is no second.
    """
    with recording():
        z = leaf(z)
        value = function(z)

    def pull(u: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(value, z, u)
        return pulled

    return value.detach(), pull


def columns_by_vmap(function: Function, z: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """``f(z)`` (B, D) and columns ``first`` to ``last`` of the Jacobian (k, B, D).

    The tangents are mapped over one evaluation of ``f``, which so costs 1 + k rows instead of 2k.
    """
    # forward differentiation refuses rows that are one in memory
    z = z.contiguous()
    tangents = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)[first:last, None, :].expand(-1, *z.shape)

    def push(v: Tensor) -> tuple[Tensor, Tensor]:
        return _pair(torch.func.jvp(function, (z,), (v,)))

    value_and_columns: Any = (None, 0)  # the value does not depend on the tangent
    with torch.no_grad():
        value, columns = torch.func.vmap(push, out_dims=value_and_columns)(tangents)
    return value, columns


def columns_by_tiling(
    jvp: Callable[[Function, Tensor, Tensor], tuple[Tensor, Tensor]],
    function: Function,
    z: Tensor,
    first: int,
    last: int,
) -> tuple[Tensor, Tensor]:
    """As :func:`columns_by_vmap`, by one ``jvp`` on a batch that repeats ``z`` once for each column."""
    count, (rows, dim) = last - first, z.shape
    tangents = torch.zeros(count, rows, dim, dtype=z.dtype, device=z.device)
    index = torch.arange(count, device=z.device)
    tangents[index, :, index + first] = 1
    value, columns = jvp(function, z.repeat(count, 1), tangents.view(count * rows, dim))
    return value[:rows], columns.view(count, rows, -1)


def _pair(result: Any) -> tuple[Tensor, Tensor]:
    value, pushed = result
    return value, pushed
