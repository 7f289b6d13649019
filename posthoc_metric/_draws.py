"""Random numbers that repeat with a seed and differ between the workers of a data loader."""

from __future__ import annotations

import numpy as np
from torch.utils.data import get_worker_info


class Draws:
    """NumPy generators of one seed: this process's, and in the workers of a ``DataLoader`` one for each.

    Workers begin with copies of what the process before them had, which would all draw the same.  Theirs begin anew
    from the seed and from the worker's own, which torch draws for every epoch.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self._here = np.random.default_rng(seed)
        self._of_worker: tuple[int, np.random.Generator] | None = None

    @property
    def generator(self) -> np.random.Generator:
        """The one to draw from."""
        worker = get_worker_info()
        if worker is None:
            return self._here
        if self._of_worker is None or self._of_worker[0] != worker.seed:
            self._of_worker = worker.seed, np.random.default_rng([self.seed, worker.seed])
        return self._of_worker[1]
