"""The repaired log volume at fixed points as a function of what the gate adds there, from matrices measured once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

_TINY = 1e-300


@dataclass(frozen=True)
class Volumes:
    """``½ log det(A + wB) / d`` of n points, with ``A = M + εI`` and ``B`` the model's shape, or I without one.

    Both are diagonal in one basis, so that any ``w`` costs a sum of d logarithms a point and no matrix.

    Attributes:
        base, slope: (n, d), the diagonals.
        level: (n,), the log volume of the basis.
    """

    base: Tensor
    slope: Tensor
    level: Tensor

    def __call__(self, weight: Tensor) -> Tensor:
        """(n,) for weights (n,)."""
        return self.level + 0.5 * (self.base + weight[:, None] * self.slope).clamp_min(_TINY).log().mean(1)

    def change(self, weight: Tensor) -> Tensor:
        """``½ log det(A + wB) / det A`` per dimension, (n,)."""
        return 0.5 * torch.log1p(weight[:, None] * self.slope / self.base.clamp_min(_TINY)).mean(1)


def joined(one: Volumes, other: Volumes) -> Volumes:
    """At the points of both."""
    parts = zip((one.base, one.slope, one.level), (other.base, other.slope, other.level), strict=True)
    return Volumes(*map(torch.cat, parts))


def plain_volumes(eigenvalues: Tensor, floor: Tensor) -> Volumes:
    """With ``B = I``, from the eigenvalues (n, d) of M and ``ε`` (n,)."""
    base = eigenvalues + floor[:, None]
    return Volumes(base, torch.ones_like(base), base.new_zeros(len(base)))


def shaped_volumes(grams: Tensor, floor: Tensor, shapes: Tensor, scale: float) -> Volumes:
    """With ``B = S`` (n, d, d), from M (n, d, d) and ``ε`` (n,).

    Either may be singular.  ``C = A + κS`` is so only where both are, and in the basis in which it is the identity
    ``κS`` has eigenvalues ν between 0 and 1 and A has 1 - ν.

    Args:
        scale: κ, of the order of the weights.
    """
    shapes = scale * shapes
    both = grams + torch.diag_embed(floor[:, None].expand(grams.shape[:2])) + shapes
    values, vectors = torch.linalg.eigh(both)
    values = torch.maximum(values, 1e-15 * values[:, -1:]).clamp_min(_TINY)
    white = vectors * values.rsqrt()[:, None]
    shares = torch.linalg.eigvalsh(white.mT @ shapes @ white).clamp(0, 1)
    return Volumes(1 - shares, shares / scale, 0.5 * values.log().mean(1))


def largest_fall(medians: Sequence[float]) -> float:
    """How far a sequence ever falls below an earlier value of its own; NaN where one of them is."""
    if any(map(math.isnan, medians)):
        return math.nan
    peaks = accumulate(medians, max)
    return max(peak - value if math.isfinite(peak) else 0.0 for peak, value in zip(peaks, medians, strict=True))
