"""What a decoder promises: finite numbers always; equal for equal latents, row by row, checked on a few latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._arrays import bad_rows, name_rows
from ..errors import DecoderError
from .call import Call
from .carried import tensors_used_by
from .conditions import several_rows
from .written import kept, modules_of

#: parameters beyond this are not copied to float64 for the check
_COPY_BYTES = 2**30
#: second differences over a short step that are this large, in the outputs, are roundings of half precision
_COARSE = 3e-5
#: numbers of a tensor up to which a layer may set it from its first batch: it is a scale or a shift, no kernel
_FEW = 2**16
#: what ``parameter.data = ...`` is to a mode
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


def check_values(value: Tensor, *, drawn: bool) -> None:
    """Refuse outputs (B, D) that are no finite real numbers, or none at all.

    Args:
        drawn: whether the latents were drawn; else they are some of the caller's, whose rows are not known here.
    """
    if value.is_complex():
        raise DecoderError(
            f"the decoder must return real numbers; it returns {value.dtype}. Wrap a function of it that returns real "
            "ones: torch.view_as_real(...) keeps everything, abs() or angle() a part."
        )
    if not value.is_floating_point():
        raise DecoderError(
            f"the decoder returns {value.dtype}, so that it is piecewise constant and has no derivative. "
            "Wrap the layer before rounding, argmax or thresholding instead (method=, output=)."
        )
    if not value.shape[1]:
        raise DecoderError(
            f"the decoder must return at least one number for each latent; {len(value)} latents gave none at all. "
            "Check which part of it is taken (method=, output=), and what that part cuts off."
        )
    bad = ~torch.isfinite(value).all(dim=1)
    if bool(bad.any()) and not drawn:
        raise DecoderError(
            f"the decoder must return finite numbers; at {int(bad.sum())} of {len(bad)} latents tried of those given "
            "they are NaN or infinite. Check its weights, and that these are its latents, in its own units."
        )
    if bool(bad.any()):
        raise DecoderError(
            f"the decoder must return finite numbers; at standard normal latents {name_rows(bad)} NaN or infinite. "
            "Check its weights; if its latents live elsewhere pass some of them as probe=.",
            rows=tuple(torch.nonzero(bad).flatten().tolist()),
        )


def check_precision(call: Call, value: Tensor, z: Tensor, v: Tensor, unit: float) -> None:
    """Refuse outputs (B, D) in half precision, or as coarse as that because a part of the model computes in it.

    Args:
        z, v: (n, d), latents and unit directions along which roundings are told from what is smooth.
        unit: the scale of the latents.
    """
    dtype = value.dtype
    if dtype in (torch.float32, torch.float64):
        step = 3e-4 * unit + 3e-5 * float(z.abs().amax())
        with _Halves() as ahead:
            there = call(z + step * v)
        if not ahead.found:
            return
        here = call(z)
        with _Halves() as behind:
            bend = there - 2 * here + call(z - step * v)
        # constants may have been in half precision
        varying = [one for one, other in zip(ahead.found, behind.found, strict=False) if one != other]
        if not varying or bool(bend.square().mean() <= _COARSE**2 * here.square().mean()):
            return
        dtype = varying[-1][0]
    raise DecoderError(
        f"the decoder computes a part of its output in {dtype}, too coarse for derivatives. Convert all of it with "
        ".float() and take out autocast before wrapping it, or wrap the layer before that part (method=, output=). "
        "Where it converts what it is given by itself, pass its own option against that (condition=)."
    )


def _total(result: Tensor) -> float:
    """The sum; of what is under a vmap of the model's own NaN, which differs from every other."""
    try:
        return float(result.float().sum())
    except RuntimeError:
        return float("nan")


