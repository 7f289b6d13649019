"""What a decoder needs beside ``z``, broadcast over the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._arrays import as_tensor, is_integer

#: single numbers of which some may be columns, or options
_MOST_SINGLE = 4


@dataclass(frozen=True)
class _AsItIs:
    """A whole number that is no label but an option of the model's, such as how many of its layers to use."""

    value: Any


def arguments(condition: Any, z: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for the batch ``z``.

    Args:
        condition: one value for the second argument, a tuple for several, a dictionary for keyword
            arguments, or a function of the batch ``z`` that returns one of those.  An array stands for one
            item, with or without a leading axis of one, and is repeated for every row; an ``int``
            is a label, unless :func:`otherwise` made it an option; anything else (``None``, ``bool``, ``float``,
            ``str``, objects) is passed on as it is.
        z: (B, d), or the shape the decoder wants.
    """
    if condition is None:
        return (), {}
    if callable(condition) and not isinstance(condition, Tensor):
        given = condition(z)
        return _split(given, lambda value: value)
    return _split(condition, lambda value: _repeat(value, z))


def otherwise(condition: Any) -> Iterator[tuple[Any, str]]:
    """``condition`` with some of the single numbers in it handed over otherwise than as (B,); and a note of which.

    First as (B, 1), which a model takes where it concatenates with its layers' inputs, or multiplies its outputs; then
    whole ones as they are, which it takes where it counts or cuts by them.  Fewest first.
    """
    named = _named(condition)
    single = [name for name, value in named.items() if _is_single_number(value)][:_MOST_SINGLE]
    which = "condition " if isinstance(condition, tuple) else ""
    whole = [name for name in single if is_integer(named[name])]
    ways: tuple[tuple[list[Any], Callable[[Any], Any], str], ...] = (
        (single, lambda value: _array(value).reshape(1, 1), "as (B, 1)"),
        (whole, _AsItIs, "as it is, not for each row"),
    )
    for names, other, words in ways:
        for chosen in chain.from_iterable(combinations(names, count) for count in range(1, len(names) + 1)):
            changed = {name: other(value) if name in chosen else value for name, value in named.items()}
            yield _like(condition, changed), f"{which}{', '.join(map(str, chosen))} handed over {words}"


def spread(condition: Any, outputs: Callable[[Any], Tensor | None]) -> str:
    """A refusal of an array that may be one value a row and is spread over something else; empty where none is.

    It is spread where the model gives the same for the first value alone as for that value in all places: what is
    concatenated or multiplied by a matrix does not come in both widths.

    Args:
        outputs: of the model with another condition, ``None`` where it fails.
    """
    named = _named(condition)
    for name, value in named.items():
        array = _array(value) if isinstance(value, (list, np.ndarray, Tensor)) else None
        if array is None or array.ndim == 0 or len(array) < 2:
            continue
        first = array[:1]
        once, often = first.reshape(1, -1) if array.ndim == 1 else first, first.expand(array.shape)
        one, many = (outputs(_like(condition, {**named, name: given})) for given in (once, often))
        if one is None or many is None or one.shape != many.shape or not one.allclose(many, 1e-4, equal_nan=True):
            continue
        shape = tuple(array.shape)
        which = "`condition`" if name == "condition" else f"`condition`, its {name!r}"
        return (
            f"{which} must be what belongs to one row; got shape {shape}, which may be one value for each of "
            f"{len(array)} rows or {len(array)} values for every row, and the model runs either way, as where it "
            "multiplies its outputs by them. If the first was meant pass that of one row and wrap the model once for "
            f"each; if the second, pass it with a first axis of one, (1, {', '.join(map(str, shape))})."
        )
    return ""


def advice(condition: Any) -> str:
    """What to try where a model fails with ``condition``, which it may have been handed otherwise than was meant."""
    given = list(_named(condition).values())
    floats = [value for value in given if isinstance(value, float)]
    words = [
        f"A plain float is passed on as it is; for a number a row, pass [{value!r}]." for value in dict.fromkeys(floats)
    ]
    if any(_is_whole_row(value) for value in given):
        words.append(
            "Whole numbers are handed over as whole numbers, as labels are; those that are multiplied by weights, as "
            "one-hot ones, pass as floats, such as [0.0, 1.0]."
        )
    return " ".join([*words, several_rows(condition)]).strip()


def several_rows(condition: Any) -> str:
    """That an array in ``condition`` is not taken for one value for each row, if one looks as if it were."""
    words = []
    for value in _named(condition).values():
        shape = tuple(value.shape) if isinstance(value, (np.ndarray, Tensor)) else ()
        if isinstance(value, list) and all(isinstance(item, (int, float)) for item in value):
            shape = (len(value),)
        if shape and shape[0] > 1:
            words.append(
                f"One condition serves all rows: an array of shape {shape} is handed over as (B, "
                f"{', '.join(map(str, shape))}), not as one value for each row. Pass that of one row, and wrap the "
                "model once for each condition."
            )
    return " ".join(dict.fromkeys(words))


def _named(condition: Any) -> dict[Any, Any]:
    if isinstance(condition, Mapping):
        return dict(condition)
    return dict(enumerate(condition)) if isinstance(condition, tuple) else {"condition": condition}


def _like(condition: Any, named: dict[Any, Any]) -> Any:
    """``named`` in the form of ``condition``."""
    if isinstance(condition, Mapping):
        return named
    return tuple(named.values()) if isinstance(condition, tuple) else named["condition"]


def _is_single_number(value: Any) -> bool:
    listed = isinstance(value, list) and len(value) == 1
    if listed:
        value = value[0]
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return value.ndim < 2 and len(value.reshape(-1)) == 1
    # a plain float is an option of the model's, such as a temperature; in a list it is an array as any other
    return isinstance(value, (int, float) if listed else int) and not isinstance(value, bool)


def _is_whole_row(value: Any) -> bool:
    """Whether it is an array of several whole numbers, such as a one-hot one."""
    try:
        array = _array(value)
    except (TypeError, ValueError):  # a list of something else
        return False
    if not isinstance(array, Tensor) or array.dtype == torch.bool or array.is_complex():
        return False
    return array.numel() > 1 and not array.is_floating_point()


def _array(value: Any) -> Any:
    """What is repeated for every row, as a tensor; anything else as it is."""
    if isinstance(value, (bool, float, str)) or value is None:
        return value
    if isinstance(value, (int, list, np.ndarray, np.generic)):
        return as_tensor(value)
    return value


def _split(condition: Any, convert: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(condition, Mapping):
        return (), {name: convert(value) for name, value in condition.items()}
    if isinstance(condition, tuple):
        return tuple(convert(value) for value in condition), {}
    return (convert(condition),), {}


def _repeat(value: Any, z: Tensor) -> Any:
    if isinstance(value, _AsItIs):
        return value.value
    value = _array(value)
    if not isinstance(value, Tensor):
        return value
    value = value.detach().to(z.device)
    if value.is_floating_point():
        value = value.to(z.dtype)
    if value.ndim == 0 or value.shape[0] != 1:
        value = value.unsqueeze(0)
    # a model may write into it
    return value.expand(z.shape[0], *value.shape[1:]).clone(memory_format=torch.contiguous_format)
