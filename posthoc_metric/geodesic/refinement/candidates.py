"""Curves on their way to be a pair's geodesic, and which of them to go on with.

Lengths of few nodes do not yet tell valleys apart, so that a pair may have several curves for a while.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..curves.batch import Batch
from ..curves.contenders import contenders
from ..curves.placement import Clock, between, respace, retimed
from ..curves.spline import Spline
from ..starts.start_curves import StartCurves

#: points at which two curves are compared
_COMPARED = 9
#: share of its length by which a curve may turn out shorter with more nodes than the energy of those it has says
_UNSURE = 0.005
#: chords that together are shorter than this share of the curve they stand for have jumped over something
_CHORD_SHARE = 0.9


@dataclass
class Facts(Batch):
    """What is known of P curves; see :class:`~posthoc_metric.Solution`.  ``status`` indexes ``STATUSES``."""

    length: Tensor
    energy: Tensor
    residual: Tensor
    length_error: Tensor
    speed_variation: Tensor
    spans: Tensor
    status: Tensor
    chord_length: Tensor

    @property
    def jumped(self) -> Tensor:
        """Whose chords have jumped over what the interpolation crosses (P,)."""
        return self.chord_length < _CHORD_SHARE * self.length

    def error(self, change: Tensor, kinked: Tensor) -> Tensor:
        """Errors of lengths (P,) that the last doubling of the nodes changed by ``change`` (P,).

        The length of an interpolated curve errs with the fourth power of the spacing, or where there are kinks with the
        first: then as much is still to come as came by the last doubling, and the model of the energy, which sees no
        kinks, says too little of what more steps would gain.
        """
        rough = self.length_error + change + self.residual.square() * self.length
        return torch.where(kinked, rough, self.length_error + change / 15)


@dataclass
class Curves(Batch):
    """P measured curves of n spans each.

    Attributes:
        pair, kind: which pair, which start (P,).
        facts: what is known of them.
        spline, clock: the curves, and when they are where at constant speed.
        density: how many nodes each span deserves (P, n); see :func:`~.placement.density`.
        rate, secant: of :class:`~.gauss_newton.Relaxed`.
        roughness: of :class:`~.quadrature.Measured`.
        stubborn: whether Newton steps did not bring them on, or they have kinks (P,).
    """

    pair: Tensor
    kind: Tensor
    facts: Facts
    spline: Spline
    clock: Clock
    density: Tensor
    rate: Tensor
    secant: Tensor
    roughness: Tensor
    stubborn: Tensor


@dataclass
class Begun(Batch):
    """P curves with the nodes that they are to be relaxed at, and what is known of them.

    Attributes:
        pair, kind: which pair, which start (P,).
        knots: (P, n+1).
        nodes: (P, n+1, d).
        facts: with fewer nodes; of start curves, which were not relaxed at all, infinite lengths.
        rate, secant: of :class:`~.gauss_newton.Relaxed`, the secant at the inner knots.
        stubborn: whether Newton steps did not bring them on (P,).
    """

    pair: Tensor
    kind: Tensor
    knots: Tensor
    nodes: Tensor
    facts: Facts
    rate: Tensor
    secant: Tensor
    stubborn: Tensor

    @property
    def fresh(self) -> Tensor:
        """Which of them are start curves (P,)."""
        return torch.isinf(self.facts.length)


def begin(curves: Curves, spans: int, *, even: bool) -> Begun:
    """Relaxed curves with ``spans`` spans, nodes where they are needed; run at nearly constant speed where ``even``."""
    knots, nodes = respace(curves.spline, curves.density, spans)
    secant = between(curves.spline.knots, curves.secant, knots)
    times = retimed(curves.clock, knots) if even else knots
    return Begun(curves.pair, curves.kind, times, nodes, curves.facts, curves.rate, secant, curves.stubborn)


def begin_anew(starts: StartCurves, spans: int, learnt: tuple[int, ...]) -> Begun:
    """Start curves with ``spans`` spans; ``learnt`` is the shape of what a node's secant holds."""
    knots, nodes = starts.sample(spans)
    none = torch.zeros_like(starts.length)
    unknown, never = torch.full_like(none, float("inf")), torch.zeros_like(starts.pair)
    facts = Facts(unknown, unknown, unknown, unknown, unknown, never, never, unknown)
    secant = nodes.new_zeros(*nodes[:, 1:-1, 0].shape, *learnt)
    return Begun(starts.pair, starts.kind, knots, nodes, facts, none, secant, torch.zeros_like(never, dtype=torch.bool))


def contest(found: list[Curves], margin: float | None) -> list[Curves]:
    """The contenders among curves of different numbers of spans; without a margin the one most surely short."""
    keep = _kept(found, -1.0 if margin is None else margin, margin is None)
    kept = zip(found, keep.split([len(curves.pair) for curves in found]), strict=True)
    return [curves if bool(mask.all()) else curves.take(mask) for curves, mask in kept if bool(mask.any())]


def rivals(curves: Curves, margin: float) -> Tensor:
    """Mask (P,) of the contenders among curves of equal numbers of spans."""
    return _kept([curves], margin, False)


def _kept(found: list[Curves], margin: float, surely: bool) -> Tensor:
    """Mask of the contenders among all curves of ``found``, by lengths with their errors added where ``surely``."""
    pair = torch.cat([curves.pair for curves in found])
    # most pairs have one curve, and nothing to compare it with
    contested = torch.bincount(pair)[pair] > 1
    keep = ~contested
    if bool(contested.any()):
        masks = contested.split([len(curves.pair) for curves in found])
        some = [curves.take(mask) for curves, mask in zip(found, masks, strict=True)]
        facts = [_facts(curves, surely) for curves in some if len(curves.pair)]
        own, lengths, shapes, least = (torch.cat(parts) for parts in zip(*facts, strict=True))
        keep[contested] = contenders(own, lengths, shapes, margin, least)
    return keep


def _facts(curves: Curves, surely: bool) -> tuple[Tensor, ...]:
    facts = curves.facts
    least = (1 - _UNSURE) * facts.chord_length * (1 - facts.residual.square())
    # where a quadrature falls short of the chords, it has missed what they cross
    like = facts.length.maximum(facts.chord_length)
    shares = torch.linspace(0, 1, _COMPARED, dtype=like.dtype, device=like.device).expand(len(like), -1)
    lengths = like + facts.length_error if surely else like
    return curves.pair, lengths, curves.spline.at(curves.clock.at(shares))[0], least
