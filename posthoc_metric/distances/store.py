"""Results that outlive the process: arrays on disk, filled block by block, with a ledger of what is done.

A folder holds ``plan.json`` (what is being computed), one memory-mapped ``.npy`` for each array, and ``done.txt``, to
which a line is appended when a block's values have reached the disk and not before.  A killed run is taken up where
it was: lines that are whole say what is done, a torn last line is a block that is not.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, InvalidArgumentError, OutputError

#: for every array a list of (index, values)
Placements = Mapping[str, Iterable[tuple[Any, np.ndarray]]]
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]


class Results:
    """Arrays in memory, filled block by block; the interface that :class:`Store` shares."""

    def __init__(self, shapes: Shapes):
        self.arrays: dict[str, np.ndarray] = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
        self.done: set[int] = set()

    def write(self, block: int, placements: Placements) -> None:
        """Put a finished block's values where they belong."""
        for name, parts in placements.items():
            for index, values in parts:
                self.arrays[name][index] = values

    def close(self) -> None:
        """Nothing more will be written."""


class Store(Results):
    """Arrays in a folder.  One process at a time may write; ``done`` says which blocks are there.

    Args:
        folder: made if it is not there; continued if it holds the same plan.
        plan: JSON-compatible facts that tell this computation from any other.
        shapes: shape and dtype of each array.

    Raises:
        InvalidArgumentError: the folder holds another computation's blocks.
        OutputError: the folder cannot be written to, or another process is writing to it.
        CheckpointError: the folder's files are damaged.
    """

    def __init__(self, folder: str | Path, plan: Mapping[str, Any], shapes: Shapes):
        self.folder = Path(folder)
        self._lock: Any = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
            known = self._read_plan()
            wanted = json.loads(json.dumps(dict(plan)))
            if known is None:
                self.arrays = {
                    name: np.lib.format.open_memmap(self._file(name), "w+", np.dtype(dtype), shape)
                    for name, (shape, dtype) in shapes.items()
                }
                self._write_plan(wanted)
            else:
                self._compare(known, wanted)
                self.arrays = {name: np.lib.format.open_memmap(self._file(name), "r+") for name in shapes}
            self.done = self._read_ledger()
        except OSError as error:
            self.close()
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"`store` cannot be written in {str(self.folder)!r}: {error}. Choose another.") from None
        except (ValueError, EOFError) as error:
            self.close()
            if isinstance(error, InvalidArgumentError):
                raise
            raise CheckpointError(f"`store` is damaged in {str(self.folder)!r} ({error}); delete the folder.") from None

    def write(self, block: int, placements: Placements) -> None:
        super().write(block, placements)
        for name in placements:
            self.arrays[name].flush()  # type: ignore[attr-defined]
        content = f"{block}"
        line = f"{content} {zlib.crc32(content.encode()):08x}\n".encode()
        with open(self.folder / "done.txt", "ab", buffering=0) as ledger:
            ledger.write(line)
            os.fsync(ledger.fileno())
        self.done.add(block)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _acquire(self) -> None:
        try:
            import fcntl
        except ImportError:  # no such locks on Windows; the plan's check is then the only guard
            return
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"`store` is in use: another process is writing to {str(self.folder)!r}. Wait for it."
            ) from None

    def _read_plan(self) -> dict[str, Any] | None:
        with suppress(FileNotFoundError):
            return json.loads((self.folder / "plan.json").read_text(encoding="utf-8"))
        return None

    def _write_plan(self, plan: Mapping[str, Any]) -> None:
        draft = self.folder / ".plan.json"
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(plan, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.folder / "plan.json")

    def _compare(self, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        different = sorted(key for key in {*known, *wanted} if not _same(known.get(key), wanted.get(key)))
        if different:
            raise InvalidArgumentError(
                f"`store` holds another computation in {str(self.folder)!r}: {', '.join(different)} differ. "
                "Give each computation a folder of its own, or delete this one."
            )

    def _read_ledger(self) -> set[int]:
        path = self.folder / "done.txt"
        done: set[int] = set()
        whole = 0
        content = path.read_bytes() if path.exists() else b""
        for line in content.splitlines(keepends=True):
            number, _, check = line.decode("ascii", "replace").strip().partition(" ")
            if not line.endswith(b"\n") or check != f"{zlib.crc32(number.encode()):08x}":
                break
            done.add(int(number))
            whole += len(line)
        if whole < len(content):
            os.truncate(path, whole)
        return done


def _same(known: Any, wanted: Any) -> bool:
    """Equal, numbers to six digits: values of the metric are told apart from another's, not from another machine's."""
    if isinstance(known, list) and isinstance(wanted, list):
        return len(known) == len(wanted) and all(_same(a, b) for a, b in zip(known, wanted, strict=True))
    if isinstance(known, float) and isinstance(wanted, float):
        return known == wanted or abs(known - wanted) <= 1e-6 * max(abs(known), abs(wanted))
    return known == wanted


def open_results(folder: str | Path | None, plan: Mapping[str, Any], shapes: Shapes) -> Results:
    """A :class:`Store` in ``folder``, or memory where there is none."""
    return Results(shapes) if folder is None else Store(folder, plan, shapes)
