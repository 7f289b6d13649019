"""First and second moments of centres under weights that differ from point to point."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

#: entries of the table of all centres' squares that are held at most: 640 centres reach them in d = 227
_TABLE = 2**24


class Moments:
    """``Σ_k p_k c_k`` and ``Σ_k p_k c_k c_kᵀ``.

    With a table of ``c_k`` and one half of each ``c_k c_kᵀ`` both are one product for all points. In hundreds of
    dimensions it would fill memory, and each point has a product of its own, of twice as many operations.

    Args:
        centres: (K, d).
    """

    def __init__(self, centres: Tensor):
        self._centres = centres
        self._table: Tensor | None = None
        count, dim = centres.shape
        if count * dim * (dim + 3) // 2 <= _TABLE:
            row, column = torch.triu_indices(dim, dim, device=centres.device)
            # a row for each number that is asked for is read quicker than a column
            columns = centres.T
            self._table = torch.cat([columns, columns[row] * columns[column]])
            place = row.new_empty(dim, dim)
            place[row, column] = place[column, row] = torch.arange(dim, len(self._table), device=row.device)
            self._place = place.flatten()

    def __call__(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) -> (B, d) and (B, d, d)."""
        count, dim = len(weights), self._centres.shape[1]
        if self._table is not None:
            both = linear(weights, self._table)
            return both[:, :dim], both.gather(1, self._place.expand(count, -1)).view(-1, dim, dim)
        second = weights.new_empty(count, dim, dim)
        for row, found in zip(weights, second, strict=True):
            torch.mm((row[:, None] * self._centres).T, self._centres, out=found)
        return weights @ self._centres, second
