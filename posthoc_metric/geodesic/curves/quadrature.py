"""The length of an interpolated curve, integrated inside its spans and checked by a second rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...metric import MetricParts
from .batch import Batch
from .image import Image
from .rows import alike, unpadded
from .spline import Spline, interpolate

#: share of a length that the trapezoidal rule may err by where the nodes tell all
_PLAIN = 0.1
#: least share of the difference of two rules that is the better one's error
_BETTER = 0.02
#: by how much less Kronrod's rule errs at kinks than the one before
_LATER = 2.0


@dataclass(frozen=True)
class Rule:
    """A rule of quadrature on [0, 1]: five points, the ends and the middle among them, and their weights."""

    fractions: tuple[float, float, float, float, float]
    weights: tuple[float, float, float, float, float]


#: the Gauss-Lobatto rules with five points (degree 7), and with four (degree 5), where the middle is not asked for
FIVE = Rule(
    (0.0, 0.5 - (3 / 28) ** 0.5, 0.5, 0.5 + (3 / 28) ** 0.5, 1.0), (1 / 20, 49 / 180, 16 / 45, 49 / 180, 1 / 20)
)
FOUR = Rule((0.0, 0.5 - 0.05**0.5, 0.5, 0.5 + 0.05**0.5, 1.0), (1 / 12, 5 / 12, 0.0, 5 / 12, 1 / 12))
TRAPEZOID = (1 / 2, 0.0, 0.0, 0.0, 1 / 2)
SIMPSON = (1 / 6, 0.0, 2 / 3, 0.0, 1 / 6)
#: what Kronrod's extension of the rule with four adds, and its weights (degree 9): of that rule's points, then of these
_KRONROD = (0.5 - (1 / 6) ** 0.5, 0.5, 0.5 + (1 / 6) ** 0.5)
_EXTENDED = tuple(part / 2940 for part in (77, 625, 625, 77, 432, 672, 432))


@dataclass
class Measured(Batch):
    """Lengths of P curves of n spans.

    Attributes:
        squares: squared Riemannian speeds at the five points of a rule in every span (P, n, 5).
        lengths: of every span (P, n).
        errors: estimated, span by span (P, n).
        energy: ``∫ ‖ż‖² dt`` (P,).
        roughness: by how much a better rule of quadrature errs less, zero where that is not known (P,): a few
            hundredths on smooth curves, a third at kinks.
    """

    squares: Tensor
    lengths: Tensor
    errors: Tensor
    energy: Tensor
    roughness: Tensor

    @property
    def length(self) -> Tensor:
        """(P,)."""
        return self.lengths.sum(1)


def rule_for(image: Image | None) -> Rule:
    """The rule that curves are measured by: with four points where ``image`` tells of the middle of spans, or five."""
    return FOUR if image is not None and image.whole else FIVE


def measure(parts: MetricParts, spline: Spline, image: Image | None, rule: Rule) -> tuple[Measured, Tensor]:
    """Lengths by Simpson's rule, ``errors`` the trapezoidal rule's; and how many points of each curve it took (P,).

    Args:
        image: what the relaxation leaves known of an embedding, which is then asked only where the trapezoidal rule
            errs so much that something may stand between the nodes of which these do not tell.
        rule: by which the curves will be confirmed.

    NaN where the metric is not finite on a curve.
    """
    count, spans = len(spline.knots), spline.knots.shape[1] - 1
    if image is None:
        found = _by_simpson(parts, spline, rule, None, None)
        return found, torch.full((count,), 2 * spans + 1, device=spline.knots.device)
    at_nodes = image.at_nodes(spline)
    if image.whole:
        found = _by_simpson(parts, spline, rule, at_nodes, image.in_the_middle(spline, at_nodes))
        unsure = ~(found.errors.sum(1) <= _PLAIN * found.length)
        rows = unsure.nonzero().flatten()
        if len(rows):
            found.put_rows(rows, _by_simpson(parts, spline.take(rows), rule, at_nodes[rows], None))
    else:
        found = _by_simpson(parts, spline, rule, at_nodes, None)
        unsure = torch.ones(count, dtype=torch.bool, device=spline.knots.device)
    return found, spans * unsure


def _by_simpson(
    parts: MetricParts, spline: Spline, rule: Rule, at_nodes: Tensor | None, inside: Tensor | None
) -> Measured:
    """With an embedding's squared speeds at the nodes (P, n+1) and in the middle of the spans (P, n), if known."""
    squares = squared_speeds(parts, spline.nodes, spline.slopes, at_nodes)
    middle = _inside(parts, spline, (0.5,), inside)
    low, high = rule.fractions[1], rule.fractions[3]
    quarter, three = ((1 - u) * squares[:, :-1] + u * squares[:, 1:] for u in (low, high))
    # a parabola through the three points stands in for the two that are not asked for
    bulge = middle[..., 0] - (squares[:, :-1] + squares[:, 1:]) / 2
    quarter, three = (part + 4 * u * (1 - u) * bulge for part, u in ((quarter, low), (three, high)))
    five = torch.stack([squares[:, :-1], quarter, middle[..., 0], three, squares[:, 1:]], dim=2).clamp_min(0.0)
    lengths, energy = _summed(spline, five, SIMPSON)
    errors = (lengths - _summed(spline, five, TRAPEZOID)[0]).abs()
    return Measured(five, lengths, errors, energy, torch.zeros_like(energy))


