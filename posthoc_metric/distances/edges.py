"""Lengths of straight segments in the metric, to about a percent."""

from __future__ import annotations

import torch
from torch import Tensor

from ..metric import MetricParts

#: Gauss-Legendre rule of three points on [0, 1], exact to degree 5
_POINTS = (0.5 - (3 / 20) ** 0.5, 0.5, 0.5 + (3 / 20) ** 0.5)
_WEIGHTS = (5 / 18, 8 / 18, 5 / 18)
_MOST_PIECES = 16
#: a piece whose speeds differ by more than this factor is cut in four, once
_STEADY = 2.0
_CUTS = 4
_CHUNK_BYTES = 64 * 2**20


def segment_lengths(parts: MetricParts, a: Tensor, b: Tensor, unit: float) -> Tensor:
    """Lengths (E,) of the segments from ``a`` to ``b`` (E, d); NaN where the metric is.

    A long segment can jump over a ridge of the metric between two points of a quadrature, and a graph would take
    it for a short cut.  So segments are measured in pieces no longer than ``unit``, up to 16 of them, and
    pieces along which the speed is not steady in four.
    """
    owner = torch.arange(len(a), device=a.device)
    pieces = ((b - a).norm(dim=1) / unit).ceil().clamp(1, _MOST_PIECES).long()
    left, right, owner = _split(a, b, owner, pieces)
    measured, steady = _measure(parts, left, right)
    lengths = a.new_zeros(len(a)).index_add_(0, owner[steady], measured[steady])
    left, right, owner = left[~steady], right[~steady], owner[~steady]
    left, right, owner = _split(left, right, owner, torch.full_like(owner, _CUTS))
    return lengths.index_add_(0, owner, _measure(parts, left, right)[0])


def _split(a: Tensor, b: Tensor, owner: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every segment in its number of equal pieces."""
    which = torch.arange(len(a), device=a.device).repeat_interleave(pieces)
    first = pieces.cumsum(0) - pieces
    number = (torch.arange(len(which), device=a.device) - first[which]).to(a)[:, None]
    step = ((b - a) / pieces[:, None])[which]
    return a[which] + number * step, a[which] + (number + 1) * step, owner[which]


def _measure(parts: MetricParts, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths by one rule, and whether the speed is steady enough to believe them."""
    if not len(a):
        return a.new_zeros(0), a.new_zeros(0, dtype=torch.bool)
    dim = a.shape[1]
    width = 0 if parts.embedding is None else parts.embedding.output_dim
    chunk = max(16, _CHUNK_BYTES // (24 * (2 * width + dim * dim + 8 * dim)))
    fractions, weights = a.new_tensor(_POINTS), a.new_tensor(_WEIGHTS)
    found, steady = [], []
    for left, right in zip(a.split(chunk), b.split(chunk), strict=True):
        step = right - left
        where = left[:, None] + fractions[:, None] * step[:, None]
        along = step.repeat_interleave(len(fractions), 0)
        squares = parts.inner(where.reshape(-1, dim), along, along).clamp_min(0).view(len(left), -1)
        speeds = squares.sqrt()
        found.append(speeds @ weights)
        # NaN is steady: no smaller piece will mend it
        steady.append(~(speeds.amax(1) > _STEADY * speeds.amin(1)))
    return torch.cat(found), torch.cat(steady)
