"""Bisection of ways in one dimension: their spans, what is known of each, and which are halved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..curves.batch import Batch
from ..options import RelaxationOptions

#: first spans may differ in width by up to this share either way, in no rhythm: what repeats itself with the spans
#: looks the same in all
_UNEVEN, _RHYTHM = 0.4, 0.5 * (5**0.5 - 1)
#: where rules converge, what halving leaves of their difference at most (a sixteenth on smooth ways), and the geometric
#: mean of that and of what the better one's change is of the difference
_SLOW, _FAST = 0.35, 0.1
#: least share of the difference that is the better one's error
_BETTER = 0.02
#: where rules do not converge: what halving leaves of the error at least (at jumps a half on average) and at most, as
#: at poles
_JUMP, _POLE = 0.6, 0.9
#: share of the error asked for that the spans may have together which are not halved
_LEFT = 0.5
#: width of spans, as a share of the way, that are not halved as hardly a number lies between their ends
_NARROW = 1e-15
#: what a division by nothing is by
TINY = 1e-300


@dataclass
class Spans(Batch):
    """Q spans of several pairs' ways.

    Attributes:
        pair: (Q,).
        knots: shares of the way at which each begins and ends (Q, 2).
        speeds: at the points of the rule with five, for the whole way in a unit of time (Q, 5).
        length, error: (Q,).
        change: of the length by the last rule of quadrature, and by the one before (Q, 2).
        before: what the error of the span that this is a half of may have been, or of the span itself (Q,).
        chords: of a decoder's values between those points, together; zero where they were not asked for (Q,).
        straight: whether the directions in which the values move from there are alike (Q,).
    """

    pair: Tensor
    knots: Tensor
    speeds: Tensor
    length: Tensor
    error: Tensor
    change: Tensor
    before: Tensor
    chords: Tensor
    straight: Tensor


def cut(count: int, like: Tensor, *, uneven: bool) -> Tensor:
    """Knots (count+1,) of spans, the same from either end so that a way and its reverse are as long."""
    place = torch.arange(count, dtype=like.dtype, device=like.device)
    place = torch.minimum(place, place.flip(0))
    widths = 1 + uneven * _UNEVEN * (2 * (place * _RHYTHM).frac() - 1)
    edges = torch.cat([widths.new_zeros(1), widths.cumsum(0)]) / widths.sum()
    edges[-1] = 1.0
    return edges


def told_by_halving(whole: Spans, left: Spans, right: Spans) -> tuple[Tensor, Tensor]:
    """Errors of the halves together, and what those of the wholes may have been (Q,).

    Two rules may agree by chance where neither sees what there is, and that the better one is much better is true of
    smooth ways alone.  Where halving changes the length, and leaves of the rules' differences, as little as it does
    there, the error is a share of that.  Elsewhere it falls like a geometric series, at the pace observed, which a
    single lucky difference does not quicken.
    """
    differ = left.change[:, 0] + right.change[:, 0]
    gain = (whole.length - left.length - right.length).abs()
    change = torch.maximum(gain, differ)
    # two rules differ by nothing where the sign of what they differ by changes, but not three
    once = torch.maximum(whole.change[:, 0], _BETTER * whole.change[:, 1])
    pace = change / once.clamp_min(TINY)
    coarse = left.change[:, 1] + right.change[:, 1]
    seen = torch.maximum(change, torch.minimum(_JUMP * whole.before, coarse))
    left_of = (seen / whole.before.clamp_min(TINY)).clamp(_JUMP, _POLE)
    rough = seen * left_of / (1 - left_of)
    smooth = (change <= _SLOW * once) & (gain * differ <= (_FAST * once).square())
    return torch.where(smooth, torch.maximum(gain * pace, _BETTER * differ), rough), torch.where(smooth, change, seen)


def too_wide(spans: Spans, count: int, options: RelaxationOptions) -> Tensor:
    """Mask of the spans (Q,) that keep their pair's length from being sure; of the worst, if not all may be halved."""
    number = torch.bincount(spans.pair, minlength=count)
    length, error = (sums(part, spans.pair, count) for part in (spans.length, spans.error))
    wanted = options.rtol * length
    worst = spans.error.argsort(descending=True, stable=True)
    worst = worst[spans.pair[worst].argsort(stable=True)]
    rank = torch.empty_like(worst)
    rank[worst] = torch.arange(len(worst), device=worst.device) - (number.cumsum(0) - number)[spans.pair[worst]]
    wide = (error > wanted)[spans.pair] & (spans.error > (_LEFT * wanted / number)[spans.pair])
    wide &= spans.knots.diff(dim=1)[:, 0] > _NARROW
    return wide & (rank < (options.max_spans - number)[spans.pair])


def sums(values: Tensor, pair: Tensor, count: int) -> Tensor:
    """Of the spans' ``values`` (Q,) over each pair (B,)."""
    return values.new_zeros(count).index_add_(0, pair, values)
