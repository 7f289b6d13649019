"""Points of an adaptive grid: fine where the metric changes and a shortest path may run."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch
from torch import Tensor

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


def grid_points(ruler: TensorRuler, low: Tensor, high: Tensor, data: Tensor | None) -> tuple[Tensor, Tensor]:
    """Grid points (n, d) in a box, and what ``ruler`` knows of them.

    Cells are halved while the cost of a latent step (square root of the largest eigenvalue of the metric) varies
    over their corners, unless every corner costs far more than ``data`` (N, d) do, or the points run out.
    """
    dim = len(low)
    side = float((high - low).max()) / _COARSE[dim]
    shape = [max(1, math.ceil(float(length) / side)) for length in high - low]
    finest = 2 ** _DEPTH[dim]
    unit = side / finest
    # corners are integer multiples of the finest cell, so that neighbours share them exactly
    cells = torch.tensor(list(product(*(range(n) for n in shape)))) * finest
    corner = torch.tensor(list(product((0, 1), repeat=dim)))
    origin = (low + high) / 2 - unit * finest * torch.tensor(shape, dtype=low.dtype, device=low.device) / 2
    places = torch.zeros(0, dim, dtype=torch.long)
    known = low.new_zeros(0, dim, dim)
    usual = None if data is None else _cost(ruler, data, ruler.know(data)).nanmedian()
    size = finest
    while True:
        keys, wanted = _distinct((cells[:, None] + size * corner).reshape(-1, dim))
        fresh = wanted[torch.from_numpy(~np.isin(keys, _keys(places), assume_unique=True))]
        if len(places) + len(fresh) > MOST_POINTS[dim] and len(places):
            break
        points = origin + unit * fresh.to(low)
        places, known = torch.cat([places, fresh]), torch.cat([known, ruler.know(points)])
        if size == 1:
            break
        cost = _cost(ruler, origin + unit * places.to(low), known).log()
        typical = cost[torch.isfinite(cost)].median() if usual is None else usual.log()
        order = np.argsort(have := _keys(places))
        corners = _keys((cells[:, None] + size * corner).reshape(-1, dim))
        index = torch.from_numpy(order[np.searchsorted(have, corners, sorter=order)]).view(len(cells), -1)
        at = cost[index.to(cost.device)].nan_to_num(nan=math.inf)
        varied = ~(at.amax(1) - at.amin(1) <= math.log(_VARIATION)) & (at.amin(1) < typical + math.log(_TOO_COSTLY))
        cells = cells[varied.cpu()]
        if len(cells) == 0:
            break
        size //= 2
        cells = (cells[:, None] + size * corner).reshape(-1, dim)
    points = origin + unit * places.to(low)
    usable = torch.isfinite(known).flatten(1).all(1)
    return points[usable], known[usable]


def _cost(ruler: TensorRuler, points: Tensor, known: Tensor) -> Tensor:
    """Cost of the costliest unit step at points (n, d); NaN where the metric is not finite."""
    eye = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    matrices = known
    if ruler.parts.weight is not None:
        matrices = matrices + ruler.parts.weight(points)[:, None, None] * eye
    bad = ~torch.isfinite(matrices).flatten(1).all(1)
    values = torch.linalg.eigvalsh(torch.where(bad[:, None, None], eye, matrices))[:, -1].clamp_min(1e-300).sqrt()
    return values.masked_fill(bad, float("nan"))


def _distinct(rows: Tensor) -> tuple[np.ndarray, Tensor]:
    """Sorted keys of rows of small integers (n, d), each once, and the rows they stand for."""
    keys, first = np.unique(_keys(rows), return_index=True)
    return keys, rows[torch.from_numpy(first)]


def _keys(rows: Tensor) -> np.ndarray:
    """One integer for each row (n, d) of integers in [0, 65,535]."""
    powers = 2 ** (16 * torch.arange(rows.shape[1]))
    return (rows * powers).sum(1).numpy()
