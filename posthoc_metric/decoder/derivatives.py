"""The ways of differentiating a function of a batch, each a few lines; the probe settles which are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Function = Callable[[Tensor], Tensor]


def forward(function: Function, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``f(z)`` and ``J(z) v`` by forward-mode AD."""
    with torch.no_grad():
        return _pair(torch.func.jvp(function, (z,), (v,)))


def per_row(function: Function, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Forward-mode AD of one row at a time under ``vmap``, for models whose batched kernels lack it."""

    def one(point: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        return _pair(torch.func.jvp(lambda row: function(row[None])[0], (point,), (tangent,)))

    with torch.no_grad():
        value, pushed = torch.func.vmap(one)(z, v)
    return value, pushed


def double_backward(function: Function, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``J(z) v`` as the derivative in ``u`` of ``vᵀ J(z)ᵀ u``: reverse mode twice."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        value = function(z)
        u = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(value, z, u, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, u, v)
    return value.detach(), pushed.detach()


def reverse(function: Function, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """``f(z)`` and ``J(z)ᵀ u`` by reverse-mode AD."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        value = function(z)
        (pulled,) = torch.autograd.grad(value, z, u)
    return value.detach(), pulled


def columns_by_vmap(function: Function, z: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """``f(z)`` (B, D) and columns ``first`` to ``last`` of the Jacobian (k, B, D).

    The tangents are mapped over one evaluation of ``f``, which so costs 1 + k rows instead of 2k.
    """
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


class _ContiguousAttention(TorchFunctionMode):
    """Hands attention contiguous tensors: the forward derivative of its math kernel takes views of them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            # contiguous() would leave a tangent of another layout than its tensor as it is
            copy = torch.contiguous_format
            args = tuple(a.clone(memory_format=copy) if isinstance(a, Tensor) else a for a in args)
        return func(*args, **(kwargs or {}))


class _DirectLinearMaps(TorchFunctionMode):
    """Pushes tangents through layers that are linear in their input by the layer itself.

    Forward-mode AD gives a constant weight and bias a symbolic zero tangent, and every sum with one goes
    through a shape computation in Python: 0.2 ms a layer, which on small batches is most of the time, and 2 s
    for the imports of the first.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _LINEAR_MAPS or kwargs or len(args) < 2:
            return func(*args, **(kwargs or {}))
        x, weight, *rest = args
        primal, tangent = forward_ad.unpack_dual(x, level=0)
        bias = rest[0] if rest else None
        varies = any(forward_ad.unpack_dual(t, level=0).tangent is not None for t in (weight, bias) if t is not None)
        if tangent is None or varies:
            return func(*args)
        without_bias = (None, *rest[1:])
        return forward_ad.make_dual(func(primal, weight, *rest), func(tangent, weight, *without_bias), level=0)


_LINEAR_MAPS = frozenset(
    getattr(functional, name) for name in ("linear", *(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)))
)


class _ExplicitDistances(TorchFunctionMode):
    """Euclidean distances by differences and squares: ``torch.cdist`` has no forward and no second derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        euclidean = len(args) == 2 and options.get("p", 2.0) == 2.0
        if func is torch.cdist and euclidean:
            return (args[0].unsqueeze(-2) - args[1].unsqueeze(-3)).square().sum(dim=-1).sqrt()
        return func(*args, **options)


@contextmanager
def _math_attention() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _ContiguousAttention():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    with torch.backends.mkldnn.flags(enabled=False):
        yield


#: what replaces kernels whose forward derivative is missing or slow, for the time of a call
KERNELS: dict[str, Callable[[], Any]] = {
    "direct linear maps": _DirectLinearMaps,
    "math attention": _math_attention,
    "no mkldnn": _without_mkldnn,
    "explicit distances": _ExplicitDistances,
}

#: what an error says -> what to replace
_COMPLAINTS = {
    "scaled_dot_product": "math attention",
    "transformer_encoder_layer": "math attention",
    "view size is not compatible": "math attention",
    "mkldnn": "no mkldnn",
    "cdist": "explicit distances",
}


def remedies(error: Exception) -> list[str]:
    """The kernels to replace according to the words of ``error``."""
    return list(dict.fromkeys(kernel for words, kernel in _COMPLAINTS.items() if words in str(error)))


@contextmanager
def kernels(names: tuple[str, ...]) -> Iterator[None]:
    """Inside, the kernels named in :data:`KERNELS` are in force."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(KERNELS[name]())
        yield
