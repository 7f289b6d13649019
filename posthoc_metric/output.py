"""Results on disk: a folder's files appear together when all of them are whole, or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import InvalidArgumentError, OutputError

#: of the names of drafts, which must be no longer than those of what they become
_DRAFT = ".posthoc-"


@contextmanager
def staged_folder(out: str | Path) -> Iterator[Path]:
    """A fresh folder whose files are moved into ``out`` when the block ends well.

    After an error or Ctrl-C in the block, ``out`` is as it was.  Files of other names in ``out`` stay.

    Raises:
        OutputError: the folder cannot be made or written to, or the disk is full.
    """
    target = Path(os.path.realpath(out))
    made: list[Path] = []
    draft: Path | None = None
    try:
        if os.path.exists(target) and not os.path.isdir(target):
            raise OutputError(f"`out` must be a folder; {str(out)!r} is a file. Choose another name.")
        made = [folder for folder in target.parents if not os.path.exists(folder)]
        for folder in reversed(made):
            folder.mkdir(exist_ok=True)
        there = _status(target) is not None  # an error if its name is too long
        # inside a folder that is there: it may be writable where its parent is not, or on a device of its own
        draft = Path(tempfile.mkdtemp(dir=target if there else target.parent, prefix=_DRAFT))
        yield draft
        _publish(draft, target)
    except OSError as error:
        if isinstance(error, OutputError) or error.errno is None:
            raise
        raise OutputError(
            f"cannot write to `out`, {str(out)!r}: {error.strerror}. Free space or choose another folder; "
            "nothing was left behind."
        ) from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        if not os.path.exists(target):
            for folder in made:
                with suppress(OSError):  # made only in part, or others have put something there
                    folder.rmdir()


class _EnoughError(Exception):
    """Leaves a staged folder without publishing it."""


def check_folder(out: str | Path) -> None:
    """See that :func:`staged_folder` will be able to write, before long work begins; leaves nothing behind.

    Raises:
        OutputError: it will not.
    """
    with suppress(_EnoughError), staged_folder(out):
        raise _EnoughError


def write_file(path: str | Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Replace a file as a whole, or leave it as it was.

    Where ``path`` is a link, what it points to is replaced.  A device or a pipe cannot be, and is written to.

    Args:
        path: of the file.
        content: what it is to hold; or what writes it to a stream, for what should not be in memory as a whole.

    Raises:
        OutputError: the folder is missing or cannot be written to, or the disk is full.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path) or "\0" in str(path):
        raise InvalidArgumentError(f"`path` must be the path of the file to write; got {path!r:.60}.")
    draft = ""
    try:
        if _only_takes(path):
            with open(path, "wb") as stream:
                _write(stream, content)
            return
        target = Path(os.path.realpath(path))
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=_DRAFT)
        with os.fdopen(handle, "wb") as stream:
            _write(stream, content)
        os.chmod(draft, 0o666 & ~_umask())
        try:
            os.replace(draft, target)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # a file that is mounted by itself can only be written into
            with open(target, "wb") as stream:
                _write(stream, content)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if draft:
            Path(draft).unlink(missing_ok=True)


def _write(stream: BinaryIO, content: bytes | Callable[[BinaryIO], None]) -> None:
    if isinstance(content, bytes):
        stream.write(content)
    else:
        content(stream)


def check_file(path: str | Path) -> None:
    """See that :func:`write_file` will be able to write; leaves nothing behind.

    Raises:
        OutputError: it will not.
    """
    try:
        if os.path.isdir(path):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not _only_takes(path):
            with tempfile.NamedTemporaryFile(dir=os.path.dirname(os.path.realpath(path)), prefix=_DRAFT):
                pass
        elif not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: str | Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {str(path)!r}: {error.strerror}. Check that the folder is there, can be written to and has room."
    )


def _status(path: str | Path) -> os.stat_result | None:
    """What is at ``path``, links followed, or ``None`` for nothing; an error where nothing can be."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _only_takes(path: str | Path) -> bool:
    """Whether what is there takes what is written to it, and must not be replaced: a device, a pipe; not a file."""
    status = _status(path)
    return status is not None and not stat.S_ISREG(status.st_mode)


def _publish(draft: Path, target: Path) -> None:
    if not target.exists():
        draft.chmod(0o777 & ~_umask())
        draft.rename(target)
        return
    sources = sorted(draft.iterdir())
    for source in sources:  # all of them before the first is moved
        check_file(target / source.name)
    for number, source in enumerate(sources):
        place = target / source.name
        try:
            if place.is_symlink() or _only_takes(place):
                write_file(place, source.read_bytes())
            else:
                source.replace(place)
        except OSError as error:
            if not number:
                raise
            raise OutputError(
                f"cannot write {str(place)!r}: {error.strerror or error}. Of the same results only "
                f"{', '.join(done.name for done in sources[:number])} came to be written. Choose another folder."
            ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def jsonable(value: Any) -> Any:
    """``value`` with NaN as ``None`` and infinities as the strings ``"Infinity"`` and ``"-Infinity"``.

    JSON has no such numbers, and a file that most readers refuse helps nobody.
    """
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def to_json(value: Any, *, ascii_only: bool = False) -> str:
    """Strict JSON, indented; with other characters than those of ASCII as JSON escapes them if ``ascii_only``."""
    return json.dumps(jsonable(value), indent=2, ensure_ascii=ascii_only, allow_nan=False) + "\n"
