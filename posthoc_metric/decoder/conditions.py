"""What a decoder needs beside ``z``, broadcast over the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def arguments(condition: Any, z: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for the batch ``z``.

    Args:
        condition: one value for the second argument, a tuple for several, a dictionary for keyword
            arguments, or a function of the batch ``z`` that returns one of those.  An array stands for one
            item, with or without a leading axis of one, and is repeated for every row; an ``int``
            is a label; anything else (``None``, ``bool``, ``float``, ``str``, objects) is passed on as it is.
        z: (B, d), or the shape the decoder wants.
    """
    if condition is None:
        return (), {}
    if callable(condition) and not isinstance(condition, Tensor):
        given = condition(z)
        return _split(given, lambda value: value)
    return _split(condition, lambda value: _repeat(value, z))


def _split(condition: Any, convert: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(condition, Mapping):
        return (), {name: convert(value) for name, value in condition.items()}
    if isinstance(condition, tuple):
        return tuple(convert(value) for value in condition), {}
    return (convert(condition),), {}


def _repeat(value: Any, z: Tensor) -> Any:
    if isinstance(value, (bool, float, str)) or value is None:
        return value
    if isinstance(value, (int, list, np.ndarray, np.generic)):
        value = torch.as_tensor(np.asarray(value))
    if not isinstance(value, Tensor):
        return value
    value = value.detach().to(z.device)
    if value.is_floating_point():
        value = value.to(z.dtype)
    if value.ndim == 0 or value.shape[0] != 1:
        value = value.unsqueeze(0)
    return value.expand(z.shape[0], *value.shape[1:])
