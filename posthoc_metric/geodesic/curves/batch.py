"""Records of tensors that share their first axis, one row a curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

B = TypeVar("B", bound="Batch")


class Batch:
    """Base of dataclasses of tensors (or such records, or ``None``) with one row a curve."""

    def take(self: B, index: Tensor) -> B:
        """The rows that ``index`` (indices or mask) picks, copied."""
        index = _rows(index)
        return type(self)(**{name: _take(value, index) for name, value in self._items()})

    @classmethod
    def join(cls: type[B], parts: list[B]) -> B:
        """One record of the rows of several."""
        return cls(**{f.name: _join([getattr(part, f.name) for part in parts]) for f in fields(cls)})  # type: ignore

    def put(self, mask: Tensor, other: Any) -> None:
        """Overwrite the rows in ``mask`` (or of such indices) by the same rows of ``other``."""
        rows = _rows(mask)
        for name, value in self._items():
            if isinstance(value, Tensor):
                value.index_copy_(0, rows, getattr(other, name).index_select(0, rows))
            elif value is not None:
                value.put(rows, getattr(other, name))

    def put_rows(self, rows: Tensor, other: Any) -> None:
        """Overwrite the rows ``rows`` (indices) by ``other``, which has only those."""
        for name, value in self._items():
            if value is not None:
                value[rows] = getattr(other, name)

    def _items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__dataclass_fields__]  # type: ignore[attr-defined]


def in_blocks(pair: Tensor, block: int, ask: Callable[[Tensor], B]) -> B:
    """What ``ask`` makes of curves (P,) in blocks of about so many, those of a pair together, in their own order.

    What a pair gets depends on itself alone.
    """
    order = pair.argsort(stable=True)
    first = torch.searchsorted(pair[order], pair[order])
    sizes = torch.unique_consecutive(torch.div(first, block, rounding_mode="floor"), return_counts=True)[1]
    done = [ask(rows) for rows in order.split(sizes.tolist())]
    return type(done[0]).join(done).take(order.argsort())


def _join(values: list[Any]) -> Any:
    if values[0] is None:
        return None
    return torch.cat(values) if isinstance(values[0], Tensor) else type(values[0]).join(values)


def _take(value: Any, index: Tensor) -> Any:
    if value is None:
        return None
    return value.index_select(0, index) if isinstance(value, Tensor) else value.take(index)


def _rows(index: Tensor) -> Tensor:
    """Indices; a mask is searched once for all the tensors of a record."""
    return index.nonzero().flatten() if index.dtype == torch.bool else index
