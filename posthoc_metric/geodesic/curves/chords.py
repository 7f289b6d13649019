"""Lengths by ever finer chords, for curves whose speed jumps too often for a rule of quadrature.

The chords of a curve fall short of it by a share that each halving divides by four where the curve is smooth and by two
where it has kinks, as the image of every curve has under a ReLU network.  Three lengths tell which it is, and so
what the limit is (Richardson), with half of what is still to come as the error of that.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...machine import AT_ONCE
from ...metric import MetricParts
from .quadrature import Measured, chord_lengths
from .spline import Spline

#: chords a span to begin with
_FIRST = 4
#: what halving a chord leaves of the shortfall: smooth curves, and the roughest from which a limit is told
_SMOOTH, _ROUGHEST = 0.25, 0.6
_LUCKY = 0.2
#: arrays of D numbers a point that are held at once
_HELD = 4


def halved(
    parts: MetricParts, spline: Spline, known: Measured, wanted: Tensor, most: int, memory_limit: int
) -> tuple[Measured, Tensor]:
    """The lengths ``known`` of P curves, by chords where those are surer; and the points asked for (P,).

    Chords are halved until their error is below ``wanted`` (P,), or there are ``most`` a span.
    """
    count, spans, _ = known.squares.shape
    lengths, errors = known.lengths.clone(), known.errors.clone()
    asked = torch.zeros(count, dtype=torch.long, device=lengths.device)
    todo, chords = torch.arange(count, device=lengths.device), _FIRST
    while len(todo):
        for row in todo.split(1):
            sums = _sums(parts, spline.take(row), chords, memory_limit)
            asked[row] += chords * spans
            better, doubt = _limit(*sums)
            if float(doubt.sum()) < float(errors[row].sum()) or chords > _FIRST:
                lengths[row], errors[row] = better, doubt
        chords *= 2
        todo = todo[errors[todo].sum(1) > wanted[todo]] if chords <= most else todo[:0]
    return replace(known, lengths=lengths, errors=errors), asked


def _limit(fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths and errors of the spans (1, n) from the sums of their chords, of half as many, and of a quarter."""
    late, early = (fine - middle).sum(1, keepdim=True), (middle - coarse).sum(1, keepdim=True)
    left = late / early.clamp_min(1e-300)
    # less than smoothness allows is an accident of where the kinks lie
    left = torch.where(left < _LUCKY, 0.5, left.clamp(_SMOOTH, _ROUGHEST))
    more = left / (1 - left)
    return fine + more * (fine - middle), more * torch.maximum(fine - middle, left * (middle - coarse)).abs() / 2


def _sums(parts: MetricParts, spline: Spline, chords: int, memory_limit: int) -> tuple[Tensor, ...]:
    """Sums of the chords in each span of one curve (1, n): all of them, every second node left out, and again."""
    width = 1 if parts.embedding is None else parts.embedding.output_dim
    spans = spline.knots.shape[1] - 1
    dim = spline.nodes.shape[2]
    fractions = torch.arange(chords, dtype=torch.float64, device=spline.nodes.device) / chords
    points, _ = spline.inside(fractions)
    points = torch.cat([points.reshape(-1, dim), spline.nodes[:, -1]])
    block = max(1, min(memory_limit, AT_ONCE) // (8 * _HELD * width * chords))
    sums: list[list[Tensor]] = [[], [], []]
    for first in range(0, spans, block):
        last = min(first + block, spans)
        some = points[first * chords : last * chords + 1]
        values = None if parts.embedding is None else parts.embedding(some)
        weight = None if parts.weight is None else parts.weight(some)
        field = None if parts.field is None else parts.field(some)
        for level, stride in enumerate((1, 2, 4)):
            lengths = chord_lengths(some, values, weight, field, stride)
            sums[level].append(lengths.view(last - first, -1).sum(1))
    return tuple(torch.cat(part)[None] for part in sums)
