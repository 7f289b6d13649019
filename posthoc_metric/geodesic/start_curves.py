"""Curves to start from: straight, or along a path whose corners are rounded off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Batch
from .polygons import met, norms, run_along, smoothed

#: points at which a start curve is tabulated; a power of two and one
_DENSE = 129


@dataclass
class StartCurves(Batch):
    """Q start curves, any number of them for a pair.

    Attributes:
        pair: which pair each belongs to (Q,).
        kind: index into ``START_NAMES`` (Q,).
        knots: share of the length run, as far as is known (Q, 129).
        nodes: (Q, 129, d).
        length: estimated length (Q,), ``inf`` where nothing is known.
    """

    pair: Tensor
    kind: Tensor
    knots: Tensor
    nodes: Tensor
    length: Tensor

    def sample(self, spans: int) -> tuple[Tensor, Tensor]:
        """Knots (Q, n+1) and nodes (Q, n+1, d) of n spans, n a divisor of 128."""
        stride = (_DENSE - 1) // spans
        return self.knots[:, ::stride].contiguous(), self.nodes[:, ::stride].contiguous()


def straight(start: Tensor, end: Tensor) -> StartCurves:
    """The straight lines between the rows of ``start`` and ``end`` (B, d)."""
    count = len(start)
    knots = even(count, start)
    nodes = start[:, None] + knots[..., None] * (end - start)[:, None]
    pair = torch.arange(count, device=start.device)
    return StartCurves(pair, torch.zeros_like(pair), knots, nodes, torch.full_like(start[:, 0], float("inf")))


def even(count: int, like: Tensor) -> Tensor:
    """Times (count, 129) in equal steps from 0 to 1."""
    return torch.linspace(0, 1, _DENSE, dtype=like.dtype, device=like.device).repeat(count, 1)


def rounded(corners: Tensor, lengths: Tensor, rows: Tensor, kind: int) -> StartCurves:
    """Start curves of the pairs ``rows`` from paths (Q, m, d) of known lengths (Q,), their corners rounded off."""
    # a path padded by its end has spans of length zero there, which the tabulation skips
    run = run_along(norms(corners.diff(dim=1)))
    targets = even(len(rows), corners)
    nodes = smoothed(met(run, corners, targets))
    nodes[:, 0], nodes[:, -1] = corners[:, 0], corners[:, -1]
    return StartCurves(rows, torch.full_like(rows, kind), targets, nodes, lengths)
