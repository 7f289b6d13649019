"""The front door: matrices of geodesic distances, from one pair to millions."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._arrays import ArrayLike, check_count, check_seed
from ..errors import InvalidArgumentError
from ..metric import Metric, check_metric
from ..parallel import Progress, cut
from . import shortest
from .forecast import MATRIX, forecasts
from .graph import build_distance_graph, default_neighbours
from .identity import fingerprint
from .job import as_points, below, check_solver, make_nodes, warn
from .pairs import AllPairs, Pairs, Solved, SomePairs, draw, sampled, solve
from .report import DistanceReport, ErrorEstimate, compare, largest_error, stages_of
from .result import Result
from .store import computed

METHODS = ("auto", "solver", "graph")
#: pairs up to which "auto" solves each of them
MOST_SOLVED = 4_000
_TILE = 1024


def distances(
    metric: Metric,
    a: ArrayLike,
    b: ArrayLike | None = None,
    *,
    method: str = "auto",
    neighbours: int | None = None,
    refine: int = 0,
    calibrate: bool = False,
    sample: int = 64,
    support: ArrayLike | None = None,
    seed: int = 0,
    n_jobs: int | None = None,
    store: str | Path | None = None,
    progress: bool = False,
    return_report: bool = False,
    **solver: Any,
) -> Any:
    """Matrix of geodesic distances between the rows of ``a`` and ``b``, or between all rows of ``a``.

    The solver gives each pair to its own tolerance, for which ``neighbours``, ``refine``, ``calibrate`` and ``sample``,
    which are of the graph, change nothing.  Beyond some thousands of pairs, shortest paths on a graph
    of the points and the metric's support take over (Tenenbaum, de Silva & Langford 2000, with edges
    measured in the metric); their error is estimated on a random sample of pairs that are solved.

    Args:
        metric: any :class:`~posthoc_metric.Metric`.
        a: (n, d) latents.
        b: (m, d) latents; ``a`` itself if not given, and then the matrix is symmetric with a zero diagonal.
        method: "solver", "graph", or "auto": the solver up to 4,000 distinct pairs, the graph beyond.
        neighbours: edges of each node of the graph; more are slower and more accurate.  By default about
            200,000 / nodes, at least 48.
        refine: for each row of the matrix, how many of its smallest distances on the graph the solver computes anew.
        calibrate: whether to multiply graph distances by the median ratio of solved to graph distances on the sample.
            Half of the sample then sets the factor, and the other half measures what error is left.
        sample: pairs that are solved to estimate the error of graph distances, across kinks to half a hundredth if
            ``rough_rtol`` is not given; 0 leaves it unknown.
        support: latents (N, d) that join the graph; ``metric.support`` if not given.
        seed: of the sample.
        n_jobs: as in joblib; any backend of ``joblib.parallel_config`` is used.  The result does not depend on it.
        store: a folder for finished blocks.  A run that was killed continues there when it is called again with the
            same arguments; the result is then a memory map of float64, ``distances.npy`` in that folder.  Another
            matrix of that name, as of another ``method``, stays there as ``distances-1.npy`` and so on.
        progress: whether to show progress bars on standard error.
        return_report: whether to return a :class:`DistanceReport` too.
        **solver: options of :func:`posthoc_metric.geodesic`.

    Returns:
        (n, m) in the kind, dtype and device of ``a``, or with ``store`` a NumPy memory map; and the report, if asked.
        NaN where the solver found no curve, ``inf`` where the graph has no path. It carries no gradients; those of
        single pairs are in ``metric.geodesic(start, end).length``.

    Raises:
        InvalidArgumentError: a wrong width, rows that are not finite, an unknown option or method, a bad range, or a
            ``store`` that holds another computation.
        OutputError: the store cannot be written to.
        CheckpointError: the store's files are damaged.
        WorkerError: workers keep dying.

    Warns:
        ConvergenceWarning: pairs without a distance or not converged; graph distances off by more than 2 % in the
            median or 10 % at the 90th percentile, calibrated or not.
        PosthocMetricWarning: a stage of the work will take more than two minutes, about how long, and what makes it
            cheaper; none of it is decided by the clock.
    """
    check_metric(metric)
    check_solver(solver, distances)
    seed = check_seed(seed)
    if method not in METHODS:
        raise InvalidArgumentError(f"`method` must be one of {', '.join(METHODS)}; got {method!r}.")
    refine = check_count(refine, "refine", 0, "how many of each row's distances to solve")
    sample = check_count(sample, "sample", 0, "how many pairs to check")
    if neighbours is not None:
        neighbours = check_count(neighbours, "neighbours", 1, "the edges of a node")
    if calibrate and sample < 2:
        raise InvalidArgumentError(f"`calibrate` needs a `sample` of at least 2 pairs; got {sample}.")
    raw, start, restore = as_points(metric, a, "a")
    end = None if b is None else as_points(metric, b, "b")[1].to(start.device)
    pairs = AllPairs(len(start), None if end is None else len(end))
    if method == "auto":
        method = "solver" if pairs.count <= MOST_SOLVED else "graph"
    if support is not None:
        solver = {**solver, "support": support}
    plan = fingerprint(metric, start, end, solver, store, method=method)
    shape = len(start), len(start if end is None else end)
    with closing(Result(shape, below(store, "."))) as result, forecasts(progress, MATRIX, n_jobs) as bars:
        job = _Job(metric, start, end, pairs, solver, n_jobs, store, plan, bars, result)
        if method == "solver":
            report = _solved(job)
        else:
            nodes = make_nodes(metric, start, end, support)
            k = default_neighbours(len(nodes.points)) if neighbours is None else neighbours
            report = _on_graph(job, nodes, k, refine, calibrate, sample, seed)
        matrix = result.whole()
    warn(report)
    out = matrix if store is not None else restore(torch.from_numpy(matrix).to(raw))
    return (out, report) if return_report else out


@dataclass(frozen=True)
class _Job:
    """Everything that stays the same from stage to stage."""

    metric: Metric
    start: Tensor
    end: Tensor | None
    pairs: AllPairs
    solver: dict[str, Any]
    n_jobs: int | None
    store: str | Path | None
    plan: dict[str, Any]
    bars: Progress
    result: Result

    def solve(self, pairs: Pairs, name: str, **facts: Any) -> Solved:
        """The solver over ``pairs``, kept in the store under ``name``."""
        # a table measures edges; what is solved beside it is solved in the metric itself
        metric = getattr(self.metric, "exact", self.metric) if name != "pairs" else self.metric
        other = self.start if self.end is None else self.end
        solver = sampled(self.solver) if name == "sample" else self.solver
        plan = {**self.plan, "pairs": pairs.count, **facts}
        return solve(
            metric, self.start, other, pairs, solver,
            folder=below(self.store, name), plan=plan, n_jobs=self.n_jobs, progress=self.bars, stage=name,
        )  # fmt: skip


def _solved(job: _Job) -> DistanceReport:
    solved = job.solve(job.pairs, "pairs")
    job.result.begun()
    for low, high in cut(job.pairs.count, _TILE * _TILE):
        _fill(job, *job.pairs.at(np.arange(low, high)), solved.lengths[low:high])
    return DistanceReport(
        method="solver",
        pairs=job.pairs.count,
        failed=int((~np.isfinite(solved.lengths)).sum()),
        unconverged=solved.unconverged,
        largest_error=largest_error(solved.lengths, solved.errors),
        stages=stages_of(job.bars.seconds),
    )


def _on_graph(job: _Job, nodes: Any, k: int, refine: int, calibrate: bool, sample: int, seed: int) -> DistanceReport:
    graph = build_distance_graph(
        job.metric,
        nodes.points,
        k,
        n_jobs=job.n_jobs,
        store=below(job.store, "graph"),
        plan=job.plan,
        progress=job.bars,
    )
    found = computed(
        shortest.rows,
        (graph.lengths, nodes.rows, nodes.columns),
        cut(len(job.start), shortest.ROW_BLOCK),
        {"distances": (job.result.shape, np.float64)},
        folder=below(job.store, "rows"),
        plan={**job.plan, "neighbours": graph.k},
        n_jobs=job.n_jobs,
        progress=job.bars,
        stage="paths",
    )["distances"]
    matrix = job.result.begun(found)
    if job.end is None:
        shortest.symmetric(matrix)
    error, factor, unconverged, largest = None, 1.0, 0, 0.0
    if sample and job.pairs.count:
        chosen = draw(job.pairs, sample, seed)
        solved = job.solve(chosen, "sample", sample=sample, seed=seed)
        error, factor = _judge(matrix[chosen.first, chosen.second], solved.lengths, solved.errors, calibrate, seed)
        if factor != 1.0:
            for low, high in cut(len(matrix), _TILE):
                matrix[low:high] *= factor
    asked = SomePairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    if refine:
        asked = _smallest(matrix, refine, job.end is None)
        solved = job.solve(asked, "refined", refine=refine, neighbours=graph.k)
        _fill(job, asked.first, asked.second, solved.lengths)
        unconverged, largest = solved.unconverged, largest_error(solved.lengths, solved.errors)
    failed = sum(int((~np.isfinite(matrix[low:high])).sum()) for low, high in cut(len(matrix), _TILE))
    return DistanceReport(
        method="graph",
        pairs=job.pairs.count,
        failed=failed if job.end is not None else failed // 2,
        unconverged=unconverged,
        largest_error=largest,
        error=error,
        neighbours=graph.k,
        refined=asked.count,
        calibrated=factor,
        stages=stages_of(job.bars.seconds),
    )


def _judge(
    approximate: np.ndarray, lengths: np.ndarray, errors: np.ndarray, calibrate: bool, seed: int
) -> tuple[ErrorEstimate, float]:
    if not calibrate:
        return compare(approximate, lengths, errors), 1.0
    first = np.zeros(len(lengths), dtype=bool)
    first[np.random.default_rng(seed).permutation(len(lengths))[: len(lengths) // 2]] = True
    half = compare(approximate[first], lengths[first], errors[first])
    factor = half.scale if half.pairs else 1.0
    return compare(factor * approximate[~first], lengths[~first], errors[~first]), factor


def _smallest(matrix: np.ndarray, count: int, symmetric: bool) -> SomePairs:
    """The ``count`` smallest entries of each row, the diagonal of a symmetric matrix apart, each pair once."""
    rows, columns = [], []
    for low, high in cut(len(matrix), _TILE):
        part = np.array(matrix[low:high])
        if symmetric:
            part[np.arange(high - low), np.arange(low, high)] = np.inf
        most = max(min(count, part.shape[1] - symmetric), 1)
        nearest = np.argpartition(part, most - 1, axis=1)[:, :most]
        rows.append(np.repeat(np.arange(low, high), nearest.shape[1]))
        columns.append(nearest.reshape(-1))
    first, second = np.concatenate(rows), np.concatenate(columns)
    if symmetric:
        first, second = np.minimum(first, second), np.maximum(first, second)
    keys = np.unique(first * matrix.shape[1] + second)
    return SomePairs(keys // matrix.shape[1], keys % matrix.shape[1])


def _fill(job: _Job, first: np.ndarray, second: np.ndarray, lengths: np.ndarray) -> None:
    matrix = job.result.matrix
    matrix[first, second] = lengths
    if job.end is None:
        matrix[second, first] = lengths
