"""What a Gaussian process does not know in each direction, as a field of matrices."""

from __future__ import annotations

from collections.abc import Iterator
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

    A :class:`~posthoc_metric.matrix_field.DirectedField` and :class:`~posthoc_metric.matrix_field.SlopedField`.

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
        parts = self._parts(z.shape[1], z)
        return torch.cat([shape_at(points, self.sites, self.factor, self.length_scale) for (points,) in parts])

    def slope(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``S(z)`` (B, d, d) and ``∂_i (S(z) v)_a`` (B, d, d): two products with ``F`` for each dimension of a point.

        With ``δ = (z - s) / ℓ`` for a site s and its kernel value k, ``S = I - WᵀH`` for ``H = k δ`` and ``W = FᵀF H``,
        and ``∂_i H_a = k (1_ai - δ_a δ_i) / ℓ``.
        """
        shapes, slopes = zip(*(self._slope(*part) for part in self._parts(z.shape[1], z, v)), strict=True)
        return torch.cat(shapes), torch.cat(slopes) / (self.length_scale * self.radius)

    def _slope(self, points: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        delta, kernel, known = _known(points, self.sites, self.factor, self.length_scale)
        weighed = (known @ self.factor).mul_(kernel[:, None])
        along = (v[:, None] @ delta)[:, 0]
        whole = (v[:, None] @ weighed)[:, 0]
        change = (delta * whole[:, None] + weighed * along[:, None]) @ delta.mT
        change -= weighed.sum(2)[:, :, None] * v[:, None] + torch.diag_embed(whole.sum(1)[:, None].expand_as(v))
        return _unknown(known), (1 - KEPT) * change

    def _parts(self, width: int, z: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Standardised points, and rows of ``others``, so many at a time as have room for ``width`` numbers a site."""
        points = (z.double() - self.origin) / self.radius
        rows = max(1, CHUNK // (len(self.sites) * width))
        return zip(*(rows_of.split(rows) for rows_of in (points, *others)), strict=True)

    def square(self, z: Tensor, v: Tensor) -> Tensor:
        """``vᵀ S(z) v``, (B, d), (B, d) -> (B,): one product with ``F`` a point, not d."""
        return torch.cat([self._square(*part) for part in self._parts(1, z, v)])

    def _square(self, points: Tensor, v: Tensor) -> Tensor:
        kernel, along = self._along(points, v)
        return v.square().sum(1) - (1 - KEPT) * ((kernel * along) @ self.factor.T).square().sum(1)

    def _along(self, points: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Kernel values and ``δᵀv``, each (B, M)."""
        kernel = (-0.5 / self.length_scale**2 * squares(points, self.sites)).exp()
        return kernel, ((points * v).sum(1, keepdim=True) - v @ self.sites.T) / self.length_scale

    def pull(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``S(z) v`` and ``∂_z (vᵀ S(z) v)``, each (B, d): two products with ``F`` a point."""
        turned, tilted = zip(*(self._pull(*part) for part in self._parts(1, z, v)), strict=True)
        return torch.cat(turned), torch.cat(tilted) / (self.length_scale * self.radius)

    def _pull(self, points: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        kernel, along = self._along(points, v)
        whole = (((kernel * along) @ self.factor.T) @ self.factor).mul_(kernel)
        tilt = self._towards(points, along.mul_(whole)) - whole.sum(1, keepdim=True) * v
        return v - (1 - KEPT) * self._towards(points, whole), 2 * (1 - KEPT) * tilt

    def _towards(self, points: Tensor, shares: Tensor) -> Tensor:
        """``Σ_m shares_m δ_m`` (B, d) for shares (B, M)."""
        return (shares.sum(1, keepdim=True) * points - shares @ self.sites) / self.length_scale


def shape_at(points: Tensor, sites: Tensor, factor: Tensor, length_scale: float) -> Tensor:
    """``S`` at standardised points (B, d): (B, d, d)."""
    return _unknown(_known(points, sites, factor, length_scale)[2])


def _known(points: Tensor, sites: Tensor, factor: Tensor, length_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """``δ`` (B, d, M), kernel values (B, M), and ``F H`` for every dimension (B, d, r)."""
    delta = (points[:, :, None] - sites.T[None]) / length_scale
    kernel = (-0.5 * delta.square().sum(1)).exp()
    return delta, kernel, (kernel[:, None] * delta) @ factor.T


def _unknown(known: Tensor) -> Tensor:
    square = known @ known.mT
    # a batched product is symmetric only up to rounding
    return torch.eye(known.shape[1], dtype=known.dtype, device=known.device) - (0.5 - 0.5 * KEPT) * (square + square.mT)


class LeftOut:
    """What sites (M, d) of an exact process would have been given, each by all others, the hyperparameters kept.

    Without row n, ``(K + νI)⁻¹`` is its former self less ``c cᵀ / c_n``, c being its column n (the block inverse; as in
    Rasmussen & Williams 2006, section 5.4.2), so that nothing is fitted again.  Without n and its g - 1 copies it is
    that less ``g c cᵀ / s`` for what is equal at copies, ``s`` being the sum of ``c`` over all g.
    """

    def __init__(self, sites: Tensor, factor: Tensor, length_scale: float, noise: float):
        self.sites, self.factor, self.length_scale, self.noise = sites, factor, length_scale, noise
        kernel = (-0.5 / length_scale**2 * squares(sites, sites).clamp_min(0)).exp()
        kernel.diagonal().add_(noise)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel))
        _, group = torch.unique(sites, dim=0, return_inverse=True)
        same = group[:, None] == group
        self.copies, self.own = same.sum(1), (self.inverse * same).sum(1)

    def shares(self) -> Tensor:
        """``1 - v`` (M,), which rounding may bring to zero or below."""
        return (1 - KEPT) * (1 - (self.own.reciprocal() - self.noise) / self.copies)

    def shapes(self, count: int) -> Tensor:
        """``S`` (n, d, d) at the first of the sites."""
        parts = torch.arange(count, device=self.sites.device).split(max(1, CHUNK // self.sites.numel()))
        return torch.cat([self._shapes(rows) for rows in parts])

    def _shapes(self, rows: Tensor) -> Tensor:
        delta, kernel, known = _known(self.sites[rows], self.sites, self.factor, self.length_scale)
        lost = ((kernel * self.inverse[rows])[:, None] @ delta.mT)[:, 0]
        lost = lost / (self.own / self.copies)[rows].sqrt()[:, None]
        return _unknown(known) + (1 - KEPT) * lost[:, :, None] * lost[:, None]


def squares(left: Tensor, right: Tensor) -> Tensor:
    """Squared distances (n, m), twice differentiable, up to rounding.

    The latents are standardised, so the expanded square loses nothing that matters, and it is one product.
    """
    return left.square().sum(1, keepdim=True) - 2 * left @ right.T + right.square().sum(1)
