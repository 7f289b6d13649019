"""Riemannian random walks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_count, check_range, check_seed, to_points
from ..errors import NumericalError
from ..geodesic.acceleration import Acceleration
from ..geodesic.guard import guard
from ..metric import Metric, check_metric
from .region import Inside, admitted, check_inside

#: largest share by which a velocity may turn or its norm may change on a step, and the most that one is divided into
_SMALL, _MOST_STEPS = 0.25, 200


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

    A step is a Gaussian tangent vector of covariance ``(time / steps) M⁻¹`` followed along its geodesic, which
    converges to Brownian motion (Jørgensen 1975).  Second order would be enough for that (Schwarz, Herrmann, Sturm &
    Wardetzky 2023); third order is as near to it as exact geodesics are: rates are off by a share of about
    ``Ric time / (6 steps)``, where ``Ric = (d - 1) K`` at a constant curvature K.  A step on which the velocity turns
    much, or would change its Riemannian norm, which geodesics keep, is followed in smaller ones.

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
        InvalidArgumentError: a wrong shape, a bad number of steps, time or seed, or ``inside`` gives no mask.
        NumericalError: the metric is singular or not finite on the way.
    """
    points, restore = to_points(start, "start", check_metric(metric).dim)
    inside, steps = check_inside(inside), check_count(steps, "steps", 1, "the steps of the walk")
    size = math.sqrt(check_range(time, "time", 0.0, float("inf"), "the time of the walk") / steps)
    generator = torch.Generator().manual_seed(check_seed(seed))
    z = points.double().clone()
    path = [z]
    with torch.no_grad():
        stride = _Stride(metric, z)
        matrices = stride.matrices(z)
        for _ in range(steps):
            factor, info = torch.linalg.cholesky_ex(matrices)
            if bool((info != 0).any()):
                raise NumericalError(
                    f"the metric must be positive definite along the walk; it is not at {z[info != 0][0].tolist()}. "
                    "Repair it first (pm.repair), or keep the walk out of there by `inside`."
                )
            noise = size * torch.randn(z.shape, generator=generator, device="cpu", dtype=torch.float64).to(z)
            v = torch.linalg.solve_triangular(factor.mT, noise[..., None], upper=True)[..., 0]
            moved, there = stride(z, v, noise.norm(dim=1))
            stay = ~(torch.isfinite(moved).all(1) & admitted(inside, moved))
            z = torch.where(stay[:, None], z, moved)
            matrices = torch.where(stay[:, None, None], matrices, there)
            path.append(z)
    return restore(torch.stack(path, dim=1).to(points.dtype))


class _Stride:
    """Where geodesics are at time one, to third order, or in smaller steps where that is too coarse."""

    def __init__(self, metric: Metric, z: Tensor):
        self._parts = guard(metric.parts())
        self._accelerate = Acceleration(self._parts, z if metric.support is None else metric.support.to(z)[:512])

    def matrices(self, z: Tensor) -> Tensor:
        """M (B, d, d) at finite points z (B, d); NaN where it has no value."""
        return self._parts.tensor(z)

    def __call__(self, z: Tensor, v: Tensor, speed: Tensor) -> tuple[Tensor, Tensor]:
        """Their ends (B, d) and M there (B, d, d), for velocities v of Riemannian norm ``speed`` (B,).

        NaN where one takes too many steps.
        """
        a, _ = self._accelerate(z, v)
        halfway, _ = self._accelerate(z + 0.5 * v + a / 8, v + 0.5 * a)
        end, matrices, good = self._tried(z, z + v + a / 6 + halfway / 3, v + halfway, speed)
        good &= 0.5 * a.norm(dim=1) <= _SMALL * v.norm(dim=1)
        rows = (~good).nonzero().flatten()
        if len(rows):
            end[rows] = self._followed(z[rows], v[rows], a[rows], speed[rows])
            arrived = torch.isfinite(end[rows]).all(1)
            matrices[rows[arrived]] = self.matrices(end[rows[arrived]])
        return end, matrices

    def _followed(self, z: Tensor, v: Tensor, a: Tensor, speed: Tensor) -> Tensor:
        """By the midpoint rule, in steps on which the velocity neither turns much nor loses its norm."""
        end, left = torch.full_like(z, torch.nan), torch.ones_like(speed)
        row, h = torch.arange(len(z), device=z.device), torch.ones_like(speed)
        for _ in range(_MOST_STEPS):
            h = torch.minimum(torch.minimum(h, left), _SMALL * v.norm(dim=1) / a.norm(dim=1).clamp_min(1e-300))
            step = h[:, None]
            middle = v + 0.5 * step * a
            turned, _ = self._accelerate(z + 0.5 * step * v, middle)
            there, faster = z + step * middle, v + step * turned
            there, matrices, good = self._tried(z, there, faster, speed)
            kept = (speed / _norm(matrices, faster))[:, None]
            z, v = torch.where(good[:, None], there, z), torch.where(good[:, None], faster * kept, v)
            left, h = torch.where(good, left - h, left), torch.where(good, 2 * h, h / 4)
            arrived = good & (left <= 0)
            end[row[arrived]] = z[arrived]
            row, z, v, left, h, speed = (x[~arrived] for x in (row, z, v, left, h, speed))
            if not len(row):
                break
            a, _ = self._accelerate(z, v)
        return end

    def _tried(self, z: Tensor, there: Tensor, v: Tensor, speed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points ``there`` (B, d), M there (B, d, d), and whether v is about as long there as it was (B,)."""
        known = torch.isfinite(there).all(1) & torch.isfinite(v).all(1)
        there = torch.where(known[:, None], there, z)
        matrices = self.matrices(there)
        return there, matrices, known & ((_norm(matrices, v) - speed).abs() <= _SMALL * speed)


def _norm(matrices: Tensor, v: Tensor) -> Tensor:
    """Riemannian norms (B,) of vectors (B, d) under M (B, d, d)."""
    return torch.einsum("bi,bij,bj->b", v, matrices, v).clamp_min(0).sqrt()
