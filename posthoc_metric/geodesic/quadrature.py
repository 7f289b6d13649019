"""The length of an interpolated curve, integrated inside its spans and checked by a second rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..metric import MetricParts
from .batch import Batch
from .spline import Spline

#: Gauss-Lobatto rule with five points on [0, 1] (degree 7); Simpson's rule (degree 3) shares three of them
FRACTIONS = (0.0, 0.5 - (3 / 28) ** 0.5, 0.5, 0.5 + (3 / 28) ** 0.5, 1.0)
_LOBATTO = (1 / 20, 49 / 180, 16 / 45, 49 / 180, 1 / 20)
_SIMPSON = (1 / 6, 0.0, 2 / 3, 0.0, 1 / 6)


@dataclass
class Measured(Batch):
    """Lengths of P curves of n spans.

    Attributes:
        squares: squared Riemannian speeds at five points of every span (P, n, 5).
        lengths: of every span (P, n).
        errors: difference between the two rules, span by span (P, n).
        energy: ``∫ ‖ż‖² dt`` (P,).
    """

    squares: Tensor
    lengths: Tensor
    errors: Tensor
    energy: Tensor

    @property
    def length(self) -> Tensor:
        """(P,)."""
        return self.lengths.sum(1)


def measure(parts: MetricParts, spline: Spline, at_nodes: Tensor | None) -> Measured:
    """Lengths by Simpson's rule: ``errors`` are not known and zero.

    Args:
        at_nodes: ``J_Fᵀ J_F`` at the nodes (P, n+1, d, d), which the relaxation leaves behind.

    NaN where the metric is not finite on a curve.
    """
    squares = _squared_speeds(parts, spline.nodes, spline.slopes, at_nodes)
    middle = _inside(parts, spline, (2,))
    quarter, three = ((1 - u) * squares[:, :-1] + u * squares[:, 1:] for u in (FRACTIONS[1], FRACTIONS[3]))
    # a parabola through the three points stands in for the two that are not asked for
    bulge = middle[..., 0] - (squares[:, :-1] + squares[:, 1:]) / 2
    quarter, three = (part + 4 * u * (1 - u) * bulge for part, u in ((quarter, FRACTIONS[1]), (three, FRACTIONS[3])))
    five = torch.stack([squares[:, :-1], quarter, middle[..., 0], three, squares[:, 1:]], dim=2).clamp_min(0.0)
    h = spline.knots.diff(dim=1)
    lengths = five.sqrt() @ five.new_tensor(_SIMPSON) * h
    energy = (five @ five.new_tensor(_SIMPSON) * h).sum(1)
    return Measured(five, lengths, torch.zeros_like(lengths), energy)


def confirm(parts: MetricParts, spline: Spline, rough: Measured) -> Measured:
    """The same curves by the Gauss-Lobatto rule, with two more points in every span."""
    pair = _inside(parts, spline, (1, 3))
    five = rough.squares.clone()
    five[..., 1], five[..., 3] = pair[..., 0], pair[..., 1]
    five = five.clamp_min(0.0)
    h = spline.knots.diff(dim=1)
    lengths = five.sqrt() @ five.new_tensor(_LOBATTO) * h
    energy = (five @ five.new_tensor(_LOBATTO) * h).sum(1)
    return Measured(five, lengths, (lengths - rough.lengths).abs(), energy)


def _inside(parts: MetricParts, spline: Spline, which: tuple[int, ...]) -> Tensor:
    fractions = spline.nodes.new_tensor([FRACTIONS[i] for i in which])
    points, velocities = spline.inside(fractions)
    count, spans, number, dim = points.shape
    flat = _squared_speeds(parts, points.reshape(count, -1, dim), velocities.reshape(count, -1, dim), None)
    return flat.view(count, spans, number)


def _squared_speeds(parts: MetricParts, points: Tensor, velocities: Tensor, known: Tensor | None) -> Tensor:
    """(P, m, d), (P, m, d) -> (P, m); NaN for curves that are not finite, which the metric is not asked about."""
    count, number, dim = points.shape
    bad = ~(torch.isfinite(points).all(2) & torch.isfinite(velocities).all(2)).all(1)
    points, velocities = points.masked_fill(bad[:, None, None], 0.0), velocities.masked_fill(bad[:, None, None], 0.0)
    flat = velocities.reshape(-1, dim)
    if known is not None:
        parts = MetricParts(weight=parts.weight, field=parts.field)
    squares = parts.inner(points.reshape(-1, dim), flat, flat).view(count, number)
    if known is not None:
        squares = squares + torch.einsum("pmi,pmij,pmj->pm", velocities, known, velocities)
    return squares.masked_fill(bad[:, None], float("nan"))
