"""The velocity with which a discrete geodesic leaves, from the derivative of its energy by its first node.

The least energy of curves from ``z`` to a given end has the derivative ``-2 M(z) v`` by ``z``, ``v`` the velocity there
(the first variation).  Of a discrete curve it is the discrete Legendre transform (Marsden & West, Discrete mechanics
and variational integrators, 2001, section 1.3), and right to the fourth order in the spacing, as the energy is; the
slope of a curve through the nodes is of a lower one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...metric import MetricParts
from ..acceleration import solve_metric
from ..curves.elements import places, stiffness
from ..curves.rows import alike, unpadded
from ..curves.spline import Spline
from ..relaxation.energy import CANCELLED, CurveEnergy


def leaving(parts: MetricParts, energy: CurveEnergy, spline: Spline) -> tuple[Tensor, Tensor]:
    """Velocities (P, d) at the starts of curves with stationary nodes, and the metric there (P, d, d).

    Along directions without length they are the slopes of the spline, and where the metric has no value NaN.
    """
    nodes, h = spline.nodes[:, :3], spline.knots[:, :3].diff(dim=1)
    first, slope = nodes[:, :1], spline.slopes[:, 0]
    metric = parts.tensor(first[:, 0])
    momentum = _of_chords(energy, nodes, h) if parts.embedding is not None else torch.zeros_like(slope)
    if parts.weight is not None or parts.field is not None:
        momentum += _of_places(energy, nodes, h)
    return slope + solve_metric(metric, momentum - (metric @ slope[..., None])[..., 0]), metric


def _of_chords(energy: CurveEnergy, nodes: Tensor, h: Tensor) -> Tensor:
    """Half of what the chords of an embedding lose in energy when the first of nodes (P, 3, d) moves (P, d)."""
    embedding = energy.embedding
    assert embedding is not None
    rows = alike(nodes, apart=True)
    values = unpadded(embedding(rows), nodes, apart=True)
    chords, form = values.diff(dim=1), stiffness(h)
    flux = form.flux(chords)
    grain = 2 * energy.precision * values[:, 0].norm(dim=1) * flux.norm(dim=(1, 2))
    close = grain > CANCELLED * (flux * chords).sum((1, 2))
    if bool(close.any()):
        # the values of near nodes agree in most of their digits; their derivatives do not lose any
        step = nodes.diff(dim=1)
        ahead, behind = (
            unpadded(embedding.jvp(alike(at, apart=True), alike(step, apart=True))[1], step, apart=True)
            for at in (nodes[:, 1:], nodes[:, :-1])
        )
        chords = torch.where(close[:, None, None], (ahead + behind) / 2, chords)
        flux = form.flux(chords)
    start, outward = nodes[:, :1], flux[:, :1]
    return unpadded(embedding.vjp(alike(start, apart=True), alike(outward, apart=True))[1], start, apart=True)[:, 0]


def _of_places(energy: CurveEnergy, nodes: Tensor, h: Tensor) -> Tensor:
    """The same of the weight's and the field's quadrature."""
    where = places(h, dense=energy.dense(nodes.shape[2]))
    points, v = (part[:, 0] for part in where.points(nodes))
    flat, way = alike(points, apart=True), alike(v, apart=True)
    along, by_place = torch.zeros_like(way), torch.zeros_like(way)
    if energy.weight is not None:
        w, slope = energy.weight.value_and_gradient(flat)
        along, by_place = along + w[:, None] * way, by_place + way.square().sum(1, keepdim=True) * slope
    if energy.field is not None:
        pulled = energy.field.pull(flat, way)
        along, by_place = along + pulled[0], by_place + pulled[1]
    along, by_place = (unpadded(part, points, apart=True) for part in (along, by_place))
    share, shape, slope = where.weights[:, 0, :, None], where.shapes[:, 0, :, :1], where.slopes[:, 0, :, :1]
    return -(share * (slope * along + shape * by_place / 2)).sum(1)
