"""What holds other things: a function its variables, an object its attributes, a list its entries; and twins of those.

A twin is a holder of the same kind in which some parts are replaced.  The holder itself is never written to.
"""

from __future__ import annotations

import copy
import dis
import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import CellType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

#: where a holder has a part, as a key
Place = Any
#: longer lists and dictionaries are data, and not looked into
_LONGEST = 1000


def parts_of(holder: Any) -> dict[Place, Any]:
    """What ``holder`` holds, by place; nothing for classes, Python modules, tensors and whatever has no attributes."""
    if isinstance(holder, OverCopies):
        return {**_variables(holder.function), **holder.swapped}
    if inspect.isfunction(holder):
        return _variables(holder)
    if isinstance(holder, MethodType):
        return {"owner": holder.__self__, "function": holder.__func__}
    if isinstance(holder, functools.partial):
        named = {("named", name): value for name, value in holder.keywords.items()}
        return {"function": holder.func, **dict(enumerate(holder.args)), **named}
    if isinstance(holder, (list, tuple, dict)):
        if len(holder) > _LONGEST:
            return {}
        return dict(holder) if isinstance(holder, dict) else dict(enumerate(holder))
    if isinstance(holder, (type, ModuleType, Tensor, np.ndarray)):
        return {}
    return _attributes(holder)


def _attributes(holder: Any) -> dict[Place, Any]:
    """An object's own, those in slots, and modules and tensors of its classes."""
    found: dict[Place, Any] = {}
    for kind in reversed(type(holder).__mro__):
        for name, value in vars(kind).items():
            if isinstance(value, MemberDescriptorType):
                with suppress(AttributeError):  # a slot that was never set
                    found[name] = value.__get__(holder)
            elif isinstance(value, (nn.Module, Tensor)):
                found[name] = value
    try:
        own = object.__getattribute__(holder, "__dict__")
    except Exception:  # a stand-in for another object may do anything when it is asked
        return found
    return {**found, **own} if isinstance(own, dict) else found


def shell(holder: Any) -> Any:
    """A twin to be filled, for holders that may hold themselves; ``None`` for those that are made whole at once.

    Raises:
        TypeError: it is of a kind that cannot be copied.
    """
    if isinstance(holder, OverCopies):
        return OverCopies(holder.function, holder.swapped)
    if inspect.isfunction(holder):
        return OverCopies(holder, {})
    if isinstance(holder, (MethodType, functools.partial, tuple)):
        return None
    twin = copy.copy(holder)
    # what says that it is its own copy, as a cache does, would be written to
    own = None if isinstance(holder, (list, dict)) else getattr(twin, "__dict__", None)
    if twin is holder or (own is not None and own is vars(holder)):
        raise TypeError(f"{type(holder).__name__} cannot be copied")
    return twin


def filled(holder: Any, twin: Any, swapped: Mapping[Place, Any]) -> Any:
    """``twin``, the :func:`shell` of ``holder``, with the parts ``swapped``."""
    if isinstance(twin, OverCopies):
        twin.swapped.update(swapped)
    elif isinstance(twin, (list, dict)):
        for place, part in swapped.items():
            twin[place] = part
    elif twin is not None:
        # past properties, and past what freezes an object
        own = getattr(twin, "__dict__", None)
        for place, part in swapped.items():
            if own is None or isinstance(getattr(type(twin), place, None), MemberDescriptorType):
                object.__setattr__(twin, place, part)
            else:
                own[place] = part
    else:
        return _whole(holder, {**parts_of(holder), **swapped})
    return twin


def _whole(holder: Any, parts: dict[Place, Any]) -> Any:
    if isinstance(holder, MethodType):
        return MethodType(parts["function"], parts["owner"])
    if isinstance(holder, functools.partial):
        given = (parts[index] for index in range(len(holder.args)))
        return type(holder)(parts["function"], *given, **{name: parts["named", name] for name in holder.keywords})
    return type(holder)(*parts.values()) if hasattr(holder, "_fields") else type(holder)(parts.values())


class OverCopies:
    """A function of which some variables are replaced.

    It is no function itself: what is pickled is the original, which others may find by its name.
    """

    def __init__(self, function: FunctionType, swapped: Mapping[Place, Any]):
        self.function = function
        self.swapped = dict(swapped)
        self._twin: FunctionType | None = None

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._twin is None:
            self._twin = _twin(self.function, self.swapped)
        return self._twin(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function, "swapped": self.swapped, "_twin": None}


def _variables(function: FunctionType) -> dict[Place, Any]:
    """Those of the functions around it, the global ones that it names, and its defaults."""
    held: dict[Place, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if cell != CellType():  # a variable that was never set has an empty one
            held["around", name] = cell.cell_contents
    known = function.__globals__
    held |= {("global", name): known[name] for name in _names(function.__code__) if name in known}
    held |= {("default", index): value for index, value in enumerate(function.__defaults__ or ())}
    held |= {("keyword", name): value for name, value in (function.__kwdefaults__ or {}).items()}
    return held


def _names(code: CodeType) -> Iterator[str]:
    """Global names that ``code`` uses, also those of the functions and comprehensions inside."""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _twin(function: FunctionType, swapped: dict[Place, Any]) -> FunctionType:
    code = function.__code__
    cells = tuple(
        CellType(swapped["around", name]) if ("around", name) in swapped else cell
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
    )
    names = {name: swapped["global", name] for name in _names(code) if ("global", name) in swapped}
    given = function.__defaults__ or ()
    defaults = tuple(swapped.get(("default", index), value) for index, value in enumerate(given))
    twin = FunctionType(code, {**function.__globals__, **names}, function.__name__, defaults, cells)
    if function.__kwdefaults__:
        named = function.__kwdefaults__.items()
        twin.__kwdefaults__ = {name: swapped.get(("keyword", name), value) for name, value in named}
    return twin
