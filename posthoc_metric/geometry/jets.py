"""Derivatives of a metric's inner products, by differences of fourth order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._arrays import check_range, is_single
from ..metric import Metric

# f'(0) and f''(0) from f at -2h, -h, 0, h, 2h
_FIRST = (1 / 12, -2 / 3, 0.0, 2 / 3, -1 / 12)
_SECOND = (-1 / 12, 4 / 3, -5 / 2, 4 / 3, -1 / 12)
_AT = (-2, -1, 0, 1, 2)


class Jet:
    """A metric and its derivatives at points z (B, d).

    Args:
        metric: any metric.
        z: (B, d) float64.
        step: latent distance between the points of a difference.
    """

    def __init__(self, metric: Metric, z: Tensor, step: float):
        self.metric = metric
        self.z = z
        self.step = step
        self.tensor = _tensor(metric, z)

    def first(self) -> Tensor:
        """``∂_k M_ij``, (B, d, d, d) with k first."""
        dim = self.z.shape[1]
        return torch.stack([self.along(axis) for axis in torch.eye(dim).to(self.z)], dim=1)

    def along(self, u: Tensor) -> Tensor:
        """``∂_u M`` (B, d, d) for directions u, (d,) or (B, d)."""
        return self._line(u, _FIRST) / self.step

    def twice_along(self, u: Tensor) -> Tensor:
        """``∂_u ∂_u M`` (B, d, d)."""
        return self._line(u, _SECOND) / self.step**2

    def mixed(self, u: Tensor, v: Tensor) -> Tensor:
        """``∂_u ∂_v M`` (B, d, d), by polarisation."""
        return (self.twice_along(u + v) - self.twice_along(u - v)) / 4

    def _line(self, u: Tensor, rule: tuple[float, ...]) -> Tensor:
        total = torch.zeros_like(self.tensor)
        for place, weight in zip(_AT, rule, strict=True):
            if weight:
                where = self.tensor if place == 0 else _tensor(self.metric, self.z + place * self.step * u)
                total = total + weight * where
        return total


def christoffel_first(jet: Jet, u: Tensor, v: Tensor, first: Tensor | None = None) -> Tensor:
    """``Γ(u, v)`` of the first kind (B, d): ``½ (∂_u M v + ∂_v M u - ∇(uᵀ M v))`` for u, v (B, d)."""
    first = jet.first() if first is None else first
    by_u, by_v = (torch.einsum("bkij,bk->bij", first, x) for x in (u, v))
    gradient = torch.einsum("bkij,bi,bj->bk", first, u, v)
    return 0.5 * ((by_u @ v[..., None])[..., 0] + (by_v @ u[..., None])[..., 0] - gradient)


def choose_step(metric: Metric, z: Tensor, step: float | None) -> float:
    """``step``, or one that suits the precision of the metric and the spread of its support or of ``z``."""
    if step is not None:
        return check_range(step, "step", 0.0, float("inf"), "the latent distance between points of a difference")
    points = z if metric.support is None else metric.support
    scale = float(points.double().std(0, correction=0).mean()) if len(points) > 1 else 0.0
    scale = scale or 1.0
    embedding: Any = metric.parts().embedding
    return scale * (0.02 if embedding is not None and is_single(torch.as_tensor(embedding(z[:4]))) else 2e-3)


def _tensor(metric: Metric, z: Tensor) -> Tensor:
    return torch.as_tensor(metric.tensor(z)).double()
