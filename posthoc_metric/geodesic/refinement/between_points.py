"""Curves under a metric without chords, looked at between the points that their lengths were integrated from.

Where a decoder's values change, chords show it.  A function of matrices that is flat almost everywhere, as the cost of
a thin obstacle is, agrees with every quadrature whose points miss the obstacle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...machine import AT_ONCE
from ...metric import MetricParts
from ..curves.placement import even, invert
from ..curves.polygons import run_along
from ..curves.quadrature import FIVE, squared_speeds
from ..curves.rows import few_rows
from ..curves.spline import Spline
from ..options import RelaxationOptions
from ..status import CODES, Status
from .refined import Refined
from .routes import MOST_COARSE

#: points at even latent distances that every curve is looked at
_LOOKS = 240
#: the share of the latent way that the points are apart where these contradict a length, and halvings of a span at most
_APART, _HALVINGS = 1 / 480, 6
#: vectors that a point takes
_HELD = 6

_CONVERGED, _UNRESOLVED = CODES[Status.CONVERGED], CODES[Status.UNRESOLVED]


def admit_unseen(parts: MetricParts, found: Refined, options: RelaxationOptions) -> Refined:
    """``found``, with what was missed of the lengths added to their errors, in place.

    Those of which that makes more than is allowed are ``UNRESOLVED``.
    """
    facts = found.facts
    rows = (torch.isfinite(facts.length) & (facts.length > 0)).nonzero().flatten()
    if parts.embedding is not None or len(rows) == 0:
        return found
    parts = few_rows(parts, options.memory_limit)
    block = _block(_LOOKS, found.spline, options.memory_limit)
    looked = torch.cat([_looked(parts, found.spline.take(some)) for some in rows.split(block)])
    found.evaluations[rows] += _LOOKS + 1
    length, error = facts.length[rows], facts.length_error[rows]
    rows = rows[~((looked - length).abs() <= options.rtol * length + error)]
    for spans in facts.spans[rows].unique().tolist():
        some = rows[facts.spans[rows] == spans]
        spline = Spline(*(part[some, : spans + 1] for part in _parts(found.spline)))
        missed, asked = _missed(parts, spline, options.memory_limit)
        found.evaluations[some] += asked
        lenient = found.rough[some] | (spans >= MOST_COARSE)
        allowed = torch.where(lenient, max(options.rtol, options.rough_rtol), options.rtol) * facts.length[some]
        claimed = some[(missed > allowed) & (facts.status[some] == _CONVERGED)]
        facts.length_error[some] = facts.length_error[some].maximum(missed)
        facts.status[claimed] = _UNRESOLVED
    return found


def _looked(parts: MetricParts, spline: Spline) -> Tensor:
    """Lengths (P,) by the trapezoidal rule."""
    run = run_along(spline.nodes.diff(dim=1).norm(dim=2))
    times = invert(spline.knots, run, even(run, _LOOKS))
    times[:, 0], times[:, -1] = 0.0, 1.0
    speeds = squared_speeds(parts, *spline.at(times)).clamp_min(0).sqrt()
    return ((speeds[:, 1:] + speeds[:, :-1]) / 2 * times.diff(dim=1)).sum(1)


def _missed(parts: MetricParts, spline: Spline, memory_limit: int) -> tuple[Tensor, Tensor]:
    """By how much lengths (P,) change where spans are cut until points are near; and how many points it took (P,)."""
    way = spline.nodes.diff(dim=1).norm(dim=2)
    # a span of five points has four gaps
    cuts = way / (4 * _APART * way.sum(1, keepdim=True))
    cuts = cuts.log2().ceil().nan_to_num(nan=0.0).clamp(0, _HALVINGS).long()
    missed, asked = torch.zeros_like(way[:, 0]), torch.zeros_like(cuts[:, 0])
    for halvings in cuts[cuts > 0].unique().tolist():
        pair, span = (cuts == halvings).nonzero().unbind(1)
        fractions, weights = _parted(2**halvings, way)
        rows = torch.arange(len(pair), device=pair.device)
        for some in rows.split(_block(len(weights), spline, memory_limit)):
            p, s = pair[some], span[some]
            alone = Spline(*(torch.stack([part[p, s], part[p, s + 1]], dim=1) for part in _parts(spline)))
            points, velocities = (part[:, 0] for part in alone.inside(fractions))
            speeds = squared_speeds(parts, points, velocities).clamp_min(0).sqrt()
            missed.index_add_(0, p, (speeds * weights).sum(1) * alone.knots.diff(dim=1)[:, 0])
            asked.index_add_(0, p, torch.full_like(p, len(weights)))
    return missed.abs().nan_to_num(nan=float("inf")), asked


def _block(points: int, spline: Spline, memory_limit: int) -> int:
    """How many curves or spans are looked at at once, in so many points each."""
    return max(1, min(memory_limit, AT_ONCE) // (8 * _HELD * spline.nodes.shape[2] * points))


def _parts(spline: Spline) -> tuple[Tensor, Tensor, Tensor]:
    return spline.knots, spline.nodes, spline.slopes


def _parted(pieces: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Points (q,) of a span and what each adds to its length cut into so many ``pieces``, less its length in one."""
    at, rule = like.new_tensor(FIVE.fractions), like.new_tensor(FIVE.weights)
    begins = torch.arange(pieces, dtype=like.dtype, device=like.device)[:, None]
    points = torch.cat([((begins + at[:-1]) / pieces).flatten(), at[[1, 3, 4]]])
    weights = torch.zeros_like(points)
    inside = weights[:-3].view(pieces, 4)
    inside += rule[:4] / pieces
    inside[1:, 0] += rule[4] / pieces
    weights[-1] = rule[4] / pieces
    weights[[0, 2 * pieces, -3, -2, -1]] -= rule[[0, 2, 1, 3, 4]]
    return points, weights
