"""Parallel transport of tangent vectors along geodesics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, as_tensor, check_count, describe, to_points
from ..errors import InvalidArgumentError
from ..geodesic import Solution, geodesic
from ..geodesic.curves.placement import even
from ..geodesic.curves.spline import interpolate
from ..geodesic.maps.settling import settle
from ..geodesic.options import beneath
from ..geodesic.relaxation.matrix_free import MOST_COLUMNS
from ..metric import Metric, check_metric
from .jets import Jet, christoffel_first, computes_single

#: how finely the geodesic is relaxed in few dimensions, where that costs little; directions err with the root of
#: what lengths err by
_FINE: dict[str, Any] = {"spans": 64, "tol": 1e-5, "rtol": 1e-5}
#: by how much a reach may grow from one moment to the next
_GROWTH = 8.0
#: moments whose matrices are found at once, and at most how many rows and axes of them, but for a single pair
_AT_ONCE, _ROWS = 16, 4096
#: error of half as many steps of fourth order, over the error of all, less one; what may be off; and what is off by
#: as much as the vector itself, so that nothing is left of it
_GAIN, _MOST, _LOST = 15.0, 1e-3, 1.0


@dataclass(frozen=True)
class Transport:
    """Vectors carried along geodesics.

    Attributes:
        vectors: (B, d) at the ends.  NaN where there is no curve, where the metric is not finite along it, and where
            drift or error is 1 or more, as where a curve has run to the edge of where the metric is defined: then
            nothing is known of the vector, and more steps or another geodesic are needed.
        norm_drift: ``|norm at the end / norm at the start - 1|`` (B,).  Transport along any curve keeps norms, so this
            is an error of the integration.
        error: of the integration over the norm at the start (B,), rotations included, estimated from what half as many
            steps would have made of the vectors (Richardson).  It does not see how far the curve is from the geodesic
            either, of which ``geodesics.residual`` tells.
        geodesics: the curves they were carried along, as they were before they were settled, with a status for each.
        converged: the geodesic converged, and drift and error are below 1e-3 (B,), bool.
    """

    vectors: Any
    norm_drift: Any
    error: Any
    geodesics: Solution
    converged: Any


def transport(
    metric: Metric, start: ArrayLike, end: ArrayLike, vectors: ArrayLike, *, num: int = 64, **options: Any
) -> Transport:
    """Carry ``vectors`` at ``start`` to ``end``, parallel along the geodesic between them.

    Integrates ``v̇ = -M⁻¹ Γ(ż, v)`` by the classical Runge-Kutta rule of fourth order.  In up to 8 dimensions the
    geodesic is relaxed more finely than by default, and in more it is settled by Newton's method where its Jacobians
    fit into memory, since vectors carried along two curves differ by the curvature of the area between them.

    Args:
        metric: any positive definite metric.
        start, end: (B, d).
        vectors: tangent vectors (B, d) at ``start``.
        num: steps along each curve, rounded up to an even number.  What they leave out falls with the fourth power, and
            ``error`` shows it; more of them do not bring the curve any nearer to the geodesic.  A smaller ``tol`` and
            more ``spans`` do.
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
    points, restore = to_points(start, "start", check_metric(metric).dim)
    carried = to_points(vectors, "vectors", metric.dim)[0].to(points.device).double()
    if len(carried) != len(points):
        raise InvalidArgumentError(
            f"`vectors` must hold one vector for each of the {len(points)} rows of `start`; got {describe(vectors)}."
        )
    num = check_count(num, "num", 1, "the steps along a curve")
    num += num % 2
    ends = to_points(end, "end", metric.dim)[0].to(points.device)
    fine = beneath(options, _FINE) if metric.dim <= MOST_COLUMNS else options
    solution = geodesic(metric, points.double(), ends.double(), **fine)
    times = torch.linspace(0, 1, 2 * num + 1, dtype=torch.float64, device="cpu")
    places, velocities = solution(times), solution.velocity(times)
    if metric.dim > MOST_COLUMNS:
        places, velocities = _settled(metric, solution, fine, times, places, velocities)
    # a pair without a curve carries nothing, and must not upset the metric's own checks
    lost = ~(torch.isfinite(places).flatten(1).all(1) & torch.isfinite(velocities).flatten(1).all(1))
    places = torch.where(lost[:, None, None], points.double()[:, None], places)
    velocities = velocities.masked_fill(lost[:, None, None], 0.0)
    before = _norm(metric, places[:, 0], carried)
    with torch.no_grad():
        matrices = _connections(metric, places, velocities)
        h = 1.0 / num
        first, coarse = next(matrices), carried
        for _ in range(0, num, 2):
            begin, second, middle, fourth, first = first, *(next(matrices) for _ in range(4))
            coarse = _step(coarse, 2 * h, begin, middle, first)
            carried = _step(_step(carried, h, begin, second, middle), h, middle, fourth, first)
    lost |= ~(torch.isfinite(carried) & torch.isfinite(coarse)).all(1)
    carried, change = (x.masked_fill(lost[:, None], 0.0) for x in (carried, coarse - carried))
    after, change = (_norm(metric, places[:, -1], x) for x in (carried, change))
    none = torch.zeros_like(after)
    drift = torch.where(before > 0, (after / before - 1).abs(), none).masked_fill(lost, float("nan"))
    error = torch.where(before > 0, change / before / _GAIN, none).masked_fill(lost, float("nan"))
    # what should have kept its norm and has not is no vector, however finite
    lost |= ~((drift < _LOST) & (error < _LOST))
    carried = carried.masked_fill(lost[:, None], float("nan"))
    good = as_tensor(solution.converged).to(drift.device) & (drift < _MOST) & (error < _MOST)
    carried, drift, error = (restore(x.to(points.dtype)) for x in (carried, drift, error))
    return Transport(carried, drift, error, solution, restore(good))


