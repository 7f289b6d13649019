"""Straight lines measured by adaptive bisection, which needs many short spans where the metric changes, none elsewhere.

In one dimension there is one way between two points, and how long it is is all there is to find: walls of a repair and
zeros of a metric included.  In more, a line with nodes where its bisection had them is a start for curves along which
the metric changes by many orders of magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..machine import AT_ONCE
from ..metric import MetricParts
from .batch import Batch
from .candidates import Facts
from .curves import Clock, make_clock
from .options import RelaxationOptions
from .polygons import met
from .quadrature import FIVE, SIMPSON, TRAPEZOID, Measured, chorded, left_open
from .refinement import Refined
from .relaxation import STATUSES
from .rows import alike, few_rows, unpadded
from .spline import Spline
from .start_curves import StartCurves, even, straight
from .status import Status

#: spans that a way is first cut into: what is narrower than one may go unseen; and the same for a start curve, which
#: would be given nodes by them
_FIRST, _FIRST_OF_START = 128, 8
#: what deals out the nodes of a start curve: shares of the length, of the latent way and of the bisection's spans
_DEAL = (0.25, 0.25, 0.5)
#: share of a start curve's times that are even whatever its speed
_STEADY = 0.01
#: share of the error asked for that the spans may have together which are not halved
_LEFT = 0.5
#: of two rules of quadrature, what the better one changed of the length over what the other did, where there are kinks,
#: and the share of the length that it must be
_SMOOTH, _SLIGHT = 0.2, 1e-9
#: across kinks, what errors are over those told by the rules, and what they are at least over those asked for
_WARY, _UNSEEN = 3.0, 0.5
#: error of a span, over what is asked for, above which chords are asked as well
_SURE = 0.3


@dataclass
class _Spans(Batch):
    """Q spans of several pairs' ways.

    Attributes:
        pair: (Q,).
        knots: shares of the way at which each begins and ends (Q, 2).
        speeds: at the points of the rule with five, for the whole way in a unit of time (Q, 5).
        length, error: (Q,).
        change: of the length by the last rule of quadrature, and by the one before (Q, 2).
    """

    pair: Tensor
    knots: Tensor
    speeds: Tensor
    length: Tensor
    error: Tensor
    change: Tensor


def bisected(parts: MetricParts, start: Tensor, end: Tensor, options: RelaxationOptions) -> StartCurves:
    """The straight lines between the rows of ``start`` and ``end`` (B, d), with nodes for every span of a bisection.

    Lines without a finite length are left as they are.
    """
    lines = straight(start, end)
    found = measure_lines(parts, start, end, options, first=_FIRST_OF_START)
    times, shares = found.clock.times, found.clock.shares.clamp_max(1.0)
    # every span has equally many ticks, and shorter tables repeat their end
    ticks = (times < 1.0).sum(1, keepdim=True)
    spans = (torch.arange(times.shape[1], device=times.device) / ticks.clamp_min(1)).clamp_max(1.0)
    run = _DEAL[0] * shares + _DEAL[1] * times + _DEAL[2] * spans
    steady = even(len(start), start)
    knots, way = met(run, torch.stack([shares, times], dim=2), steady).unbind(2)
    knots = torch.lerp(knots, steady, _STEADY)
    nodes = start[:, None] + way[..., None] * (end - start)[:, None]
    for values, ends in ((knots, (0.0, 1.0)), (nodes, (start, end))):
        values[:, 0], values[:, -1] = ends
    known = torch.isfinite(found.facts.length) & (found.facts.length > 0)
    lines.knots[known], lines.nodes[known], lines.length[known] = knots[known], nodes[known], found.facts.length[known]
    lines.asked += found.evaluations
    return lines


def measure_lines(
    parts: MetricParts, start: Tensor, end: Tensor, options: RelaxationOptions, *, first: int = _FIRST
) -> Refined:
    """The straight lines between the rows of ``start`` and ``end`` (B, d), which are geodesics where d is 1.

    Args:
        first: spans that each is first cut into.
    """
    way = _Way(parts, start, end, options)
    rows = torch.arange(len(start), device=start.device)
    edges = torch.linspace(0, 1, min(first, options.max_spans) + 1, dtype=start.dtype, device=start.device)
    knots = torch.stack([edges[:-1], edges[1:]], dim=1)
    spans = way.measured(rows.repeat_interleave(len(knots)), knots.repeat(len(rows), 1))
    steps = torch.zeros_like(rows)
    last, before = spans.change.new_zeros(len(rows), 2).index_add_(0, spans.pair, spans.change).unbind(1)
    kinked = (last > _SMOOTH * before) & (last > _SLIGHT * _sums(spans.length, spans.pair, len(rows)))
    while True:
        wide = _too_wide(spans, len(rows), options)
        if not bool(wide.any()):
            return way.assembled(spans, steps, kinked)
        halved = spans.take(wide)
        steps[halved.pair.unique()] += 1
        begin, last = halved.knots.unbind(1)
        middle = (begin + last) / 2
        halves = torch.cat([torch.stack([begin, middle], dim=1), torch.stack([middle, last], dim=1)])
        spans = _Spans.join([spans.take(~wide), way.measured(halved.pair.repeat(2), halves)])


def _too_wide(spans: _Spans, count: int, options: RelaxationOptions) -> Tensor:
    """Mask of the spans (Q,) that keep their pair's length from being sure; of the worst, if not all may be halved."""
    number = torch.bincount(spans.pair, minlength=count)
    length, error = (_sums(part, spans.pair, count) for part in (spans.length, spans.error))
    wanted = options.rtol * length
    worst = spans.error.argsort(descending=True, stable=True)
    worst = worst[spans.pair[worst].argsort(stable=True)]
    rank = torch.empty_like(worst)
    rank[worst] = torch.arange(len(worst), device=worst.device) - (number.cumsum(0) - number)[spans.pair[worst]]
    wide = (error > wanted)[spans.pair] & (spans.error > (_LEFT * wanted / number)[spans.pair])
    return wide & (rank < (options.max_spans - number)[spans.pair])


