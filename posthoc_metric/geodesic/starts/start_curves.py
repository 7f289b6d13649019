"""Curves to start from: straight, or along a path whose corners are rounded off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...machine import AT_ONCE
from ...matrix_field import square
from ...metric import MetricParts
from ...smooth_map import SmoothMap
from ..curves.batch import Batch
from ..curves.placement import even
from ..curves.polygons import met, norms, run_along, smoothed
from ..curves.rows import alike, unpadded

#: spans in which a start curve is tabulated; a power of two
SPANS = 128
#: share of the latent way in what a node is worth, beside that of the length
WAY = 0.4
#: every so many points' values tell the lengths of the pieces between
_STRIDE = 16
#: share of a curve's times that are even whatever its speed
STEADY = 0.01
#: chords of few spans that are a smaller share of those of many have jumped over much
_CHORDS_SHARE = 0.85


@dataclass
class StartCurves(Batch):
    """Q start curves, any number of them for a pair.

    Attributes:
        pair: which pair each belongs to (Q,).
        kind: index into ``START_NAMES`` (Q,).
        knots: share of the length run, as far as is known (Q, 129).
        nodes: (Q, 129, d).
        length: estimated length (Q,), ``inf`` where nothing is known.
        asked: points that an embedding was asked for to time it (Q,).
    """

    pair: Tensor
    kind: Tensor
    knots: Tensor
    nodes: Tensor
    length: Tensor
    asked: Tensor

    def sample(self, spans: int) -> tuple[Tensor, Tensor]:
        """Knots (Q, n+1) and nodes (Q, n+1, d) of n spans, n a divisor of 128."""
        stride = SPANS // spans
        return self.knots[:, ::stride].contiguous(), self.nodes[:, ::stride].contiguous()


def straight(start: Tensor, end: Tensor) -> StartCurves:
    """The straight lines between the rows of ``start`` and ``end`` (B, d)."""
    knots = even(start, SPANS)
    nodes = start[:, None] + knots[..., None] * (end - start)[:, None]
    pair = torch.arange(len(start), device=start.device)
    return StartCurves(
        pair, torch.zeros_like(pair), knots, nodes, torch.full_like(start[:, 0], float("inf")), torch.zeros_like(pair)
    )


def rounded(corners: Tensor, lengths: Tensor, rows: Tensor, kind: int) -> StartCurves:
    """Start curves of the pairs ``rows`` from paths (Q, m, d) of known lengths (Q,), their corners rounded off."""
    # a path padded by its end has spans of length zero there, which the tabulation skips
    run = run_along(norms(corners.diff(dim=1)))
    targets = even(corners, SPANS)
    nodes = smoothed(met(run, corners, targets))
    nodes[:, 0], nodes[:, -1] = corners[:, 0], corners[:, -1]
    return StartCurves(rows, torch.full_like(rows, kind), targets, nodes, lengths, torch.zeros_like(rows))


def timed(parts: MetricParts, curves: StartCurves) -> StartCurves:
    """``curves`` run at nearly constant speed, and with nodes where they are long, as far as few values tell.

    A node is worth its share of the length and of the latent way.  Where a wall takes most of the length, steps that
    are even in latent space leave it hardly any nodes, and curves jump over it.
    """
    width = 0 if parts.embedding is None else parts.embedding.output_dim * (SPANS + 1) // _STRIDE
    field = 0 if parts.field is None else (SPANS + 1) * curves.nodes.shape[2] ** 2
    # a weight compares every point with hundreds of centres
    block = max(1, AT_ONCE // (8 * max(width, field, 256 * (SPANS + 1))))
    rows = torch.arange(len(curves.pair), device=curves.pair.device)
    return StartCurves.join([_timed(parts, curves.take(some)) for some in rows.split(block)])


def _timed(parts: MetricParts, curves: StartCurves) -> StartCurves:
    nodes = curves.nodes
    steps, middles = nodes.diff(dim=1), (nodes[:, 1:] + nodes[:, :-1]) / 2
    way = steps.norm(dim=2)
    squares = torch.zeros_like(way)
    asked = 0
    if parts.embedding is not None:
        asked = len(nodes[0, ::_STRIDE])
        few, share = nodes[:, ::_STRIDE], way.unflatten(1, (-1, _STRIDE))
        chords = unpadded(parts.embedding(alike(few)), few).diff(dim=1).norm(dim=2)
        share = share / share.sum(2, keepdim=True).clamp_min(1e-300)
        squares += (chords[..., None] * share).flatten(1).square()
    if parts.weight is not None:
        squares += unpadded(parts.weight(alike(middles)), middles) * way.square()
    if parts.field is not None:
        squares += unpadded(square(parts.field, alike(middles), alike(steps)), middles)
    pieces = squares.clamp_min(0).sqrt()
    run, latent, steady = run_along(pieces), run_along(way), even(nodes, SPANS)
    found = met(torch.lerp(run, latent, WAY), torch.cat([run[..., None], nodes], dim=2), steady)
    # what seems to have no length still takes its time
    knots, placed = torch.lerp(found[..., 0], steady, STEADY), found[..., 1:].contiguous()
    knots[:, 0], knots[:, -1] = 0.0, 1.0
    placed[:, 0], placed[:, -1] = nodes[:, 0], nodes[:, -1]
    known = (torch.isfinite(pieces).all(1) & (pieces.sum(1) > 0) & (way.sum(1) > 0))[:, None]
    placed = torch.where(known[..., None], placed, nodes)
    knots = torch.where(known, knots, curves.knots)
    return StartCurves(curves.pair, curves.kind, knots, placed, curves.length, curves.asked + asked)


def jump_over(embedding: SmoothMap, curves: StartCurves, few: int, many: int) -> Tensor:
    """Which curves' chords of ``few`` spans jump over much of what those of ``many`` see (Q,).

    As when the letters of a sequence flip one after the other.
    """
    nodes = curves.sample(many)[1]
    block = max(1, AT_ONCE // (8 * embedding.output_dim * nodes.shape[1]))
    found = []
    for some in nodes.split(block):
        values = unpadded(embedding(alike(some)), some)
        less, more = (values[:, ::stride].diff(dim=1).norm(dim=2).sum(1) for stride in (many // few, 1))
        found.append(less < _CHORDS_SHARE * more)
    return torch.cat(found)
