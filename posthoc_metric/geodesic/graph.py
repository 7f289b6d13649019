"""Shortest paths on a graph of latent points whose edges are measured in the metric."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix, hstack, vstack
from scipy.sparse.csgraph import connected_components, dijkstra
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from .ruler import Ruler

#: starts that one call of the shortest-path search takes, so that its (starts, nodes) tables stay small
_SOURCES = 256


@dataclass(frozen=True)
class MetricGraph:
    """Points, and the lengths of the edges between neighbours.

    Attributes:
        points: (n, d) float64.
        known: what ``ruler`` knows of them.
        lengths: symmetric sparse matrix (n, n) of edge lengths in the metric.
        search: nearest-neighbour search over ``points``.
        k: edges that a point is given.
        ruler: measures edges.
    """

    points: Tensor
    known: Tensor
    lengths: csr_matrix
    search: NearestNeighbors
    k: int
    ruler: Ruler

    def paths(self, start: Tensor, end: Tensor) -> tuple[list[Tensor], Tensor]:
        """Shortest paths between the rows of ``start`` and ``end`` (B, d), which join the graph for this call.

        Returns:
            For each pair the inner points of its path (m, d), and the path's length (B,): ``inf`` and no
            points where the graph does not join the two.
        """
        found = [self._paths(a, b) for a, b in zip(start.split(_SOURCES), end.split(_SOURCES), strict=True)]
        return [path for paths, _ in found for path in paths], torch.cat([lengths for _, lengths in found])

    def _paths(self, start: Tensor, end: Tensor) -> tuple[list[Tensor], Tensor]:
        count, size = len(start), len(self.points)
        # rows and columns: the graph's points, the starts, the ends; starts only lead out and ends only in
        leave, arrive = self.attach(start), self.attach(end)
        none, square = csr_matrix((size, count)), csr_matrix((count, count))
        whole = vstack(
            [
                hstack([self.lengths, none, arrive.T]),
                hstack([leave, square, square]),
                csr_matrix((count, size + 2 * count)),
            ]
        ).tocsr()
        distance, before = dijkstra(whole, indices=np.arange(size, size + count), return_predecessors=True)
        paths, lengths = [], np.empty(count)
        for pair in range(count):
            target = size + count + pair
            lengths[pair] = distance[pair, target]
            trail, node = [], int(before[pair, target])
            while 0 <= node < size:
                trail.append(node)
                node = int(before[pair, node])
            paths.append(self.points[trail[::-1]])
        return paths, torch.from_numpy(lengths).to(start)

    def attach(self, others: Tensor) -> csr_matrix:
        """Lengths of the edges from each of ``others`` (B, d) to its nearest points: sparse (B, n)."""
        _, index = self.search.kneighbors(others.cpu().numpy(), n_neighbors=self.k)
        near = torch.from_numpy(index.reshape(-1)).to(others.device)
        known = self.ruler.know(others)
        lengths = self.ruler.lengths(
            others.repeat_interleave(self.k, 0), self.points[near], known.repeat_interleave(self.k, 0), self.known[near]
        )
        rows = np.repeat(np.arange(len(others)), self.k)
        return _sparse(rows, index.reshape(-1), lengths, (len(others), len(self.points)))


def build_graph(ruler: Ruler, points: Tensor, k: int, known: Tensor | None = None) -> MetricGraph:
    """The symmetric k-nearest-neighbour graph of ``points`` (n, d), joined into one piece, measured in the metric."""
    array = points.cpu().numpy()
    k = max(1, min(k, len(array) - 1))
    search = NearestNeighbors(n_neighbors=k).fit(array)
    if len(array) > 1:
        pattern = search.kneighbors_graph(mode="connectivity").tocoo()
        ends = np.sort(np.stack([pattern.row, pattern.col], axis=1).astype(np.int64), axis=1)
        # one number for an edge: unique rows take many times as long
        edges = _join(array, np.stack(np.divmod(np.unique(ends[:, 0] * len(array) + ends[:, 1]), len(array)), axis=1))
    else:
        edges = np.zeros((0, 2), dtype=np.int64)
    known = ruler.know(points) if known is None else known
    a, b = (torch.from_numpy(edges[:, side].astype(np.int64)).to(points.device) for side in (0, 1))
    lengths = ruler.lengths(points[a], points[b], known[a], known[b])
    half = _sparse(edges[:, 0], edges[:, 1], lengths, (len(array), len(array)))
    return MetricGraph(points, known, (half + half.T).tocsr(), search, k, ruler)


def _sparse(rows: np.ndarray, columns: np.ndarray, lengths: Tensor, shape: tuple[int, int]) -> csr_matrix:
    values = lengths.cpu().numpy()
    usable = np.isfinite(values)
    # an explicit zero is no edge to csgraph; equal points are joined by a length too small to matter
    values = np.maximum(values[usable], 1e-300)
    return coo_matrix((values, (rows[usable], columns[usable])), shape=shape).tocsr()


def _join(array: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Join the pieces of a graph: the shortest edge from every piece but the largest to the rest, until it is one."""
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


def subsample(latents: Tensor, most: int, seed: int = 0) -> Tensor:
    """At most ``most`` of the latents (N, d), drawn without replacement."""
    if len(latents) <= most:
        return latents
    generator = torch.Generator().manual_seed(seed)
    return latents[torch.randperm(len(latents), generator=generator)[:most].to(latents.device)]
