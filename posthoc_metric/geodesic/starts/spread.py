"""How far a few small matrices are from their mean, for many groups of them at once."""

from __future__ import annotations

import torch
from torch import Tensor


def spread(matrices: Tensor) -> Tensor:
    """The largest ``‖A^(-1/2) (M - A) A^(-1/2)‖_F`` of the symmetric ``M`` of each of m groups with mean ``A`` (m,).

    With ``A = L Lᵀ`` the norm is that of ``L⁻¹ (M - A) L⁻ᵀ``.  All is done entry by entry: a call to LAPACK for each of
    thousands of (d, d) matrices, d <= 3, costs more than their arithmetic.

    Args:
        matrices: (m, c, d, d).

    Returns:
        (m,); not finite where ``A`` is not positive definite or a matrix not finite.
    """
    entries = matrices.permute(2, 3, 1, 0).contiguous()
    mean = entries.mean(2)
    lower = _cholesky(mean)
    half = _solved(lower, list((entries - mean[:, :, None]).unbind(0)))
    whitened = _solved(lower, list(torch.stack(half, dim=1).unbind(0)))
    return torch.stack([row.square().sum(0) for row in whitened]).sum(0).amax(0).sqrt()


def _cholesky(matrix: Tensor) -> list[list[Tensor]]:
    """Rows of ``L`` for matrices (d, d, m)."""
    lower: list[list[Tensor]] = []
    for i in range(len(matrix)):
        row: list[Tensor] = []
        for j in range(i + 1):
            left = matrix[i, j]
            for one, other in zip(row, lower[j] if j < i else row, strict=False):
                left = left - one * other
            row.append(left.sqrt() if i == j else left / lower[j][j])
        lower.append(row)
    return lower


def _solved(lower: list[list[Tensor]], rows: list[Tensor]) -> list[Tensor]:
    """``L⁻¹ B`` for the rows of ``B``, each (..., m)."""
    found: list[Tensor] = []
    for row, right in zip(lower, rows, strict=True):
        for share, known in zip(row, found, strict=False):
            right = right - share * known
        found.append(right / row[-1])
    return found
