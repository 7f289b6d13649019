"""Modules and tensors that a callable carries along: which they are, and the same callable over copies of them.

A function is what ``copy.deepcopy`` leaves as it is, so that a copy of a call that is one would go on with the modules
of the original, in their precision.  Of objects that hold modules no more is copied than what leads to those: a trainer
may hold its data beside them.

They are looked for in variables, arguments, attributes and entries, no more than ``_STEPS`` of them in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .holders import Place, filled, parts_of, shell

#: as from a decorated function to the function, its bound method, the owner of that, a dictionary and a module in it
_STEPS = 5
#: what is replaced by copies
_COPIED = (nn.Module, Tensor)
#: holders that are looked into, the nearest first
_MOST = 10_000


def modules_used_by(*values: Any) -> tuple[nn.Module, ...]:
    """Modules that callables carry along, the nearest first, so that their mode, dtype and device are known."""
    return tuple({id(part): part for part in _reached(values) if isinstance(part, nn.Module)}.values())


def tensors_used_by(*values: Any) -> tuple[Tensor, ...]:
    """Floating-point tensors that callables carry along beside modules, such as scales and bases."""
    found = {id(part): part for part in _reached(values) if isinstance(part, Tensor) and part.is_floating_point()}
    return tuple(found.values())


def _reached(values: tuple[Any, ...]) -> Iterator[Any]:
    for value in values:
        yield value
        for _, parts in _holders(value).values():
            yield from parts.values()


def over_copies(value: Any, copies: dict[int, Any]) -> Any:
    """``value`` over the copies of what it carries along; itself where there are none.

    Args:
        value: a callable, or anything else that can be looked into.
        copies: by the ``id`` of what was copied, the ``memo`` of ``copy.deepcopy``.

    Raises:
        TypeError: something copied is held by what cannot be copied, such as a cache.
    """
    holders = _holders(value)
    concerned = _leading_to(holders, copies)
    twins: dict[int, Any] = {}

    def twin(part: Any) -> Any:
        if isinstance(part, _COPIED):
            return copies.get(id(part), part)
        if id(part) not in concerned:
            return part
        if id(part) not in twins:
            holder, parts = holders[id(part)]
            empty = shell(holder)
            if empty is not None:
                twins[id(part)] = empty  # for what it holds may hold it
            swapped = {place: new for place, old in parts.items() if (new := twin(old)) is not old}
            twins[id(part)] = filled(holder, empty, swapped)
        return twins[id(part)]

    return twin(value)


def _holders(value: Any) -> dict[int, tuple[Any, dict[Place, Any]]]:
    """What is looked into, with its parts, by ``id``."""
    found: dict[int, tuple[Any, dict[Place, Any]]] = {}
    level = [value]
    for _ in range(_STEPS):
        following: list[Any] = []
        for holder in level:
            if isinstance(holder, nn.Module) or id(holder) in found or len(found) >= _MOST:
                continue
            parts = parts_of(holder)
            if parts:
                found[id(holder)] = holder, parts
                following += parts.values()
        level = following
    return found


def _leading_to(holders: dict[int, tuple[Any, dict[Place, Any]]], copies: dict[int, Any]) -> set[int]:
    """Which of ``holders`` hold something that was copied, or another of them that does."""
    concerned: set[int] = set()
    before = -1
    while len(concerned) > before:
        before = len(concerned)
        for key, (_, parts) in holders.items():
            if any(id(part) in (copies if isinstance(part, _COPIED) else concerned) for part in parts.values()):
                concerned.add(key)
    return concerned
