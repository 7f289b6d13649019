"""Checks of geodesics that share nothing with the solver but the metric: lengths by many chords, descent in sine
modes, shortest paths on a grid.

What they find is always a curve whose length is measured, and so an upper bound: a check that fails to shorten a curve
proves little, one that shortens it proves that it was not shortest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from peers import _ByGradient, _ByPullback
from scipy.optimize import minimize
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from posthoc_metric.metric import Metric

#: points at which a metric is asked at once
_AT_ONCE = 100_000


def polygon_lengths(metric: Metric, points: Tensor) -> Tensor:
    """Lengths (B,) of polygons (B, m, d); see :func:`_pieces`."""
    return _pieces(metric, points).sum(1)


def _pieces(metric: Metric, points: Tensor) -> Tensor:
    """Lengths (B, m - 1) of the pieces of polygons (B, m, d), the metric taken at the middle of every piece.

    NaN where it has no value at the middle nor at the beginning.
    """
    step, middle = points.diff(dim=1), (points[:, 1:] + points[:, :-1]) / 2
    count, pieces, dim = step.shape
    out = points.new_full((count, pieces), float("nan"))
    parts = metric.parts()
    known = torch.isfinite(points).flatten(1).all(1).nonzero().flatten()
    for rows in known.split(max(1, _AT_ONCE // pieces)):
        v = step[rows].reshape(-1, dim)
        squares = parts.inner(middle[rows].reshape(-1, dim), v, v)
        lost = ~torch.isfinite(squares)
        if bool(lost.any()):
            # a curve may run round a hole that its chords cut into
            squares[lost] = parts.inner(points[rows, :-1].reshape(-1, dim)[lost], v[lost], v[lost])
        out[rows] = squares.clamp_min(0).sqrt().view(len(rows), pieces)
    return out


#: points on curves that are measured at once
_POINTS = 2_000_000
#: how often a piece that is long is cut in two
_CUTS = 30
#: pieces that the first and the last of a curve are cut into; even, so that every other point is left when halved
_SMALLER = 32


def measured_lengths(metric: Metric, solution, pieces: int = 1024, rounds: int = 2) -> tuple[Tensor, Tensor]:
    """Lengths (B,) of the curves that a solution returns, and the doubt left in them (B,).

    The doubt is the change by the last doubling of the pieces; where it is not small beside what the solution claims
    of its own error, the pieces are made eight times as many, up to so many ``rounds``, and then those are halved again
    and again that are long.
    """
    length, doubt = _halved(metric, solution(_times(pieces)))

    def unsure() -> Tensor:
        return (doubt > 0.1 * solution.length_error + 1e-9 * solution.length).nonzero().flatten()

    def at(some: Tensor, times: Tensor) -> Tensor:
        # the solution answers for all its curves at once
        return solution._spline.take(some).at(solution._clock.take(some).at(times.expand(len(some), -1)))[0]

    for _ in range(rounds):
        rows = unsure()
        pieces *= 8
        times = _times(pieces)
        for some in rows.split(max(1, _POINTS // pieces)):
            length[some], doubt[some] = _halved(metric, at(some, times))
    # a curve that goes far out through a metric that fades there is back within a millionth of its time
    for some in unsure()[:, None]:
        times = _times(pieces)
        for _ in range(_CUTS):
            each = _pieces(metric, at(some, times))[0]
            long = (each > 4 * each.sum() / pieces).nonzero().flatten()
            if not len(long):
                break
            times = torch.cat([times, (times[long] + times[long + 1]) / 2]).sort().values
        times = torch.cat([times, (times[1:] + times[:-1]) / 2]).sort().values
        length[some], doubt[some] = _halved(metric, at(some, times))
    return length, doubt


def _times(pieces: int) -> Tensor:
    """From 0 to 1 in so many equal pieces, the first and the last in ever smaller ones towards the ends.

    What a metric does about the data is over within a part in a million of a curve that ends far from there.
    """
    even = torch.linspace(0, 1, pieces + 1, dtype=torch.float64)
    small = 0.5 ** torch.arange(_SMALLER, 0, -1, dtype=torch.float64) / pieces
    return torch.cat([even[:1], small, even[1:-1], 1 - small.flip(0), even[-1:]])


def _halved(metric: Metric, points: Tensor) -> tuple[Tensor, Tensor]:
    fine, coarse = polygon_lengths(metric, points), polygon_lengths(metric, points[:, ::2])
    return fine, (fine - coarse).abs()


def _energy(metric: Metric, z: Tensor) -> Tensor:
    """``n Σ`` of squared chords of a polygon (m, d), for autograd."""
    parts = metric.parts()
    step, middle = z.diff(dim=0), (z[1:] + z[:-1]) / 2
    squares = torch.zeros(len(step), dtype=z.dtype)
    if parts.embedding is not None:
        squares = squares + _ByPullback.apply(z, parts.embedding).diff(dim=0).square().sum(1)
    if parts.weight is not None:
        squares = squares + _ByGradient.apply(middle, parts.weight) * step.square().sum(1)
    if parts.field is not None:
        squares = squares + torch.einsum("ni,nij,nj->n", step, parts.field(middle), step)
    return len(step) * squares.sum()


@dataclass(frozen=True)
class Descent:
    """What descending from a polygon came to.

    Attributes:
        length: measured, of the polygon found; that of the first if none was shorter.
        before: measured, of the first.
        barrier: highest energy on the straight way between the two, over that of the first: above one they are in
            different valleys.
    """

    length: float
    before: float
    barrier: float


def descend(metric: Metric, points: Tensor, modes: int = 24, steps: int = 150) -> Descent:
    """Shorten one polygon (m, d) by SciPy's L-BFGS over sine modes of its displacement.

    Mode k is scaled by 1/k, which is the right preconditioner where the metric is constant; its amplitudes are in
    units of the polygon's extent.
    """
    times = torch.linspace(0, math.pi, len(points), dtype=torch.float64)
    number = torch.arange(1, modes + 1, dtype=torch.float64)
    shapes = torch.sin(times[:, None] * number) / number
    shapes[0] = shapes[-1] = 0.0
    scale = float((points.amax(0) - points.amin(0)).norm())
    first = float(_energy(metric, points))
    if not (first > 0 and math.isfinite(first) and scale > 0):
        return Descent(float("nan"), float("nan"), float("nan"))

    def moved(amplitudes: Tensor) -> Tensor:
        return points + scale * (shapes @ amplitudes.view(modes, -1))

    def value(amplitudes: np.ndarray) -> tuple[float, np.ndarray]:
        c = torch.from_numpy(amplitudes.copy()).requires_grad_(True)
        with torch.enable_grad():
            energy = _energy(metric, moved(c)) / first
        if not bool(torch.isfinite(energy)):
            return 1e12, np.zeros_like(amplitudes)
        energy.backward()
        assert c.grad is not None
        return float(energy.detach()), c.grad.nan_to_num(nan=0.0).numpy()

    found = minimize(
        value,
        np.zeros(modes * points.shape[1]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-13, "gtol": 1e-9, "maxcor": 20},
    )
    c = torch.from_numpy(np.asarray(found.x))
    before, after = bounds(metric, torch.stack([points, moved(c)])).tolist()
    barrier = max(float(_energy(metric, moved(share * c))) for share in torch.linspace(0, 1, 21)) / first
    return Descent(after, before, barrier) if after < before else Descent(before, before, 1.0)


def bounds(metric: Metric, polygons: Tensor, share: float = 1e-5, most: int = 1024) -> Tensor:
    """Lengths (B,) of polygons (B, m, d) themselves, which are upper bounds of distances.

    The points a piece are doubled until two lengths differ by no more than ``share``, and that difference is added;
    ``inf`` where ``most`` are not enough, as where a piece runs into a singularity.
    """
    found = polygons.new_full((len(polygons),), float("inf"))
    for row, polygon in enumerate(polygons):
        number, before = 1, float("nan")
        while number <= most:
            inside = torch.arange(number, dtype=polygon.dtype)[:, None] / number
            dense = (polygon[:-1, None] + inside * polygon.diff(dim=0)[:, None]).flatten(0, 1)
            now = float(polygon_lengths(metric, torch.cat([dense, polygon[-1:]])[None]))
            if abs(now - before) <= share * now:
                found[row] = now + abs(now - before)
                break
            number, before = 2 * number, now
    return found


def grid_paths(metric: Metric, a: Tensor, b: Tensor, box: Tensor, side: int = 120, reach: int = 3) -> list[Tensor]:
    """Shortest paths through a grid of ``side``² points in ``box`` (2, 2: low and high), d = 2: polygons (m, 2).

    Every point is joined to those within ``reach`` rows and columns in lowest terms (32 directions for 3), at the
    edge's length by three points; the ends to the points around them.
    """
    axes = [torch.linspace(float(low), float(high), side, dtype=torch.float64) for low, high in box.T]
    points = torch.cartesian_prod(*axes)
    index = torch.arange(side * side).view(side, side)
    square = [(i, j) for i in range(reach + 1) for j in range(-reach, reach + 1)]
    offsets = [(i, j) for i, j in square if math.gcd(i, j) == 1 and (i > 0 or j > 0)]
    heads, tails = [], []
    for i, j in offsets:
        left = index[: side - i, max(0, -j) : side - max(0, j)]
        right = index[i:, max(0, j) : side - max(0, -j)]
        heads.append(left.flatten())
        tails.append(right.flatten())
    # each end sees the nine or so points around it
    ends = torch.cat([a, b])
    spacing = (box[1] - box[0]) / (side - 1)
    near = (((ends[:, None] - points) / spacing).abs().amax(2) <= 1.6).nonzero()
    heads.append(near[:, 0] + len(points))
    tails.append(near[:, 1])
    every = torch.cat([points, ends])
    head, tail = torch.cat(heads), torch.cat(tails)
    both = zip(head.split(_AT_ONCE), tail.split(_AT_ONCE), strict=True)
    lengths = torch.cat([edge_lengths(metric, every[one], every[other]) for one, other in both])
    usable = torch.isfinite(lengths) & (lengths > 0)
    entries = (lengths[usable].numpy(), (head[usable].numpy(), tail[usable].numpy()))
    graph = coo_matrix(entries, shape=(len(every), len(every))).tocsr()
    first = len(points) + np.arange(len(a))
    _, previous = dijkstra(graph, directed=False, indices=first, return_predecessors=True)
    paths = []
    for row in range(len(a)):
        here, path = len(points) + len(a) + row, []
        while here >= 0:
            path.append(here)
            here = int(previous[row, here])
        paths.append(every[path[::-1]] if path[-1] == first[row] else every.new_zeros(0, 2))
    return paths


def edge_lengths(metric: Metric, a: Tensor, b: Tensor, pieces: int = 3) -> Tensor:
    """Lengths (E,) of straight edges."""
    times = torch.linspace(0, 1, pieces + 1, dtype=a.dtype)[:, None]
    return polygon_lengths(metric, a[:, None] + times * (b - a)[:, None])


def resample(path: Tensor, pieces: int) -> Tensor:
    """A polygon (m, d) at ``pieces`` + 1 points of equal latent spacing."""
    run = torch.cat([path.new_zeros(1), path.diff(dim=0).norm(dim=1).cumsum(0)])
    at = torch.linspace(0, float(run[-1]), pieces + 1, dtype=path.dtype)
    columns = [np.interp(at.numpy(), run.numpy(), path[:, i].numpy()) for i in range(path.shape[1])]
    return torch.from_numpy(np.stack(columns, axis=1))
