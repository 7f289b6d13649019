"""Graphs of latent points whose edges are measured in the metric."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from .cells import Cells
from .far_edges import make_regions
from .ruler import Ruler, TensorRuler, forms

#: where the metric varies by more inside a cell, the grid cannot tell hills
_RESOLVED = 0.5
#: an explicit zero is no edge to csgraph; equal points are joined by a length too small to matter
_NOTHING = 1e-300
#: pieces that a far edge is measured in
_PIECES = 4


@dataclass(frozen=True)
class MetricGraph:
    """Points, and the lengths of the edges between neighbours.

    Attributes:
        points: (n, d) float64.
        known: what ``ruler`` knows of them.
        lengths: symmetric sparse matrix (n, n) of edge lengths in the metric.
        ruler: measures edges.
        cells: of the grid that the points are corners of, if they are.
        k: edges that another point is given where there is no grid.
    """

    points: Tensor
    known: Tensor
    lengths: csr_matrix
    ruler: Ruler
    cells: Cells | None = None
    k: int = 0

    @cached_property
    def search(self) -> NearestNeighbors:
        """Nearest-neighbour search over ``points``."""
        return NearestNeighbors(n_neighbors=max(1, self.k)).fit(self.points.cpu().numpy())

    @cached_property
    def resolved(self) -> Tensor:
        """In which of the grid's cells (m,) the metric varies little; see :meth:`Cells.variation`."""
        assert self.cells is not None
        return self.cells.variation(self.known) <= _RESOLVED

    @cached_property
    def table(self) -> Tensor:
        """The :func:`forms` of the grid's matrices, as :meth:`Cells.at` reads them."""
        assert self.cells is not None
        return self.cells.table(forms(self.known))

    @cached_property
    def whole(self) -> Tensor:
        """The same with the logarithm of the weight, where there is one: it climbs by orders of magnitude in a cell."""
        assert self.cells is not None and isinstance(self.ruler, TensorRuler)
        weights = self.ruler.weights(self.points)
        if weights is None:
            return self.table
        return self.cells.table(torch.cat([forms(self.known), weights.clamp_min(_NOTHING).log()[:, None]], dim=1))

    def corners(self, start: Tensor, end: Tensor, number: np.ndarray) -> Tensor:
        """Paths (B, m + 2, d) from ``start`` to ``end`` (B, d) through the points ``number`` (B, m), -1 for the end."""
        inner = self.points[torch.from_numpy(np.maximum(number, 0)).to(self.points.device)]
        beyond = torch.from_numpy(number < 0).to(start.device)
        inner = torch.where(beyond[..., None], end[:, None], inner)
        return torch.cat([start[:, None], inner, end[:, None]], dim=1)

    def attach(self, others: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (B, k) of points near each of ``others`` (B, d), and lengths of the edges to them.

        A length is ``inf``, and the number nobody's, where a point has fewer near it.
        """
        if self.cells is None:
            index = torch.from_numpy(self.search.kneighbors(others.cpu().numpy(), return_distance=False))
            index = index.to(others.device)
        else:
            index = self.cells.around(others)
        count, k = index.shape
        near = index.clamp_min(0).reshape(-1)
        lengths = self.ruler.lengths(
            others.repeat_interleave(k, 0),
            self.points[near],
            self.ruler.know(others).repeat_interleave(k, 0),
            self.known[near],
        )
        usable = torch.isfinite(lengths) & (index.reshape(-1) >= 0)
        lengths = lengths.clamp_min(_NOTHING).masked_fill(~usable, float("inf"))
        return near.view(count, k).cpu().numpy(), lengths.view(count, k).cpu().numpy()

    def leaving(self, near: np.ndarray, lengths: np.ndarray) -> csr_matrix:
        """The graph's edges, and after its points B starts, which only lead out: to points ``near`` (B, k)."""
        usable = np.isfinite(lengths)
        graph, size = self.lengths, len(self.points) + len(near)
        ends = np.cumsum(usable.sum(1), dtype=graph.indptr.dtype)
        parts = (
            np.concatenate([graph.data, lengths[usable]]),
            np.concatenate([graph.indices, near[usable].astype(graph.indices.dtype)]),
            np.concatenate([graph.indptr, graph.indptr[-1] + ends]),
        )
        return csr_matrix(parts, shape=(size, size))


def build_graph(ruler: Ruler, points: Tensor, k: int, *, far: int = 0) -> MetricGraph:
    """The graph of ``points`` (n, d), in one piece and measured in the metric: each has edges to the k nearest.

    Args:
        far: edges of each to others far away.
    """
    array = points.cpu().numpy()
    k = max(1, min(k, len(array) - 1))
    if len(array) > 1:
        pattern = NearestNeighbors(n_neighbors=k).fit(array).kneighbors_graph(mode="connectivity").tocoo()
        ends = np.sort(np.stack([pattern.row, pattern.col], axis=1).astype(np.int64), axis=1)
        # one number for an edge: unique rows take many times as long
        a, b = np.divmod(np.unique(ends[:, 0] * len(array) + ends[:, 1]), len(array))
    else:
        a = b = np.zeros(0, dtype=np.int64)
    one, other = (torch.from_numpy(ends).to(points.device) for ends in (a, b))
    graph = graph_of(ruler, points, ruler.know(points), one, other, k=k)
    return graph if not far or len(array) < 2 else _with_far_edges(graph, far)


def graph_of(
    ruler: Ruler, points: Tensor, known: Tensor, a: Tensor, b: Tensor, cells: Cells | None = None, k: int = 0
) -> MetricGraph:
    """The graph of ``points`` (n, d) with edges from the ``a``-th to the ``b``-th (E,), joined into one piece."""
    lengths = _sparse(a, b, ruler.between(points, known, a, b), len(points))
    if connected_components(lengths, directed=True, connection="weak", return_labels=False) > 1:
        edges = join_pieces(points.cpu().numpy(), np.stack([a.cpu().numpy(), b.cpu().numpy()], axis=1))
        a, b = (torch.from_numpy(np.ascontiguousarray(edges[:, side])).to(points.device) for side in (0, 1))
        lengths = _sparse(a, b, ruler.between(points, known, a, b), len(points))
    return MetricGraph(points, known, lengths, ruler, cells, k)


def _with_far_edges(graph: MetricGraph, each: int) -> MetricGraph:
    """``graph`` and edges of each of its points to others far away, measured in pieces: a chord misses their bends."""
    array, points, ruler = graph.points.cpu().numpy(), graph.points, graph.ruler
    edges = make_regions(array, each).edges(array)
    edges = edges[np.asarray(graph.lengths[edges[:, 0], edges[:, 1]]).reshape(-1) == 0]
    a, b = (torch.from_numpy(np.ascontiguousarray(edges[:, side])).to(points.device) for side in (0, 1))
    lengths, left, known = torch.zeros(len(a), dtype=points.dtype, device=points.device), points[a], graph.known[a]
    for piece in range(1, _PIECES + 1):
        right = torch.lerp(points[a], points[b], piece / _PIECES)
        known_right = graph.known[b] if piece == _PIECES else ruler.know(right)
        lengths += ruler.lengths(left, right, known, known_right)
        left, known = right, known_right
    return replace(graph, lengths=(graph.lengths + _sparse(a, b, lengths, len(points))).tocsr())


def _sparse(a: Tensor, b: Tensor, lengths: Tensor, size: int) -> csr_matrix:
    """The symmetric matrix of the edges that have a length."""
    usable = torch.isfinite(lengths)
    values = lengths[usable].clamp_min(_NOTHING).cpu().numpy()
    rows, columns = (ends[usable].cpu().numpy() for ends in (a, b))
    # every edge comes once, so that there is nothing to be summed and the rows need only be put in order
    order = np.argsort(np.concatenate([rows, columns]).astype(np.min_scalar_type(size)), kind="stable")
    counts = np.bincount(rows, minlength=size) + np.bincount(columns, minlength=size)
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    both = np.concatenate([columns, rows]).astype(np.int32)[order]
    return csr_matrix((np.concatenate([values, values])[order], both, ends), shape=(size, size))


def join_pieces(array: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Edges of a graph of points (n, d) in one piece, from edges (E, 2) that leave it in several.

    The shortest edge is added from every piece but the largest to the rest, until there is one.
    """
    while True:
        matrix = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(array),) * 2)
        count, labels = connected_components(matrix, directed=False)
        if count <= 1:
            return edges
        extra = []
        for piece in np.argsort(np.bincount(labels))[:-1]:
            inside, outside = np.flatnonzero(labels == piece), np.flatnonzero(labels != piece)
            distance, index = NearestNeighbors(n_neighbors=1).fit(array[outside]).kneighbors(array[inside])
            best = int(distance[:, 0].argmin())
            extra.append(sorted((int(inside[best]), int(outside[index[best, 0]]))))
        edges = np.unique(np.concatenate([edges, np.array(extra, dtype=edges.dtype)]), axis=0)


def subsample(latents: Tensor, most: int) -> Tensor:
    """At most ``most`` of the latents (N, d), drawn without replacement, the same every time."""
    if len(latents) <= most:
        return latents
    generator = torch.Generator().manual_seed(0)
    return latents[torch.randperm(len(latents), generator=generator, device="cpu")[:most].to(latents.device)]
