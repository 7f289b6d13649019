"""Arrays in files, mapped into memory: made with their space on the disk taken, opened only if they are whole.

A map hides what files say.  A page for which the disk has no room ends the process with a bus error instead of an
exception, and a file that was cut short is read on as zeros.  So both are found out before there is a map.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import CheckpointError, OutputError

_CHUNK = 2**22
#: what a file system answers that cannot reserve space; some C libraries then fill the file themselves, some do not
_NOT_HERE = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


def make_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A new ``.npy`` of zeros, in the place of any older; its pages can be written whatever else fills the disk.

    Maps of an older one keep what they show: they would otherwise show the new values, or end the process where the
    new file is shorter.

    Raises:
        OutputError: there is no room, or the folder cannot be written to; nothing is then left at ``path``.
    """
    kind = np.dtype(dtype)
    facts = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    try:
        if path.exists():
            # what may not be written is not to be removed either
            open(path, "r+b").close()
            path.unlink()
        file = open(path, "w+b")  # noqa: SIM115, what may not be opened is not to be removed
        try:
            with file:
                np.lib.format.write_array_header_1_0(file, facts)
                file.flush()
                _reserve(file, file.tell() + _bytes(kind, shape))
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        return np.lib.format.open_memmap(path, "r+")
    except OSError as error:
        raise cannot_write(path.parent, error) from None


def open_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The array that :func:`make_array` left at ``path``, to be read and written.

    Raises:
        CheckpointError: it is missing, cut short, or not of this dtype and shape.
        OutputError: it may not be read or written.
    """
    kind = np.dtype(dtype)
    try:
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            found, columns_first, found_kind = np.lib.format.read_array_header_1_0(file)
            whole, size = file.tell() + _bytes(kind, shape), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise damaged(path, "is missing") from None
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    except Exception as error:  # NumPy reports damaged headers in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise damaged(path, f"does not begin as an array does ({reason:.120})") from None
    if (found, found_kind, columns_first) != (shape, kind, False):
        order = " by columns" if columns_first else ""
        raise damaged(path, f"holds {found_kind} of shape {found}{order} where {kind} of shape {shape} belongs")
    if size != whole:
        raise damaged(path, f"has {size} bytes where {whole} belong")
    try:
        with open(path, "r+b") as file:
            # a copy may have lost the place of what is still zero
            _reserve(file, whole)
        return np.lib.format.open_memmap(path, "r+")
    except OSError as error:
        raise cannot_write(path.parent, error) from None


def cannot_write(folder: Path, error: OSError) -> OutputError:
    """What to say where the operating system refuses."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            return OutputError(f"`store` must be a folder; {str(place)!r} is a file. Choose another name.")
    return OutputError(
        f"`store` cannot be written in {str(folder)!r}: {error}. Make room or rights there, or choose another folder."
    )


def damaged(path: Path, what: str) -> CheckpointError:
    """What to say where a file is not as it was left."""
    return CheckpointError(
        f"`store` is damaged: {str(path)!r} {what}. Delete the folder it is in, whose results are then computed anew, "
        "or give another `store`."
    )


def _bytes(kind: np.dtype, shape: tuple[int, ...]) -> int:
    # Python's own integers do not overflow
    size = kind.itemsize
    for length in shape:
        size *= int(length)
    return size


def _reserve(file: BinaryIO, size: int) -> None:
    """Give all ``size`` bytes of ``file`` their place on the disk; those it lacks become zeros."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
    left = size - file.seek(0, os.SEEK_END)
    zeros = bytes(min(_CHUNK, max(left, 0)))
    while left > 0:
        left -= file.write(zeros[:left])
    # a file system that puts off finding places finds them now
    file.flush()
    os.fsync(file.fileno())
