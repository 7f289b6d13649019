"""Pairs solved in this process, or spread over several."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..metric import Metric, MetricParts
from ..parallel import run_blocks, worker_count
from .curves.batch import Batch
from .curves.placement import even
from .fixed_point import solve_fixed_point
from .guard import guard
from .options import FixedPointOptions, RelaxationOptions
from .refinement.between_points import admit_unseen
from .refinement.field_jumps import admit_jumps
from .refinement.folds import across_folds, leaping
from .refinement.precision import finer, too_close
from .refinement.refined import Refined, joined, the_surer
from .refinement.refiner import Refiner
from .refinement.routes import MOST_BEGUN, MOST_COARSE
from .refinement.stationarity import admit_slopes
from .refinement.straight_lines import bisected, measure_lines
from .starts.make import cache_of, make_starts
from .starts.start_curves import SPANS, StartCurves
from .status import CODES, Status

Options = RelaxationOptions | FixedPointOptions

#: pairs that are on their way at once: start curves and candidates take far more memory than what is handed back
_PAIRS = 8192
#: error of a length, as a share of it, from which on the curve is one that has gone astray
_ASTRAY = 0.02
#: spans that such a pair is begun with once more
_LINE_SPANS = 128


@dataclass
class Pairs(Batch):
    """B pairs, at least one, in float64.

    Attributes:
        start, end: (B, d).
        initial: curves (B, m, d) to start from, if there are any.
    """

    start: Tensor
    end: Tensor
    initial: Tensor | None = None

    def __len__(self) -> int:
        return len(self.start)


def solve_pairs(metric: Metric, pairs: Pairs, latents: Tensor | None, options: Options) -> Refined:
    """Geodesics of the pairs; ``latents`` (N, d) say where the data lie, if anything does."""
    parts = guard(metric.parts())
    if isinstance(options, FixedPointOptions):
        found = solve_fixed_point(parts, pairs.start, pairs.end, latents, options)
        admit_jumps(parts, found, options.rtol, options.memory_limit)
        return found
    close = too_close(parts, pairs.start, pairs.end)
    precise = finer(metric.parts()) if bool(close.any()) else None
    if precise is None:
        return _relaxed(metric, parts, pairs, latents, options)
    rows = [(~close).nonzero().flatten(), close.nonzero().flatten()]
    pieces = [
        _relaxed(metric, chosen, pairs.take(some), latents, options)
        for chosen, some in zip((parts, precise), rows, strict=True)
        if len(some)
    ]
    return joined(pieces).take(torch.cat(rows).argsort())


def _relaxed(
    metric: Metric, parts: MetricParts, pairs: Pairs, latents: Tensor | None, options: RelaxationOptions
) -> Refined:
    """Of the pairs in blocks, with ``parts`` that are the metric's or more precise."""
    blocks = []
    for rows in torch.arange(len(pairs), device=pairs.start.device).split(_PAIRS):
        some = pairs.take(rows)
        start, end = some.start, some.end
        if metric.dim == 1:
            blocks.append(measure_lines(parts, start, end, options))
            continue
        starts = make_starts(metric, parts, start, end, latents, options.starts, some.initial)
        found = admit_unseen(parts, Refiner(parts, starts, len(some), options).run(), options)
        found, crossed = across_folds(parts, found, options, leaping(parts, found.spline, found.facts.spans))
        found = _along_lines(parts, start, end, options, found)
        found = _relaxed_on(parts, options, found, admit_slopes(parts, found, options, but=crossed))
        found, _ = across_folds(parts, found, options, ~crossed)
        admit_jumps(parts, found, max(options.rtol, options.rough_rtol), options.memory_limit)
        facts = found.facts
        # where several measures agree without having settled, they say nothing of what all of them miss
        least = torch.where(facts.status == CODES[Status.UNRESOLVED], options.rtol * facts.length, 0.0)
        facts.length_error = torch.maximum(facts.length_error, least)
        blocks.append(found)
    return blocks[0] if len(blocks) == 1 else joined(blocks)


