"""Results on disk: a folder's files appear together when all of them are whole, or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import InvalidArgumentError, OutputError


@contextmanager
def staged_folder(out: str | Path) -> Iterator[Path]:
    """A fresh folder beside ``out``, whose files are moved into ``out`` when the block ends well.

    After an error or Ctrl-C in the block, ``out`` is as it was.  Files of other names in ``out`` stay.

    Raises:
        OutputError: the folder cannot be made or written to, or the disk is full.
    """
    target = Path(out)
    made: list[Path] = []
    draft: Path | None = None
    try:
        if target.exists() and not target.is_dir():
            raise OutputError(f"`out` must be a folder; {str(target)!r} is a file. Choose another name.")
        made = _make_parents(target)
        if target.is_dir() and not os.access(target, os.W_OK | os.X_OK):
            raise OutputError(f"`out` must be a folder that can be written to; {str(target)!r} cannot. Choose another.")
        draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        yield draft
        _publish(draft, target)
    except OSError as error:
        if isinstance(error, OutputError) or error.errno is None:
            raise
        raise OutputError(
            f"cannot write to `out`, {str(target)!r}: {error.strerror}. Free space or choose another folder; "
            "nothing was left behind."
        ) from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        if not target.exists():
            for folder in reversed(made):
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


def write_file(path: str | Path, content: bytes) -> None:
    """Replace a file as a whole, or leave it as it was.

    Raises:
        OutputError: the folder is missing or cannot be written to, or the disk is full.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path) or "\0" in str(path):
        raise InvalidArgumentError(f"`path` must be the path of the file to write; got {path!r:.60}.")
    target = Path(path)
    draft = ""
    try:
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(draft, 0o666 & ~_umask())
        os.replace(draft, target)
    except OSError as error:
        raise OutputError(
            f"cannot write {str(target)!r}: {error.strerror}. Check that the folder is there and can be written to."
        ) from None
    finally:
        if draft:
            Path(draft).unlink(missing_ok=True)


def _make_parents(target: Path) -> list[Path]:
    """Make the folders above ``target``; returns those that are new, outermost first."""
    missing = [folder for folder in target.absolute().parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir()
    return missing[::-1]


def _publish(draft: Path, target: Path) -> None:
    draft.chmod(0o777 & ~_umask())
    if not target.exists():
        draft.rename(target)
        return
    for source in sorted(path for path in draft.rglob("*") if path.is_file()):
        place = target / source.relative_to(draft)
        place.parent.mkdir(parents=True, exist_ok=True)
        source.replace(place)


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
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def to_json(value: Any) -> str:
    """Strict JSON, indented."""
    return json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
