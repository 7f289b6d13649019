"""What a Gaussian process does not know in each direction, as a field of matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: this share of the prior is never given up, which keeps rounding from making a variance negative
KEPT = 1e-6
#: entries of (points, sites, dimensions) that are worked on at once
CHUNK = 2**22


@dataclass(frozen=True)
class PosteriorShape:
    """``S(z)``, the posterior covariance of the Jacobian over the prior's.

    A :class:`~posthoc_metric.matrix_field.DirectedField`.

    Attributes:
        origin, radius: by which latents are standardised, (d,) and ().
        sites: (M, d), standardised.
        factor: ``F`` (r, M), ``FᵀF`` being what the sites are known by.
        length_scale: of the kernel, standardised.
    """

    origin: Tensor
    radius: Tensor
    sites: Tensor
    factor: Tensor
    length_scale: float

    def __call__(self, z: Tensor) -> Tensor:
        """(B, d) -> (B, d, d)."""
        points = (z.double() - self.origin) / self.radius
        parts = points.split(max(1, CHUNK // (len(self.sites) * z.shape[1])))
        return torch.cat([shape_at(part, self.sites, self.factor, self.length_scale) for part in parts])

    def square(self, z: Tensor, v: Tensor) -> Tensor:
        """``vᵀ S(z) v``, (B, d), (B, d) -> (B,): one product with ``F`` a point, not d."""
        points = (z.double() - self.origin) / self.radius
        rows = max(1, CHUNK // len(self.sites))
        return torch.cat([self._square(*part) for part in zip(points.split(rows), v.split(rows), strict=True)])

    def _square(self, points: Tensor, v: Tensor) -> Tensor:
        along = ((points * v).sum(1, keepdim=True) - v @ self.sites.T) / self.length_scale
        slopes = (-0.5 / self.length_scale**2 * squares(points, self.sites)).exp() * along
        return v.square().sum(1) - (1 - KEPT) * (slopes @ self.factor.T).square().sum(1)


def shape_at(points: Tensor, sites: Tensor, factor: Tensor, length_scale: float) -> Tensor:
    delta = (points[:, :, None] - sites.T[None]) / length_scale
    slopes = (-0.5 * delta.square().sum(1)).exp()[:, None] * delta
    known = slopes @ factor.T
    square = known @ known.mT
    # a batched product is symmetric only up to rounding
    return torch.eye(points.shape[1]).to(points) - (0.5 - 0.5 * KEPT) * (square + square.mT)


def squares(left: Tensor, right: Tensor) -> Tensor:
    """Squared distances (n, m), twice differentiable, up to rounding.

    The latents are standardised, so the expanded square loses nothing that matters, and it is one product.
    """
    return left.square().sum(1, keepdim=True) - 2 * left @ right.T + right.square().sum(1)
