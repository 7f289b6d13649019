"""Lengths of straight segments in the metric, to some tenths of a percent.

The embedding's share of a length is measured by chords of its values: they can only fall short, by less the finer they
are, whether the embedding is smooth or has kinks.  A rule of quadrature over its derivative is off either way by as
much as the speed jumps at a kink, and a shortest path seeks out the edges that were measured too short.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .._precision import is_single
from ..machine import AT_ONCE
from ..matrix_field import square
from ..metric import MetricParts
from ..smooth_map import in_float64

#: cells that an edge is cut in at most, and chords of a cell
_MOST_CELLS = 16
_CHORDS = 4
#: sums of a cell's chords: all, two by two, one by one; and what is left of two turns that are the same
_SUMS = (
    (1, 1, 1, 1),
    (1, 1, 0, 0),
    (0, 0, 1, 1),
    (1, 0, 0, 0),
    (0, 1, 0, 0),
    (0, 0, 1, 0),
    (0, 0, 0, 1),
    (1, -2, 1, 0),
    (0, 1, -2, 1),
)
#: how often cells in doubt are halved, and how many cells of an edge at once
_HALVINGS = 6
_HALVED = 8
#: share of its length by which chords may turn otherwise than a smooth curve's, and by which two limits may differ
_TURNED, _DIFFERENT = 2e-2, 2e-3
#: sum of the chords over the one chord of a cell beyond which it may be folded
_FOLDED = 1.25
#: rounding errors of values, over their size; and how many of them a length must hold to be told from chords
_ROUNDINGS = 4
_TOLD = 5_000
#: arrays as large as the values of the nodes that are held at once
_HELD = 6
#: Gauss-Legendre rule of three points on [0, 1]
_POINTS = (0.5 - (3 / 20) ** 0.5, 0.5, 0.5 + (3 / 20) ** 0.5)
_WEIGHTS = (5 / 18, 8 / 18, 5 / 18)


@dataclass(frozen=True)
class _Cells:
    """Cells of edges, each with its chords' five nodes.

    Attributes:
        owner: the edge of each (C,).
        begin, step: where it begins and how long a chord is (C,), as shares of the edge.
        values: of the embedding (C, 5, D), D = 0 where there is none.
        rest: square of the speed that weight and field add (C, 5), the edge being run through in unit time.
    """

    owner: Tensor
    begin: Tensor
    step: Tensor
    values: Tensor
    rest: Tensor

    def measured(self) -> tuple[Tensor, Tensor]:
        """Lengths (C, 3) by one chord, by two and by four; and by how much (C,) chords turn as no smooth curve's do.

        The turns of a smooth curve from chord to chord are all but the same, and so are the changes of its speed.
        """
        chords = self.values.diff(dim=1)
        sums = chords.new_tensor(_SUMS)
        # one product instead of a pass over the values for every sum
        squares = ((sums @ (chords @ chords.mT)) * sums).sum(2).clamp_min(0)
        lengths = []
        for stride, chosen in zip((4, 2, 1), squares[:, :7].split((1, 2, 4), dim=1), strict=True):
            rest = self.rest[:, ::stride]
            rest = (rest[:, 1:] + rest[:, :-1]) / 2 * (stride * self.step[:, None]).square()
            lengths.append((chosen + rest).clamp_min(0).sqrt().sum(1))
        speed = self.rest.clamp_min(0).sqrt() * self.step[:, None]
        turned = squares[:, 7:].amax(1).sqrt() + speed.diff(dim=1).diff(dim=1).abs().amax(1)
        return torch.stack(lengths, dim=1), turned


def segment_lengths(parts: MetricParts, a: Tensor, b: Tensor, unit: float) -> Tensor:
    """Lengths (E,) of the segments from ``a`` to ``b`` (E, d); NaN where the metric is.

    A segment is cut in cells no longer than ``unit``, up to 16 of them.  A cell whose chords are not those of a smooth
    curve is halved, and halved again.  Where the embedding jumps, its jump counts as length.
    """
    width = 0 if parts.embedding is None else parts.embedding.output_dim
    most = max(64, AT_ONCE // (8 * _HELD * (width + a.shape[1])))
    cells = ((b - a).norm(dim=1) / unit).ceil().clamp(1, _MOST_CELLS).long()
    found = [_segments(parts, a[part], b[part], cells[part]) for part in _chunks(cells, most)]
    return torch.cat([a.new_zeros(0), *found])


def _chunks(cells: Tensor, most: int) -> Iterator[slice]:
    """Runs of edges with about ``most`` nodes each."""
    low = 0
    number = (_CHORDS * cells + 1).cumsum(0) // most
    for size in number.unique_consecutive(return_counts=True)[1].tolist():
        yield slice(low, low + size)
        low += size


def _segments(parts: MetricParts, a: Tensor, b: Tensor, cells: Tensor) -> Tensor:
    """Lengths (E,) of segments that are cut in so many cells (E,) to begin with."""
    now = _begun(parts, a, b, cells)
    last = cells.cumsum(0) - 1
    grain = _grain(now.values[last - cells + 1, 0], now.values[last, -1])
    whole = torch.zeros_like(grain).index_add_(0, now.owner, now.measured()[0][:, 2])
    close = whole < _TOLD * grain
    lengths = torch.zeros_like(grain)
    for halving in range(_HALVINGS + 1):
        found, doubt = _measured(now, whole, grain)
        settled = close[now.owner] | (halving == _HALVINGS)
        again = _worst(now.owner, doubt.masked_fill(settled, 0))
        lengths.index_add_(0, now.owner[~again], found[~again])
        if not bool(again.any()):
            break
        now = _halved(parts, a, b, now, again)
    if bool(close.any()):
        lengths[close] = _short(parts, a[close], b[close])
    return lengths


def _grain(start: Tensor, end: Tensor) -> Tensor:
    """Rounding errors (E,) of values along edges, from those at their ends (E, D)."""
    eps = torch.finfo(torch.float32 if start.shape[1] and is_single(start) else torch.float64).eps
    return _ROUNDINGS * eps * torch.maximum(start.norm(dim=1), end.norm(dim=1))


def _measured(cells: _Cells, whole: Tensor, grain: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths (C,) of cells, and how far they are from certain: beyond one they are in doubt."""
    lengths, turned = cells.measured()
    coarse, middle, fine = lengths.unbind(1)
    # chords of a smooth curve fall short by a quarter of what twice as long ones do (Richardson)
    limit, before = fine + (fine - middle) / 3, middle + (middle - coarse) / 3
    fair, rounding = (fine * whole[cells.owner]).sqrt(), grain[cells.owner]
    different = (limit - before).abs()
    doubt = torch.maximum((turned - rounding) / _TURNED, (different - rounding) / _DIFFERENT) / fair
    return limit, torch.where(fine > _FOLDED * coarse + rounding, torch.inf, doubt)


