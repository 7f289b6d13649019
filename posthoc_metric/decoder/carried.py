"""Modules that a function carries along: which they are, and the same function over copies of them.

A function is what ``copy.deepcopy`` leaves as it is, so that a copy of a call that is one would go on with the modules
of the original, in their precision.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType
from typing import Any

from torch import nn

#: where a function has a module: in a variable of the function around it, a global one, or a default; and its name
Place = tuple[str, str | int]


def modules_used_by(function: Any) -> tuple[nn.Module, ...]:
    """Modules that a function carries along, so that their mode, dtype and device are known."""
    if isinstance(function, functools.partial):
        held = [function.func, *function.args, *function.keywords.values()]
        found = [
            m for value in held if callable(value) and not isinstance(value, nn.Module) for m in modules_used_by(value)
        ]
        found += [value for value in held if isinstance(value, nn.Module)]
    elif inspect.isfunction(function):
        found = [module for _, module in _places(function)]
    else:
        owner = getattr(function, "__self__", None)
        values = vars(function).values() if hasattr(function, "__dict__") else ()
        found = [v for v in (owner, *values) if isinstance(v, nn.Module)]
    return tuple({id(module): module for module in found}.values())


def over_copies(function: Any, copies: dict[int, Any]) -> Any:
    """``function`` over the copies of the modules that it carries along; itself where there are none.

    Args:
        function: what ``copy.deepcopy`` made of a call.
        copies: by the ``id`` of what was copied, the ``memo`` of that.
    """
    if isinstance(function, functools.partial):
        given = [over_copies(value, copies) for value in function.args]
        named = {name: over_copies(value, copies) for name, value in function.keywords.items()}
        return functools.partial(over_copies(function.func, copies), *given, **named)
    if not inspect.isfunction(function):
        return function
    swapped = {place: copies[id(module)] for place, module in _places(function) if id(module) in copies}
    return _OverCopies(function, swapped) if swapped else function


def _places(function: FunctionType) -> Iterator[tuple[Place, nn.Module]]:
    names = set(_names(function.__code__))
    held: list[tuple[Place, Any]] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if cell != CellType():  # a variable that was never set has an empty one
            held.append((("around", name), cell.cell_contents))
    held += [(("global", name), value) for name, value in function.__globals__.items() if name in names]
    held += [(("default", index), value) for index, value in enumerate(function.__defaults__ or ())]
    held += [(("keyword", name), value) for name, value in (function.__kwdefaults__ or {}).items()]
    return ((place, value) for place, value in held if isinstance(value, nn.Module))


def _names(code: CodeType) -> Iterator[str]:
    """Global names that ``code`` uses, also those of the functions and comprehensions inside."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


class _OverCopies:
    """A function of which some variables are replaced.

    It is no function itself: what is pickled is the original, which others may find by its name.
    """

    def __init__(self, function: FunctionType, swapped: dict[Place, nn.Module]):
        self._function = function
        self._swapped = swapped
        self._twin = _twin(function, swapped)

    @property
    def __name__(self) -> str:
        return self._function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._twin(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _OverCopies, (self._function, self._swapped)


def _twin(function: FunctionType, swapped: dict[Place, nn.Module]) -> FunctionType:
    code = function.__code__
    cells = tuple(
        CellType(swapped["around", name]) if ("around", name) in swapped else cell
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
    )
    names = {str(name): module for (kind, name), module in swapped.items() if kind == "global"}
    given = function.__defaults__ or ()
    defaults = tuple(swapped.get(("default", index), value) for index, value in enumerate(given))
    twin = FunctionType(code, {**function.__globals__, **names}, function.__name__, defaults, cells)
    if function.__kwdefaults__:
        named = function.__kwdefaults__.items()
        twin.__kwdefaults__ = {name: swapped.get(("keyword", name), value) for name, value in named}
    return twin
