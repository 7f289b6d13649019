"""Which tensor of what a decoder returns is the output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from .._arrays import as_tensor, describe
from ..errors import DecoderError

#: what may stand for a distribution that has no mean
_PARAMETERS = ("probs", "logits", "loc", "concentration", "rate", "mode")
_BY_FUNCTION = (
    "Pass as `output` a function of the result that gives its parameters, such as probabilities or locations."
)

Output = Union[int, str, Callable[[Any], Any], None]


def pick(result: Any, output: Output) -> Tensor:
    """The output tensor in ``result``.

    Args:
        result: whatever the decoder returned.
        output: a tuple index, a dictionary key or attribute, a function of ``result``; ``None`` takes the
            only tensor there is.  A distribution stands for its mean.

    Raises:
        DecoderError: there is no such entry, or there are several tensors and ``output`` is ``None``.
    """
    if output is not None:
        return _only_tensor(part := entry(result, output), lambda: _leads_astray(output, part, result))
    if isinstance(result, Distribution):
        return _mean(result, bare=True)
    return _only_tensor(result)


def entry(result: Any, output: Any) -> Any:
    """The part of ``result`` that ``output`` names.

    Raises:
        DecoderError: there is none.
    """
    if callable(output):
        return output(result)
    if isinstance(output, str):
        if isinstance(result, Mapping) and output in result:
            return result[output]
        if not isinstance(result, (Tensor, Mapping)) and hasattr(result, output):
            return getattr(result, output)
    elif isinstance(result, (tuple, list)):
        if -len(result) <= output < len(result):
            return result[output]
    elif isinstance(result, Mapping) and output in result:
        return result[output]
    raise DecoderError(
        f"`output` is {output!r}, which must name a part of what the decoder returns; it returns {_inventory(result)}. "
        "Name one of those, or pass a function of the result."
    )


def _leads_astray(output: Output, part: Any, result: Any) -> str:
    named = "a function of the result" if callable(output) else repr(output)
    return (
        f"`output` is {named}, which must lead to one tensor of shape (B, ...); it leads to {_inventory(part)}. The "
        f"decoder returns {_inventory(result)}: name another part of that, or pass another function of it."
    )


def _only_tensor(result: Any, refusal: Callable[[], str] | None = None) -> Tensor:
    """The only tensor in ``result``.

    Args:
        refusal: what to say where it is none of what the decoder returns, but a part of that.
    """
    if isinstance(result, Tensor):
        return result
    if isinstance(result, Distribution):
        return _mean(result, bare=False)
    if _is_array(result):
        # a function may write its next results to the same place
        return as_tensor(result).clone()
    entries = {key: value for key, value in _entries(result).items() if _is_output(value)}
    if len(entries) == 1:
        return _only_tensor(next(iter(entries.values())), refusal)
    raise DecoderError(
        refusal()
        if refusal
        else f"the decoder must return one tensor of shape (B, ...); it returns {_inventory(result)}. "
        "Say which part to take with `output=` (a tuple index, a key, an attribute, or a function of the result)."
    )


def _mean(result: Distribution, bare: bool) -> Tensor:
    """The mean of a distribution.

    Args:
        bare: it is all that the decoder returns, so that `output` may name its attributes.

    Raises:
        DecoderError: it has none, as classes without an order or a Cauchy distribution.
    """
    try:
        mean = result.mean
        undefined = _all_nan(mean)
    except NotImplementedError:
        undefined = True
    # of parameters that are NaN themselves the weights are at fault, which is said elsewhere
    if undefined and not any(_all_nan(value) for value in vars(result).values() if isinstance(value, Tensor)):
        parts = [f"output={name!r}" for name in _PARAMETERS if bare and _is_floating(result, name)]
        advice = f"Take its parameters instead: {' or '.join(parts)}." if parts else _BY_FUNCTION
        raise DecoderError(
            "the decoder must return numbers or a distribution that has a mean; the mean of its "
            f"{type(result).__name__} is not defined. {advice}"
        )
    return mean


def _all_nan(values: Tensor) -> bool:
    try:
        return values.numel() > 0 and bool(torch.isnan(values).all())
    except RuntimeError:
        return False  # under a transform such as vmap, which the first plain call came before


def _is_floating(result: Distribution, name: str) -> bool:
    try:
        value = getattr(result, name, None)
    except NotImplementedError:
        return False
    return isinstance(value, Tensor) and value.is_floating_point()


def _entries(result: Any) -> dict[Any, Any]:
    if isinstance(result, Mapping):
        return dict(result)
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return dict(zip(result._fields, result, strict=True))
    if isinstance(result, (tuple, list)):
        return dict(enumerate(result))
    if dataclasses.is_dataclass(result):
        return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return dict(vars(result)) if hasattr(result, "__dict__") else {}


def _is_output(value: Any) -> bool:
    if _is_array(value):
        return np.ndim(value) > 0
    return isinstance(value, Distribution)


def _is_array(value: Any) -> bool:
    """Whether ``value`` is an array of any library's: NumPy and those that can be read as its arrays say so."""
    return isinstance(value, (Tensor, np.ndarray)) or (hasattr(value, "__array__") and hasattr(value, "shape"))


def _inventory(result: Any) -> str:
    entries = _entries(result) if not _is_array(result) else {}
    if not entries:
        return "None" if result is None else describe(result)
    parts = []
    for key, value in entries.items():
        shape = f" of shape {tuple(value.shape)}" if _is_array(value) else ""
        parts.append(f"{key!r}: {type(value).__name__}{shape}")
    return f"{type(result).__name__} of {{{', '.join(parts)}}}"
