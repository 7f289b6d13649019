"""An adaptive grid: fine where the metric changes and a shortest path may run."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch
from torch import Tensor

from .cells import Cells
from .graph import MetricGraph, graph_of
from .ruler import TensorRuler

#: cells along the longest side of the box before refinement, by latent dimension
_COARSE = {1: 64, 2: 20, 3: 9}
#: halvings of a cell
_DEPTH = {1: 4, 2: 3, 3: 2}
#: a cell whose corners' costs differ by this factor is halved
_VARIATION = 1.3
#: a cell this many times as costly as the data is never worth crossing
_TOO_COSTLY = 30.0
MOST_POINTS = {1: 1000, 2: 6000, 3: 6000}


def build_grid(ruler: TensorRuler, low: Tensor, high: Tensor, data: Tensor | None) -> MetricGraph:
    """The graph of the corners of an adaptive grid in a box, measured in the metric."""
    cells, known = _divide(ruler, low, high, data)
    return graph_of(ruler, cells.points, known, *cells.edges(), cells)


def _divide(ruler: TensorRuler, low: Tensor, high: Tensor, data: Tensor | None) -> tuple[Cells, Tensor]:
    """An adaptive grid in a box, and what ``ruler`` knows of its corners.

    Cells are halved while the cost of a latent step (square root of the largest eigenvalue of the metric) varies
    over their corners, unless every corner costs far more than ``data`` (N, d) do, or the points run out.
    """
    dim = len(low)
    side = float((high - low).max()) / _COARSE[dim]
    shape = [max(1, math.ceil(float(length) / side)) for length in high - low]
    finest = 2 ** _DEPTH[dim]
    unit = side / finest
    # bookkeeping in NumPy: many operations on small arrays of integers, whose number is what costs
    corner = np.array(list(product((0, 1), repeat=dim)))
    sizes = np.full([number * finest for number in shape], finest, dtype=np.int16)
    origin = (low + high) / 2 - unit * finest * torch.tensor(shape, dtype=low.dtype, device=low.device) / 2
    usual = None if data is None else float(_cost(ruler, data, ruler.know(data)).nanmedian().log())
    # a corner's row in the flat table of all that there could be
    ends = [number * finest + 1 for number in shape]
    strides = np.array([math.prod(ends[axis + 1 :]) for axis in range(dim)])
    numbers = np.full(math.prod(ends), -1, dtype=np.int32)
    places, known, costs = [np.zeros((0, dim), dtype=np.int64)], [low.new_zeros(0, dim, dim)], [np.zeros(0)]
    cells = np.indices(shape).reshape(dim, -1).T * finest
    size, count = finest, 0
    while True:
        corners = (cells @ strides)[:, None] + size * (corner @ strides)
        wanted = np.zeros(len(numbers), dtype=bool)
        wanted[corners] = True
        fresh = np.flatnonzero(wanted & (numbers < 0))
        if count and count + len(fresh) > MOST_POINTS[dim]:
            break
        numbers[fresh] = count + np.arange(len(fresh))
        count += len(fresh)
        places.append(np.stack(np.unravel_index(fresh, ends), axis=1))
        points = origin + unit * torch.from_numpy(places[-1]).to(low)
        known.append(ruler.know(points))
        if size < finest:
            inside = np.indices([size] * dim).reshape(dim, -1).T
            sizes[tuple((cells[:, None] + inside).reshape(-1, dim).T)] = size
        if size == 1:
            break
        costs.append(_cost(ruler, points, known[-1]).log().cpu().numpy())
        cost = np.concatenate(costs)
        typical = _median(cost[np.isfinite(cost)]) if usual is None else usual
        at = np.nan_to_num(cost[numbers[corners]], nan=math.inf, posinf=math.inf, neginf=-math.inf)
        least, most = at.T.min(0), at.T.max(0)
        with np.errstate(invalid="ignore"):
            varied = ~(most - least <= math.log(_VARIATION)) & (least < typical + math.log(_TOO_COSTLY))
        cells = cells[varied]
        if len(cells) == 0:
            break
        size //= 2
        cells = (cells[:, None] + size * corner).reshape(-1, dim)
    found = torch.cat(known)
    usable = torch.isfinite(found).flatten(1).all(1)
    where = torch.from_numpy(np.concatenate(places)).to(low.device)
    return Cells(origin, unit, where[usable], torch.from_numpy(sizes).to(low.device)), found[usable]


def _median(values: np.ndarray) -> float:
    """The middle one of the values, the lower of two; NaN where there are none."""
    middle = (len(values) - 1) // 2
    return float(np.partition(values, middle)[middle]) if len(values) else math.nan


def _cost(ruler: TensorRuler, points: Tensor, known: Tensor) -> Tensor:
    """Cost of the costliest unit step at points (n, d); NaN where the metric is not finite."""
    eye = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    matrices = known
    if ruler.parts.weight is not None:
        matrices = matrices + ruler.parts.weight(points)[:, None, None] * eye
    bad = ~torch.isfinite(matrices).flatten(1).all(1)
    if points.shape[1] == 2:
        # LAPACK takes longer for a call than this for thousands of matrices
        a, b, c = matrices[:, 0, 0], matrices[:, 1, 0], matrices[:, 1, 1]
        values = (a + c + torch.hypot(a - c, 2 * b)) / 2
    else:
        values = torch.linalg.eigvalsh(torch.where(bad[:, None, None], eye, matrices))[:, -1]
    return values.clamp_min(1e-300).sqrt().masked_fill(bad, float("nan"))
