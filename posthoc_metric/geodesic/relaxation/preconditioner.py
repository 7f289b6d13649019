"""An approximate inverse of the energy's Hessian, for curves in many dimensions.

With one metric ``M = V Λ Vᵀ`` for a whole curve the Gauss-Newton Hessian of the energy is ``2 T ⊗ M``, ``T`` the
tridiagonal matrix of the time steps.  In the coordinates ``Vᵀ z`` it falls apart into ``d`` tridiagonal systems, and
does so still when a conformal weight, different on every segment, is added to ``M``.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import cho_solve_banded, cholesky_banded
from torch import Tensor

from ...metric import MetricParts
from ...smooth_map import SmoothMap, gram

#: eigenvalues are taken to be larger by this share of their mean: along the way a curve turns, and so does its metric
_FLOOR = 0.1
#: where on a curve the metric is asked for
_PLACES = (1 / 6, 1 / 2, 5 / 6)
#: products with the Jacobian and its transpose, each, that stand for a Jacobian which is too large
_PRODUCTS = 16


class Preconditioner:
    """``P⁻¹`` for P curves.

    Args:
        metrics: of each curve (P, d, d).
        weights: conformal weights of the segments (P, n).
        h: time steps (P, n).
    """

    def __init__(self, metrics: Tensor, weights: Tensor, h: Tensor):
        values, self._vectors = _spectra(metrics)
        values = values.clamp_min(0)
        values = values + _FLOOR * values.mean(1, keepdim=True)
        stiff = ((values[:, :, None] + weights[:, None, :]) / h[:, None, :]).clamp_min(1e-300)
        self._diagonal = 2 * (stiff[..., :-1] + stiff[..., 1:])
        self._links = -2 * stiff[..., 1:-1]
        self._first = 2 * stiff[..., 0]
        self._factor: np.ndarray | None = None

    def take(self, index: Tensor) -> Preconditioner:
        """That of the curves which ``index`` (indices or mask) picks."""
        other = object.__new__(Preconditioner)
        for name in ("_vectors", "_diagonal", "_links", "_first"):
            setattr(other, name, getattr(self, name)[index])
        other._factor = None
        return other

    def at_the_start(self) -> Tensor:
        """What the first node, were it to move, would add to itself and take from the one after it (P, d, d)."""
        return (self._vectors * self._first[:, None]) @ self._vectors.mT

    def spread(self, first: Tensor) -> Tensor:
        """What the first inner node has (P, d), and no other (P, n-1, d)."""
        out = first.new_zeros(len(first), self._diagonal.shape[2], first.shape[1])
        out[:, 0] = first
        return out

    def solve(self, gradient: Tensor) -> Tensor:
        """``P⁻¹ g`` for ``g`` (P, n-1, d)."""
        if self._factor is None:
            band = np.zeros((2, *self._diagonal.shape))
            band[0], band[1, ..., :-1] = self._diagonal.cpu().numpy(), self._links.cpu().numpy()
            self._factor = cholesky_banded(band.reshape(2, -1), lower=True, check_finite=False)
        turned = _each(gradient, self._vectors).mT.contiguous()
        solved = cho_solve_banded((self._factor, True), turned.reshape(-1).cpu().numpy(), check_finite=False)
        return _each(torch.from_numpy(solved).to(gradient.device).view_as(turned).mT, self._vectors.mT)

    def times(self, move: Tensor) -> Tensor:
        """``P s`` for ``s`` (P, n-1, d)."""
        turned = _each(move, self._vectors).mT
        out = self._diagonal * turned
        out[..., :-1] += self._links * turned[..., 1:]
        out[..., 1:] += self._links * turned[..., :-1]
        return _each(out.mT, self._vectors.mT)


def _spectra(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (P, d) and eigenvectors of symmetric matrices (P, d, d), each by itself as in :func:`_each`."""
    if matrices.device.type != "cpu" or not len(matrices):
        values, vectors = torch.linalg.eigh(matrices)
        return values, vectors
    parts = [torch.linalg.eigh(matrix) for matrix in _apart(matrices)]
    return torch.stack([values for values, _ in parts]), torch.stack([vectors for _, vectors in parts])