def confirm(parts: MetricParts, spline: Spline, rough: Measured, rule: Rule) -> Measured:
    """The same curves by the Gauss-Lobatto rule they were measured for, with two more points in every span."""
    pair = _inside(parts, spline, (rule.fractions[1], rule.fractions[3]))
    five = rough.squares.clone()
    five[..., 1], five[..., 3] = pair[..., 0], pair[..., 1]
    five = five.clamp_min(0.0)
    lengths, energy = _summed(spline, five, rule.weights)
    differ = (lengths - rough.lengths).abs()
    roughness = differ.sum(1) / rough.errors.sum(1).clamp_min(1e-300)
    return Measured(five, lengths, left_open(differ, rough.errors), energy, roughness)


def measure_coarser(parts: MetricParts, spline: Spline) -> tuple[Measured, int]:
    """Lengths of the curves through every second node, confirmed; and how many points of each it took."""
    coarser = interpolate(spline.knots[:, ::2], spline.nodes[:, ::2])
    found, _ = measure(parts, coarser, None, FIVE)
    return confirm(parts, coarser, found, FIVE), 4 * (coarser.knots.shape[1] - 1) + 1


def sharpen(parts: MetricParts, spline: Spline, known: Measured) -> Measured:
    """The same curves by Kronrod's extension of the rule with four points, with three more in every span.

    Gander & Gautschi 2000, Adaptive quadrature - revisited, section 4.
    """
    five = known.squares.clone()
    more = _inside(parts, spline, _KRONROD)
    every = torch.cat([five[..., (0, 1, 3, 4)], more], dim=2).clamp_min(0.0)
    lengths, energy = _summed(spline, every, _EXTENDED)
    trapezoid, simpson = (_summed(spline, five, rule)[0] for rule in (TRAPEZOID, SIMPSON))
    differ = (lengths - known.lengths).abs()
    roughness = _LATER * differ.sum(1) / (simpson - trapezoid).abs().sum(1).clamp_min(1e-300)
    five[..., 2] = every[..., 5]
    return Measured(five, lengths, left_open(differ, (known.lengths - simpson).abs()), energy, roughness)


