"""Parallel transport of tangent vectors along geodesics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, describe, to_points
from ..errors import InvalidArgumentError
from ..geodesic import Solution, geodesic
from ..metric import Metric
from .jets import Jet, choose_step, christoffel_first


@dataclass(frozen=True)
class Transport:
    """Vectors carried along geodesics.

    Attributes:
        vectors: (B, d) at the ends.
        norm_drift: ``|norm at the end / norm at the start - 1|`` (B,); transport keeps norms, so this is its error.
        geodesics: the curves they were carried along, with a status for each.
        converged: the geodesic converged and the drift is below 1e-3 (B,), bool.
    """

    vectors: Any
    norm_drift: Any
    geodesics: Solution
    converged: Any


def transport(
    metric: Metric, start: ArrayLike, end: ArrayLike, vectors: ArrayLike, *, num: int = 32, **options: Any
) -> Transport:
    """Carry ``vectors`` at ``start`` to ``end``, parallel along the geodesic between them.

    Integrates ``v̇ = -M⁻¹ Γ(ż, v)`` by the classical Runge-Kutta rule of fourth order.

    Args:
        metric: any positive definite metric.
        start, end: (B, d).
        vectors: tangent vectors (B, d) at ``start``.
        num: steps along each geodesic; its error falls with the fourth power.
        **options: of :func:`posthoc_metric.geodesic`.

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
    if isinstance(num, bool) or not isinstance(num, int) or num < 1:
        raise InvalidArgumentError(f"`num` must be a positive integer, the steps along a geodesic; got {num!r}.")
    ends = to_points(end, "end", metric.dim)[0].to(points.device)
    solution = geodesic(metric, points.double(), ends.double(), **options)
    step = choose_step(metric, points.double(), None)
    times = torch.linspace(0, 1, 2 * num + 1, dtype=torch.float64)
    places, velocities = solution(times), solution.velocity(times)
    # a pair without a curve carries nothing, and must not upset the metric's own checks
    lost = ~(torch.isfinite(places).flatten(1).all(1) & torch.isfinite(velocities).flatten(1).all(1))
    places = torch.where(lost[:, None, None], points.double()[:, None], places)
    velocities = velocities.masked_fill(lost[:, None, None], 0.0)
    before = _norm(metric, places[:, 0], carried)
    with torch.no_grad():
        field = [_Connection(metric, places[:, 0], velocities[:, 0], step)]
        h = 1.0 / num
        for index in range(num):
            field += [_Connection(metric, places[:, 2 * index + i], velocities[:, 2 * index + i], step) for i in (1, 2)]
            first, middle, last = field
            k1 = first(carried)
            k2 = middle(carried + h / 2 * k1)
            k3 = middle(carried + h / 2 * k2)
            k4 = last(carried + h * k3)
            carried = carried + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            field = [last]
    lost |= ~torch.isfinite(carried).all(1)
    carried = carried.masked_fill(lost[:, None], 0.0)
    after = _norm(metric, places[:, -1], carried)
    drift = torch.where(before > 0, (after / before - 1).abs(), torch.zeros_like(after))
    carried, drift = carried.masked_fill(lost[:, None], float("nan")), drift.masked_fill(lost, float("nan"))
    good = torch.as_tensor(solution.converged).to(drift.device) & (drift < 1e-3)
    dtype = points.dtype
    return Transport(restore(carried.to(dtype)), restore(drift.to(dtype)), solution, restore(good))


class _Connection:
    """``v -> -M⁻¹ Γ(ż, v)`` at one moment of all curves: a matrix for each, since it is linear in v."""

    def __init__(self, metric: Metric, z: Tensor, velocity: Tensor, step: float):
        jet = Jet(metric, z, step)
        first = jet.first()
        basis = torch.eye(z.shape[1]).to(z)
        columns = [christoffel_first(jet, velocity, e.expand_as(z), first) for e in basis]
        self.matrix = -torch.linalg.solve_ex(jet.tensor, torch.stack(columns, dim=2))[0]

    def __call__(self, v: Tensor) -> Tensor:
        return (self.matrix @ v[..., None])[..., 0]


def _norm(metric: Metric, z: Tensor, v: Tensor) -> Tensor:
    return torch.as_tensor(metric.norm(z, v)).double()