def _each(left: Tensor, right: Tensor) -> Tensor:
    """Products of matrices (P, m, k) and (P, k, l), each by itself: in a batch they are summed in another order.

    And so they are where a matrix begins at an odd address, as its place in a batch may have it.
    """
    if left.device.type != "cpu":
        return left @ right
    return torch.stack([a @ b for a, b in zip(_apart(left), _apart(right), strict=True)])


def _apart(matrices: Tensor) -> list[Tensor]:
    """The matrices of (P, m, k), copied where every other one begins at an odd address."""
    return [matrix.clone() for matrix in matrices] if matrices.stride(0) % 2 else list(matrices)


def precondition(parts: MetricParts, nodes: Tensor, h: Tensor, memory_limit: int) -> tuple[Preconditioner, int]:
    """For curves ``nodes`` (P, n+1, d) with time steps ``h`` (P, n); and at how many points of each it had to look.

    A curve without a finite metric gets the identity, and touches no other.
    """
    count, total, dim = nodes.shape
    places = sorted({round(place * (total - 1)) for place in _PLACES})
    metrics = nodes.new_zeros(count, dim, dim)
    where = nodes[:, places].reshape(-1, dim)
    if parts.embedding is not None:
        # the Jacobian, its columns as they come, and their product
        small = 32 * parts.embedding.output_dim * dim <= memory_limit
        if small:
            found = torch.cat([gram(parts.embedding, curve) for curve in where.split(len(places))])
        else:
            found = _sketch(parts.embedding, where)
        metrics += found.view(count, len(places), dim, dim).mean(1)
    if parts.field is not None:
        metrics += parts.field(where).view(count, len(places), dim, dim).mean(1)
    weights = torch.zeros_like(h)
    if parts.weight is not None:
        weights = torch.stack([parts.weight(curve) for curve in (nodes[:, 1:] + nodes[:, :-1]) / 2])
    good = torch.isfinite(metrics).flatten(1).all(1) & torch.isfinite(weights).all(1)
    good &= metrics.diagonal(dim1=1, dim2=2).sum(1) + weights.sum(1) > 0
    metrics[~good] = torch.eye(dim, dtype=metrics.dtype, device=metrics.device)
    weights = torch.where(good[:, None], weights, 0.0)
    return Preconditioner(metrics, weights, h), len(places)


def _sketch(embedding: SmoothMap, where: Tensor) -> Tensor:
    """``JᵀJ`` (N, d, d) but for its small eigenvalues, by Nyström's formula from a few products with ``J``.

    ``A ≈ Y (ΩᵀY)⁻¹ Yᵀ`` with ``Y = AΩ`` (Gittens & Mahoney 2016); what is left of the trace is spread over all
    directions.  Its trace is Hutchinson's estimate from the same products.
    """
    number, dim = where.shape
    products = min(_PRODUCTS, dim)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(dim, products, generator=generator, device="cpu", dtype=torch.float64)
    omega = torch.linalg.qr(drawn)[0].to(where)
    pushed = where.new_empty(number, dim, products)
    for column in range(products):
        for row in range(number):
            z = where[row : row + 1]
            _, along = embedding.jvp(z, omega[None, :, column])
            pushed[row, :, column] = embedding.vjp(z, along)[1][0]
    good = torch.isfinite(pushed).flatten(1).all(1)
    core = torch.where(
        good[:, None, None], omega.mT @ pushed, torch.eye(products, dtype=pushed.dtype, device=pushed.device)
    )
    trace = core.diagonal(dim1=1, dim2=2).sum(1) * (dim / products)
    values, vectors = torch.linalg.eigh((core + core.mT) / 2)
    root = vectors * values.clamp_min(1e-12 * values[:, -1:]).rsqrt()[:, None, :]
    half = pushed @ root
    low = half @ half.mT
    rest = (trace - low.diagonal(dim1=1, dim2=2).sum(1)).clamp_min(0) / dim
    return low + rest[:, None, None] * torch.eye(dim, dtype=low.dtype, device=low.device)
