"""Riemannian random walks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_count, check_range, check_seed, to_points
from ..errors import NumericalError
from ..geodesic import shoot
from ..geodesic.acceleration import Acceleration
from ..matrix_field import to_matrices
from ..metric import Metric
from .region import Inside, admitted, check_inside

#: largest share of a step that its second order may be, and the accuracy of steps that are integrated
_SMALL, _RTOL = 0.25, 1e-4


def random_walk(
    metric: Metric,
    start: ArrayLike,
    *,
    steps: int,
    time: float,
    inside: Inside | None = None,
    seed: int = 0,
) -> Any:
    """Brownian motion on the manifold, as a geodesic random walk.

    A step is a Gaussian tangent vector of covariance ``(time / steps) M⁻¹`` followed along its geodesic to second
    order, ``z + v + ½ a(z, v)``, which converges to Brownian motion as exact geodesics do (Jørgensen 1975; Schwarz,
    Herrmann, Sturm & Wardetzky 2023).  Where the second order is no small part of the step it is integrated instead.

    Args:
        metric: any positive definite metric.
        start: (B, d).
        steps: of the walk; more follow the manifold more closely.
        time: t, in units of length squared: in flat space the mean squared distance run is ``d t``.
        inside: z (B, d) float64 tensor -> mask (B,), where the walk may go; a step that leaves it is not taken, nor is
            one whose geodesic does not arrive.
        seed: of the noise.

    Returns:
        Positions (B, steps + 1, d) in the kind and dtype of ``start``.

    Raises:
        InvalidArgumentError: a bad number of steps, time or seed, or ``inside`` gives no mask.
        NumericalError: the metric is singular or not finite on the way.
    """
    points, restore = to_points(start, "start", metric.dim)
    inside, steps = check_inside(inside), check_count(steps, "steps", 1, "the steps of the walk")
    size = math.sqrt(check_range(time, "time", 0.0, float("inf"), "the time of the walk") / steps)
    generator = torch.Generator().manual_seed(check_seed(seed))
    z = points.double().clone()
    path = [z]
    with torch.no_grad():
        accelerate = Acceleration(metric.parts(), z if metric.support is None else metric.support.to(z)[:512])
        for _ in range(steps):
            factor, info = torch.linalg.cholesky_ex(to_matrices(metric.tensor(z), z, "`tensor(z)`"))
            if bool((info != 0).any()):
                raise NumericalError(
                    f"the metric must be positive definite along the walk; it is not at {z[info != 0][0].tolist()}. "
                    "Repair it first (pm.repair), or keep the walk out of there by `inside`."
                )
            noise = size * torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)
            v = torch.linalg.solve_triangular(factor.mT, noise[..., None], upper=True)[..., 0]
            bend = 0.5 * accelerate(z, v)[0]
            moved = z + v + bend
            long = (~(_norm(factor, bend) <= _SMALL * _norm(factor, v))).nonzero().flatten()
            if len(long):
                shot = shoot(metric, z[long], v[long], rtol=_RTOL)
                moved[long] = shot.points.masked_fill(~shot.converged[:, None], torch.nan)
            stay = ~(torch.isfinite(moved).all(1) & admitted(inside, moved))
            z = torch.where(stay[:, None], z, moved)
            path.append(z)
    return restore(torch.stack(path, dim=1).to(points.dtype))


def _norm(factor: Tensor, v: Tensor) -> Tensor:
    """Riemannian norms (B,) of vectors (B, d) where the metric has the lower Cholesky factors (B, d, d)."""
    return (factor.mT @ v[..., None])[..., 0].norm(dim=1)