def _along_lines(parts: MetricParts, start: Tensor, end: Tensor, options: RelaxationOptions, found: Refined) -> Refined:
    """``found``, and what it could hardly measure once more from straight lines that a bisection gave their nodes.

    Where the metric changes by orders of magnitude, as towards a point that a chart lacks, few nodes see nothing of it;
    and a grid with cells on the edge of where there is a metric tells lengths that are far off.
    """
    lost = ~(found.facts.length_error <= _ASTRAY * found.facts.length)
    rows = (lost & (start != end).any(1)).nonzero().flatten()
    if "straight" not in options.starts or len(rows) == 0:
        return found
    lines = bisected(parts, start[rows], end[rows], options)
    # fewer nodes than the bisection had would jump over what it saw
    spans = max(options.spans, min(_LINE_SPANS, options.max_spans))
    again = Refiner(parts, lines, len(rows), replace(options, spans=spans)).run()
    return the_surer(found, rows, admit_unseen(parts, again, options))


def _relaxed_on(parts: MetricParts, options: RelaxationOptions, found: Refined, slopes: Tensor) -> Refined:
    """``found``, and the curves that still slope (B,) relaxed on by the model that says so, with as many spans or more.

    What was learnt of the energy has left out where they slope, and in many dimensions gradients alone learn too little
    where the metric is nearly singular.  Of a field without chords all that are not sure are: few points of quadrature
    may have come to lie where it is small.
    """
    if parts.embedding is None and parts.weight is None:
        unsure = found.facts.status == CODES[Status.UNRESOLVED]
        slopes = slopes | (unsure & torch.isfinite(found.facts.length))
    rows = slopes.nonzero().flatten()
    if options.max_spans < MOST_COARSE:
        return found
    spans = found.facts.spans[rows].clamp(MOST_COARSE, MOST_BEGUN)
    for number in spans.unique().tolist():
        some = rows[spans == number]
        found = the_surer(found, some, _once_more(parts, found.take(some), replace(options, spans=number)))
    return found


def _once_more(parts: MetricParts, found: Refined, options: RelaxationOptions) -> Refined:
    """From curves ``found`` (B), by Gauss-Newton steps."""
    spline, clock = found.spline, found.clock
    times = even(spline.nodes, max(options.spans, SPANS))
    nodes, _ = spline.at(clock.at(times))
    nodes[:, 0], nodes[:, -1] = spline.nodes[:, 0], spline.nodes[:, -1]
    pair = torch.arange(len(nodes), device=nodes.device)
    starts = StartCurves(pair, found.kind, times, nodes, found.facts.length, torch.zeros_like(pair))
    again = admit_unseen(parts, Refiner(parts, starts, len(pair), options, plain=True).run(), options)
    admit_slopes(parts, again, options, every=True)
    return again


def spread_pairs(metric: Metric, pairs: Pairs, latents: Tensor | None, options: Options, n_jobs: int | None) -> Refined:
    """As :func:`solve_pairs`, the pairs dealt out to the workers that ``n_jobs`` stands for.

    Workers keep the metric, and the start graphs that they build for it, as long as it is the same metric.
    """
    workers = min(worker_count(n_jobs), len(pairs))
    if workers == 1:
        return solve_pairs(metric, pairs, latents, options)
    # graphs are no part of a pickled metric; latents that are its own travel with it
    own = latents is not None and metric.support is not None and torch.equal(latents, metric.support.double())
    shared = (metric, cache_of(metric).graphs, None if own else latents, own, options)
    # neighbours in a batch are often alike, and alike in how hard they are
    rows = [torch.arange(first, len(pairs), workers, device=pairs.start.device) for first in range(workers)]
    found: list[Any] = [None] * workers
    for index, piece in run_blocks(_solve, shared, [pairs.take(some) for some in rows], n_jobs=n_jobs):
        found[index] = pickle.loads(piece)
    return joined(found).take(torch.cat(rows).argsort())


def _solve(shared: Any, pairs: Pairs) -> bytes:
    metric, graphs, latents, own, options = shared
    for key, graph in graphs.items():
        cache_of(metric).graphs.setdefault(key, graph)
    if own:
        latents = metric.support.double()
    # tensors would be handed back through shared memory, one file for each
    return pickle.dumps(solve_pairs(metric, pairs, latents, options))
