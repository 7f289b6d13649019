"""Rows that a metric's parts are asked for: few at a time, and rounded alike whoever shares the call.

Matrix products sum the rows beyond the last multiple of four in another order, and in double precision those that begin
at odd addresses; an iteration makes much of the last digit where a decoder has kinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...machine import AT_ONCE
from ...metric import MetricParts

#: what loops over doubles take at once with the widest vectors there are (AVX-512), two at a time
_VECTORS = 16


@dataclass(frozen=True)
class FewRows(MetricParts):
    """Parts of which products are formed for ``most`` rows at a time."""

    most: int = 1024

    def inner(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """``uᵀ M(z) v`` (B,)."""
        ask = super().inner
        pieces = zip(z.split(self.most), u.split(self.most), v.split(self.most), strict=True)
        return torch.cat([ask(at, left, left if v is u else right) for at, left, right in pieces])


def few_rows(parts: MetricParts, memory_limit: int) -> FewRows:
    """``parts`` with the arrays of width D that their products take under ``memory_limit``."""
    width = 1 if parts.embedding is None else parts.embedding.output_dim
    # values and what is pushed forward, in the decoder's precision and in double, and copies of the last rows
    most = max(1, min(memory_limit, AT_ONCE) // (8 * 6 * width))
    return FewRows(parts.embedding, parts.weight, parts.field, most if most < 4 else most // 4 * 4)


def aligned(rows: int) -> int:
    """The rows that a curve of so many takes where curves share a call."""
    return -(-rows // 4) * 4


def alike(points: Tensor, *, apart: bool = False) -> Tensor:
    """Points (P, m, d) of curves as rows (N, d), a multiple of sixteen.

    What is left over of an array when it is worked on in vectors is worked on by others, which round otherwise.

    Args:
        apart: whether the rows of every curve begin at a multiple of four; in odd dimension they do.
    """
    each = _each(points, apart)
    spare = each - points.shape[1]
    if spare:
        points = torch.cat([points, points[:, -1:].expand(-1, spare, -1)], dim=1)
    rows = points.flatten(0, 1)
    more = -len(rows) % _VECTORS
    return rows if more == 0 else torch.cat([rows, rows[-1:].expand(more, -1)])


def unpadded(found: Tensor, points: Tensor, *, apart: bool = False) -> Tensor:
    """What was found at the rows (N, ...) of :func:`alike`, at the points (P, m, ...)."""
    count, number, _ = points.shape
    each = _each(points, apart)
    return found[: count * each].unflatten(0, (count, each))[:, :number]


def _each(points: Tensor, apart: bool) -> int:
    return aligned(points.shape[1]) if apart or points.shape[2] % 2 else points.shape[1]
