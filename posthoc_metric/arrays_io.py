"""Arrays on disk: ``.npy``, ``.npz``, ``.pt``, ``.csv``, and AnnData ``.h5ad`` with the extra; no file is executed."""

from __future__ import annotations

import csv
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from .checkpoint.extras import need
from .checkpoint.torch_files import load_plain
from .errors import CheckpointError, InvalidArgumentError, PosthocMetricError

#: arrays in what ``scipy.sparse.save_npz`` writes
_SPARSE = {"data", "format", "shape"}
#: what a table holds where a value is missing, in lower case
_MISSING = {"", "na", "n/a", "#n/a", "<na>", "null", "none", "-"}

_ROW_NAMES = (
    "its first column holds names or numbers of rows, which are no data; write it without them: row.names=FALSE in R, "
    "index=False in pandas. Should it be data after all, leave the line of names out"
)


def read_array(path: str | Path, name: str, key: str | None = None, *, sparse: bool = False) -> Any:
    """One numeric array from a file; a ``.npy`` is memory-mapped, so that it may exceed memory.

    Args:
        path: of a file with one of the known endings.
        name: what the caller's argument is called, for messages.
        key: which array, in a file with several: the name in an ``.npz`` or in a dictionary in a ``.pt``, or for
            ``.h5ad`` ``"X"``, a layer or an entry of ``obsm``.
        sparse: leave a sparse table of SciPy's, as ``.h5ad`` and ``scipy.sparse.save_npz`` hold, as it is.

    Raises:
        InvalidArgumentError: an unknown ending, or no or an unknown ``key`` where several arrays are there.
        CheckpointError: the file is missing, damaged, or holds no numbers.
        MissingExtraError: the file needs a package that is not installed.
    """
    source = Path(path)
    reader = _READERS.get(source.suffix.lower())
    # an empty name, as of a variable that is not set, is the current folder to pathlib
    if source.is_dir():
        what = f"{str(path)!r} is a folder" if str(path) else "its name is empty"
        raise CheckpointError(f"`{name}` must be a file; {what}. Check the path.")
    if reader is None:
        raise InvalidArgumentError(
            f"`{name}` must be a file that ends in {', '.join(_READERS)}; got {str(path)!r}. Convert it to .npy."
        )
    if not source.is_file():
        raise CheckpointError(f"`{name}` must be a file; {str(path)!r} does not exist. Check the path.")
    try:
        array = reader(source, name, key)
        if scipy.sparse.issparse(array) and not sparse:
            array = array.toarray()
        if not isinstance(array, np.ndarray) and not scipy.sparse.issparse(array):
            raise ValueError(f"it holds {type(array).__name__}")
    except PosthocMetricError:
        raise
    except Exception as error:  # NumPy, zipfile, zlib, torch and h5py report damage in a dozen ways
        said = str(error).splitlines()[0] if str(error) else ""
        # others than a ValueError may say no more than a key or a name
        reason = said if said and isinstance(error, ValueError) else f"{type(error).__name__}: {said}".strip(": ")
        raise CheckpointError(
            f"`{name}` cannot be read from {str(source)!r}: it is no whole {source.suffix} file of numbers "
            f"({reason:.240}). Write it again, for example with numpy.save."
        ) from None
    if array.dtype.kind not in "fiu":
        raise CheckpointError(
            f"`{name}` must hold real numbers; {str(source)!r} has dtype {array.dtype}. Convert it to float first."
        )
    if array.ndim == 0:
        raise CheckpointError(f"`{name}` must hold rows of numbers; {str(source)!r} holds a single number.")
    return array


def _npy(path: Path, name: str, key: str | None) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _npz(path: Path, name: str, key: str | None) -> Any:
    with np.load(path, allow_pickle=False) as arrays:
        if key is None and set(arrays.files) >= _SPARSE:
            return scipy.sparse.load_npz(path)
        return arrays[_chosen(arrays.files, path, name, key)]


def _pt(path: Path, name: str, key: str | None) -> np.ndarray:
    try:
        content = load_plain(path)
    except pickle.UnpicklingError as error:
        # torch advises to run what the file holds, in escape codes; what it names is all that helps
        object_named = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        if object_named is None:
            raise ValueError("torch.save did not write it, or it was damaged") from None
        raise CheckpointError(
            f"`{name}` must be arrays alone; {str(path)!r} holds Python objects ({object_named[1]}), which cannot "
            "be read without running code in the file. Save the arrays alone, with torch.save or numpy.save."
        ) from None
    if isinstance(content, dict):
        # a key is written as text, whatever it is
        names = [str(k) for k in content]
        chosen = _chosen(names, path, name, key)
        if names.count(chosen) > 1:
            raise InvalidArgumentError(
                f"`{name}`: {str(path)!r} holds several arrays that are called {chosen}, such as the number and the "
                "text. Save them under other names."
            )
        content = list(content.values())[names.index(chosen)]
    if isinstance(content, np.ndarray):
        return content
    if not isinstance(content, torch.Tensor):
        raise ValueError(f"it holds a {type(content).__name__}, not a tensor")
    if content.is_floating_point() and content.dtype not in (torch.float16, torch.float32, torch.float64):
        # NumPy has no such type; float32 holds all its values
        content = content.float()
    return content.detach().resolve_conj().numpy()


