"""The graph that stands in for the manifold: neighbours and some far nodes, joined by straight edges in the metric.

A shortest path on it is never shorter than the geodesic, but for the errors of edges, some tenths of a percent; how
much longer it is depends on how long the edges are against the spacing of the points, so more neighbours make it
better.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix, hstack, vstack
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ..geodesic.guard import guard
from ..geodesic.starts.far_edges import Regions, far_edges_each, make_regions
from ..geodesic.starts.graph import join_pieces
from ..metric import Metric
from ..parallel import Progress, cut, run_blocks
from .edges import segment_lengths
from .identity import digest
from .job import below
from .shortest import ROW_BLOCK, rows
from .store import computed

#: rows of the neighbour search, and edges measured, in one block
_SEARCH_BLOCK = 4096
_EDGE_BLOCK = 8192
#: edges that the default number of neighbours aims at, and the fewest neighbours it gives
_EDGES = 200_000
_FEWEST = 48
#: neighbours within whose distance the metric is taken to be smooth
_NEAR = 10


@dataclass(frozen=True)
class DistanceGraph:
    """Nodes and the lengths of the edges between them.

    Attributes:
        points: (n, d) float64.
        lengths: symmetric sparse matrix (n, n).
        search: the fitted neighbour search over ``points``.
        k: neighbours of a node; a point that joins later gets as many.
        unit: latent length that one piece of an edge may have where the edge is measured.
        regions: that nodes and points have far edges to; ``None`` where there is but one node.
    """

    points: Tensor
    lengths: csr_matrix
    search: NearestNeighbors
    k: int
    unit: float
    regions: Regions | None

    def attach(self, metric: Metric, others: Tensor) -> csr_matrix:
        """Lengths (B, n) of the edges from ``others`` (B, d) to nodes: as many as the nodes themselves have."""
        array, size = others.cpu().numpy(), len(self.points)
        # a node has its nearest others, and a point that is not one may have as many and one
        near = self.search.kneighbors(array, n_neighbors=min(self.k + 1, size), return_distance=False)
        keys = (np.arange(len(array))[:, None] * size + near).reshape(-1)
        if self.regions is not None:
            far = self.regions.beyond(array, near[:, 0])
            keys = np.unique(np.concatenate([keys, far[:, 0] * size + far[:, 1]]))
        owners, nodes = np.divmod(keys, size)
        parts, lengths = guard(metric.parts()), np.empty(len(keys))
        for low, high in cut(len(keys), _EDGE_BLOCK):
            ends = (torch.from_numpy(rows[low:high]).to(self.points.device) for rows in (owners, nodes))
            a, b = (points[end] for points, end in zip((others, self.points), ends, strict=True))
            with torch.no_grad():
                lengths[low:high] = segment_lengths(parts, a, b, self.unit).cpu().numpy()
        return _sparse(owners, nodes, lengths, (len(array), size))

    def reach(self, metric: Metric, targets: Tensor, n_jobs: int | None = None) -> np.ndarray:
        """Distances (n, m) from every node to ``targets`` (m, d), which join the graph for this call, one by one."""
        size, count = len(self.points), len(targets)
        # targets are rows below the graph's that only lead out, so that no path runs through another target
        joined = vstack([self.lengths, self.attach(metric, targets)])
        whole = hstack([joined, csr_matrix((size + count, count))]).tocsr()
        blocks = cut(count, ROW_BLOCK)
        found = dict(run_blocks(rows, (whole, np.arange(size, size + count), np.arange(size)), blocks, n_jobs=n_jobs))
        return np.concatenate([found[index] for index in range(len(blocks))]).T

    def through(self, metric: Metric, others: Tensor, reached: np.ndarray) -> np.ndarray:
        """Distances (B, m) of ``others`` (B, d) by way of the nodes from which targets are ``reached`` (n, m)."""
        near = self.attach(metric, others)
        out = np.full((len(others), reached.shape[1]), np.inf)
        for row in range(len(others)):
            own = slice(near.indptr[row], near.indptr[row + 1])
            if near.indptr[row] < near.indptr[row + 1]:
                out[row] = (near.data[own, None] + reached[near.indices[own]]).min(0)
        return out


def default_neighbours(count: int) -> int:
    """How many neighbours a graph of ``count`` nodes gets unless the caller says."""
    return min(max(_EDGES // max(count, 1), _FEWEST), count - 1)


def build_distance_graph(
    metric: Metric,
    points: Tensor,
    k: int,
    *,
    n_jobs: int | None = None,
    store: Path | None = None,
    plan: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> DistanceGraph:
    """The graph of ``points`` (n, d), k neighbours and some far nodes for each, its edges measured in blocks."""
    array = points.cpu().numpy()
    k = max(min(k, len(array) - 1), 1)
    search = NearestNeighbors(n_neighbors=min(k, len(array))).fit(array)
    if len(array) == 1:
        return DistanceGraph(points, csr_matrix((1, 1)), search, 1, 1.0, None)
    # nodes are not only the points that are asked for, but the support too
    plan = {**(plan or {}), "neighbours": k, "nodes": digest(points)}
    edges = _edges(search, array, k, n_jobs, store, plan, progress)
    unit = _spacing(array, edges)
    regions = make_regions(array, far_edges_each(k))
    edges = join_pieces(array, np.unique(np.concatenate([edges, regions.edges(array)]), axis=0))
    blocks = cut(len(edges), _EDGE_BLOCK)
    found = computed(
        _measure, (metric, points, edges, unit), blocks, {"lengths": ((len(edges),), float)},
        folder=below(store, "edges"), plan={**plan, "edges": len(edges)},
        n_jobs=n_jobs, progress=progress, stage="edges",
    )  # fmt: skip
    half = _sparse(edges[:, 0], edges[:, 1], np.array(found["lengths"]), (len(array), len(array)))
    return DistanceGraph(points, (half + half.T).tocsr(), search, k, unit, regions)


def _spacing(array: np.ndarray, edges: np.ndarray) -> float:
    """The median latent distance of a point to its tenth neighbour or so, from the edges' own lengths."""
    lengths = np.sort(np.linalg.norm(array[edges[:, 0]] - array[edges[:, 1]], axis=1))
    positive = lengths[lengths > 0]
    share = min(_NEAR * len(array), len(positive)) / 2
    return float(positive[int(share)]) if len(positive) else 1.0


