"""Results that outlive the process: arrays on disk, filled block by block, with a ledger of what is done.

A folder holds ``plan.json`` (what is being computed), one memory-mapped ``.npy`` for each array, and ``done.txt``, to
which a line is appended when a block's values have reached the disk and not before.  A killed run is taken up where
it was: lines that are whole say what is done, a torn last line is a block that is not.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidArgumentError, OutputError, PosthocMetricError
from ..parallel import Progress, run_blocks
from .mapped import cannot_write, damaged, make_array, open_array

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]
#: how far numbers of a plan may be apart, which threads and devices round differently
_NEAR = 1e-5


class Results:
    """Arrays in memory, filled block by block; the interface that :class:`Store` shares."""

    def __init__(self, shapes: Shapes):
        self.arrays: dict[str, np.ndarray] = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
        self.done: set[int] = set()

    def write(self, block: int, where: Any, values: Mapping[str, np.ndarray]) -> None:
        """Put a finished block's values where they belong in each array."""
        for name, found in values.items():
            self.arrays[name][where] = found

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
        self._plan = self.folder / "plan.json"
        self._ledger = self.folder / "done.txt"
        wanted = json.loads(json.dumps(dict(plan)))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.folder)
            if self._plan.exists():
                self._compare(self._read_plan(), wanted)
                self.arrays = {
                    name: open_array(self._file(name), dtype, shape) for name, (shape, dtype) in shapes.items()
                }
                self.done = self._read_ledger()
            else:
                self._begin(wanted, shapes)
        except PosthocMetricError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise cannot_write(self.folder, error) from None

    def write(self, block: int, where: Any, values: Mapping[str, np.ndarray]) -> None:
        super().write(block, where, values)
        content = f"{block}"
        line = f"{content} {zlib.crc32(content.encode()):08x}\n".encode()
        try:
            for name in values:
                self.arrays[name].flush()  # type: ignore[attr-defined]
            with open(self._ledger, "ab") as ledger:
                ledger.write(line)
                ledger.flush()
                os.fsync(ledger.fileno())
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        self.done.add(block)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _begin(self, plan: Mapping[str, Any], shapes: Shapes) -> None:
        """New arrays, then the plan, so that where there is a plan there are arrays; or nothing at all."""
        if self._ledger.exists():
            # the plan is there before the first block is done
            raise damaged(self._plan, f"is missing, although {self._ledger.name!r} says what was done")
        draft = self.folder / ".plan.json"
        self.arrays, self.done = {}, set()
        try:
            for name, (shape, dtype) in shapes.items():
                self.arrays[name] = make_array(self._file(name), dtype, shape)
            with open(draft, "w", encoding="utf-8") as file:
                json.dump(plan, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._plan)
        except BaseException:
            self.arrays = {}
            for path in (draft, *map(self._file, shapes)):
                with suppress(OSError):
                    path.unlink()
            raise

    def _read_plan(self) -> Mapping[str, Any]:
        try:
            plan = json.loads(self._plan.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise damaged(self._plan, f"is no JSON ({error})") from None
        if not isinstance(plan, dict):
            raise damaged(self._plan, f"holds a {type(plan).__name__}, not a dictionary")
        return plan

    def _compare(self, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        different = sorted(key for key in {*known, *wanted} if not _same(known.get(key), wanted.get(key)))
        if "rule" in different:
            raise InvalidArgumentError(
                f"`store` holds blocks in {str(self.folder)!r} that another version of this library wrote, whose plan "
                "tells metrics apart by other values. Go on with that version, or delete this folder."
            )
        if different:
            raise InvalidArgumentError(
                f"`store` holds another computation in {str(self.folder)!r}: {', '.join(different)} differ. "
                "Give each computation a folder of its own, or delete this one."
            )

    def _read_ledger(self) -> set[int]:
        done: set[int] = set()
        whole = 0
        content = self._ledger.read_bytes() if self._ledger.exists() else b""
        for line in content.splitlines(keepends=True):
            number, _, check = line.decode("ascii", "replace").strip().partition(" ")
            if not line.endswith(b"\n") or check != f"{zlib.crc32(number.encode()):08x}":
                break
            done.add(int(number))
            whole += len(line)
        if whole < len(content):
            os.truncate(self._ledger, whole)
        return done


def locked(folder: Path) -> Any:
    """What is to be closed for another to write to ``folder``; nothing on Windows, which has no such locks.

    Raises:
        OutputError: another process is writing to it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    lock = open(folder / "lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise OutputError(f"`store` is in use: another process is writing to {str(folder)!r}. Wait for it.") from None
    return lock


def _same(known: Any, wanted: Any) -> bool:
    """Equal, numbers to five digits: values of the metric are told apart from another's, not from another machine's."""
    if isinstance(known, list) and isinstance(wanted, list):
        return len(known) == len(wanted) and all(_same(a, b) for a, b in zip(known, wanted, strict=True))
    if isinstance(known, dict) and isinstance(wanted, dict):
        return known.keys() == wanted.keys() and all(_same(known[key], wanted[key]) for key in known)
    if isinstance(known, float) and isinstance(wanted, float):
        # of the smaller, as no number is near infinity
        return known == wanted or abs(known - wanted) <= _NEAR * min(abs(known), abs(wanted))
    return known == wanted


def computed(
    task: Callable[[Any, tuple[int, int]], Any],
    shared: Any,
    blocks: Sequence[tuple[int, int]],
    shapes: Shapes,
    *,
    folder: Path | None,
    plan: Mapping[str, Any],
    n_jobs: int | None,
    progress: Progress | None,
    stage: str,
) -> dict[str, np.ndarray]:
    """Arrays of these shapes, whose rows ``low`` to ``high`` are what ``task(shared, (low, high))`` gives for each.

    They are a :class:`Store` in ``folder``, which is gone on with, or in memory where there is none.
    """
    results = Results(shapes) if folder is None else Store(folder, plan, shapes)
    try:
        for index, found in run_blocks(
            task, shared, blocks, n_jobs=n_jobs, done=results.done, progress=progress, stage=stage
        ):
            values = found if isinstance(found, tuple) else (found,)
            results.write(index, slice(*blocks[index]), dict(zip(shapes, values, strict=True)))
        return results.arrays
    finally:
        results.close()
