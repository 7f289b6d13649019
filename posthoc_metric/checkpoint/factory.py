"""The caller's own class, imported only because the caller named it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from .._arrays import describe
from ..errors import CheckpointError, InvalidArgumentError
from .as_torch import copied


def resolve(factory: Any) -> Callable[..., Any]:
    """``factory`` as a callable that makes the model.

    Args:
        factory: a class or function; ``"package.module:Class"`` or ``"path/to/file.py:Class"``; or a module, of which
            a copy is filled.

    Raises:
        InvalidArgumentError: it names nothing that can be imported and called.
    """
    if isinstance(factory, nn.Module):
        return lambda: copied(factory)
    if callable(factory):
        return factory
    if not isinstance(factory, str) or ":" not in factory:
        raise InvalidArgumentError(
            "`factory` must be a class, a function, 'package.module:Class' or 'path/to/file.py:Class'; got "
            f"{describe(factory)}."
        )
    where, _, name = factory.rpartition(":")
    found: Any = _import(where, factory)
    for step in name.split("."):
        found = getattr(found, step, None)
    if not callable(found):
        raise InvalidArgumentError(f"`factory` is {factory!r}, but {where} has no class or function {name!r}.")
    return found


def _import(where: str, factory: str) -> Any:
    added: str | None = None
    try:
        if where.endswith(".py"):
            stem = Path(where).stem
            # not in the place of another module, which it may import
            spec = importlib.util.spec_from_file_location(f"_{stem}" if stem in sys.modules else stem, where)
            if spec is None or spec.loader is None:
                raise ImportError(f"{where} is no Python file")
            # what lies beside it can be imported, as beside a script, and by workers; last, so that it hides nothing
            folder = str(Path(where).resolve().parent)
            if folder not in sys.path:
                sys.path.append(folder)
                added = folder
            return _run(spec, spec.loader)
        return importlib.import_module(where)
    except Exception as error:  # the caller's own module runs, and may raise anything
        if added is not None and added in sys.path:
            sys.path.remove(added)
        advice = "Name a module that is installed or on PYTHONPATH, or a file as 'path/to/file.py:Class'."
        if where.endswith(".py") and not Path(where).exists():
            advice = "Check the path of the file; it starts from the folder that you are in."
        elif where.endswith(".py") and isinstance(error, ModuleNotFoundError):
            advice = (
                f"It is {where} that imports {error.name!r}: put the folder that has it on PYTHONPATH, or install it."
            )
        raise InvalidArgumentError(
            f"`factory` is {factory!r}, which cannot be imported ({type(error).__name__}: {error}). {advice}"
        ) from error


def _run(spec: ModuleSpec, loader: Loader) -> ModuleType:
    """The module of a file, which dataclasses look up by its name while it runs."""
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        loader.exec_module(module)
    finally:
        sys.modules.pop(spec.name, None)
    return module


def build(factory: Any, kwargs: Mapping[str, Any] | None, stored: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The model that ``factory`` makes, and notes on how.

    Args:
        kwargs: keyword arguments of the caller.
        stored: keyword arguments that the checkpoint carries (Lightning's ``hyper_parameters``); those that
            the factory takes are passed on where the caller gives none of the same name.

    Raises:
        InvalidArgumentError: ``kwargs`` is no dictionary.
        CheckpointError: the factory raises with those arguments.
    """
    make = resolve(factory)
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InvalidArgumentError(
            "`factory_kwargs` must be a dictionary of keyword arguments, such as {'width': 64}; got "
            f"{describe(kwargs)}."
        )
    given = dict(kwargs or {})
    taken = {name: value for name, value in stored.items() if name not in given and _takes(make, name)}
    try:
        model = make(**taken, **given)
    except Exception as error:  # the caller's own code, which may raise anything
        raise CheckpointError(
            f"`factory` cannot be called with the arguments {sorted({**taken, **given})} "
            f"({type(error).__name__}: {error}). Pass what it needs as factory_kwargs={{...}}."
        ) from error
    notes = (f"made with the checkpoint's own {', '.join(sorted(taken))}",) if taken else ()
    return model, notes


def _takes(make: Callable[..., Any], name: str) -> bool:
    try:
        parameter = inspect.signature(make).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
