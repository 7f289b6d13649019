"""First and second moments of centres under weights that differ from point to point."""

from __future__ import annotations

import torch
from torch import Tensor

#: entries of the table of all centres' squares that are held at most: 640 centres reach them in d = 229
_TABLE = 2**25


class Moments:
    """``Σ_k p_k c_k`` and ``Σ_k p_k c_k c_kᵀ``.

    With a table of ``c_k c_kᵀ`` both are one product for all points. In hundreds of dimensions it would fill memory,
    and each point has a product of its own, of as many operations.

    Args:
        centres: (K, d).
    """

    def __init__(self, centres: Tensor):
        self._centres = centres
        self._table: Tensor | None = None
        if centres.numel() * centres.shape[1] <= _TABLE:
            squares = (centres[:, :, None] * centres[:, None]).flatten(1)
            self._table = torch.cat([centres, squares], dim=1)

    def __call__(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) -> (B, d) and (B, d, d)."""
        count, dim = len(weights), self._centres.shape[1]
        if self._table is not None:
            both = weights @ self._table
            return both[:, :dim], both[:, dim:].view(-1, dim, dim)
        second = weights.new_empty(count, dim, dim)
        for row, found in zip(weights, second, strict=True):
            torch.mm((row[:, None] * self._centres).T, self._centres, out=found)
        return weights @ self._centres, second
