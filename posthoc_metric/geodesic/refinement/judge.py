"""What is true of a given curve: the facts that the relaxation reports, for curves that it did not make."""

from __future__ import annotations

import torch
from torch import Tensor

from ...metric import MetricParts
from ..curves.placement import Clock, make_clock
from ..curves.quadrature import FIVE, chorded, confirm, measure
from ..curves.spline import Spline
from ..relaxation.energy import CurveEnergy
from ..relaxation.gauss_newton import relax
from ..status import CODES, Status
from .candidates import Facts


def judge(parts: MetricParts, spline: Spline, memory_limit: int) -> tuple[Facts, Clock, Tensor]:
    """Facts and clocks of P curves of n spans, and the points of each that the metric was asked for (P,).

    The length is that of the Gauss-Lobatto rule, confirmed by Simpson's and by chords; the residual that of the
    discrete geodesic equation at the nodes; ``length_error`` is the sum of what the quadrature leaves open and of
    what relaxing the curve would still gain.  ``status`` is ``CONVERGED`` throughout, for the caller to correct.
    """
    count, total, dim = spline.nodes.shape
    width = 1 if parts.embedding is None else parts.embedding.output_dim
    # values, bend and their like, and Jacobians with copies between them
    block = max(1, memory_limit // (8 * total * (width * (9 * dim + 12) + 60 * dim * dim)))
    energy = CurveEnergy(parts, _probe(spline), memory_limit)
    facts, clocks, points = [], [], []
    for rows in torch.arange(count, device=spline.nodes.device).split(block):
        one = spline.take(rows)
        # without steps a relaxation is a linearisation, with the residual it starts from
        still = relax(energy, one.nodes, one.knots, tol=0.0, max_steps=0)
        known = None if still.image is None else still.image.only_nodes()
        simpson, asked = measure(parts, one, known, FIVE)
        measured = chorded(parts, one, confirm(parts, one, simpson, FIVE))
        # the nodes, and two and four more in every span
        points.append(still.evaluations + asked + 6 * (total - 1))
        speeds = measured.squares.clamp_min(0).sqrt()
        # a quarter by the Gauss-Newton model, which is stiffer than the energy along flat valleys
        gain = measured.length * still.residual.square() / 2
        facts.append(
            Facts(
                length=measured.length,
                energy=measured.energy,
                residual=still.residual,
                length_error=(measured.errors.sum(1) + gain).nan_to_num(nan=float("inf"), posinf=float("inf")),
                speed_variation=(speeds.amax((1, 2)) - speeds.amin((1, 2))) / speeds.mean((1, 2)).clamp_min(1e-300),
                spans=torch.full_like(still.steps, total - 1),
                status=torch.full_like(still.steps, CODES[Status.CONVERGED]),
                chord_length=still.energy.clamp_min(0).sqrt(),
            )
        )
        clocks.append(make_clock(one, speeds, FIVE))
    return Facts.join(facts), Clock.join(clocks), torch.cat(points)


def _probe(spline: Spline) -> Tensor:
    """Some points of the curves that are finite, or the origin if none is."""
    points = spline.nodes[:, ::8].flatten(0, 1)
    points = points[torch.isfinite(points).all(1)][:512]
    return points if len(points) else spline.nodes.new_zeros(1, spline.nodes.shape[2])
