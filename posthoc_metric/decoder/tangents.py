"""Forward derivatives of operations with constants, taken directly.

Forward-mode AD gives a constant that meets a dual number a symbolic zero tangent, and under ``vmap`` every product or
sum with one goes through a shape computation in Python: 0.1 ms for a sum, 0.6 ms for a product and 1 ms for a
normalisation with a weight, where the derivative itself takes 0.02 ms.  On small batches that is most of the time of a
decoder that scales its output or normalises its layers, and the imports of the first take 2 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class DirectTangents(TorchFunctionMode):
    """Differentiates what is made of one tensor that varies, and constants, by rules of its own.

    Values are those of the operation itself, bit for bit.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        # a compiler would keep what it finds for one function, and what is made in inference mode takes no tangents
        left = torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
        rule = None if left else _RULES.get(func)
        varying = None if rule is None else _only_varying(args, options)
        if rule is None or varying is None:
            return func(*args, **options)
        which, primal, tangent = varying
        primals = (*args[:which], primal, *args[which + 1 :])
        value = func(*primals, **options)
        pushed = rule(_Done(func, primals, options, value, which, tangent))
        # a rule may not know this use of its operation: shapes and types differ where operands spread or are promoted
        if pushed is None or pushed.shape != value.shape or pushed.dtype != value.dtype:
            return func(*args, **options)
        return forward_ad.make_dual(value, pushed, level=0)


def _only_varying(args: Any, options: dict[str, Any]) -> tuple[int, Tensor, Tensor] | None:
    """Place, value and tangent of the one argument that has a tangent; ``None`` where there are others, or none."""
    found = None
    try:
        for place, argument in enumerate((*args, *options.values())):
            if not isinstance(argument, Tensor):
                continue
            primal, tangent = forward_ad.unpack_dual(argument, level=0)
            if tangent is not None:
                if found is not None or place >= len(args):
                    return None
                found = place, primal, tangent
    except RuntimeError:
        # a decoder's own vmap takes no dual numbers apart
        return None
    return found


@dataclass(frozen=True)
class _Done:
    """``value = func(*args, **options)``, where ``args[which]`` alone has a tangent."""

    func: Any
    args: tuple[Any, ...]
    options: dict[str, Any]
    value: Tensor
    which: int
    tangent: Tensor

    @property
    def plain(self) -> bool:
        """Whether it is an operation on two operands, and nothing beside them."""
        return len(self.args) == 2 and not self.options

    def scales(self, *names: str) -> bool:
        """Whether it acts on its first argument, finely, and a weight and ``names`` are among its options."""
        return self.fine and self.which == 0 and all(self.options.get(name) is not None for name in ("weight", *names))

    @property
    def fine(self) -> bool:
        """Whether no digits are lost where PyTorch's own norms of half precision work in float32."""
        return self.args[0].dtype in (torch.float32, torch.float64)


Rule = Callable[[_Done], Tensor | None]


def _affine(done: _Done) -> Tensor | None:
    """``func(x, weight, bias, ...)``."""
    if done.which or "bias" in done.options or len(done.args) < 2:
        return None
    x, weight, *rest = done.args
    return done.func(done.tangent, weight, *(None for _ in rest[:1]), *rest[1:], **done.options)


def _product(done: _Done) -> Tensor | None:
    operands = list(done.args)
    operands[done.which] = done.tangent
    return done.func(*operands) if done.plain else None


def _sum(done: _Done) -> Tensor | None:
    if not done.plain:
        return None
    # a copy, for what is done in place to the sum must not reach its summand
    spread = done.tangent.expand(done.value.shape).to(done.value.dtype, copy=True)
    return spread.neg_() if done.func in _TAKEN_AWAY[done.which] else spread


def _quotient(done: _Done) -> Tensor | None:
    if not done.plain:
        return None
    if done.func in _DIVISORS[done.which]:
        return -(done.tangent * done.value) / done.args[done.which]
    return _product(done)