def _summed(spline: Spline, squares: Tensor, weights: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Lengths of the spans (P, n) and energies (P,) from squared speeds (P, n, k) at the points of a rule."""
    h, shares = spline.knots.diff(dim=1), squares.new_tensor(weights)
    return squares.sqrt() @ shares * h, (squares @ shares * h).sum(1)


def left_open(differ: Tensor, before: Tensor) -> Tensor:
    """Errors (P, n) of a rule that differs from the one before by so much (P, n), and that one from its own before.

    Where a curve is smooth the error of each rule is the square of the last one's, where it has kinks they are alike;
    the first power of the ratio is the cautious side of both.
    """
    return differ * (differ / before.clamp_min(1e-300)).clamp(_BETTER, 1.0)


def chorded(parts: MetricParts, spline: Spline, known: Measured) -> Measured:
    """The same curves by chords over the quarters and halves of every span, where those are surer than ``known``.

    Speeds jump at the kinks of a piecewise linear decoder and no rule of quadrature integrates a jump well; the
    chords of its values do.  They fall short by a share that each halving divides by 2 (at kinks) to 4 (where all
    is smooth), so the length is between ``c₄ + (c₄ - c₂)/3`` and ``c₄ + (c₄ - c₂)``, or beside that by as much again.
    """
    if parts.embedding is None:
        return known
    count, spans, _ = known.squares.shape
    dim = spline.nodes.shape[2]
    points, _ = spline.inside(torch.linspace(0, 0.75, 4, dtype=spline.nodes.dtype, device=spline.nodes.device))
    dense = torch.cat([points.reshape(count, -1, dim), spline.nodes[:, -1:]], dim=1)
    flat = alike(dense)
    values = unpadded(parts.embedding(flat), dense)
    weight = None if parts.weight is None else unpadded(parts.weight(flat), dense)
    field = None if parts.field is None else unpadded(parts.field(flat), dense)
    fine, coarse = (
        chord_lengths(dense, values, weight, field, stride).view(count, spans, -1).sum(2) for stride in (1, 2)
    )
    errors = (fine - coarse).abs() * (2 / 3)
    choose = (errors.sum(1) < known.errors.sum(1))[:, None]
    return replace(
        known,
        lengths=torch.where(choose, fine + (fine - coarse) * (2 / 3), known.lengths),
        errors=torch.where(choose, errors, known.errors),
    )


def chord_lengths(
    points: Tensor, values: Tensor | None, weight: Tensor | None, field: Tensor | None, stride: int
) -> Tensor:
    """Lengths (..., k) of the chords between every so many-th of points (..., m, d), by what the parts are there."""
    step = points[..., ::stride, :].diff(dim=-2)
    squares = step.new_zeros(step.shape[:-1])
    if values is not None:
        squares = values[..., ::stride, :].diff(dim=-2).square().sum(-1)
    if weight is not None:
        at = weight[..., ::stride]
        squares = squares + (at[..., 1:] + at[..., :-1]) / 2 * step.square().sum(-1)
    if field is not None:
        at = field[..., ::stride, :, :]
        mean = (at[..., 1:, :, :] + at[..., :-1, :, :]) / 2
        squares = squares + torch.einsum("...i,...ij,...j->...", step, mean, step)
    return squares.clamp_min(0).sqrt()


def _inside(parts: MetricParts, spline: Spline, at: tuple[float, ...], known: Tensor | None = None) -> Tensor:
    points, velocities = spline.inside(spline.nodes.new_tensor(at))
    count, spans, number, dim = points.shape
    flat = squared_speeds(parts, points.reshape(count, -1, dim), velocities.reshape(count, -1, dim), known)
    return flat.view(count, spans, number)


def squared_speeds(parts: MetricParts, points: Tensor, velocities: Tensor, known: Tensor | None = None) -> Tensor:
    """At points and velocities, each (P, m, d): (P, m); ``known`` are the embedding's, if they are.

    NaN for curves that are not finite, which the metric is not asked about.
    """
    bad = ~(torch.isfinite(points).all(2) & torch.isfinite(velocities).all(2)).all(1)
    points, velocities = points.masked_fill(bad[:, None, None], 0.0), velocities.masked_fill(bad[:, None, None], 0.0)
    if known is not None:
        parts = MetricParts(weight=parts.weight, field=parts.field)
    flat = alike(velocities, apart=True)
    squares = unpadded(parts.inner(alike(points, apart=True), flat, flat), points, apart=True)
    if known is not None:
        squares = squares + known
    return squares.masked_fill(bad[:, None], float("nan"))