def _csv(path: Path, name: str, key: str | None) -> np.ndarray:
    # Excel marks UTF-8 by three bytes in front, which would belong to the first field
    with path.open(encoding="utf-8-sig") as lines:
        told = ((n, line.split("#")[0]) for n, line in enumerate(lines, 1) if line.split("#")[0].strip())
        (number, first), (_, second) = next(told, (0, "")), next(told, (0, ""))
    apart = re.search(r"[;\t ]", second.strip())
    if apart and "," not in first:
        raise ValueError(f"its fields stand apart by {apart[0]!r}, and must by commas")
    names = _cells(first) if _is_header(first, number) else []
    row = _cells(second if names else first)
    # the column of row names has no name: R's write.csv leaves its field empty, write.table leaves the field out
    unnamed = bool(names) and not names[0]
    quoted = second.lstrip().startswith('"')
    word = bool(row) and row[0].lower() not in _MISSING and not _is_number(row[0]) and all(map(_is_number, row[1:]))
    if names and (len(names) == len(row) - 1 or (unnamed and quoted) or (len(row) > 1 and word)):
        raise ValueError(_ROW_NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there are no rows is said below
        array = np.loadtxt(path, delimiter=",", skiprows=number if names else 0, ndmin=2, encoding="utf-8-sig")
    if not array.size:
        raise ValueError("it has no rows of numbers")
    if names and _is_index(array, unnamed):
        raise ValueError(_ROW_NAMES)
    return array


def _is_index(array: np.ndarray, unnamed: bool) -> bool:
    """Whether the first column numbers the rows: it counts, or has no name and whole numbers like no other column."""
    first, others = array[:, 0], array[:, 1:]
    if others.size and first[0] in (0, 1) and bool((np.diff(first) == 1).all()):
        # two rows count by chance
        return unnamed or len(first) > 2
    # rows that were shuffled or left out after they had been numbered
    whole = bool((first == np.round(first)).all()) and len(np.unique(first)) == len(first)
    return unnamed and whole and bool((others != np.round(others)).any())


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]), [])]


def _is_header(line: str, number: int) -> bool:
    """Whether a line names columns: it holds no number, and a name in every field but that of an index.

    Raises:
        ValueError: it is neither names nor numbers throughout; taken for a header it would be lost without a word.
    """
    cells = _cells(line)
    numbers = [_is_number(cell) for cell in cells]
    if all(numbers):
        return False
    names = [cell.lower() not in _MISSING for cell in cells]
    if not any(numbers) and any(names) and all(names[1:]):
        return True
    if any(numbers):
        field = numbers.index(False)
    else:
        field = 0 if all(names[1:]) else names.index(False, 1)
    raise ValueError(
        f"line {number} is neither a row of numbers nor a header: its field {field + 1} is {cells[field]!r:.40}. Fill "
        "or remove rows with missing values, and give columns names in words"
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _h5ad(path: Path, name: str, key: str | None) -> Any:
    table = need("anndata", "anndata", f"`{name}`, an .h5ad file,").read_h5ad(path)
    # a table may hold layers alone
    main = () if table.X is None else ("X",)
    chosen = _chosen(list(dict.fromkeys([*main, *table.layers.keys(), *table.obsm.keys()])), path, name, key)
    if chosen in table.layers and (chosen in main or chosen in table.obsm):
        raise InvalidArgumentError(
            f"`{name}`: {str(path)!r} has a layer and another array that are called {chosen}. Rename one of them."
        )
    array: Any = table.X if chosen in main else {**table.layers, **table.obsm}[chosen]
    return array if scipy.sparse.issparse(array) else np.asarray(array)


def _chosen(names: list[str], path: Path, name: str, key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        asked = f"`{path.name}:{key}` names none of them" if key else "say which"
        raise InvalidArgumentError(
            f"`{name}`: {str(path)!r} holds the arrays {', '.join(names[:12])}; {asked}. "
            f"Write the name after a colon, as in {path.name}:{names[0] if names else 'name'}."
        )
    return key


_READERS: dict[str, Callable[[Path, str, str | None], Any]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _pt,
    ".csv": _csv,
    ".h5ad": _h5ad,
}


def read_named(argument: str, name: str, *, sparse: bool = False) -> Any:
    """An array from ``file`` or ``file:key``, as the command line writes it."""
    path, separator, key = argument.rpartition(":")
    if separator and not Path(argument).exists() and Path(path).suffix.lower() in _READERS:
        return read_array(path, name, key, sparse=sparse)
    return read_array(argument, name, sparse=sparse)