def _worst(owner: Tensor, doubt: Tensor) -> Tensor:
    """Which cells (C,) to halve: those in doubt, a few of each edge, the most doubtful first."""
    found = torch.zeros_like(owner, dtype=torch.bool)
    # NaN is in no doubt: no smaller cell will mend it
    some = (doubt > 1).nonzero().flatten()
    some = some[doubt[some].argsort(descending=True, stable=True)]
    some = some[owner[some].argsort(stable=True)]
    place = torch.arange(len(some), device=owner.device)
    rank = place - torch.searchsorted(owner[some], owner[some])
    found[some[rank < _HALVED]] = True
    return found


def _begun(parts: MetricParts, a: Tensor, b: Tensor, cells: Tensor) -> _Cells:
    """The cells of all segments."""
    owner = torch.arange(len(a), device=a.device).repeat_interleave(cells)
    first = cells.cumsum(0) - cells
    step = 1 / (_CHORDS * cells[owner]).to(a)
    begin = (torch.arange(len(owner), device=a.device) - first[owner]) * _CHORDS * step
    shares = begin[:, None] + step[:, None] * torch.arange(1, _CHORDS + 1, device=a.device)
    edges = torch.arange(len(a), device=a.device)
    inner = _asked(parts, a, b, owner, shares)
    starts = _asked(parts, a, b, edges, a.new_zeros(len(a), 1))
    found = []
    for at_start, at_inner in zip(starts, inner, strict=True):
        before = at_inner[:, -1:].roll(1, 0)
        before[first] = at_start
        found.append(torch.cat([before, at_inner], dim=1))
    return _Cells(owner, begin, step, *found)


def _halved(parts: MetricParts, a: Tensor, b: Tensor, cells: _Cells, which: Tensor) -> _Cells:
    """The halves of the cells that are marked (C,)."""
    owner, begin, step = cells.owner[which], cells.begin[which], cells.step[which] / 2
    shares = begin[:, None] + step[:, None] * torch.arange(1, 2 * _CHORDS, 2, device=a.device)
    found = []
    for known, new in zip((cells.values, cells.rest), _asked(parts, a, b, owner, shares), strict=True):
        known = known[which]
        nodes = torch.stack([known[:, :-1], new], dim=2).flatten(1, 2)
        nodes = torch.cat([nodes, known[:, -1:]], dim=1)
        found.append(torch.cat([nodes[:, : _CHORDS + 1], nodes[:, _CHORDS:]]))
    return _Cells(owner.repeat(2), torch.cat([begin, begin + _CHORDS * step]), step.repeat(2), *found)


def _asked(parts: MetricParts, a: Tensor, b: Tensor, owner: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Values (C, n, D) and the rest's squares (C, n) at ``shares`` (C, n) of the way along the edges ``owner`` (C,)."""
    along = (b - a)[owner]
    points = (a[owner][:, None] + shares[..., None] * along[:, None]).flatten(0, 1)
    values, rest = points.new_zeros(len(points), 0), points.new_zeros(len(points))
    if parts.embedding is not None:
        values = parts.embedding(points)
    if parts.weight is not None:
        rest = rest + parts.weight(points) * along.square().sum(1).repeat_interleave(shares.shape[1])
    if parts.field is not None:
        rest = rest + square(parts.field, points, along.repeat_interleave(shares.shape[1], 0))
    return values.unflatten(0, shares.shape), rest.view(shares.shape)


def _short(parts: MetricParts, a: Tensor, b: Tensor) -> Tensor:
    """Lengths (E,) of segments so short that values at their ends are told apart by rounding errors or not at all."""
    finer = None if parts.embedding is None else in_float64(parts.embedding)
    if finer is not None:
        return segment_lengths(MetricParts(finer, parts.weight, parts.field), a, b, torch.inf)
    fractions = a.new_tensor(_POINTS)
    along = (b - a).repeat_interleave(len(fractions), 0)
    points = (a[:, None] + fractions[:, None] * (b - a)[:, None]).flatten(0, 1)
    speeds = parts.inner(points, along, along).clamp_min(0).sqrt().view(len(a), -1)
    return speeds @ a.new_tensor(_WEIGHTS)
