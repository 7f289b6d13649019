"""Files that torch writes: state dicts and whole modules, TorchScript, exported programs."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import CheckpointError, UnsafeFileError
from . import vet
from .sniff import Container


def load_plain(path: pathlib.Path, plain: Sequence[Any] = ()) -> Any:
    """What a ``torch.save`` file holds, if that is tensors, NumPy arrays, containers of them and plain data.

    Raises:
        pickle.UnpicklingError: it holds other Python objects, none of which was made, or is damaged; torch raises
            more where it is damaged.
    """
    with torch.serialization.safe_globals([*_plain_data(), *plain]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def read_torch(container: Container, trust: bool, plain: Sequence[Any] = ()) -> Any:
    """What a ``torch.save`` file holds: tensors, containers of them and plain data, unless ``trust``.

    Args:
        plain: more types that hold data and run nothing.

    Raises:
        UnsafeFileError: it holds other Python objects, and the caller has not said ``trust=True``.
        CheckpointError: it is damaged.
    """
    path = container.path
    try:
        return load_plain(path, plain)
    except pickle.UnpicklingError:
        if not trust:
            raise UnsafeFileError(
                f"{path} looks like {container.looks_like} that holds Python objects beside tensors"
                f"{_unknown(path, plain)}: reading them runs code in the file. Save the state dict alone, with "
                "torch.save(model.state_dict(), ...) or safetensors, and pass factory=; or pass trust=True if you "
                "trust where the file comes from."
            ) from None
    except Exception as error:  # torch reports damage in many ways
        raise container.damaged(error) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a trusted pickle runs its own code, which may raise anything
        raise CheckpointError(
            f"{path} cannot be unpickled ({type(error).__name__}: {error}). The classes it names must be importable "
            "under the names they had when it was saved: put the folder that has their module on PYTHONPATH. If "
            "a script itself defined them (in __main__), import them in another one, as by `from mymodels import *`, "
            "read the file there by torch.load(path, weights_only=False), save the module's state_dict(), and pass "
            "factory=."
        ) from error


def _plain_data() -> list[Any]:
    """Types that hold data and run nothing, which training frameworks leave in their checkpoints."""
    numpy: Any = np
    multiarray = numpy._core.multiarray if hasattr(np, "_core") else numpy.core.multiarray
    dtypes = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
    dtypes += [type(np.dtype(code)) for code in ("c8", "c16")]
    dtypes += [type(np.dtype("O")), type(np.dtype("U1")), type(np.dtype("S1"))]
    arrays: list[Any] = [multiarray.scalar, multiarray._reconstruct, np.ndarray, np.dtype, *dtypes]
    # the same functions under the module names of other NumPy versions
    arrays += [(multiarray.scalar, f"{core}.multiarray.scalar") for core in ("numpy.core", "numpy._core")]
    arrays += [(multiarray._reconstruct, f"{core}.multiarray._reconstruct") for core in ("numpy.core", "numpy._core")]
    paths = [pathlib.PurePosixPath, pathlib.PosixPath, pathlib.PureWindowsPath]
    # a default dictionary is read as a plain one: its factory would be called, and torch fills no other mapping
    mappings = [dict, (_plain_dict, "collections.defaultdict")]
    return [*arrays, *paths, *mappings, argparse.Namespace, set]


def _plain_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _unknown(path: pathlib.Path, plain: Sequence[Any]) -> str:
    try:
        with torch.serialization.safe_globals([*_plain_data(), *plain]):
            names = list(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:3]
    except Exception:  # only for the message; a damaged or older file has no such list
        names = []
    return f" ({', '.join(names)})" if names else ""


def read_pickle(container: Container, trust: bool) -> Any:
    """A pickle outside ``torch.save``, such as joblib's of a scikit-learn model.

    Raises:
        UnsafeFileError: always, unless ``trust``.
    """
    if not trust:
        raise UnsafeFileError(
            f"{container.path} looks like {container.looks_like}: reading it runs code in the file. Save weights as "
            "safetensors or with torch.save(model.state_dict(), ...), a scikit-learn model with skops; or pass "
            "trust=True if you trust where the file comes from."
        )
    import joblib

    try:
        return joblib.load(container.path)
    except Exception as error:  # a trusted pickle runs its own code, which may raise anything
        raise container.damaged(error) from error


def read_torchscript(container: Container, trust: bool) -> nn.Module:
    """A TorchScript archive whose code does nothing but arithmetic on tensors, unless ``trust``.

    Raises:
        UnsafeFileError: its code reaches files or is not understood, and the caller has not said ``trust=True``.
        CheckpointError: it is damaged.
    """
    source: Any = str(container.path) if trust else vet.torchscript(container)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(source, map_location="cpu")
    except Exception as error:  # torch reports damage in many ways
        raise container.damaged(error) from error


def read_exported(container: Container, trust: bool) -> nn.Module:
    """An exported program whose graph names nothing but tensor operators, unless ``trust``.

    Raises:
        UnsafeFileError: it holds pickles, strings that would be evaluated, or other operators, and the caller has
            not said ``trust=True``.
        CheckpointError: it is damaged.
    """
    source: Any = str(container.path) if trust else vet.exported(container)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(source)
        return program.module()
    except Exception as error:  # torch reports damage and other versions in many ways
        raise container.damaged(error) from error


def read_safetensors(container: Container) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, which can hold nothing else, under every name that it tells of.

    Raises:
        CheckpointError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        tensors = load_file(container.path)
        with safe_open(container.path, "pt") as file:
            # save_model writes tied weights once and their other names beside them
            also = {name: tensors[kept] for name, kept in (file.metadata() or {}).items() if kept in tensors}
        return {**also, **tensors}
    except (SafetensorError, OSError, ValueError) as error:
        raise container.damaged(error) from error
