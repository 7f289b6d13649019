"""Fewer outputs of the same metric, for a decoder that ends in a wide linear layer.

With ``W = Q R``, the columns of Q orthonormal, outputs ``W h + b`` lie as far from each other as ``R h``: distances,
lengths and ``JᵀJ`` are the same, of as many numbers as the layer has inputs.  Where thousands of genes come of a
hundred hidden units, the layer is nearly all that a decoder does.
"""

from __future__ import annotations

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
from .written import FEW

#: how many times as many outputs as inputs the layer must have
_WIDER = 2
#: roundings by which squares of distances may differ
_ROUNDINGS = 1e4


def thinner(found: Found) -> Found | None:
    """``found`` with as many outputs as its last layer has inputs; ``None`` where that is no wide linear one.

    To be called while the modules are in eval mode.
    """
    call, z = found.call, found.place.few
    if found.smooth is not call or found.route.forward == "differences":
        return None
    with torch.no_grad():
        with _Watch() as seen:
            value = call(z)
        weight = seen.behind(value)
        if weight is None:
            return None
        thin = replace(call, target=Thin(call.target, call.output, weight), output=None)
        short, row_bytes = bytes_per_row(thin, z)
    if not _as_far_apart(value, short):
        return None
    return replace(found, call=thin, smooth=thin, output_shape=tuple(short.shape[1:]), row_bytes=row_bytes)


def _as_far_apart(value: Tensor, short: Tensor) -> bool:
    wide, thin = ((rows[1:] - rows[:1]).double() for rows in (value, short))
    rounding = _ROUNDINGS * torch.finfo(value.dtype).eps * float(value.double().square().sum(1).amax())
    return torch.allclose(thin @ thin.mT, wide @ wide.mT, rtol=1e-3, atol=rounding)


class _Watch(TorchFunctionMode):
    """Sees linear layers, and what became of their results."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[Tensor, Tensor, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is functional.linear and len(args) > 1:
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
        dtype, few, factor = self._kept
        now = self.weight.detach()
        # averages of weights are put in place of others through their data, which leaves no trace but the numbers;
        # a copy in another precision has had what is kept here converted
        if dtype != now.dtype or not torch.equal(few, now.reshape(-1)[:FEW]):
            self._kept = _, _, factor = self._factored()
        try:
            with _UpTo(self.weight, factor):
                pick(self.target(*args, **kwargs), self.output)
        except _Reached as layer:
            return layer.result
        raise DecoderError("the decoder's last layer was replaced after it was wrapped. Wrap the model again.")

    def _factored(self) -> tuple[torch.dtype, Tensor, Tensor]:
        weight = self.weight.detach()
        # not every device has double precision
        factor = torch.linalg.qr(weight.to("cpu", torch.float64), mode="r").R
        return weight.dtype, weight.reshape(-1)[:FEW].clone(), factor.to(weight)
