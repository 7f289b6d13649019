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
#: points of a span that no other span shares, plus one for the end of the curve
POINTS_A_SPAN = 4


@dataclass
class Measured(Batch):
    """Lengths of P curves of n spans.

    Attributes:
        length: (P,).
        energy: ``∫ ‖ż‖² dt`` (P,).
        error: sum over the spans of the difference between the two rules (P,).
        spans: length of every span (P, n).
        span_errors: that difference, span by span (P, n).
        speeds: Riemannian speed at five points of every span (P, n, 5).
    """

    length: Tensor
    energy: Tensor
    error: Tensor
    spans: Tensor
    span_errors: Tensor
    speeds: Tensor


def measure(parts: MetricParts, spline: Spline) -> Measured:
    """Integrate speed and energy over ``spline``; NaN where the metric is not finite on a curve."""
    nodes = spline.nodes
    fractions = torch.tensor(FRACTIONS, dtype=nodes.dtype, device=nodes.device)
    points, velocities = spline.inside(fractions[:-1])
    count, spans, _, dim = points.shape
    points = torch.cat([points.reshape(count, -1, dim), nodes[:, -1:]], dim=1)
    velocities = torch.cat([velocities.reshape(count, -1, dim), spline.slopes[:, -1:]], dim=1)
    # curves that are not finite are asked at the origin instead, so that the metric's own checks pass
    bad = ~(torch.isfinite(points).all(2) & torch.isfinite(velocities).all(2)).all(1)
    points, velocities = points.masked_fill(bad[:, None, None], 0.0), velocities.masked_fill(bad[:, None, None], 0.0)
    squares = parts.inner(points.reshape(-1, dim), *(velocities.reshape(-1, dim),) * 2).view(count, -1)
    squares = squares.masked_fill(bad[:, None], float("nan")).clamp_min(0.0)
    inner = squares[:, :-1].view(count, spans, POINTS_A_SPAN)
    squares = torch.cat([inner, torch.cat([inner[:, 1:, :1], squares[:, -1:, None]], dim=1)], dim=2)
    speeds = squares.sqrt()
    h = spline.knots.diff(dim=1)
    fine = speeds @ speeds.new_tensor(_LOBATTO) * h
    coarse = speeds @ speeds.new_tensor(_SIMPSON) * h
    errors = (fine - coarse).abs()
    energy = (squares @ speeds.new_tensor(_LOBATTO) * h).sum(1)
    return Measured(fine.sum(1), energy, errors.sum(1), fine, errors, speeds)