def _batch_norm(done: _Done) -> Tensor | None:
    """By fixed means and variances."""
    if not done.scales() or len(done.args) != 3 or done.options.get("training", True):
        return None
    x, mean, variance = done.args
    return done.func(done.tangent, torch.zeros_like(mean), variance, **{**done.options, "bias": None})


def _layer_norm(done: _Done) -> Tensor | None:
    if not done.scales("eps") or len(done.args) != 2:
        return None
    x, shape = done.args
    first = -len(shape)
    pushed = _normalised(x.flatten(first), done.tangent.flatten(first), done.options["eps"])
    return pushed.view(x.shape) * done.options["weight"]


def _group_norm(done: _Done) -> Tensor | None:
    if not done.scales("eps") or len(done.args) != 2:
        return None
    x, groups = done.args
    shape = (len(x), groups, math.prod(x.shape[1:]) // groups)
    pushed = _normalised(x.reshape(shape), done.tangent.reshape(shape), done.options["eps"])
    return pushed.view(x.shape) * _by_channel(done.options["weight"], x)


def _instance_norm(done: _Done) -> Tensor | None:
    """By the means and variances of every row's own channels."""
    if len(done.args) != 1 or not done.fine or not done.options.get("use_input_stats") or "eps" not in done.options:
        return None
    (x,), weight = done.args, done.options.get("weight")
    pushed = _normalised(x.flatten(2), done.tangent.flatten(2), done.options["eps"]).view(x.shape)
    return pushed if weight is None else pushed * _by_channel(weight, x)


def _rms_norm(done: _Done) -> Tensor | None:
    if not done.scales() or len(done.args) != 2:
        return None
    x, shape = done.args
    first, eps = -len(shape), done.options.get("eps")
    pushed = _scaled(x.flatten(first), done.tangent.flatten(first), torch.finfo(x.dtype).eps if eps is None else eps)
    return pushed.view(x.shape) * done.options["weight"]


def _leaky(done: _Done) -> Tensor | None:
    if done.which or not done.plain:
        return None
    x, weight = done.args
    return torch.where(x > 0, done.tangent, done.tangent * (weight if weight.numel() == 1 else _by_channel(weight, x)))


def _by_channel(weight: Tensor, x: Tensor) -> Tensor:
    """A number a channel, for products with ``x`` (B, channels, ...)."""
    return weight.view(-1, *(1 for _ in x.shape[2:]))


def _normalised(x: Tensor, tangent: Tensor, eps: float) -> Tensor:
    """Derivative of ``(x - mean) / sqrt(variance + eps)`` over the last axis."""
    return _scaled(x - x.mean(-1, keepdim=True), tangent - tangent.mean(-1, keepdim=True), eps)


def _scaled(x: Tensor, tangent: Tensor, eps: float) -> Tensor:
    """Derivative of ``x / sqrt(mean(x²) + eps)`` over the last axis."""
    size = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    unit = x * size
    return size * (tangent - unit * (unit * tangent).mean(-1, keepdim=True))


_DIFFERENCES = (torch.sub, torch.subtract, Tensor.sub, Tensor.subtract)
_QUOTIENTS = (torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.true_divide)
#: what takes its first argument away, or its second; what divides by its first, or its second
_TAKEN_AWAY = (frozenset((Tensor.__rsub__,)), frozenset(_DIFFERENCES))
_DIVISORS = (frozenset((Tensor.__rdiv__,)), frozenset(_QUOTIENTS))
_CONVOLUTIONS = (getattr(functional, f"conv{t}{n}d") for t in ("", "_transpose") for n in (1, 2, 3))
_RULES: dict[Any, Rule] = {
    **dict.fromkeys((functional.linear, *_CONVOLUTIONS), _affine),
    **dict.fromkeys((torch.mul, torch.multiply, Tensor.mul, Tensor.multiply), _product),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__rsub__, *_DIFFERENCES), _sum),
    **dict.fromkeys((*_QUOTIENTS, Tensor.__rdiv__), _quotient),
    functional.batch_norm: _batch_norm,
    functional.group_norm: _group_norm,
    functional.instance_norm: _instance_norm,
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
    torch.prelu: _leaky,
}
