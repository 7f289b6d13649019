"""Which tensor of what a decoder returns is the output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from .._arrays import describe
from ..errors import DecoderError

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
        result = _entry(result, output)
    return _only_tensor(result)


def _entry(result: Any, output: Any) -> Any:
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


def _only_tensor(result: Any) -> Tensor:
    if isinstance(result, Tensor):
        return result
    if isinstance(result, (np.ndarray, np.generic)):
        return torch.as_tensor(np.asarray(result))
    if isinstance(result, Distribution):
        return result.mean
    entries = {key: value for key, value in _entries(result).items() if _is_output(value)}
    if len(entries) == 1:
        return _only_tensor(next(iter(entries.values())))
    raise DecoderError(
        f"the decoder must return one tensor of shape (B, ...); it returns {_inventory(result)}. "
        "Say which part to take with `output=` (a tuple index, a key, an attribute, or a function of the result)."
    )


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
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim > 0
    return isinstance(value, Distribution)


def _inventory(result: Any) -> str:
    entries = _entries(result) if not isinstance(result, (Tensor, np.ndarray)) else {}
    if not entries:
        return describe(result)
    parts = []
    for key, value in entries.items():
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, (Tensor, np.ndarray)) else ""
        parts.append(f"{key!r}: {type(value).__name__}{shape}")
    return f"{type(result).__name__} of {{{', '.join(parts)}}}"
