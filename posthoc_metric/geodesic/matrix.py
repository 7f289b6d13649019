"""Matrices of geodesic distances by the solver, cut into blocks that joblib may spread."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from joblib import Parallel, delayed
from torch import Tensor

from .._arrays import ArrayLike, to_points
from ..errors import ConvergenceWarning
from ..metric import Metric
from .solve import geodesic
from .status import Status

#: pairs in a block; fixed, so that the result does not depend on the number of workers
_BLOCK = 256


def distances(
    metric: Metric, a: ArrayLike, b: ArrayLike | None = None, *, n_jobs: int | None = None, **options: Any
) -> Any:
    """Geodesic distances between the rows of ``a`` (n, d) and of ``b`` (m, d), or of ``a`` itself; (n, m).

    Args:
        n_jobs: workers, as joblib reads it; ``joblib.parallel_config`` chooses the backend.
        **options: of :func:`geodesic`.

    Warns:
        ConvergenceWarning: pairs that did not converge; their entry is the length of the best curve found,
            or NaN where there is none.
    """
    left, restore = to_points(a, "a", metric.dim)
    right = left if b is None else to_points(b, "b", metric.dim)[0]
    n, m = len(left), len(right)
    if b is None:
        rows, columns = torch.triu_indices(n, n, offset=1)
    else:
        rows, columns = torch.arange(n).repeat_interleave(m), torch.arange(m).repeat(n)
    first, second = left.double().cpu(), right.double().cpu()
    jobs = (
        delayed(_block)(metric, first[i], second[j], options)
        for i, j in zip(rows.split(_BLOCK), columns.split(_BLOCK), strict=True)
    )
    found = Parallel(n_jobs=n_jobs)(jobs) if len(rows) else []
    table = torch.zeros(n, m, dtype=torch.float64)
    failed = sum(count for _, count in found)
    if found:
        table[rows, columns] = torch.cat([lengths for lengths, _ in found])
    if b is None:
        table = table + table.T
    if failed:
        warnings.warn(
            f"{failed} of {len(rows)} pairs did not converge; their distances are the best lengths found, or NaN. "
            "Call geodesic() on them for each one's status.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return restore(table.to(left.device, left.dtype))


def _block(metric: Metric, start: Tensor, end: Tensor, options: dict[str, Any]) -> tuple[Tensor, int]:
    solution = geodesic(metric, start, end, **options)
    return solution.double_length.cpu(), sum(status is not Status.CONVERGED for status in solution.status)