class _Way:
    """The metric between the pairs, and how often it was asked for each."""

    def __init__(self, parts: MetricParts, start: Tensor, end: Tensor, options: RelaxationOptions):
        self.parts = few_rows(parts, options.memory_limit)
        self.start, self.end = start, end
        self.options = options
        self.evaluations = torch.zeros(len(start), dtype=torch.long, device=start.device)
        width = 1 if parts.embedding is None else parts.embedding.output_dim
        self.block = max(1, min(options.memory_limit, AT_ONCE) // (48 * width * len(FIVE.fractions)))

    def measured(self, pair: Tensor, knots: Tensor) -> _Spans:
        """The spans between ``knots`` (Q, 2) of the ways of ``pair`` (Q,), and how long they are."""
        blocks = zip(pair.split(self.block), knots.split(self.block), strict=True)
        return _Spans.join([self._measured(*block) for block in blocks])

    def _measured(self, pair: Tensor, knots: Tensor) -> _Spans:
        width = knots.diff(dim=1)
        at = knots[:, :1] + width * knots.new_tensor(FIVE.fractions)
        way = (self.end - self.start)[pair]
        points = (self.start[pair, None] + at[..., None] * way[:, None]).flatten(0, 1)[None]
        along = alike(way[:, None].expand(-1, at.shape[1], -1).flatten(0, 1)[None])
        squares = unpadded(self.parts.inner(alike(points), along, along), points).view_as(at).clamp_min(0.0)
        speeds = squares.sqrt()
        rules = knots.new_tensor([FIVE.weights, SIMPSON, TRAPEZOID])
        lengths = speeds @ rules.mT * width
        best, simpson, trapezoid = lengths.unbind(1)
        change = torch.stack([(best - simpson).abs(), (simpson - trapezoid).abs()], dim=1)
        error = left_open(*change.unbind(1))
        self.evaluations.index_add_(0, pair, torch.full_like(pair, at.shape[1]))
        found = _Spans(pair, knots, speeds, best.clone(), error, change)
        unsure = (error > _SURE * self.options.rtol * best).nonzero().flatten()
        if self.parts.embedding is not None and len(unsure):
            # where a piecewise linear decoder has a kink the speed jumps, and chords tell more
            one = squares[unsure, None]
            known = Measured(one, best[unsure, None], error[unsure, None], one[:, 0, 0], one[:, 0, 0])
            surer = chorded(self.parts, self._spline(pair[unsure], knots[unsure]), known)
            found.length[unsure], found.error[unsure] = surer.lengths[:, 0], surer.errors[:, 0]
            self.evaluations.index_add_(0, pair[unsure], torch.full_like(unsure, 5))
        return found

    def _spline(self, pair: Tensor, knots: Tensor) -> Spline:
        """The ways of ``pair`` (P,), as they are run at even latent speed, at ``knots`` (P, n); they end at one."""
        way = (self.end - self.start)[pair, None]
        nodes = self.start[pair, None] + knots[..., None].clamp_max(1.0) * way
        return Spline(knots, nodes, way.expand_as(nodes))

    def assembled(self, spans: _Spans, steps: Tensor, kinked: Tensor) -> Refined:
        """The geodesics, from the spans of all their ways; ``kinked`` says which lead across kinks (B,)."""
        options, count = self.options, len(self.start)
        number = torch.bincount(spans.pair, minlength=count)
        order = spans.knots[:, 0].argsort(stable=True)
        spans = spans.take(order[spans.pair[order].argsort(stable=True)])
        place = torch.arange(len(spans.pair), device=number.device) - (number.cumsum(0) - number)[spans.pair]
        # knots beyond the end, where no time finds them, fill up ways of fewer spans
        knots = 1.0 + (torch.arange(int(number.max()) + 1, device=number.device) - number[:, None]).clamp_min(0)
        knots = knots.to(self.start)
        knots[spans.pair, place] = spans.knots[:, 0]
        spline = self._spline(torch.arange(count, device=number.device), knots)
        length, error = (_sums(part, spans.pair, count) for part in (spans.length, spans.error))
        # two kinks between two points, or one beside the end of a span, say little of themselves or nothing
        error = torch.where(kinked, (_WARY * error).maximum(_UNSEEN * options.rtol * length), error)
        status = torch.full_like(number, STATUSES.index(Status.UNRESOLVED))
        sure = error <= max(options.rtol, options.rough_rtol) * length
        status[sure] = STATUSES.index(Status.CONVERGED)
        status[~torch.isfinite(length)] = STATUSES.index(Status.NOT_FINITE)
        still = torch.zeros_like(length)
        facts = Facts(
            length=length,
            # of all timings that of constant speed has the least energy
            energy=length.square(),
            residual=still,
            length_error=error.nan_to_num(nan=float("inf")),
            speed_variation=still.clone(),
            spans=number,
            status=status,
            chord_length=length.clone(),
        )
        rough = kinked | (error > options.rtol * length)
        clock = self._clock(spans, place, number, length)
        return Refined(facts, torch.zeros_like(number), spline, clock, steps, self.evaluations, rough)

    def _clock(self, spans: _Spans, place: Tensor, number: Tensor, length: Tensor) -> Clock:
        """When the ways, run at constant speed, are where."""
        inside = make_clock(self._spline(spans.pair, spans.knots), spans.speeds[:, None], FIVE)
        ticks = inside.times.shape[1] - 1
        widths = length.new_zeros(len(length), int(number.max()) + 1)
        widths[spans.pair, place + 1] = spans.length
        run = widths.cumsum(1)[spans.pair, place, None] + inside.shares * spans.length[:, None]
        usable = torch.isfinite(length) & (length > 0)
        shares = torch.where(usable[spans.pair, None], run / length[spans.pair, None], inside.times)
        rows, columns = spans.pair[:, None], place[:, None] * ticks + torch.arange(ticks, device=place.device)
        times = length.new_ones(len(length), int(number.max()) * ticks + 1)
        moments = torch.full_like(times, 2.0)
        times[rows, columns], moments[rows, columns] = inside.times[:, :-1], shares[:, :-1]
        moments[torch.arange(len(length), device=place.device), number * ticks] = 1.0
        return Clock(times, moments)


def _sums(values: Tensor, pair: Tensor, count: int) -> Tensor:
    """Of the spans' ``values`` (Q,) over each pair (B,)."""
    return values.new_zeros(count).index_add_(0, pair, values)
