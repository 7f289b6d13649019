"""The nearest few of every point in geodesic distance, as a sparse matrix: what large data sets want."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from .._arrays import ArrayLike, check_count, check_seed
from ..metric import Metric, check_metric
from ..parallel import cut
from . import shortest
from .forecast import NEAREST, forecasts
from .graph import build_distance_graph
from .identity import fingerprint
from .job import as_points, below, check_solver, make_nodes, warn
from .pairs import SomePairs, draw, sampled, solve
from .report import DistanceReport, compare, largest_error, stages_of
from .store import computed

#: neighbours in the graph for each neighbour that is asked for, and the fewest
_PER_NEIGHBOUR = 2
_FEWEST = 32


def neighbours(
    metric: Metric,
    points: ArrayLike,
    k: int = 10,
    *,
    graph_neighbours: int | None = None,
    refine: bool = False,
    sample: int = 64,
    support: ArrayLike | None = None,
    seed: int = 0,
    n_jobs: int | None = None,
    store: str | Path | None = None,
    progress: bool = False,
    return_report: bool = False,
    **solver: Any,
) -> Any:
    """Sparse matrix of the k nearest geodesic neighbours of every point; memory grows with N times k.

    Found exactly on the graph of the points and the metric's support; the graph's own error is estimated
    on a sample of the entries.  The matrix suits scikit-learn's ``metric="precomputed"`` as it is.

    Args:
        metric: any :class:`~posthoc_metric.Metric`.
        points: (N, d) latents.
        k: neighbours of each, itself not counted; all others where there are fewer.
        graph_neighbours: edges of each node of the graph; by default 2 k, at least 32.
        refine: whether the solver computes the distances of all neighbours found anew.
        sample, support, seed, n_jobs, store, progress, return_report, **solver: as in :func:`distances`.

    Returns:
        ``scipy.sparse.csr_matrix`` (N, N) of float64, each row's entries in order of distance; and the report.

    Raises:
        InvalidArgumentError, OutputError, CheckpointError, WorkerError: as in :func:`distances`.

    Warns:
        ConvergenceWarning, PosthocMetricWarning: as in :func:`distances`.
    """
    check_metric(metric)
    check_solver(solver, neighbours)
    seed = check_seed(seed)
    k = check_count(k, "k", 1, "the number of neighbours")
    sample = check_count(sample, "sample", 0, "how many pairs to check")
    _, latents, _ = as_points(metric, points, "points")
    count = len(latents)
    k = min(k, count - 1)
    nodes = make_nodes(metric, latents, None, support)
    edges = max(_PER_NEIGHBOUR * k, _FEWEST)
    if graph_neighbours is not None:
        edges = check_count(graph_neighbours, "graph_neighbours", 1, "the edges of a node")
    if support is not None:
        solver = {**solver, "support": support}
    plan = fingerprint(metric, latents, None, solver, store, k=k)
    distinct, first = np.unique(nodes.rows, return_index=True)
    wanted = np.zeros(len(nodes.points), dtype=bool)
    wanted[distinct] = True
    with forecasts(progress, NEAREST, n_jobs) as bars:
        graph = build_distance_graph(
            metric, nodes.points, edges, n_jobs=n_jobs, store=below(store, "graph"), plan=plan, progress=bars
        )
        plan = {**plan, "neighbours": graph.k}
        found = computed(
            shortest.nearest,
            (graph.lengths, wanted, k),
            cut(len(distinct), shortest.NEAREST_BLOCK),
            {"nodes": ((len(distinct), k), np.int64), "distances": ((len(distinct), k), np.float64)},
            folder=below(store, "nearest"),
            plan=plan,
            n_jobs=n_jobs,
            progress=bars,
            stage="nearest",
        )
        near, lengths = np.array(found["nodes"]), np.array(found["distances"])
        matrix = _to_points(near, lengths, nodes.rows, distinct, first, k)
        rows = np.repeat(np.arange(count), np.diff(matrix.indptr))
        entries = SomePairs(rows, matrix.indices.astype(np.int64))
        error, unconverged, largest = None, 0, 0.0
        exact = getattr(metric, "exact", metric)
        if sample and entries.count:
            drawn = draw(SomePairs(np.arange(entries.count), np.arange(entries.count)), sample, seed).first
            chosen = SomePairs(*entries.at(drawn))
            options = sampled(solver)
            solved = solve(exact, latents, latents, chosen, options, n_jobs=n_jobs, progress=bars, stage="sample")
            error = compare(matrix.data[drawn], solved.lengths, solved.errors)
        if refine:
            solved = solve(
                exact, latents, latents, entries, solver,
                folder=below(store, "refined"), plan=plan, n_jobs=n_jobs, progress=bars, stage="refined",
            )  # fmt: skip
            matrix.data[:] = solved.lengths
            unconverged, largest = solved.unconverged, largest_error(solved.lengths, solved.errors)
            order = np.lexsort((matrix.data, rows))
            matrix.data, matrix.indices = matrix.data[order], matrix.indices[order]
        report = DistanceReport(
            method="graph",
            pairs=count * k,
            failed=count * k - int(np.isfinite(matrix.data).sum()),
            unconverged=unconverged,
            largest_error=largest,
            error=error,
            neighbours=graph.k,
            refined=entries.count if refine else 0,
            stages=stages_of(bars.seconds),
        )
    warn(report)
    return (matrix, report) if return_report else matrix


def _to_points(
    near: np.ndarray, lengths: np.ndarray, rows: np.ndarray, distinct: np.ndarray, first: np.ndarray, k: int
) -> csr_matrix:
    """From nodes to the caller's rows; points that coincide are each other's nearest, at distance zero."""
    count = len(rows)
    slot = np.searchsorted(distinct, rows)
    if len(distinct) == count:
        owner = np.full(int(distinct.max()) + 1, -1)
        owner[distinct] = first
        near, lengths = near[slot], lengths[slot]
        keep = near >= 0
        indptr = np.r_[0, keep.sum(1).cumsum()]
        return csr_matrix((lengths[keep], owner[near[keep]], indptr), shape=(count, count))
    members: dict[int, np.ndarray] = {}
    order = np.argsort(rows, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1):
        members[int(rows[group[0]])] = group
    indices, data, indptr = [], [], [0]
    for point in range(count):
        twins = members[int(rows[point])]
        others = [twins[twins != point]] + [members[int(node)] for node in near[slot[point]] if node >= 0]
        sizes = [len(group) for group in others]
        reached = np.repeat(np.r_[0.0, lengths[slot[point]][: len(others) - 1]], sizes)[:k]
        indices.append(np.concatenate(others)[:k])
        data.append(reached)
        indptr.append(indptr[-1] + len(reached))
    return csr_matrix((np.concatenate(data), np.concatenate(indices), indptr), shape=(count, count))
