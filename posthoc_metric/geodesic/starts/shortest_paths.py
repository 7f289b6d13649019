"""Shortest paths on a graph between pairs of points, which join it for the time of a call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from .graph import MetricGraph

#: pairs that are searched for together, so that the tables of all points for each of them stay small
PAIRS_AT_ONCE = 256
#: one search serves starts whose limits differ by no more than this factor
_GROWTH = 1.2


@dataclass(frozen=True)
class Trees:
    """Shortest ways from each of B points to all of a graph.

    Attributes:
        distance: to each of its points (B, n); ``inf`` beyond the limit.
        before: the point before each on the way to it (B, n); ``n`` or more, or negative, at the start.
    """

    distance: np.ndarray
    before: np.ndarray

    def take(self, rows: np.ndarray) -> Trees:
        """From some of the points."""
        return Trees(self.distance[rows], self.before[rows])

    def trails(self, rows: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Points (k, m) of the ways from the starts ``rows`` (k,) to ``last`` (k,), -1 after it; none to -1."""
        trail, size = [], self.before.shape[1]
        while bool((last >= 0).any()):
            trail.append(last)
            following = self.before[rows, np.maximum(last, 0)]
            last = np.where((last >= 0) & (following < size), following, -1)
        number = np.stack(trail, axis=1) if trail else np.zeros((len(rows), 0), dtype=np.int64)
        place = (number >= 0).sum(1, keepdims=True) - 1 - np.arange(number.shape[1])
        return np.where(place >= 0, np.take_along_axis(number, np.maximum(place, 0), axis=1), -1)


@dataclass(frozen=True)
class Paths:
    """Shortest paths of B pairs.

    Attributes:
        corners: both ends included (B, m, d), shorter paths repeating their end; nothing between where there is none.
        lengths: (B,), ``inf`` where there is none.
        trees: from the starts.
        near, steps: the points that the ends lead to, and how far these are (B, k); see :meth:`MetricGraph.attach`.
    """

    corners: Tensor
    lengths: Tensor
    trees: Trees
    near: np.ndarray
    steps: np.ndarray

    def take(self, rows: Tensor) -> Paths:
        """Those of some of the pairs."""
        index = rows.cpu().numpy()
        return Paths(
            self.corners[rows], self.lengths[rows], self.trees.take(index), self.near[index], self.steps[index]
        )


def shortest_paths(graph: MetricGraph, start: Tensor, end: Tensor, most: Tensor | None = None) -> Paths:
    """Shortest paths between the rows of ``start`` and ``end`` (B, d).

    Args:
        most: lengths (B,) beyond which a path is of no use; a search ends there.
    """
    count = len(start)
    limits = np.full(count, np.inf) if most is None else most.cpu().numpy()
    near, steps = graph.attach(torch.cat([start, end]))
    found = trees(graph, near[:count], steps[:count], limits)
    near, steps = near[count:], steps[count:]
    pairs = np.arange(count)
    total = found.distance[pairs[:, None], near] + steps
    best = total.argmin(1)
    lengths, last = total[pairs, best], near[pairs, best]
    unknown = ~np.isfinite(lengths) | (lengths > limits)
    lengths[unknown], last[unknown] = np.inf, -1
    corners = graph.corners(start, end, found.trails(pairs, last))
    return Paths(corners, torch.from_numpy(lengths).to(start), found, near, steps)


def trees(graph: MetricGraph, near: np.ndarray, steps: np.ndarray, limits: np.ndarray) -> Trees:
    """Shortest ways no longer than ``limits`` (B,) from points that lead to ``near`` by ``steps`` (B, k)."""
    size, count = len(graph.points), len(near)
    leaving = graph.leaving(near, steps)
    distance, before = np.full((count, size), np.inf), np.full((count, size), -1, dtype=np.int32)
    for rows in _alike(limits):
        found, previous = dijkstra(
            leaving, indices=size + rows, return_predecessors=True, limit=float(limits[rows].max())
        )
        # what a pair gets depends on itself alone
        found[found > limits[rows, None]] = np.inf
        distance[rows], before[rows] = found[:, :size], previous[:, :size]
    return Trees(distance, before)


def _alike(limits: np.ndarray) -> list[np.ndarray]:
    """Rows in groups of like limits (B,), as one search goes as far for all of its starts as for any."""
    order, groups, first = np.argsort(limits, kind="stable"), [], 0
    ascending = limits[order].tolist()
    for row in range(1, len(ascending) + 1):
        if row == len(ascending) or ascending[row] > _GROWTH * ascending[first]:
            groups.append(order[first:row])
            first = row
    return groups
