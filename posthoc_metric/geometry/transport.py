"""Parallel transport of tangent vectors along geodesics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_count, describe, to_points
from ..errors import InvalidArgumentError
from ..geodesic import Solution, geodesic
from ..geodesic.matrix_free import MOST_COLUMNS
from ..geodesic.options import beneath
from ..metric import Metric
from .jets import Jet, christoffel_first, computes_single

#: how finely the geodesic is relaxed in few dimensions, where that costs little; directions err with the root of
#: what lengths err by
_FINE: dict[str, Any] = {"spans": 64, "tol": 1e-5, "rtol": 1e-5}
#: by how much a reach may grow from one moment to the next
_GROWTH = 8.0


@dataclass(frozen=True)
class Transport:
    """Vectors carried along geodesics.

    Attributes:
        vectors: (B, d) at the ends.
        norm_drift: ``|norm at the end / norm at the start - 1|`` (B,).  Transport along any curve keeps norms, so this
            is an error of the integration; it does not see how far the curve is from the geodesic, of which
            ``geodesics.residual`` tells.
        geodesics: the curves they were carried along, with a status for each.
        converged: the geodesic converged and the drift is below 1e-3 (B,), bool.
    """

    vectors: Any
    norm_drift: Any
    geodesics: Solution
    converged: Any


def transport(
    metric: Metric, start: ArrayLike, end: ArrayLike, vectors: ArrayLike, *, num: int = 64, **options: Any
) -> Transport:
    """Carry ``vectors`` at ``start`` to ``end``, parallel along the geodesic between them.

    Integrates ``v̇ = -M⁻¹ Γ(ż, v)`` by the classical Runge-Kutta rule of fourth order.  In up to 8 dimensions the
    geodesic is relaxed more finely than by default, since vectors carried along two curves differ by the curvature of
    the area between them.

    Args:
        metric: any positive definite metric.
        start, end: (B, d).
        vectors: tangent vectors (B, d) at ``start``.
        num: steps along each curve.  What they leave out falls with the fourth power, and ``norm_drift`` shows it; more
            of them do not bring the curve any nearer to the geodesic.  A smaller ``tol`` and more ``spans`` do.
        **options: of :func:`posthoc_metric.geodesic`; by default ``spans=64, tol=1e-5, rtol=1e-5`` in up to 8
            dimensions.

    Beyond what the geodesic takes, the metric is asked for at ``(2 num + 1) (4 d + 1)`` points for each pair, and to
    find the steps of the differences, which are a pair's own, at two or four more for each trial along each axis: one
    or two at each moment, about five at the first, never more than 16.

    Returns:
        :class:`Transport`, in the kind and dtype of ``start``.

    Raises:
        InvalidArgumentError: wrong shapes.
    """
    points, restore = to_points(start, "start", metric.dim)
    carried = to_points(vectors, "vectors", metric.dim)[0].to(points.device).double()
    if len(carried) != len(points):
        raise InvalidArgumentError(
            f"`vectors` must hold one vector for each of the {len(points)} rows of `start`; got {describe(vectors)}."
        )
    num = check_count(num, "num", 1, "the steps along a curve")
    ends = to_points(end, "end", metric.dim)[0].to(points.device)
    fine = beneath(options, _FINE) if metric.dim <= MOST_COLUMNS else options
    solution = geodesic(metric, points.double(), ends.double(), **fine)
    times = torch.linspace(0, 1, 2 * num + 1, dtype=torch.float64)
    places, velocities = solution(times), solution.velocity(times)
    # a pair without a curve carries nothing, and must not upset the metric's own checks
    lost = ~(torch.isfinite(places).flatten(1).all(1) & torch.isfinite(velocities).flatten(1).all(1))
    places = torch.where(lost[:, None, None], points.double()[:, None], places)
    velocities = velocities.masked_fill(lost[:, None, None], 0.0)
    before = _norm(metric, places[:, 0], carried)
    with torch.no_grad():
        connection = _Connection(metric, computes_single(metric, places[:, 0]))
        h = 1.0 / num
        first = connection.at(places[:, 0], velocities[:, 0])
        for index in range(num):
            middle, last = (connection.at(places[:, 2 * index + i], velocities[:, 2 * index + i]) for i in (1, 2))
            k1 = _times(first, carried)
            k2 = _times(middle, carried + h / 2 * k1)
            k3 = _times(middle, carried + h / 2 * k2)
            k4 = _times(last, carried + h * k3)
            carried = carried + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            first = last
    lost |= ~torch.isfinite(carried).all(1)
    carried = carried.masked_fill(lost[:, None], 0.0)
    after = _norm(metric, places[:, -1], carried)
    drift = torch.where(before > 0, (after / before - 1).abs(), torch.zeros_like(after))
    carried, drift = carried.masked_fill(lost[:, None], float("nan")), drift.masked_fill(lost, float("nan"))
    good = torch.as_tensor(solution.converged).to(drift.device) & (drift < 1e-3)
    dtype = points.dtype
    return Transport(restore(carried.to(dtype)), restore(drift.to(dtype)), solution, restore(good))


class _Connection:
    """``v -> -M⁻¹ Γ(ż, v)`` at one moment of all curves after another: a matrix for each, since it is linear in v.

    How far the metric stays what it is changes little from one moment to the next, and is looked for from there on.
    """

    def __init__(self, metric: Metric, single: bool):
        self.metric = metric
        self.single = single
        self.reach: Tensor | None = None

    def at(self, z: Tensor, velocity: Tensor) -> Tensor:
        """The matrices (B, d, d) at points z (B, d) and their velocities."""
        if len(z) == 0:
            return z.new_zeros(0, z.shape[1], z.shape[1])
        jet = Jet(self.metric, z, self.single)
        if self.reach is None:
            self.reach = jet.axis_reaches()
        else:
            found = jet.reaches(jet.axes, self.reach, _GROWTH * self.reach)
            self.reach = torch.where(torch.isfinite(found), found, self.reach)
        first = jet.first(jet.share * self.reach)
        columns = [christoffel_first(velocity, e.expand_as(z), first) for e in torch.eye(z.shape[1]).to(z)]
        return -torch.linalg.solve_ex(jet.tensor, torch.stack(columns, dim=2))[0]


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v[..., None])[..., 0]


def _norm(metric: Metric, z: Tensor, v: Tensor) -> Tensor:
    return torch.as_tensor(metric.norm(z, v)).double()