class _Halves(TorchFunctionMode):
    """Remembers results in half precision, by their dtypes and sums."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.dtype, float]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in (torch.float16, torch.bfloat16):
            self.found.append((result.dtype, _total(result)))
        return result


def finite(result: Tensor, what: str) -> Tensor:
    """``result`` (B, ...), without the graph of a model that differentiates inside; refused where it is not finite.

    Raises:
        DecoderError: it is; ``rows`` says where.
    """
    result = result.detach()
    bad = bad_rows(result)
    if bad is not None:
        raise DecoderError(
            f"the decoder's {what} must be finite; {name_rows(bad)} NaN or infinite. "
            "Leave those latents out, or check the decoder there.",
            rows=tuple(torch.nonzero(bad).flatten().tolist()),
        )
    return result


def _noise(value: Tensor) -> float:
    """What two equal computations may differ by, relative to the scale."""
    return 1e-5 if value.dtype != torch.float64 else 1e-9


def check_same_twice(call: Call, z: Tensor, value: Tensor) -> Tensor:
    """Refuse outputs that differ from call to call; return the scale of the outputs."""
    scale = value.abs().amax().clamp_min(torch.finfo(value.dtype).tiny)
    change = (call(z) - value).abs().amax()
    if change > _noise(value) * scale:
        raise DecoderError(
            f"the decoder must give equal outputs for equal latents; two calls differ by {float(change):.2g} where the "
            f"outputs reach {float(scale):.2g}. It samples, keeps state between calls, or drops out in eval mode: put "
            "the model it uses into eval mode, take the mean instead of a sample (method=, output=), or give what it "
            "draws for itself, such as noise or a label (condition=)."
        )
    return scale


def check_eval(call: Call, z: Tensor, value: Tensor, scale: Tensor) -> None:
    """Refuse a model whose own ``eval()`` changes its outputs by more than the flags of its modules do."""
    plain = nn.Module.train, nn.Module.eval
    if all((type(one).train, type(one).eval) == plain for one in modules_of(call.roots)):
        return
    if _size(call) > _COPY_BYTES:
        return
    try:
        twin = call.copied(call.dtype)
        for root in twin.roots:
            root.eval()
        change = (twin(z) - value).abs().amax()
    except Exception:  # a model may refuse copying in any way, and then stays as its caller left it
        return
    if change > 1e3 * _noise(value) * scale:
        raise DecoderError(
            f"the decoder must be in eval mode; its own eval() changes its outputs by {float(change):.2g} where they "
            f"reach {float(scale):.2g}, beyond what its modules' flags do. Call model.eval() before wrapping it."
        )


def check_rows_apart(call: Call, z: Tensor, value: Tensor, scale: Tensor, others: Tensor, unit: float) -> None:
    """Refuse outputs that depend on other rows of the batch; ``others`` (n, d) are latents far from ``z``.

    Sums are rounded in another order in another batch: latents many ``unit`` from zero are moved by that.
    """
    noise = _noise(value) + 64 * torch.finfo(value.dtype).eps * float(z.abs().amax()) / unit
    others = others[: len(z)].clone()
    others[0] = z[0]
    change = (call(others)[0] - value[0]).abs().amax()
    if change <= noise * scale:
        # a lone row goes through other kernels: more noise, but a coupling would show
        change = (call(z[:1])[0] - value[0]).abs().amax()
        if change <= 100 * noise * scale:
            _check_places(call, z, value, 100 * noise * scale)
            return
    words = (
        f"row 0 of the output changes by {float(change):.2g} when the other latents change, where the outputs reach "
        f"{float(scale):.2g}"
    )
    if _apart_in_float64(call, z, others):
        raise DecoderError(
            f"the decoder rounds too coarsely in {call.dtype}: {words}, and in float64 it does not. "
            "Convert the model with .double() before wrapping it (in the class or function that makes it, if it is "
            "read from a file)."
        )
    # where a condition was meant as one for each row, the model most likely sets every latent beside every condition
    likelier = several_rows(call.condition)
    raise DecoderError(
        f"the decoder couples the rows of a batch: {words}. "
        f"{likelier + ' Or a' if likelier else 'A'} layer normalises over the batch or quantises by its range, or a "
        "solver chooses its steps for all rows at once; give it fixed statistics, fixed steps or a tighter tolerance, "
        "or pass a function that calls the model on one row at a time."
    )


def _apart_in_float64(call: Call, z: Tensor, others: Tensor) -> bool:
    """Whether rows that seem coupled differ by their rounding alone, which a logarithm near zero may make large."""
    if call.dtype == torch.float64 or _size(call) > _COPY_BYTES:
        return False
    try:
        twin = call.copied(torch.float64)
        first, beside, alone = (twin(rows.double())[0] for rows in (z, others, z[:1]))
    except Exception:  # a model may refuse copying in any way
        return False
    return bool((torch.stack([beside, alone]) - first).abs().amax() <= 1e-6 * first.abs().amax())


def _check_places(call: Call, z: Tensor, value: Tensor, allowed: Tensor) -> None:
    """Refuse outputs that depend on which row of the batch a latent is, as where a model holds one thing for each."""
    change = (call(z.roll(1, 0)).roll(-1, 0) - value).abs().amax()
    if change > allowed:
        raise DecoderError(
            "the decoder must give a latent the same output in every row of a batch; in the next row outputs differ "
            f"by {float(change):.2g}. It holds something for each row, such as its condition: take what belongs to one "
            "row, give it with condition=, and wrap the model once for each."
        )


class ModulesLeftAlone(TorchFunctionMode):
    """Refuses calls that set ``.data`` of what their modules hold, as ``module.to(z.device)(z)`` does of all weights.

    Tensors that are set anew while they are differentiated by ``torch.func`` are lost, and torch crashes.
    """

    def __init__(self, call: Call):
        super().__init__()
        held: list[Tensor] = [weight for root in call.roots for weight in root.parameters()]
        held += [one.value for one in kept(call.roots) if isinstance(one.value, Tensor)]
        self._held = {id(tensor) for tensor in held}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # every look-up makes another wrapper of it
        if func == _SET_DATA and id(args[0]) in self._held:
            raise DecoderError(
                "the decoder must leave its modules as they are; when it is called it sets `.data` of their weights or "
                "buffers anew, as `module.to(z.device)(z)` does. Do that once before it is wrapped, and convert the "
                "latents instead: `module(z.to(weight.dtype))`. What is kept up to date in training, as a spectral "
                "norm or a moving average, leave as it is in eval mode."
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def small_weights_left_alone(roots: tuple[nn.Module, ...]) -> Iterator[None]:
    """Refuses what writes into weights of few numbers, as a layer does that initialises itself; they are put back.

    Large ones are not looked after: a copy of them may be too much.
    """
    named = [one for root in roots for one in (*root.named_parameters(), *root.named_buffers())]
    before = [(name, held, held.detach().clone()) for name, held in named if _is_small(held)]
    written: list[str] = []
    try:
        yield
    finally:
        # where ``.data`` was set anew it may be of another kind
        now = [one for one in before if _kind(one[1]) == _kind(one[2])]
        written = [name for name, held, old in now if isinstance(held, nn.Parameter) and _differ(held, old)]
        for _, held, old in now if written else ():
            held.data.copy_(old)
    if written:
        shown = ", ".join(written[:3]) + (", ..." if len(written) > 3 else "")
        raise DecoderError(
            f"the decoder must leave its weights as they are; when it is called it sets {shown} anew, as layers do "
            "that initialise themselves from their first batch. They have been put back. Load the flag that says that "
            "it is done (`initialized`, say) with the weights, or call the model once on latents of yours first."
        )


def _is_small(held: Tensor) -> bool:
    plain = type(held.data) is Tensor and held.layout is torch.strided and not held.is_quantized
    return plain and held.device.type != "meta" and held.numel() <= _FEW


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _differ(held: Tensor, old: Tensor) -> bool:
    # numbers that are none differ from themselves
    return bool(((held != old) & ((held == held) | (old == old))).any())


def in_float64(call: Call, z: Tensor, value: Tensor, unit: float = 1.0) -> Call | None:
    """The call in float64, where the model can be copied or does not mind the precision of its input."""
    if call.dtype == torch.float64:
        return call
    if _size(call) > _COPY_BYTES:
        return None
    try:
        copied = call.copied(torch.float64)
        twin = copied(z.double())
        moved = copied(z.double() + 1e-9 * (unit + z.double().abs())) != twin
    except Exception:  # a model may refuse copying in any way; the check then runs in its own precision
        return None
    scale = value.abs().amax()
    agrees = twin.dtype == torch.float64 and bool(((twin - value).abs() <= 1e-3 * scale).all())
    # a model that casts its input down inside does not feel so short a step
    return copied if agrees and bool(moved.any()) else None


def _size(call: Call) -> int:
    """Bytes of its weights."""
    weights = [p for root in call.roots for p in root.parameters()]
    return sum(p.numel() * p.element_size() for p in (*weights, *tensors_used_by(call.target, call.output)))
