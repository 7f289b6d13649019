"""How much memory a row of a decoder's batch takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Sizes(TorchFunctionMode):
    """Remembers the bytes of every tensor that an operation inside returns, but those in compiled graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.found.append(_bytes(value))
        return result


def bytes_per_row(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, int]:
    """``function(z)`` and an estimate of the memory that each row of it holds at once.

    Four times the largest intermediate result: a layer's input and output, and one temporary of each.  Results that
    are as large with twice the rows are made of weights, and do not count.
    """
    with _Sizes() as seen:
        value = function(z)
    more_rows = z.repeat(2, 1)
    with _Sizes() as twice:
        function(more_rows)
    grown = [more - size for size, more in zip(seen.found, twice.found, strict=False)]
    # a model that takes other steps with other rows tells nothing by that
    sizes = grown if len(seen.found) == len(twice.found) else seen.found
    return value, max(1, 4 * max([*sizes, _bytes(value)]) // max(1, z.shape[0]))


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