def _sparse(first: np.ndarray, second: np.ndarray, lengths: np.ndarray, shape: tuple[int, int]) -> csr_matrix:
    usable = np.isfinite(lengths)
    # an explicit zero is no edge to csgraph; equal points are joined by a length too small to matter
    values = np.maximum(lengths[usable], 1e-300)
    return coo_matrix((values, (first[usable], second[usable])), shape=shape).tocsr()


def _edges(
    search: NearestNeighbors,
    array: np.ndarray,
    k: int,
    n_jobs: int | None,
    store: Path | None,
    plan: dict[str, Any],
    progress: Progress | None,
) -> np.ndarray:
    """Pairs (E, 2) of nodes, each once, that join every node to its k nearest."""
    found = computed(
        _search, (search, array, k), cut(len(array), _SEARCH_BLOCK), {"indices": ((len(array), k), np.int32)},
        folder=below(store, "neighbours"), plan=plan, n_jobs=n_jobs, progress=progress, stage="neighbours",
    )  # fmt: skip
    columns = np.array(found["indices"]).reshape(-1)
    owners = np.repeat(np.arange(len(array), dtype=np.int32), k)
    low, high = np.minimum(owners, columns), np.maximum(owners, columns)
    keys = np.unique(low.astype(np.int64) * len(array) + high)
    return np.stack([keys // len(array), keys % len(array)], axis=1)


def _search(shared: tuple[NearestNeighbors, np.ndarray, int], block: tuple[int, int]) -> np.ndarray:
    search, array, k = shared
    low, high = block
    indices = search.kneighbors(array[low:high], n_neighbors=k + 1, return_distance=False)
    # the point itself comes first, but for points that coincide
    others = indices != np.arange(low, high)[:, None]
    others[others.all(1), -1] = False
    return indices[others].reshape(high - low, k)


def _measure(shared: tuple[Metric, Tensor, np.ndarray, float], block: tuple[int, int]) -> np.ndarray:
    metric, points, edges, unit = shared
    ends = torch.from_numpy(edges[slice(*block)].astype(np.int64)).to(points.device)
    return segment_lengths(guard(metric.parts()), points[ends[:, 0]], points[ends[:, 1]], unit).cpu().numpy()
