"""The shortest curves through corridors about given ones, by what a grid of the plane tells of the metric.

The edges of a grid have few directions, so that its shortest path is some percent too long and may lie in another
valley than the geodesic.  Lanes along a path have many more; the best way through them follows by dynamic programming
(Amini, Weymouth & Jain 1990, Using dynamic programming for solving variational problems in vision), and the decoder is
not asked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..curves.contenders import contenders
from .graph import MetricGraph
from .grid_estimates import estimate, everywhere, held
from .start_curves import StartCurves, rounded

#: stations along a curve, and lanes, an odd number of them, across it
_STATIONS, _LANES = 32, 25
#: half the width of a corridor in its middle, as a share of the curve's extent
_WIDTH = 0.1
#: lanes that may be crossed from one station to the next
_REACH = 4
#: how much longer than a pair's shortest start another may be, as far as a grid can tell, and still be worth relaxing
_MARGIN = 0.03
#: points at which starts are compared
_COMPARED = 9
#: curves whose stations are gone through together, and whose ways are measured, while these are in a processor's cache
_CURVES, _AT_ONCE = 64, 8


def through_corridors(grid: MetricGraph, curves: StartCurves) -> StartCurves:
    """The shortest curves through the corridors about ``curves``, d = 2; of those that come together one.

    Where the grid has resolved the metric all along a curve, that is near its own valley's best, and stays.
    """
    smooth = everywhere(grid.resolved, held(grid, curves.nodes)[0])
    if bool(smooth.all()):
        return curves
    found = [_shorter(grid, curves.take(rows)) for rows in (~smooth).nonzero().flatten().split(_CURVES)]
    better = StartCurves.join([curves.take(smooth), *found])
    shapes = better.nodes[:, :: (better.nodes.shape[1] - 1) // (_COMPARED - 1)]
    # lengths that a grid tells have no lower bound
    return better.take(contenders(better.pair, better.length, shapes, _MARGIN, torch.zeros_like(better.length)))


def _shorter(grid: MetricGraph, curves: StartCurves) -> StartCurves:
    """``curves``; in their place, where the grid tells that they are shorter, those through their corridors."""
    lanes = _lanes(curves.nodes)
    corners, lengths = _shortest(lanes, _forms(grid, lanes))
    corners[:, 0], corners[:, -1] = curves.nodes[:, 0], curves.nodes[:, -1]
    found = rounded(corners, lengths, curves.pair, 0)
    found.kind, found.asked = curves.kind, curves.asked
    cells, _ = estimate(grid, found)
    assert grid.cells is not None
    # what a way costs that grazes a hole without a metric is not known
    known = torch.isfinite(lengths) & everywhere(grid.cells.complete, cells)
    rows = (known & (found.length < curves.length)).nonzero().flatten()
    curves.put_rows(rows, found.take(rows))
    return curves


def _lanes(nodes: Tensor) -> Tensor:
    """Points (Q, s + 1, k, 2) on the lanes at the stations of curves (Q, m, 2); a corridor narrows to its ends."""
    stations = nodes[:, :: (nodes.shape[1] - 1) // _STATIONS]
    ahead, behind = torch.cat([stations, stations[:, -1:]], dim=1), torch.cat([stations[:, :1], stations], dim=1)
    along = ahead[:, 1:] - behind[:, :-1]
    across = torch.stack([-along[..., 1], along[..., 0]], dim=2)
    across = across / across.norm(dim=2, keepdim=True).clamp_min(1e-300)
    extent = (nodes.amax(1) - nodes.amin(1)).norm(dim=1)
    run = torch.linspace(0, 1, _STATIONS + 1, dtype=nodes.dtype, device=nodes.device)
    width = 2 * _WIDTH * (run * (1 - run)).sqrt()
    side = torch.linspace(-1, 1, _LANES, dtype=nodes.dtype, device=nodes.device)
    offset = extent[:, None, None] * (width[:, None] * side)
    return stations[:, :, None] + offset[..., None] * across[:, :, None]


def _forms(grid: MetricGraph, points: Tensor) -> Tensor:
    """What ``dx²``, ``dx dy`` and ``dy²`` count at points (..., 2) for a squared length (..., 3)."""
    assert grid.cells is not None
    known = grid.cells.at(grid.whole, *grid.cells.holding(points.flatten(0, -2)))
    forms = known[:, :3]
    if known.shape[1] > 3:
        forms[:, ::2] += known[:, 3:].exp_()
    return forms.view(*points.shape[:-1], 3)


def _ways(lanes: Tensor, forms: Tensor) -> Tensor:
    """Lengths (Q, s, k, 2r + 1) of the ways to each lane from those up to r beside it, one station before.

    Infinite where no lane is, or no metric.
    """
    stations = torch.cat([lanes, forms], dim=3)
    before = torch.nn.functional.pad(stations[:, :-1], (0, 0, _REACH, _REACH), value=float("nan"))
    x, y, xx, xy, yy = (column.unfold(2, 2 * _REACH + 1, 1) for column in before.unbind(3))
    here = stations[:, 1:, :, None].unbind(4)
    dx, dy = here[0] - x, here[1] - y
    # the root of the mean of the squares at both ends
    xx, xy, yy = (a + b for a, b in zip((xx, xy, yy), here[2:], strict=True))
    squares = (xx.mul_(dx) + xy.mul_(dy)).mul_(dx).add_(yy.mul_(dy).mul_(dy))
    return squares.div_(2).clamp_min_(0).sqrt_().nan_to_num_(nan=float("inf"))


def _shortest(lanes: Tensor, forms: Tensor) -> tuple[Tensor, Tensor]:
    """The shortest ways (Q, s + 1, 2) from the middle lane to the middle lane, and their lengths (Q,)."""
    count, _, number, _ = lanes.shape
    ways = torch.cat([_ways(*some) for some in zip(lanes.split(_AT_ONCE), forms.split(_AT_ONCE), strict=True)])
    middle = number // 2
    # beyond the outermost lanes nothing begins
    cost = lanes.new_full((count, number + 2 * _REACH), float("inf"))
    inner, around = cost[:, _REACH:-_REACH], cost.unfold(1, 2 * _REACH + 1, 1)
    inner[:, middle] = 0
    steps = []
    for way in ways.unbind(1):
        least, step = (around + way).min(2)
        inner.copy_(least)
        steps.append(step)
    lane = torch.full((count, 1), middle, device=lanes.device)
    trail = [lane]
    for step in reversed(steps):
        # where no way leads, nothing tells which lane it came by
        lane = (lane + step.gather(1, lane) - _REACH).clamp(0, number - 1)
        trail.append(lane)
    chosen = torch.cat(trail[::-1], dim=1)[:, :, None, None].expand(-1, -1, 1, 2)
    return lanes.gather(2, chosen)[:, :, 0], inner[:, middle]
