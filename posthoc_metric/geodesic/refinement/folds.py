"""Curves that no relaxation confirms, once more at an even latent pace, which takes them across folds.

See :mod:`~.latent_pace`.  An arm that reaches a point with its elbow on either side, a map onto as many outputs as
latents or fewer: what lies beyond a fold is reached through it.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf, isfinite

import torch
from torch import Tensor

from ...field_derivative import FieldDerivative
from ...metric import MetricParts
from ..curves.chords import halved
from ..curves.placement import even, make_clock
from ..curves.quadrature import FIVE, confirm, measure
from ..curves.spline import Spline, interpolate
from ..options import START_NAMES, RelaxationOptions
from ..relaxation.latent_pace import Shortened, shorten, spaced
from ..relaxation.matrix_free import MOST_COLUMNS
from ..status import CODES, Status
from .candidates import Facts
from .refined import Refined, joined, the_surer

#: spans at first
_SPANS = 64
#: latent speed over its mean, in a span of a curve of twice as many or more, from which on it is a leap
_LEAP = 50.0
#: points of a curve that is given nodes at even latent distances
_TABLE = 4096
#: steps at one number of spans, and the residual that they are to reach
_STEPS, _STILL = 80, 2e-3
#: arrays of d² numbers a node that are held at once
_HELD = 30
#: share of the length asked for that is left to chords, and how many of them a span may take
_CHORD_SHARE, _CHORDS = 0.2, 16

_CONVERGED, _UNRESOLVED, _BROKEN = (
    CODES[status] for status in (Status.CONVERGED, Status.UNRESOLVED, Status.NOT_FINITE)
)


def folding(parts: MetricParts, dim: int) -> bool:
    """Whether an embedding may have folds that curves have to cross.

    Of maps onto more outputs than latents those points where they lose a direction can be gone round: they are of two
    dimensions fewer than the latents, or still less (Whitney 1943).
    """
    return parts.embedding is not None and 2 <= dim <= MOST_COLUMNS and parts.embedding.output_dim <= dim


def leaping(parts: MetricParts, spline: Spline, spans: Tensor) -> Tensor:
    """Which of P curves of ``spans`` (P,), many of them, leap over folds, where more nodes do not help (P,)."""
    if not folding(parts, spline.nodes.shape[2]):
        return torch.zeros_like(spans, dtype=torch.bool)
    pieces = spline.nodes.diff(dim=1).norm(dim=2)
    speeds = (pieces / spline.knots.diff(dim=1)).amax(1)
    return (speeds > _LEAP * pieces.sum(1)) & (spans >= 2 * _SPANS)


def across_folds(
    parts: MetricParts, found: Refined, options: RelaxationOptions, which: Tensor
) -> tuple[Refined, Tensor]:
    """Curves ``found`` (B), those of ``which`` (B,) that are not confirmed relaxed at an even latent pace.

    Returns:
        ``found`` with what came out surely shorter, and which of its curves were confirmed so (B,).
    """
    facts, dim = found.facts, found.spline.nodes.shape[2]
    doubtful = which & (facts.status != _CONVERGED) & (facts.status != _BROKEN) & torch.isfinite(facts.length)
    rows = (doubtful & (facts.length > 0)).nonzero().flatten()
    most = min(options.max_spans, options.memory_limit // (8 * _HELD * dim * dim))
    if not folding(parts, dim) or most < 2 * _SPANS or len(rows) == 0:
        return found, torch.zeros_like(doubtful)
    options = replace(options, spans=_SPANS, max_spans=most)
    probe = found.spline.nodes[rows, ::8].flatten(0, 1)[:512]
    field = None if parts.field is None else FieldDerivative(parts.field, probe)
    # one after the other, so that none is rounded by how many there are
    again = joined([_across(parts, field, found.take(row), options) for row in rows.split(1)])
    found = the_surer(found, rows, again)
    return found, doubtful & (found.facts.status == _CONVERGED)


def _across(parts: MetricParts, field: FieldDerivative | None, one: Refined, options: RelaxationOptions) -> Refined:
    """The curve of one pair, with twice as many nodes until its length no longer changes."""
    still, spans = min(options.tol, _STILL), _SPANS
    way, ends = one.spline.at(one.clock.at(even(one.spline.nodes, _TABLE)))[0][0], one.spline.nodes[0, [0, -1]]
    way[0], way[-1] = ends
    begun = [(int(one.kind), way)]
    if "straight" in options.starts:
        # what has gone astray may lie in no good valley
        begun.append((START_NAMES.index("straight"), ends))
    tried = [shorten(parts, field, spaced(nodes, spans), tol=still, max_steps=_STEPS) for _, nodes in begun]
    lengths = [curve.length if isfinite(curve.length) else inf for curve in tried]
    best = lengths.index(min(lengths))
    kind, here, before = begun[best][0], tried[best], None
    steps = sum(curve.steps for curve in tried)
    evaluations = (steps + len(tried)) * (spans + 1)
    while True:
        found, asked = _measured(parts, here, one, kind, options, before)
        evaluations += asked
        facts = found.facts
        if bool(facts.length_error <= options.rtol * facts.length) or 2 * spans > options.max_spans:
            break
        spans, before = 2 * spans, facts.length
        here = shorten(parts, field, spaced(here.nodes, spans), tol=still, max_steps=_STEPS)
        steps, evaluations = steps + here.steps, evaluations + (here.steps + 1) * (spans + 1)
    # of few nodes no other number of them has confirmed the length
    enough = options.rtol if before is None else max(options.rtol, options.rough_rtol)
    if here.residual <= still and bool(facts.length_error <= enough * facts.length):
        facts.status.fill_(_CONVERGED)
    found.steps += steps
    found.evaluations += evaluations
    return found


def _measured(
    parts: MetricParts, curve: Shortened, one: Refined, kind: int, options: RelaxationOptions, before: Tensor | None
) -> tuple[Refined, int]:
    """What there is to say of a curve that had the length ``before`` (1,) with half as many spans, if it is known."""
    spans = len(curve.nodes) - 1
    knots = even(curve.nodes[None], spans)
    spline = interpolate(knots, curve.nodes[None])
    simpson, points = measure(parts, spline, None, FIVE)
    known = confirm(parts, spline, simpson, FIVE)
    better, more = halved(
        parts, spline, known, _CHORD_SHARE * options.rtol * known.length, _CHORDS, options.memory_limit
    )
    length = better.length
    change = (length - (curve.length if before is None else before)).abs()
    # two ways to measure a curve agree where it has nodes enough
    apart = (length - known.length).abs()
    error = better.errors.sum(1) + apart + change + length * curve.residual**2 / 2
    still = torch.zeros_like(length)
    facts = Facts(
        length=length,
        # of all timings that of constant speed has the least energy
        energy=length.square(),
        residual=torch.full_like(length, curve.residual),
        length_error=torch.where(torch.isfinite(error) & (length > 0), error, inf),
        speed_variation=still,
        spans=torch.full_like(one.kind, spans),
        status=torch.full_like(one.kind, _UNRESOLVED),
        chord_length=torch.full_like(length, curve.length),
    )
    clock = make_clock(spline, better.squares.clamp_min(0).sqrt(), FIVE)
    none = torch.zeros_like(one.kind)
    rough = torch.ones_like(one.rough)
    made = Refined(facts, torch.full_like(one.kind, kind), spline, clock, none, none.clone(), rough)
    return made, int(points + more) + 2 * spans
