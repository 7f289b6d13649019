"""An adaptive grid: fine where the metric changes and a shortest path may run."""

from __future__ import annotations

import math
from itertools import product

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
    corner = torch.tensor(list(product((0, 1), repeat=dim)))
    sizes = torch.full([number * finest for number in shape], finest, dtype=torch.int16)
    origin = (low + high) / 2 - unit * finest * torch.tensor(shape, dtype=low.dtype, device=low.device) / 2
    usual = None if data is None else _cost(ruler, data, ruler.know(data)).nanmedian().cpu().log()
    # a corner's row in the flat table of all that there could be
    ends = [number * finest + 1 for number in shape]
    strides = torch.tensor([math.prod(ends[axis + 1 :]) for axis in range(dim)])
    numbers = torch.full((math.prod(ends),), -1)
    places, known = torch.zeros(0, dim, dtype=torch.long), low.new_zeros(0, dim, dim)
    cost = torch.zeros(0, dtype=low.dtype)
    cells = torch.cartesian_prod(*(torch.arange(number) for number in shape)).view(-1, dim) * finest
    size = finest
    while True:
        corners = (cells[:, None] + size * corner) @ strides
        wanted = torch.zeros_like(numbers, dtype=torch.bool)
        wanted[corners] = True
        fresh = (wanted & (numbers < 0)).nonzero().flatten()
        if len(places) + len(fresh) > MOST_POINTS[dim] and len(places):
            break
        numbers[fresh] = len(places) + torch.arange(len(fresh))
        where = torch.stack([fresh // stride % end for stride, end in zip(strides.tolist(), ends, strict=True)], dim=1)
        points = origin + unit * where.to(low)
        found = ruler.know(points)
        places, known = torch.cat([places, where]), torch.cat([known, found])
        if size < finest:
            inside = torch.cartesian_prod(*[torch.arange(size)] * dim).view(-1, dim)
            sizes[(cells[:, None] + inside).reshape(-1, dim).unbind(1)] = size
        if size == 1:
            break
        cost = torch.cat([cost, _cost(ruler, points, found).log().cpu()])
        typical = cost[torch.isfinite(cost)].median() if usual is None else usual
        at = cost[numbers[corners]].nan_to_num(nan=math.inf)
        varied = ~(at.amax(1) - at.amin(1) <= math.log(_VARIATION)) & (at.amin(1) < typical + math.log(_TOO_COSTLY))
        cells = cells[varied]
        if len(cells) == 0:
            break
        size //= 2
        cells = (cells[:, None] + size * corner).reshape(-1, dim)
    usable = torch.isfinite(known).flatten(1).all(1)
    return Cells(origin, unit, places.to(low.device)[usable], sizes.to(low.device)), known[usable]


def _cost(ruler: TensorRuler, points: Tensor, known: Tensor) -> Tensor:
    """Cost of the costliest unit step at points (n, d); NaN where the metric is not finite."""
    eye = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    matrices = known
    if ruler.parts.weight is not None:
        matrices = matrices + ruler.parts.weight(points)[:, None, None] * eye
    bad = ~torch.isfinite(matrices).flatten(1).all(1)
    values = torch.linalg.eigvalsh(torch.where(bad[:, None, None], eye, matrices))[:, -1].clamp_min(1e-300).sqrt()
    return values.masked_fill(bad, float("nan"))
