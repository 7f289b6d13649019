"""The matrix that a run hands out: in memory, or in a store, where no other run's is lost for it."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, PosthocMetricError
from ..parallel import cut
from .mapped import cannot_write, make_array, open_array
from .store import locked

_DRAFT, _NAME = ".distances.npy", "distances.npy"
_ROWS = 256


class Result:
    """A matrix to be filled, which is ``distances.npy`` in a store when it is whole and not before.

    A matrix of another run that has this name is kept as ``distances-1.npy``, or with the first number that is free.
    """

    def __init__(self, shape: tuple[int, int], folder: Path | None):
        self.shape, self.folder = shape, folder
        self._lock: Any = None
        self.matrix = np.zeros((0, 0))
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = locked(folder)
            self.matrix = make_array(folder / _DRAFT, np.float64, shape)
        except (OSError, PosthocMetricError) as error:
            if self._lock is not None:
                self._lock.close()
            if isinstance(error, PosthocMetricError):
                raise
            raise cannot_write(folder, error) from None

    def begun(self, found: np.ndarray | None = None) -> np.ndarray:
        """The matrix, with ``found`` in it: a copy in a store alone, whose blocks stay as they are for the next run."""
        if self.folder is None:
            self.matrix = np.zeros(self.shape) if found is None else found
        elif found is not None:
            for low, high in cut(len(found), _ROWS):
                self.matrix[low:high] = found[low:high]
        return self.matrix

    def whole(self) -> np.ndarray:
        """The matrix that was filled, in a store under its own name."""
        if self.folder is None:
            return self.matrix
        draft, place = self.folder / _DRAFT, self.folder / _NAME
        try:
            self.matrix.flush()  # type: ignore[attr-defined]
            # what is mapped cannot be moved everywhere
            self.matrix = np.zeros((0, 0))
            if place.exists() and not _equal(draft, place, self.shape):
                numbered = (self.folder / f"distances-{number}.npy" for number in count(1))
                place.rename(next(path for path in numbered if not path.exists()))
            draft.replace(place)
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        return open_array(place, np.float64, self.shape)

    def close(self) -> None:
        """Another run may have the folder; a draft that is not whole is gone."""
        if self.folder is not None:
            with suppress(OSError):
                (self.folder / _DRAFT).unlink()
        if self._lock is not None:
            self._lock.close()


def _equal(draft: Path, place: Path, shape: tuple[int, int]) -> bool:
    """Whether two files hold the same matrix; one that is damaged is another."""
    try:
        a, b = (open_array(path, np.float64, shape) for path in (draft, place))
    except CheckpointError:
        return False
    return all(np.array_equal(a[low:high], b[low:high], equal_nan=True) for low, high in cut(len(a), _ROWS))