def _settled(
    metric: Metric, solution: Solution, options: dict[str, Any], times: Tensor, places: Tensor, velocities: Tensor
) -> tuple[Tensor, Tensor]:
    """Points and velocities (B, m, d) of curves that Newton's method has settled, where it has, at ``times`` (m,)."""
    with torch.no_grad():
        found = settle(metric, solution, options)
    # curves are settled where the metric is
    known = torch.isfinite(found.errors).to(places.device)
    if not bool(known.any()):
        return places, velocities
    curves = found.curves.to(places.device)[known]
    spline = interpolate(even(curves, curves.shape[1] - 1), curves)
    at, along = spline.at(times.to(curves).expand(len(curves), -1))
    places, velocities = places.clone(), velocities.clone()
    places[known], velocities[known] = at, along
    return places, velocities


def _connections(metric: Metric, places: Tensor, velocities: Tensor) -> Iterator[Tensor]:
    """``v -> -M⁻¹ Γ(ż, v)`` at places (B, m, d) with velocities, m matrices (B, d, d): it is linear in v.

    How far the metric stays what it is changes little from one moment to the next, and is looked for from there on, for
    as many moments at once as make few calls of many.
    """
    count, moments, dim = places.shape
    if count == 0:
        yield from places.new_zeros(moments, 0, dim, dim)
        return
    single = computes_single(metric, places[:, 0])
    jet = Jet(metric, places[:, 0], single)
    reach = jet.axis_reaches()
    yield _connection(jet, velocities[:, 0], reach)
    for where, along in zip(places[:, 1:].split(_AT_ONCE, 1), velocities[:, 1:].split(_AT_ONCE, 1), strict=True):
        # as many pairs at once as memory lets; how many moments is the same for all, and a pair's own steps its own
        pairs = max(_ROWS // (where.shape[1] * dim), 1)
        few = zip(where.split(pairs), along.split(pairs), reach.split(pairs), strict=True)
        found = [_ahead(metric, single, at, by, begin) for at, by, begin in few]
        yield from torch.cat([matrices for matrices, _ in found]).unbind(1)
        reach = torch.cat([last for _, last in found])


def _ahead(metric: Metric, single: bool, where: Tensor, along: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices (B, m, d, d) at places (B, m, d); reaches (B, d) at the last, from those before."""
    count, many, dim = where.shape
    jet, begin = Jet(metric, where.flatten(0, 1), single), reach.repeat_interleave(many, dim=0)
    found = jet.reaches(jet.axes, begin, _GROWTH * begin)
    found = torch.where(torch.isfinite(found), found, begin)
    matrices = _connection(jet, along.flatten(0, 1), found)
    return matrices.view(count, many, dim, dim), found.view(count, many, dim)[:, -1]


def _connection(jet: Jet, velocity: Tensor, reach: Tensor) -> Tensor:
    """The matrices (B, d, d) at a jet's points, where the metric is about a parabola as far as ``reach`` (B, d)."""
    first = jet.first(jet.share * reach)
    axes = torch.eye(velocity.shape[1], dtype=velocity.dtype, device=velocity.device)
    columns = [christoffel_first(velocity, e.expand_as(velocity), first) for e in axes]
    return -torch.linalg.solve_ex(jet.tensor, torch.stack(columns, dim=2))[0]


def _step(v: Tensor, h: float, first: Tensor, middle: Tensor, last: Tensor) -> Tensor:
    """Vectors (B, d) a time h later, from the matrices (B, d, d) at its beginning, middle and end."""
    k1 = _times(first, v)
    k2 = _times(middle, v + h / 2 * k1)
    k3 = _times(middle, v + h / 2 * k2)
    k4 = _times(last, v + h * k3)
    return v + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v[..., None])[..., 0]


def _norm(metric: Metric, z: Tensor, v: Tensor) -> Tensor:
    return as_tensor(metric.norm(z, v)).double()
