"""How much memory a row of a decoder's batch takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class _LargestResult(TorchFunctionMode):
    """Remembers the largest tensor that any operation inside returns, but those in compiled graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.bytes = max(self.bytes, value.numel() * value.element_size())
        return result


def bytes_per_row(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, int]:
    """``function(z)`` and an estimate of the memory that each row of it holds at once.

    Four times the largest intermediate result: a layer's input and output, and one temporary of each.
    """
    with _LargestResult() as seen:
        value = function(z)
    largest = max(seen.bytes, value.numel() * value.element_size())
    return value, max(1, 4 * largest // max(1, z.shape[0]))
