"""Riemannian random walks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_range, to_points
from ..errors import InvalidArgumentError, NumericalError
from ..geodesic.acceleration import Acceleration
from ..metric import Metric


def random_walk(
    metric: Metric,
    start: ArrayLike,
    *,
    steps: int,
    time: float,
    inside: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> Any:
    """Brownian motion on the manifold, as a geodesic random walk.

    A step is a Gaussian tangent vector of covariance ``(time / steps) M⁻¹`` followed along its geodesic to second
    order, ``z + v + ½ a(z, v)``, which converges to Brownian motion as exact geodesics do (Jørgensen 1975; Schwarz,
    Herrmann, Sturm & Wardetzky 2023).

    Args:
        metric: any positive definite metric.
        start: (B, d).
        steps: of the walk; more follow the manifold more closely.
        time: t, in units of length squared: in flat space the mean squared distance run is ``d t``.
        inside: z (B, d) float64 tensor -> mask (B,), where the walk may go; a step that leaves it is not taken.
        seed: of the noise.

    Returns:
        Positions (B, steps + 1, d) in the kind and dtype of ``start``.

    Raises:
        InvalidArgumentError: a bad number of steps or time.
        NumericalError: the metric is singular or not finite on the way.
    """
    points, restore = to_points(start, "start", metric.dim)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidArgumentError(f"`steps` must be a positive integer; got {steps!r}.")
    size = math.sqrt(check_range(time, "time", 0.0, float("inf"), "the time of the walk") / steps)
    generator = torch.Generator().manual_seed(seed)
    z = points.double().clone()
    path = [z]
    with torch.no_grad():
        accelerate = Acceleration(metric.parts(), z if metric.support is None else metric.support.to(z)[:512])
        for _ in range(steps):
            factor, info = torch.linalg.cholesky_ex(torch.as_tensor(metric.tensor(z)).to(z))
            if bool((info != 0).any()):
                raise NumericalError(
                    f"the metric must be positive definite along the walk; it is not at {z[info != 0][0].tolist()}. "
                    "Repair it first (pm.repair), or keep the walk out of there by `inside`."
                )
            noise = size * torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)
            v = torch.linalg.solve_triangular(factor.mT, noise[..., None], upper=True)[..., 0]
            moved = z + v + 0.5 * accelerate(z, v)[0]
            stay = ~torch.isfinite(moved).all(1)
            if inside is not None:
                stay |= ~torch.as_tensor(inside(moved)).bool()
            z = torch.where(stay[:, None], z, moved)
            path.append(z)
    return restore(torch.stack(path, dim=1).to(points.dtype))
