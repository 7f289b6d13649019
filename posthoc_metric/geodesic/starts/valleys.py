"""Paths through other valleys than the shortest path's.

With the distances from the start and to the end, every point of a grid knows how long the shortest way through it is.
Runs of edges that both trees of shortest paths share are plateaus of that length: ways that no small change makes
shorter (Abraham, Delling, Goldberg & Werneck 2013, Alternative routes in road networks, section 4.3).  One that
longer ways part from the shortest path lies in a valley of its own, and as the grid's lengths err by some percent,
it may be the geodesic's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .graph import MetricGraph
from .shortest_paths import Paths, trees

#: how much longer than the shortest path, relative to it: about what the grid's lengths err by
_MARGIN = 0.1
#: other paths of a pair that are looked at
_MOST = 16
#: share of the shortest path that a plateau must make up
_LEAST = 0.1
#: a rise of the length on the way across, relative to it, that is a hill and no roughness of the grid's
_HILL = 0.005
#: share of a plateau's points that a hill must part from the shortest path
_SHARE = 0.5
#: points at which the way across is looked at
_ACROSS = 13


def detours(grid: MetricGraph, start: Tensor, end: Tensor, found: Paths, curves: Tensor) -> tuple[Tensor, ...]:
    """For pairs ``start`` and ``end`` (B, d) with their shortest paths, the next ones.

    Args:
        curves: the shortest paths, their corners rounded off (B, m, d).

    Returns:
        Which pair each belongs to (R,), its corners (R, k, d) and its length (R,).
    """
    limits = (1 + _MARGIN) * found.lengths.cpu().numpy()
    there, back = found.trees, trees(grid, found.near, found.steps, limits)
    total = there.distance + back.distance
    plateaus = [
        _plateaus(total[i], there.distance[i], there.before[i], back.before[i], limits[i]) for i in range(len(limits))
    ]
    point = np.concatenate([points for points, _ in plateaus])
    owner = np.repeat(np.arange(len(limits)), [len(points) for points, _ in plateaus])
    group = np.concatenate([groups for _, groups in plateaus])
    # the way through all points of a plateau is one and the same
    _, first, number = np.unique(np.stack([owner, group]), axis=1, return_index=True, return_inverse=True)
    number = number.ravel()
    apart = np.bincount(number, _parted(grid, total, owner, point, curves), len(first))
    parted = apart >= _SHARE * np.bincount(number, minlength=len(first))
    point, owner = point[first[parted]], owner[first[parted]]
    rows = shortest_of_each(owner, total[owner, point], _MOST)
    point, owner = point[rows], owner[rows]
    first, last = there.trails(owner, point), back.trails(owner, point)
    trails = [
        np.concatenate([one[one >= 0], other[other >= 0][-2::-1]]) for one, other in zip(first, last, strict=True)
    ]
    corners = np.full((len(owner), max(map(len, trails), default=0)), -1)
    for row, trail in enumerate(trails):
        corners[row, : len(trail)] = trail
    index = torch.from_numpy(owner).to(start.device)
    return index, grid.corners(start[index], end[index], corners), torch.from_numpy(total[owner, point]).to(start)


def shortest_of_each(owner: np.ndarray, lengths: np.ndarray, most: int) -> np.ndarray:
    """Rows (k,) of the ``most`` shortest of every owner (n,), one owner after the other; equal ones as they came."""
    order = np.lexsort((lengths, owner))
    place = np.arange(len(owner)) - np.searchsorted(owner[order], owner[order])
    return order[place < most]


def _plateaus(
    total: np.ndarray, distance: np.ndarray, before: np.ndarray, after: np.ndarray, most: float
) -> tuple[np.ndarray, np.ndarray]:
    """Points (k,) of the plateaus that are no longer than ``most``, and which of these each belongs to (k,).

    Args:
        total: length of the shortest way through each of n points (n,).
        distance: from the start (n,) and more.
        before, after: the point before and after it on that way (n,); n or more, or negative, at the ends.
    """
    point = np.flatnonzero(total <= most)
    earlier = before[point]
    inside = (earlier >= 0) & (earlier < len(total))
    point, earlier = point[inside], earlier[inside]
    shared = after[earlier] == point
    point, earlier = point[shared], earlier[shared]
    if len(point) == 0:
        return point, point
    # the way through all points of a plateau is equally long
    shortest = total[point].min()
    _, group = np.unique(np.round(total[point] / (1e-8 * shortest)).astype(np.int64), return_inverse=True)
    run = np.bincount(group, distance[point] - distance[earlier])
    long = (run >= _LEAST * shortest)[group]
    # both ends of every edge, so that the way back has the same points
    return np.concatenate([point[long], earlier[long]]), np.concatenate([group[long], group[long]])


def _parted(grid: MetricGraph, total: np.ndarray, owner: np.ndarray, point: np.ndarray, paths: Tensor) -> np.ndarray:
    """Whether longer ways part each ``point`` (k,) of pair ``owner`` (k,) from that pair's shortest path (k,).

    Args:
        total: lengths of the shortest ways through all points, pair by pair (B, n).
        paths: (B, m, d).
    """
    assert grid.cells is not None
    here = grid.points[torch.from_numpy(point).to(paths.device)]
    path = paths[torch.from_numpy(owner).to(paths.device)]
    nearest = (path - here[:, None]).norm(dim=-1).argmin(1)
    foot = path[torch.arange(len(path), device=path.device), nearest]
    shares = torch.linspace(0, 1, _ACROSS, dtype=path.dtype, device=path.device)[:, None]
    corners, weights = grid.cells.shares(torch.lerp(here[:, None], foot[:, None], shares).flatten(0, 1))
    corner, weight = corners.cpu().numpy(), weights.cpu().numpy()
    lengths = total[np.repeat(owner, _ACROSS)[:, None], corner]
    lengths[corner < 0] = np.inf
    # where no way is short enough its length is not known
    across = (weight * np.where(weight > 0, lengths, 0.0)).sum(1).reshape(-1, _ACROSS)
    return across.max(1, initial=0.0) > (1 + _HILL) * total[owner, point]
