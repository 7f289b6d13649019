"""Start curves: the straight line, and shortest paths through a grid or through the training latents.

The start decides which of several locally shortest curves a relaxation finds.  Graphs are built when they are
first needed and kept with the metric; which graph a pair sees depends on that pair alone, never on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...metric import Metric, MetricParts
from ...support import hashes
from ..options import GIVEN, START_NAMES
from .corridors import through_corridors
from .given import as_given
from .graph import MetricGraph, build_graph, subsample
from .grid import build_grid
from .grid_estimates import estimate, everywhere, held, lengths_of_pieces
from .ruler import TensorRuler, make_ruler
from .shortest_paths import PAIRS_AT_ONCE, Paths, shortest_paths
from .start_curves import StartCurves, rounded, straight, timed
from .valleys import detours, shortest_of_each

GRID_MOST_DIM = 3
_GRAPH_K = 10
_GRAPH_NODES = 2000
#: edges of each node to others far away, without which a graph has few ways from one population to another
_GRAPH_FAR = 3
#: a straight line that is shorter than this many graph paths needs no other start
_SAME = 0.8
#: a graph path longer than the straight line by this factor is none that could be worth it when rounded off
_ENOUGH = 1.25
#: the same where the grid has resolved the metric everywhere: its paths are no more than a few percent too long
_ENOUGH_RESOLVED = 1.1
#: curves between two, these included, that tell whether a hill parts them
_BETWEEN = 5
#: curves through other valleys than the shortest path's; and where corridors tell which of them are worth relaxing
_OTHERS, _OTHERS_NARROWED = 3, 6
#: a curve between two that is longer than its neighbours by this share of them is a hill
_HILL = 0.002
#: one that is longer than this many runs through another valley, and paths through those are found by themselves
_HOPELESS = 1.02


@dataclass
class StartCache:
    """Graphs of one metric, by device and what each was built for.  Pickled and copied without them: they are built
    again."""

    graphs: dict[tuple[Any, ...], MetricGraph] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type[StartCache], tuple[()]]:
        return StartCache, ()


def cache_of(metric: Metric) -> StartCache:
    """The graphs kept with ``metric``."""
    cache = getattr(metric, "_start_cache", None)
    if not isinstance(cache, StartCache):
        cache = StartCache()
        setattr(metric, "_start_cache", cache)  # noqa: B010 - private to the solver, no part of the contract
    return cache


def make_starts(
    metric: Metric,
    parts: MetricParts,
    start: Tensor,
    end: Tensor,
    support: Tensor | None,
    names: tuple[str, ...],
    initial: Tensor | None = None,
) -> StartCurves:
    """Start curves worth relaxing for each pair of rows of ``start`` and ``end`` (B, d); ``initial`` (B, m, d) are."""
    dim = start.shape[1]
    lines = straight(start, end)
    found = []
    merged = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    sure = merged.clone()
    planes = []
    cache = cache_of(metric)
    distinct = (start != end).any(1)
    if len(start) == 0:
        return lines
    if "grid" in names and dim <= GRID_MOST_DIM:
        for box, rows in _boxes(start, end, support).items():
            rows = rows[distinct[rows]]
            grid = _grid(cache, parts, box, start.device, support) if len(rows) else None
            if grid is None or grid.cells is None or len(grid.points) == 0:
                continue
            # a field is asked about as quickly as corridors are searched, and a metric that is resolved needs none
            narrowed = dim == 2 and parts.embedding is not None and not bool(grid.resolved.all())
            others = _OTHERS_NARROWED if narrowed else _OTHERS
            for some in rows.split(PAIRS_AT_ONCE):
                line = lines.take(some)
                curves, joined, told = _on_grid(grid, line, start, end, "straight" in names, others)
                found += curves
                # in two dimensions cells are small enough for their lengths to tell valleys apart
                sure[some if dim < GRID_MOST_DIM else told] = True
                if narrowed:
                    planes.append((grid, some))
                merged[joined] = True
                lines.put_rows(some, line)
    if "graph" in names and support is not None and len(support) > 1:
        rows = (distinct & ~sure).nonzero().flatten()
        if len(rows):
            graph = _support_graph(cache, parts, support)
            for some in rows.split(PAIRS_AT_ONCE):
                paths = shortest_paths(graph, start[some], end[some])
                found.append(rounded(paths.corners, paths.lengths, some, START_NAMES.index("graph")))
    asked = ~distinct if "straight" not in names else torch.ones_like(distinct)
    chosen = _worth_relaxing(lines, found, merged, asked, sure)
    for grid, rows in planes:
        within = torch.zeros_like(merged).index_fill(0, rows, True) & ~merged
        # what a curve costs that passes points without a metric is not known, and no other is known to be shorter
        part = within[chosen.pair] & torch.isfinite(chosen.length)
        if bool(part.any()):
            chosen = StartCurves.join([chosen.take(~part), through_corridors(grid, chosen.take(part))])
    # a grid has told the lengths of the pieces already, and without a weight none is much longer than the others
    chosen = chosen if dim <= GRID_MOST_DIM or parts.weight is None else timed(parts, chosen)
    if initial is None:
        return chosen
    own = as_given(parts, initial)
    if set(names) == {GIVEN}:
        # the straight line stands in for a curve that is not finite, and for no other
        chosen = chosen.take(~torch.isin(chosen.pair, own.pair))
    return StartCurves.join([chosen, own])


def _on_grid(
    grid: MetricGraph, line: StartCurves, start: Tensor, end: Tensor, with_lines: bool, others: int
) -> tuple[list[StartCurves], Tensor, Tensor]:
    """Curves through a grid for the pairs of the straight lines ``line``, which are measured in place.

    Args:
        others: how many there may be through other valleys than the shortest path's.

    Returns:
        The curves; the pairs (m,) whose line is one with a curve, where lines are asked for; and those (k,) whose
        curve runs where the grid has resolved the metric.
    """
    assert grid.cells is not None
    cells, smooth = estimate(grid, line)
    # what a line costs beside points without a metric is not known, and no path is too long for it
    line.length[~everywhere(grid.cells.complete, cells)] = float("inf")
    enough = _ENOUGH_RESOLVED if bool(grid.resolved.all()) else _ENOUGH
    most = enough * line.length if with_lines else None
    paths = shortest_paths(grid, start[line.pair], end[line.pair], most)
    curves = rounded(paths.corners, paths.lengths, line.pair, START_NAMES.index("grid"))
    there = torch.isfinite(curves.length).nonzero().flatten()
    curves = curves.take(there)
    _, smooth_too = estimate(grid, curves)
    joined = torch.zeros_like(smooth_too)
    told = curves.pair[smooth_too]
    if with_lines:
        joined[_merge(grid, line.take(there), curves, smooth[there] & smooth_too)] = True
    found = [curves]
    if not bool(joined.all()):
        found.append(_others(grid, start, end, curves.take(~joined), paths.take(there[~joined]), others))
    return found, curves.pair[joined], told


def _merge(grid: MetricGraph, lines: StartCurves, curves: StartCurves, smooth: Tensor) -> Tensor:
    """Which of ``curves`` (numbers) stand for their pair's straight line, too; they become a curve between, in place.

    The curves between the two, in equal steps, tell whether a hill parts them, where the grid has resolved the
    metric, as it has along those that are ``smooth`` (Q,).  Where none does they run in one valley, and the shortest
    of them all is nearest its bottom.
    """
    rows = smooth.nonzero().flatten()
    line, curve = lines.take(rows), curves.take(rows)
    ends = torch.stack([line.nodes[:, ::2], curve.nodes[:, ::2]], dim=1)
    shares = torch.linspace(0, 1, _BETWEEN, dtype=ends.dtype, device=ends.device)
    nodes = torch.lerp(ends[:, :1], ends[:, 1:], shares[:, None, None])
    cells, places = held(grid, nodes)
    lengths = lengths_of_pieces(grid, nodes[:, :, ::2], cells[:, :, ::2], places[:, :, :, ::2]).sum(2)
    hill = lengths[:, 1:-1] > (1 + _HILL) * torch.maximum(lengths[:, :-2], lengths[:, 2:])
    joined = ~hill.any(1) & everywhere(grid.resolved, cells).all(1)
    best = lengths.argmin(1)
    share = shares[best]
    between = StartCurves(
        curve.pair,
        torch.where(best == 0, line.kind, curve.kind),
        torch.lerp(line.knots, curve.knots, share[:, None]),
        torch.lerp(line.nodes, curve.nodes, share[:, None, None]),
        lengths.amin(1),
        curve.asked,
    )
    curves.put_rows(rows[joined], between.take(joined))
    return rows[joined]


def _worth_relaxing(
    lines: StartCurves, found: list[StartCurves], merged: Tensor, asked: Tensor, sure: Tensor
) -> StartCurves:
    """The start curves to go on with: of pairs (B,) whose line is ``merged`` or not ``asked`` for, not the line.

    Which of them are too long for it is told only of pairs whose lengths are ``sure`` (B,).
    """
    count = len(merged)
    best = torch.full((count,), float("inf"), dtype=lines.length.dtype, device=lines.length.device)
    for curves in found:
        best[curves.pair] = torch.minimum(best[curves.pair], curves.length)
    measured = torch.isfinite(lines.length) & asked & sure[lines.pair]
    good_enough = torch.zeros(count, dtype=torch.bool, device=best.device)
    good_enough[lines.pair] = measured & (lines.length <= _SAME * best[lines.pair])
    hopeless = measured & (lines.length > _HOPELESS * best[lines.pair])
    keep = [lines.take(asked & ~hopeless & ~merged)]
    keep += [curves.take(torch.isfinite(curves.length) & ~good_enough[curves.pair]) for curves in found]
    chosen = StartCurves.join(keep)
    missing = torch.ones(count, dtype=torch.bool, device=best.device)
    missing[chosen.pair] = False
    # a pair that no graph joins still has its straight line
    return chosen if not bool(missing.any()) else StartCurves.join([chosen, lines.take(missing[lines.pair])])


def _others(grid: MetricGraph, start: Tensor, end: Tensor, curves: StartCurves, paths: Paths, most: int) -> StartCurves:
    """Up to ``most`` curves through other valleys for the pairs of the rounded shortest ``paths``, ``curves``."""
    pair = curves.pair
    which, corners, lengths = detours(grid, start[pair], end[pair], paths, curves.nodes)
    others = rounded(corners, lengths, pair[which], START_NAMES.index("grid"))
    estimate(grid, others)
    # zigzags of one length, rounded off, are of very different ones
    rows = shortest_of_each(others.pair.cpu().numpy(), others.length.cpu().numpy(), most)
    return others.take(torch.from_numpy(rows).to(others.pair.device))


def _boxes(start: Tensor, end: Tensor, support: Tensor | None) -> dict[tuple[float, ...], Tensor]:
    """Boxes (centre and half sides) for the pairs, enlarged about the data until they hold the pair with a margin."""
    if support is None:
        centre, half = torch.zeros_like(start[0]), torch.ones_like(start[0])
    else:
        low, high = support.amin(0), support.amax(0)
        # the data's own box has a margin of a fifth
        centre, half = (low + high) / 2, 1.2 * ((high - low) / 2).clamp_min(1e-12 + 1e-3 * float((high - low).max()))
    reach = ((torch.stack([start, end]) - centre).abs().amax(0) / half).amax(1)
    if support is None:
        # a margin of at least a half, and boxes four times as large each as the one before: every one has a grid of
        # its own to build
        powers = 2 * (1.5 * reach).clamp_min(1e-300).log2().div(2).ceil()
    else:
        powers = reach.clamp_min(1.0).log2().ceil()
    groups = {}
    for power in powers.unique().tolist():
        key = (*centre.tolist(), *(half * 2.0**power).tolist())
        groups[key] = (powers == power).nonzero().flatten()
    return groups


def _grid(
    cache: StartCache, parts: MetricParts, box: tuple[float, ...], device: torch.device, support: Tensor | None
) -> MetricGraph:
    key = (str(device), "grid", box)
    if key not in cache.graphs:
        values = torch.tensor(box, dtype=torch.float64, device=device)
        centre, half = values.chunk(2)
        ruler = TensorRuler(parts)
        data = None if support is None else subsample(support, 100)
        cache.graphs[key] = build_grid(ruler, centre - half, centre + half, data)
    return cache.graphs[key]


def _support_graph(cache: StartCache, parts: MetricParts, support: Tensor) -> MetricGraph:
    # the same latents give the same key whatever tensor holds them, and others another; squared, or it would not tell
    # which numbers stand in one row
    key = (str(support.device), "graph", len(support), int(hashes(support).square().sum()))
    if key not in cache.graphs:
        nodes = subsample(support, _GRAPH_NODES)
        cache.graphs[key] = build_graph(make_ruler(parts, support.shape[1]), nodes, _GRAPH_K, far=_GRAPH_FAR)
    return cache.graphs[key]
