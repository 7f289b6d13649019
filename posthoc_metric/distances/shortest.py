"""Shortest paths on the graph: all targets of some sources, or the nearest few of every node."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from ..parallel import cut

#: sources of one block, for full rows and for nearest nodes
ROW_BLOCK = 64
NEAREST_BLOCK = 256
#: rows and columns of a matrix that are read and written at once
_TILE = 256


def rows(shared: tuple[csr_matrix, np.ndarray, np.ndarray | None], block: tuple[int, int]) -> np.ndarray:
    """Distances from ``sources[low:high]`` to ``targets`` (all nodes if ``None``)."""
    lengths, sources, targets = shared
    found = dijkstra(lengths, directed=True, indices=sources[slice(*block)])
    return found if targets is None else found[:, targets]


def symmetric(matrix: np.ndarray) -> np.ndarray:
    """``matrix`` (n, n) with the smaller of two entries in place of both: a path and its reverse are summed apart."""
    tiles = [slice(*block) for block in cut(len(matrix), _TILE)]
    for number, some in enumerate(tiles):
        for others in tiles[number:]:
            smaller = np.minimum(matrix[some, others], matrix[others, some].T)
            matrix[some, others], matrix[others, some] = smaller, smaller.T
    return matrix


def nearest(shared: tuple[csr_matrix, np.ndarray, int], block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other wanted nodes of the wanted nodes ``low`` to ``high``.

    Args:
        shared: the graph, which of its nodes are wanted (n,), and k.

    Every node before the last on a shortest path is nearer than the last.  So the K nearest nodes of a source are
    found by relaxing edges out of the K nearest known so far until nothing changes: no work and no memory
    depends on the size of the graph.

    Returns:
        Nodes (b, k) and distances (b, k), in order; node -1 at distance ``inf`` where there are fewer.
    """
    lengths, wanted, k = shared
    sources = np.flatnonzero(wanted)[slice(*block)]
    share = max(float(wanted.mean()), 1e-6)
    size = len(wanted)
    most = min(k + 1, int(wanted.sum()))
    reach = int(np.ceil((k + 1) / share * 1.2)) if share < 1 else k + 1
    while True:
        nodes, distances = _relax(lengths, sources, min(reach, size))
        enough = (wanted[nodes] & (nodes >= 0)).sum(1) >= most
        # where the wanted are few, look further: nothing left to look at ends the search
        if bool(enough.all()) or reach >= size or bool((nodes[~enough] < 0).any(1).all()):
            break
        reach *= 2
    found, reached = np.full((len(sources), k), -1), np.full((len(sources), k), np.inf)
    for row, source in enumerate(sources):
        keep = (nodes[row] >= 0) & (nodes[row] != source)
        keep[keep] = wanted[nodes[row][keep]]
        count = min(k, int(keep.sum()))
        found[row, :count], reached[row, :count] = nodes[row][keep][:count], distances[row][keep][:count]
    return found, reached


def _relax(lengths: csr_matrix, sources: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``reach`` nearest nodes (b, reach) of each source, itself first, and their distances."""
    count, size = len(sources), lengths.shape[0]
    nodes, distances = np.full((count, reach), -1), np.full((count, reach), np.inf)
    nodes[:, 0], distances[:, 0] = sources, 0.0
    fresh = np.zeros_like(nodes, dtype=bool)
    fresh[:, 0] = True
    while fresh.any():
        row, slot = np.nonzero(fresh)
        node = nodes[row, slot]
        first, degree = lengths.indptr[node], lengths.indptr[node + 1] - lengths.indptr[node]
        edge = np.repeat(first - np.r_[0, degree.cumsum()[:-1]], degree) + np.arange(degree.sum())
        known_row, known_slot = np.nonzero(nodes >= 0)
        all_rows = np.r_[known_row, np.repeat(row, degree)]
        all_nodes = np.r_[nodes[known_row, known_slot], lengths.indices[edge]]
        all_distances = np.r_[
            distances[known_row, known_slot], np.repeat(distances[row, slot], degree) + lengths.data[edge]
        ]
        is_new = np.arange(len(all_rows)) >= len(known_row)
        # a node's shortest distance, the known one first among equals
        order = np.lexsort((is_new, all_distances, all_rows * size + all_nodes))
        key = (all_rows * size + all_nodes)[order]
        order = order[np.r_[True, key[1:] != key[:-1]]]
        order = order[np.lexsort((all_nodes[order], all_distances[order], all_rows[order]))]
        rows_sorted = all_rows[order]
        rank = np.arange(len(order)) - np.searchsorted(rows_sorted, rows_sorted)
        order, rank = order[rank < reach], rank[rank < reach]
        place = (all_rows[order], rank)
        nodes[:], distances[:], fresh[:] = -1, np.inf, False
        nodes[place], distances[place], fresh[place] = all_nodes[order], all_distances[order], is_new[order]
    return nodes, distances
