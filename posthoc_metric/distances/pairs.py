"""Which pairs of points a matrix asks for, and the solver run over them in blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geodesic import Status, geodesic
from ..geodesic.options import beneath
from ..geodesic.status import CODES
from ..metric import Metric
from ..parallel import Progress, cut
from .store import computed

#: pairs of one block
_BLOCK = 64


@dataclass(frozen=True)
class AllPairs:
    """Every row with every column, or every two of the rows where there are no columns of their own."""

    rows: int
    columns: int | None

    @property
    def count(self) -> int:
        return self.rows * (self.rows - 1) // 2 if self.columns is None else self.rows * self.columns

    def at(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns (n,) of the pairs numbered ``index`` (n,)."""
        if self.columns is not None:
            return index // self.columns, index % self.columns
        starts = np.arange(self.rows + 1, dtype=np.int64)
        starts = starts * (2 * self.rows - starts - 1) // 2
        first = np.searchsorted(starts[1:], index, side="right")
        return first, first + 1 + index - starts[first]


@dataclass(frozen=True)
class SomePairs:
    """Pairs given one by one."""

    first: np.ndarray
    second: np.ndarray

    @property
    def count(self) -> int:
        return len(self.first)

    def at(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns (n,) of the pairs numbered ``index`` (n,)."""
        return self.first[index], self.second[index]


Pairs = AllPairs | SomePairs


@dataclass(frozen=True)
class Solved:
    """Lengths of some pairs, their absolute errors, and how many have a length but are not CONVERGED."""

    lengths: np.ndarray
    errors: np.ndarray
    unconverged: int


def solve(
    metric: Metric,
    a: Tensor,
    b: Tensor,
    pairs: Pairs,
    solver: dict[str, Any],
    *,
    folder: Path | None = None,
    plan: Mapping[str, Any] | None = None,
    n_jobs: int | None = None,
    progress: Progress | None = None,
    stage: str = "solver",
) -> Solved:
    """Geodesic lengths of ``pairs`` of rows of ``a`` and ``b``; kept in ``folder``, if any, with ``plan``."""
    count = (pairs.count,)
    found = computed(
        _solve,
        (metric, a, b, pairs, solver),
        cut(pairs.count, _BLOCK),
        {"lengths": (count, np.float64), "errors": (count, np.float64), "codes": (count, np.int8)},
        folder=folder,
        plan=plan or {},
        n_jobs=n_jobs,
        progress=progress,
        stage=stage,
    )
    lengths = np.array(found["lengths"])
    loose = np.isfinite(lengths) & (found["codes"] != CODES[Status.CONVERGED])
    return Solved(lengths, np.array(found["errors"]), int(loose.sum()))


def sampled(solver: dict[str, Any]) -> dict[str, Any]:
    """Options of a sample that is to tell errors of a hundredth: lengths across kinks need be no better than half of
    that, which takes a fifth of the time."""
    return beneath(solver, {"rough_rtol": 5e-3})


def _solve(shared: Any, block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    metric, a, b, pairs, solver = shared
    first, second = pairs.at(np.arange(*block))
    start, end = (points[torch.from_numpy(rows).to(points.device)] for points, rows in ((a, first), (b, second)))
    solution = geodesic(metric, start, end, **solver)
    codes = np.array([CODES[status] for status in solution.status], dtype=np.int8)
    lengths = solution.length.cpu().numpy()
    # there is no curve, whatever its length would have been
    lengths = np.where(codes == CODES[Status.NOT_FINITE], np.nan, lengths)
    return lengths, solution.length_error.cpu().numpy(), codes


def draw(pairs: Pairs, most: int, seed: int) -> SomePairs:
    """At most ``most`` of the pairs, drawn without replacement."""
    generator = np.random.default_rng(seed)
    if pairs.count <= most:
        index = np.arange(pairs.count)
    else:
        index = np.sort(generator.choice(pairs.count, most, replace=False, shuffle=False))
    return SomePairs(*pairs.at(index))
