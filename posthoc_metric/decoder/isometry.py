"""Fewer outputs of the same metric, for a decoder that ends in a wide linear layer.

With ``W = Q R``, the columns of Q orthonormal, outputs ``W h + b`` lie as far from each other as ``R h``: distances,
lengths and ``JᵀJ`` are the same, of as many numbers as the layer has inputs.  Where thousands of genes come of a
hundred hidden units, the layer is nearly all that a decoder does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import DecoderError
from .exam import Found
from .memory import bytes_per_row
from .outputs import Output, pick
from .written import modules_of

#: how many times as many outputs as inputs the layer must have
_WIDER = 2
#: of so many numbers of a weight, evenly chosen, any change is to reach one
_WATCHED = 256


def thinner(found: Found) -> Found | None:
    """``found`` with as many outputs as its last layer has inputs; ``None`` where that is no wide linear one.

    To be called while the modules are in eval mode.
    """
    call, z = found.call, found.place.few
    if found.smooth is not call or any(map(_is_compiled, modules_of(call.roots))):
        return None
    with torch.no_grad(), _Watch() as seen:
        value = call(z)
    weight = seen.behind(value)
    if weight is None:
        return None
    thin = replace(call, target=Thin(call.target, call.output, weight), output=None)
    try:
        with torch.no_grad():
            short, row_bytes = bytes_per_row(thin, z)
        other = replace(found, call=thin, smooth=thin, output_shape=tuple(short.shape[1:]), row_bytes=row_bytes)
        products, expected = _products(other), _products(found)
    except Exception:
        # a model that evaluates itself anew for its gradient, as activation checkpoints do, does so in full
        return None
    eps = torch.finfo(value.dtype).eps ** 0.5
    same = (
        torch.allclose(a, b, rtol=eps, atol=eps * float(b.abs().amax()))
        for a, b in zip(products, expected, strict=True)
    )
    return other if all(same) else None


def _products(found: Found) -> tuple[Tensor, ...]:
    """What does not change if outputs are turned: products of differences and of columns, and ``Jᵀ`` of a column."""
    route, z = found.route, found.place.few
    value, columns = route.columns(found.call, z, 0, min(2, z.shape[1]))
    ways = torch.cat([columns, (value - value[:1])[None]]).double()
    pulled = (route.vjp(found.call, z, columns[0])[1].double(),) if route.reverse == "reverse" else ()
    return torch.einsum("ibo,jbo->bij", ways, ways), *pulled


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor that counts what is written to it, no stand-in of a compiler or of a model's own vmap."""
    if type(value) is not Tensor or torch.compiler.is_compiling():
        return False
    return not (value.is_inference() or torch._C._functorch.is_functorch_wrapped_tensor(value))


def _is_compiled(module: nn.Module) -> bool:
    # which is compiled anew for everything that is put around it
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


class _Watch(TorchFunctionMode):
    """Sees linear layers, and what became of their results."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[Tensor, Tensor, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is functional.linear and len(args) > 1 and _is_plain(result):
            self._seen.append((args[1], result, result._version))
        return result

    def behind(self, value: Tensor) -> Tensor | None:
        """The weight of the wide layer whose result ``value`` (B, D) is, seen by rows; ``None`` where there is none."""
        for weight, result, version in self._seen:
            there = result.data_ptr() == value.data_ptr() and result.is_contiguous() and value.is_contiguous()
            whole = result.numel() == value.numel() and result.shape[0] == value.shape[0]
            # an activation in place writes to it
            untouched = result._version == version
            once = sum(other is weight for other, _, _ in self._seen) == 1
            wide = weight.shape[0] >= _WIDER * weight.shape[-1]
            if there and whole and untouched and once and wide and isinstance(weight, nn.Parameter):
                return weight
        return None


class _Reached(BaseException):
    """The last layer is reached; no error, and so not for a model's own handlers."""

    def __init__(self, result: Tensor):
        super().__init__()
        self.result = result


class _UpTo(TorchFunctionMode):
    """Ends a call where a linear layer has ``weight``, with what ``factor`` in its place gives without a bias."""

    def __init__(self, weight: Tensor, factor: Tensor):
        super().__init__()
        self._weight, self._factor = weight, factor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and len(args) > 1 and args[1] is self._weight:
            raise _Reached(func(args[0], self._factor))
        return func(*args, **(kwargs or {}))


class Thin:
    """``target`` up to the layer of ``weight``, with its triangular factor in its place.

    Raises:
        DecoderError: called when the layer has another weight tensor than it had.
    """

    def __init__(self, target: Callable[..., Any], output: Output, weight: Tensor):
        self.target, self.output = target, output
        self.weight = weight
        self._kept = self._factored()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        dtype, some, factor = self._kept
        # averages of weights are put in place of others through their data, which leaves no trace but the numbers;
        # a copy in another precision has had what is kept here converted
        if dtype != self.weight.dtype or not torch.equal(some, self._some()):
            self._kept = _, _, factor = self._factored()
        try:
            with _UpTo(self.weight, factor):
                pick(self.target(*args, **kwargs), self.output)
        except _Reached as layer:
            return layer.result
        raise DecoderError("the decoder's last layer was replaced after it was wrapped. Wrap the model again.")

    def _some(self) -> Tensor:
        numbers = self.weight.detach().flatten()
        step = max(1, len(numbers) // _WATCHED)
        # with a factor of the layer's width some columns would never be seen
        while math.gcd(step, self.weight.shape[1]) > 1:
            step += 1
        return numbers[::step]

    def _factored(self) -> tuple[torch.dtype, Tensor, Tensor]:
        # not every device has double precision
        weight = self.weight.detach().to("cpu", torch.float64)
        factor = torch.linalg.qr(weight, mode="r").R
        return self.weight.dtype, self._some().clone(), factor.to(self.weight.detach())
