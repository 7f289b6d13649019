"""How fast a metric changes, measured in itself."""

from __future__ import annotations

import torch
from torch import Tensor

#: eigenvalues below this share of the largest are not resolved in float64
_RESOLVED = 1e-14


def smoothness(values: Tensor, turned: Tensor, radius: float) -> Tensor:
    """``R ‖M^(-1/2) (∂_u M) M^(-1/2)‖_F`` (..., n): how many times the metric changes over a data radius.

    It does not depend on the unit of z or of x, and ``∫ ‖M^(-1/2) Ṁ M^(-1/2)‖_F dt`` is the length of the path of
    matrices in the affine-invariant distance (Pennec, Fillard & Ayache 2006).

    Args:
        values: ascending eigenvalues of M (n, d).
        turned: ``∂_u M`` along unit vectors u, in the axes of M's eigenvectors (..., n, d, d).
        radius: R.
    """
    values = torch.maximum(values, _RESOLVED * values[:, -1:]).clamp_min(1e-300)
    root = values.rsqrt()
    return radius * torch.linalg.matrix_norm(root[:, :, None] * turned * root[:, None, :])


def directions(points: Tensor, *, seed: int = 0) -> Tensor:
    """One random unit vector for each of the points, (n, d)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(points.shape, generator=generator, device="cpu", dtype=torch.float64).to(points)
    return drawn / drawn.norm(dim=1, keepdim=True)
