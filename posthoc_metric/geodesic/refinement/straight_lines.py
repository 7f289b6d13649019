"""Straight lines measured by adaptive bisection, which needs many short spans where the metric changes, none elsewhere.

In one dimension there is one way between two points, and how long it is is all there is to find: walls of a repair and
zeros of a metric included.  In more, a line with nodes where its bisection had them is a start for curves along which
the metric changes by many orders of magnitude.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...machine import AT_ONCE
from ...metric import MetricParts
from ..curves.placement import Clock, even, make_clock
from ..curves.polygons import met
from ..curves.quadrature import FIVE, SIMPSON, TRAPEZOID, Measured, chorded, left_open
from ..curves.rows import alike, few_rows, unpadded
from ..curves.spline import Spline
from ..options import RelaxationOptions
from ..starts.start_curves import SPANS, STEADY, StartCurves, straight
from ..status import CODES, Status
from .bisection import TINY, Spans, cut, sums, told_by_halving, too_wide
from .candidates import Facts
from .refined import Refined

#: spans that a way is first cut into, all of which are halved once: what is narrower than a half may go unseen; and
#: those of a start curve, which would be given nodes by them
_FIRST, _FIRST_OF_START = 48, 8
#: what deals out the nodes of a start curve: shares of the length, of the latent way and of the bisection's spans
_DEAL = (0.25, 0.25, 0.5)
#: of two rules of quadrature, what the better one changed of the length over what the other did, where there are kinks,
#: and the share of the length that it must be
_SMOOTH, _SLIGHT = 0.2, 1e-9
#: across kinks, what errors are over those told by the rules, and what they are at least over those asked for
_WARY, _UNSEEN = 3.0, 0.5
#: error of a span, over what is asked for, above which chords are asked as well
_SURE = 0.3
#: share of a decoder's values that is their rounding, in single precision, in what is computed from them
_ROUNDED = 1e-6
#: cosine of the turn between points of a rule up to which chords tell how much they miss
_STRAIGHT = 0.7
#: share of a span's length by which chords may differ from a rule and be trusted more
_ALIKE = 0.2


def bisected(parts: MetricParts, start: Tensor, end: Tensor, options: RelaxationOptions) -> StartCurves:
    """The straight lines between the rows of ``start`` and ``end`` (B, d), with nodes for every span of a bisection.

    Lines without a finite length are left as they are.
    """
    lines = straight(start, end)
    found = measure_lines(parts, start, end, options, first=_FIRST_OF_START, tested=False)
    times, shares = found.clock.times, found.clock.shares.clamp_max(1.0)
    # every span has equally many ticks, and shorter tables repeat their end
    ticks = (times < 1.0).sum(1, keepdim=True)
    spans = (torch.arange(times.shape[1], device=times.device) / ticks.clamp_min(1)).clamp_max(1.0)
    run = _DEAL[0] * shares + _DEAL[1] * times + _DEAL[2] * spans
    steady = even(start, SPANS)
    knots, way = met(run, torch.stack([shares, times], dim=2), steady).unbind(2)
    knots = torch.lerp(knots, steady, STEADY)
    nodes = start[:, None] + way[..., None] * (end - start)[:, None]
    for values, ends in ((knots, (0.0, 1.0)), (nodes, (start, end))):
        values[:, 0], values[:, -1] = ends
    known = torch.isfinite(found.facts.length) & (found.facts.length > 0)
    lines.knots[known], lines.nodes[known], lines.length[known] = knots[known], nodes[known], found.facts.length[known]
    lines.asked += found.evaluations
    return lines


def measure_lines(
    parts: MetricParts,
    start: Tensor,
    end: Tensor,
    options: RelaxationOptions,
    *,
    first: int = _FIRST,
    tested: bool = True,
) -> Refined:
    """The straight lines between the rows of ``start`` and ``end`` (B, d), which are geodesics where d is 1.

    Args:
        first: spans that each is first cut into.
        tested: whether every span's error is told by what halving it changed, and chords between the points of a rule
            may object to a length; if not, by two rules of quadrature alone, which costs less and is often too little.
    """
    way = _Way(parts, start, end, options, tested=tested)
    rows = torch.arange(len(start), device=start.device)
    edges = cut(min(first, options.max_spans // 2 if tested else options.max_spans), start, uneven=tested)
    knots = torch.stack([edges[:-1], edges[1:]], dim=1)
    spans = way.measured(rows.repeat_interleave(len(knots)), knots.repeat(len(rows), 1))
    steps = torch.zeros_like(rows)
    if tested:
        spans = way.halved(spans)
        steps += 1
    while True:
        wide = too_wide(spans, len(rows), options)
        if not bool(wide.any()):
            return way.assembled(spans, steps)
        halved = spans.take(wide)
        steps[halved.pair.unique()] += 1
        spans = Spans.join([spans.take(~wide), way.halved(halved)])


class _Way:
    """The metric between the pairs, and how often it was asked for each."""

    def __init__(self, parts: MetricParts, start: Tensor, end: Tensor, options: RelaxationOptions, *, tested: bool):
        self.parts = few_rows(parts, options.memory_limit)
        self.start, self.end = start, end
        self.options, self.tested = options, tested
        self.evaluations = torch.zeros(len(start), dtype=torch.long, device=start.device)
        width = 1 if parts.embedding is None else parts.embedding.output_dim
        self.block = max(1, min(options.memory_limit, AT_ONCE) // (48 * width * len(FIVE.fractions)))

    def measured(self, pair: Tensor, knots: Tensor) -> Spans:
        """The spans between ``knots`` (Q, 2) of the ways of ``pair`` (Q,), and how long they are by two rules."""
        blocks = zip(pair.split(self.block), knots.split(self.block), strict=True)
        return Spans.join([self._measured(*block) for block in blocks])

    def halved(self, whole: Spans) -> Spans:
        """The halves of the spans, all left ones first, and how long they are by whatever tells most."""
        begin, last = whole.knots.unbind(1)
        middle = (begin + last) / 2
        halves = torch.cat([torch.stack([begin, middle], dim=1), torch.stack([middle, last], dim=1)])
        found = self.measured(whole.pair.repeat(2), halves)
        if self.tested:
            rows = torch.arange(len(halves), device=halves.device)
            left, right = (found.take(part) for part in rows.split(len(begin)))
            error, before = told_by_halving(whole, left, right)
            # each half has the share of the error that its own rules differ by, and either may have all of what was
            own = torch.stack([left.change[:, 0], right.change[:, 0]]) + TINY
            told = (error * (own / own.sum(0))).flatten()
            # no curve is shorter than its chords
            missed = found.chords - found.length
            found.length = torch.where(missed > told, found.chords, found.length)
            found.error, found.before = torch.maximum(told, missed), before.repeat(2)
        blocks = torch.arange(len(halves), device=halves.device).split(self.block)
        return Spans.join([self._by_chords(found.take(rows)) for rows in blocks])

    def _measured(self, pair: Tensor, knots: Tensor) -> Spans:
        width = knots.diff(dim=1)
        at = knots[:, :1] + width * knots.new_tensor(FIVE.fractions)
        way = (self.end - self.start)[pair]
        points = (self.start[pair, None] + at[..., None] * way[:, None]).flatten(0, 1)[None]
        along = alike(way[:, None].expand(-1, at.shape[1], -1).flatten(0, 1)[None])
        squares, chords, straight = self._asked(points, along, at)
        speeds = squares.sqrt()
        rules = knots.new_tensor([FIVE.weights, SIMPSON, TRAPEZOID])
        lengths = speeds @ rules.mT * width
        best, simpson, trapezoid = lengths.unbind(1)
        change = torch.stack([(best - simpson).abs(), (simpson - trapezoid).abs()], dim=1)
        self.evaluations.index_add_(0, pair, torch.full_like(pair, at.shape[1]))
        error = left_open(*change.unbind(1))
        return Spans(pair, knots, speeds, best.clone(), error, change, change[:, 0], chords, straight)

    def _asked(self, points: Tensor, along: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared speeds at the points (Q, 5), the sum of the embedding's chords, and whether it is straight (Q,)."""
        rows, embedding = alike(points), self.parts.embedding
        if embedding is None or not self.tested:
            squares = unpadded(self.parts.inner(rows, along, along), points).view_as(at)
            return squares.clamp_min(0.0), squares.new_zeros(len(at)), torch.ones_like(at[:, 0], dtype=torch.bool)
        values, pushed = embedding.jvp(rows, along)
        others = MetricParts(weight=self.parts.weight, field=self.parts.field).inner(rows, along, along)
        squares = unpadded(pushed.square().sum(1) + others, points).view_as(at).clamp_min(0.0)
        values = unpadded(values, points).view(*at.shape, -1)
        noise = _ROUNDED * values.norm(dim=2)[:, 1:]
        chords = (values.diff(dim=1).norm(dim=2) - noise).clamp_min(0.0).sum(1)
        ahead = torch.nn.functional.normalize(unpadded(pushed, points).view(*at.shape, -1), dim=2)
        return squares, chords, ((ahead[:, 1:] * ahead[:, :-1]).sum(2) > _STRAIGHT).all(1)

    def _by_chords(self, found: Spans) -> Spans:
        """The same spans; where a piecewise linear decoder has a kink the speed jumps, and chords tell more.

        Not where values turn round: two chords there and back are as long as one that misses the turn.
        """
        unsure = ((found.error > _SURE * self.options.rtol * found.length) & found.straight).nonzero().flatten()
        if self.parts.embedding is None or len(unsure) == 0:
            return found
        best, error, pair = found.length[unsure, None], found.error[unsure, None], found.pair[unsure]
        squares = found.speeds[unsure, None].square()
        known = Measured(squares, best, error, squares[:, 0, 0], squares[:, 0, 0])
        surer = chorded(self.parts, self._spline(pair, found.knots[unsure]), known)
        doubt = surer.errors
        if self.tested:
            # of chords and a rule that contradict each other neither is known to be right, and where a rule sees
            # little of what there is nor may the chords
            apart = (surer.lengths - best).abs()
            doubt = torch.where(apart > (error + doubt).minimum(_ALIKE * surer.lengths), apart.maximum(doubt), doubt)
        found.length[unsure], found.error[unsure] = surer.lengths[:, 0], doubt[:, 0]
        self.evaluations.index_add_(0, pair, torch.full_like(unsure, 5))
        return found

    def _spline(self, pair: Tensor, knots: Tensor) -> Spline:
        """The ways of ``pair`` (P,), as they are run at even latent speed, at ``knots`` (P, n); they end at one."""
        way = (self.end - self.start)[pair, None]
        nodes = self.start[pair, None] + knots[..., None].clamp_max(1.0) * way
        return Spline(knots, nodes, way.expand_as(nodes))

    def assembled(self, spans: Spans, steps: Tensor) -> Refined:
        """The geodesics, from the spans of all their ways."""
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
        length, error = (sums(part, spans.pair, count) for part in (spans.length, spans.error))
        last, before = (sums(part, spans.pair, count) for part in spans.change.unbind(1))
        kinked = (last > _SMOOTH * before) & (last > _SLIGHT * length)
        # two kinks between two points, or one beside the end of a span, say little of themselves or nothing
        error = torch.where(kinked, (_WARY * error).maximum(_UNSEEN * options.rtol * length), error)
        status = torch.full_like(number, CODES[Status.UNRESOLVED])
        sure = error <= max(options.rtol, options.rough_rtol) * length
        status[sure] = CODES[Status.CONVERGED]
        status[~torch.isfinite(length)] = CODES[Status.NOT_FINITE]
        still = torch.zeros_like(length)
        facts = Facts(
            length=length,
            # of all timings that of constant speed has the least energy
            energy=length.square(),
            residual=still,
            length_error=error.nan_to_num(nan=float("inf"), posinf=float("inf")),
            speed_variation=still.clone(),
            spans=number,
            status=status,
            chord_length=length.clone(),
        )
        rough = kinked | (error > options.rtol * length)
        clock = self._clock(spans, place, number, length)
        return Refined(facts, torch.zeros_like(number), spline, clock, steps, self.evaluations, rough)

    def _clock(self, spans: Spans, place: Tensor, number: Tensor, length: Tensor) -> Clock:
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
