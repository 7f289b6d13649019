"""From start curves to confirmed geodesics: coarse to fine, the best start kept, nodes where they are needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...machine import AT_ONCE
from ...metric import MetricParts
from ..curves.placement import density, make_clock, pad
from ..curves.quadrature import FOUR, Measured, chorded, confirm, measure, measure_coarser, rule_for, sharpen
from ..curves.spline import interpolate
from ..options import RelaxationOptions
from ..relaxation.gauss_newton import Relaxed
from ..starts.start_curves import StartCurves, jump_over
from ..status import CODES, Status
from .candidates import Begun, Curves, Facts, begin, begin_anew, contest, rivals
from .folds import leaping
from .refined import Refined
from .routes import COARSE_TOL, FEW, MOST_BEGUN, MOST_COARSE, Routes

#: how much longer than a pair's shortest curve another may be and still turn out shorter with more nodes
_COARSE_MARGIN = 0.05
_MARGIN = 0.01
#: roughness up to which a curve's length converges as that of a smooth one
_SMOOTH = 0.2
#: roughness above which a curve whose length is not sure yet has kinks, and is no smooth one with too few nodes
_KINKED = 0.3
#: residual at which a curve with kinks, whose gradient jumps, is as stationary as it gets
_ROUGH_RESIDUAL = 5e-2
#: errors at kinks are as random as where these lie: so many times the usual one is exceeded by few
_WARY = 1.75
#: what the last doubling changed, over what may still be to come, where curves are smooth but not yet finely divided
_SLOWER = 5
#: share of the error asked for that the quadrature may take before chords are asked as well
_SURE = 0.3


class Refiner:
    """One solve: the metric, the options, and the work counted for each of ``count`` pairs.

    ``plain``: whether Gauss-Newton steps that learn nothing come first, in any number of dimensions.
    """

    def __init__(
        self,
        parts: MetricParts,
        starts: StartCurves,
        count: int,
        options: RelaxationOptions,
        *,
        plain: bool = False,
    ):
        self.starts = starts
        self.count = count
        self.options = options
        self.routes = Routes(parts, starts, options, plain=plain)
        self.parts, self.many = self.routes.parts, self.routes.many
        self.steps = torch.zeros(count, dtype=torch.long, device=starts.nodes.device)
        self.evaluations = torch.full_like(self.steps, 0 if self.routes.ends is None else 2)
        self.evaluations.index_add_(0, starts.pair, starts.asked)

    def run(self) -> Refined:
        """Relax every start coarsely, refine each pair's shortest until their lengths are confirmed, keep one."""
        waiting: dict[int, list[Curves | StartCurves]] = {}
        done: list[Curves] = []

        def queue(curves: Curves | StartCurves, spans: int) -> None:
            if len(curves.pair) and isinstance(curves, Curves) and spans > self.options.max_spans:
                done.append(curves)
            elif len(curves.pair):
                waiting.setdefault(spans, []).append(curves)

        spans = min(max(1 << (int(self.options.spans) - 1).bit_length(), 8), MOST_BEGUN)
        coarse: list[Curves] = []
        for number, starts in self._begins(spans // 2).items():
            found, jumped = self._coarse(starts, number)
            queue(jumped, 2 * number)
            coarse.append(found)
        for curves in contest(coarse, _COARSE_MARGIN):
            queue(curves, 2 * (curves.spline.knots.shape[1] - 1))
        # a length errs by a quarter of the residual's square
        tol = min(self.options.tol, self.options.rtol**0.5)
        while waiting:
            spans = min(waiting)
            before = waiting.pop(spans)
            begun, single, better = self._relaxed(self._begun(before, spans), tol)
            finished, again = self._settled(begun, better)
            finished |= leaping(self.parts, better.spline, better.facts.spans)
            anew = torch.zeros_like(single).masked_scatter(single, again)
            for part, mask in zip(before, anew.split([len(curves.pair) for curves in before]), strict=True):
                queue(part.take(mask), 2 * spans)
            alive = ~again
            alive[~again] = rivals(better.take(~again), _MARGIN)
            done.append(better.take(alive & finished))
            queue(better.take(alive & ~finished), 2 * spans)
        return self._assemble(contest([curves for curves in done if len(curves.pair)], None))

    def _begins(self, spans: int) -> dict[int, StartCurves]:
        """The start curves by the spans to begin with: these, or more where they would jump over much."""
        most, starts = MOST_COARSE // 2, self.starts
        # in few dimensions steps are few, and a grid has told where nodes are needed
        if self.many is None or self.parts.embedding is None or not spans < most <= self.options.max_spans // 2:
            return {spans: starts}
        self.evaluations.index_add_(0, starts.pair, torch.full_like(starts.pair, most + 1))
        jump = jump_over(self.parts.embedding, starts, spans, most)
        groups = {spans: starts.take(~jump), most: starts.take(jump)}
        return {number: group for number, group in groups.items() if len(group.pair)}

    def _coarse(self, starts: StartCurves, spans: int) -> tuple[Curves, StartCurves]:
        """The starts relaxed with few spans; and as they were, those whose chords jumped over something on the way."""
        begun = begin_anew(starts, spans, self.routes.learnt)
        _, single, found = self._relaxed(begun, COARSE_TOL)
        # nothing coarse is final: should no refinement be better, it is this that is said of it
        facts = found.facts
        facts.status[facts.status != CODES[Status.NOT_FINITE]] = CODES[Status.UNRESOLVED]
        facts.length_error = facts.length_error.maximum((facts.length - facts.chord_length).abs())
        jumped = self._anew(facts, spans)
        return found.take(~jumped), starts.take(single.nonzero().flatten()[jumped])

    def _anew(self, facts: Facts, spans: int) -> Tensor:
        """Which start curves, relaxed with so many spans, start anew with more: their chords have jumped (P,)."""
        return facts.jumped & (2 * spans <= min(MOST_COARSE, self.options.max_spans))

    def _begun(self, before: list[Curves | StartCurves], spans: int) -> Begun:
        learnt = self.routes.learnt
        # with gradients alone retimed curves take twice the products in d = 64, and some do not converge; but where a
        # weight builds walls, curves that keep their times do not get over these
        even = self.many is None or self.parts.weight is not None
        return Begun.join(
            [
                begin(part, spans, even=even) if isinstance(part, Curves) else begin_anew(part, spans, learnt)
                for part in before
            ]
        )

    def _settled(self, begun: Begun, better: Curves) -> tuple[Tensor, Tensor]:
        """Which curves are final, said of them in place; and which are no better than what they began from (P,)."""
        spans = begun.knots.shape[1] - 1
        facts, rtol = better.facts, self.options.rtol
        change = (facts.length - begun.facts.length).abs()
        if self.many is not None:
            change = change.maximum(self.many.excess(facts.length, facts.chord_length, begun.facts.chord_length))
        change = torch.where(begun.fresh, (facts.length - facts.chord_length).abs(), change)
        kinked = ~(better.roughness <= _SMOOTH)
        # the geodesic is hardly shorter than its discrete counterpart, and no longer than the curve: where the two are
        # apart, a curve that has settled beside a bend it does not see is as stationary as any
        sure = facts.length_error.maximum(facts.length - facts.chord_length) <= rtol * facts.length
        confirmed = sure & ~begun.fresh & (facts.error(change, kinked) <= rtol * facts.length)
        if self.parts.embedding is None and self.routes.dim > FEW:
            # no chords fall short of such a curve, and no grid has placed its nodes: that they are too far apart shows
            # in what the last doubling changed alone, and what is left is then more than a fifteenth of that
            confirmed &= change <= rtol * facts.length
        if spans > MOST_COARSE and 2 * spans > self.options.max_spans:
            # there will be no more nodes, and alone they would not have changed as much what began far from stationary;
            # of fewer nodes that agree, all may have missed a ridge
            moved = sure & ~confirmed & ~begun.fresh & (facts.status == CODES[Status.CONVERGED])
            rows = moved.nonzero().flatten()
            change[rows] = self._by_nodes_alone(better.take(rows)).minimum(change[rows])
            confirmed[rows] = (facts.error(change, kinked) <= rtol * facts.length)[rows]
        # at kinks the interpolation bulges, by up to as much as the curve is longer than its chords
        bulge = torch.where(kinked, (facts.length - facts.chord_length).clamp_min(0) / 2, 0.0)
        facts.length_error = facts.error(change, kinked | ~confirmed).maximum(bulge)
        broken = facts.status == CODES[Status.NOT_FINITE]
        rough = (facts.length_error <= self.options.rough_rtol * facts.length) & (spans >= MOST_COARSE)
        # no more nodes are no more steps: a curve that is still on its way is not called done
        rough &= (facts.status == CODES[Status.CONVERGED]) | (facts.status == CODES[Status.STALLED])
        rough &= facts.residual <= _ROUGH_RESIDUAL
        facts.status[rough & ~broken] = CODES[Status.CONVERGED]
        confirmed |= rough
        facts.status[~confirmed & ~broken] = CODES[Status.UNRESOLVED]
        facts.length_error = self._cautious(facts, change, kinked, confirmed)
        converged = facts.status == CODES[Status.CONVERGED]
        # no curve is given up for one whose chords have jumped over what its interpolation crosses
        rejected = ~torch.isfinite(facts.length) | (facts.jumped & (facts.length > begun.facts.length))
        rejected &= torch.isfinite(begun.facts.length)
        again = torch.where(begun.fresh, self._anew(facts, spans), rejected)
        return ((converged & confirmed) | broken) & ~again, again

    def _by_nodes_alone(self, curves: Curves) -> Tensor:
        """What the last doubling of the nodes of stationary curves brought of their lengths (P,), at most."""
        change = torch.zeros_like(curves.facts.length)
        spans = curves.spline.knots.shape[1] - 1
        for rows in self._groups(torch.arange(len(change), device=change.device), 2 * spans):
            coarser, asked = measure_coarser(self.parts, curves.spline.take(rows))
            change[rows] = (coarser.length - curves.facts.length[rows]).abs() + coarser.errors.sum(1)
            self.evaluations.index_add_(0, curves.pair[rows], torch.full_like(rows, asked))
        return change

    def _cautious(self, facts: Facts, change: Tensor, kinked: Tensor, confirmed: Tensor) -> Tensor:
        """Errors (P,) that few exceed, of lengths that the last doubling changed by ``change`` (P,)."""
        wary = torch.minimum(_WARY * facts.length_error, self.options.rough_rtol * facts.length)
        # spacings that are not yet small gain by less than the fourth power
        unsure = torch.minimum(facts.length_error + change / _SLOWER, self.options.rtol * facts.length)
        more = torch.where(kinked, wary, torch.where(confirmed, unsure, facts.length_error))
        return more.maximum(facts.length_error)

    def _relaxed(self, begun: Begun, tol: float) -> tuple[Begun, Tensor, Curves]:
        """Of curves (P,) those that are no other's double (Q,): as begun, mask of them (P,), and relaxed."""
        relaxed, stubborn = self.routes.relax(begun, tol)
        self.steps.index_add_(0, begun.pair, relaxed.steps)
        self.evaluations.index_add_(0, begun.pair, relaxed.evaluations)
        single = ~relaxed.doubled
        if not bool(single.all()):
            begun, relaxed, stubborn = begun.take(single), relaxed.take(single), stubborn[single]
        return begun, single, self._measure(begun, relaxed, stubborn)

    def _measure(self, begun: Begun, relaxed: Relaxed, stubborn: Tensor) -> Curves:
        """What there is to say of relaxed curves, confirmed where they can be final."""
        pair, knots = begun.pair, begun.knots
        spans = knots.shape[1] - 1
        spline = interpolate(knots, relaxed.nodes)
        everyone = torch.arange(len(pair), device=pair.device)
        rule = rule_for(relaxed.image)
        pieces, order = [], []
        # how a curve is measured must not depend on how another of its batch was relaxed
        for by_newton in (True, False):
            some = everyone[stubborn != by_newton]
            for rows in self._groups(some, spans):
                image = relaxed.image.take(rows) if by_newton and relaxed.image is not None else None
                found, asked = measure(self.parts, spline.take(rows), image, rule)
                pieces.append(found)
                order.append(rows)
                self.evaluations.index_add_(0, pair[rows], asked)
        measured = Measured.join(pieces).take(torch.cat(order).argsort())
        status = relaxed.status
        # the chords of a curve fall short of it by a share of order h², its discretisation error by the square of that
        chords = relaxed.energy.clamp_min(0).sqrt()
        shortfall = (1 - chords / measured.length.clamp_min(1e-300)).square() * 5 + relaxed.residual.square() / 4
        enough = self.options.rtol if spans < MOST_COARSE else max(self.options.rtol, self.options.rough_rtol)
        # what cannot be final need not be confirmed
        worth = torch.isfinite(measured.length) & (shortfall <= enough)
        if spans < MOST_COARSE:
            worth &= measured.length - chords <= 2 * enough * measured.length
        worth &= (measured.length - begun.facts.length).abs() / 15 <= enough * measured.length
        error = measured.length * shortfall

        def improve(by: Callable[..., Measured], rows: Tensor, points: int) -> Tensor:
            """Measure the curves ``rows`` anew at so many more points of each; which are still not sure (k,)."""
            for some in self._groups(rows, points):
                measured.put_rows(some, by(self.parts, spline.take(some), measured.take(some)))
            self.evaluations.index_add_(0, pair[rows], torch.full_like(rows, points))
            unsure = measured.errors.sum(1) > _SURE * self.options.rtol * measured.length
            return rows[unsure[rows]]

        doubtful = improve(partial(confirm, rule=rule), worth.nonzero().flatten(), 2 * spans)
        if rule is FOUR:
            # at kinks more points of a rule tell little
            plain = measured.roughness[doubtful] <= _KINKED
            doubtful = torch.cat([doubtful[~plain], improve(sharpen, doubtful[plain], 3 * spans)])
        if self.many is None:
            improve(chorded, doubtful, 4 * spans)
        elif len(doubtful):
            surer, asked = self.many.confirm(spline.take(doubtful), measured.take(doubtful))
            measured.put_rows(doubtful, surer)
            self.evaluations.index_add_(0, pair[doubtful], asked)
        doubt = torch.maximum(error, (measured.length - chords).abs())
        error = torch.where(worth, error + measured.errors.sum(1), doubt)
        speeds = measured.squares.sqrt()
        facts = Facts(
            length=measured.length,
            energy=measured.energy,
            residual=relaxed.residual,
            length_error=error,
            speed_variation=(speeds.amax((1, 2)) - speeds.amin((1, 2))) / speeds.mean((1, 2)).clamp_min(1e-300),
            spans=torch.full_like(relaxed.steps, spans),
            status=status,
            chord_length=chords,
        )
        return Curves(
            pair,
            begun.kind,
            facts,
            spline,
            make_clock(spline, speeds, rule),
            density(spline, measured.lengths, measured.errors),
            relaxed.rate,
            relaxed.secant,
            measured.roughness,
            stubborn | (measured.roughness > _SMOOTH),
        )

    def _groups(self, rows: Tensor, points: int) -> tuple[Tensor, ...]:
        """The curves ``rows`` (k,) in groups of which so many decoded points each fit into the memory limit."""
        width = 1 if self.parts.embedding is None else self.parts.embedding.output_dim
        size = max(1, min(self.options.memory_limit, AT_ONCE) // (48 * width * points))
        return rows.split(size) if len(rows) else ()

    def _assemble(self, done: list[Curves]) -> Refined:
        rows = [curves.pair for curves in done]
        spline, clock = pad([curves.spline for curves in done], [curves.clock for curves in done], rows, self.count)
        order = torch.cat(rows).argsort()
        facts = Facts.join([curves.facts for curves in done]).take(order)
        kind = torch.cat([curves.kind for curves in done])[order]
        rough = torch.cat([curves.roughness > _SMOOTH for curves in done])[order]
        return Refined(facts, kind, spline, clock, self.steps, self.evaluations, rough)
