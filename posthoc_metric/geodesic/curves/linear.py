"""Banded systems of many curves, solved as one banded matrix.

The curves of a batch are laid one after the other on the diagonal of a single band matrix with zero
coupling between them, so that LAPACK does in one call what a loop over pairs or over nodes would do.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from scipy.linalg import solve_banded
from scipy.linalg.lapack import dpbtrf, dpbtrs
from torch import Tensor

from ...machine import one_blas_thread
from .elements import Model

#: bandwidth above which LAPACK works in blocks, with a BLAS that shares them among its threads
_BLOCKED = 64


def solve_model(model: Model, rhs: Tensor) -> tuple[Tensor, Tensor]:
    """Solve ``H x = rhs`` for a symmetric positive definite model ``H``, every curve apart.

    Args:
        model: of P curves.
        rhs: (P, n-1, d), or (P, n-1, d, k) for k right-hand sides of each.

    Returns:
        ``x``, like ``rhs``, and a mask (P,) of the curves whose matrix is positive definite; the rows of ``x`` of
        the others are zero.  A curve that is not finite counts as not positive definite.
    """
    count, nodes, dim = rhs.shape[:3]
    band = _lower_band(model)
    right = rhs.reshape(count, nodes * dim, -1).cpu().numpy().copy()
    good = np.isfinite(band).all(axis=(1, 2)) & np.isfinite(right).all(axis=(1, 2))
    if not good.all():
        # the identity does not touch its neighbours
        band[~good], right[~good] = 0.0, 0.0
        band[~good, :, 0] = 1.0
    with one_blas_thread() if band.shape[2] > _BLOCKED else nullcontext():
        _solve(band, right, good)
    return torch.from_numpy(right).view(rhs.shape).to(rhs.device), torch.from_numpy(good).to(rhs.device)


def _solve(band: np.ndarray, right: np.ndarray, good: np.ndarray) -> None:
    """Put solutions (P, m, k) in place of ``right``; ``good`` (P,) loses the curves that are not positive definite."""
    first, (_, size, sides) = 0, right.shape
    while first < len(right):
        factor, minor = _factored(band[first:])
        stop = len(right)
        if minor:
            # the order of the first minor that is not positive definite: those before it are without its curve
            stop = first + (minor - 1) // size
            good[stop], right[stop] = False, 0.0
            factor, _ = _factored(band[first:stop])
        if stop > first:
            known = np.zeros((factor.shape[1], sides), order="F")
            known[: (stop - first) * size] = right[first:stop].reshape(-1, sides)
            solved, _ = dpbtrs(factor, known, lower=1, overwrite_b=1)
            right[first:stop] = solved[: (stop - first) * size].reshape(-1, size, sides)
        first = stop + 1


def _factored(band: np.ndarray) -> tuple[np.ndarray, int]:
    """The Cholesky factor of curves (P, m, 3d) in LAPACK's storage, and which minor, if any, is not positive.

    An identity follows the last curve: its end is worked on as those of the others are, and rounded as they are.
    """
    rows, width = band.shape[0] * band.shape[1], band.shape[2]
    columns = np.zeros((rows + width, width))
    columns[:rows], columns[rows:, 0] = band.reshape(rows, width), 1.0
    # in Fortran's order, and so without a copy
    factor, minor = dpbtrf(columns.T, lower=1, overwrite_ab=1)
    return factor, minor


def _lower_band(model: Model) -> np.ndarray:
    """Of every curve ``band[j, i - j] = H[i, j]``: (P, (n-1) d, 3d)."""
    blocks, near, far = (part.cpu().numpy() for part in (model.diagonal, model.near, model.far))
    count, nodes, dim, _ = blocks.shape
    band = np.zeros((count, nodes, dim, 3 * dim))
    for j in range(dim):
        band[:, :, j, : dim - j] = blocks[:, :, j:, j]
        # H[(k+1) d + i, k d + j] is the transpose of the coupling of k with k+1
        band[:, :-1, j, dim - j : 2 * dim - j] = near[:, :, j, :]
        band[:, 1:-2:2, j, 2 * dim - j : 3 * dim - j] = far[:, :, j, :]
    return band.reshape(count, nodes * dim, 3 * dim)


def solve_tridiagonal(lower: Tensor, diagonal: Tensor, upper: Tensor, rhs: Tensor) -> Tensor:
    """Solve scalar tridiagonal systems: (P, n), (P, n), (P, n) and right-hand sides (P, n, d) -> (P, n, d).

    ``lower[:, 0]`` and ``upper[:, -1]`` are not used.  The systems and right-hand sides are finite.
    """
    count, nodes, dim = rhs.shape
    band = np.zeros((3, count, nodes))
    band[0, :, 1:] = upper[:, :-1].cpu().numpy()
    band[1] = diagonal.cpu().numpy()
    band[2, :, :-1] = lower[:, 1:].cpu().numpy()
    solution = solve_banded(
        (1, 1), band.reshape(3, -1), rhs.reshape(count * nodes, dim).cpu().numpy(), check_finite=False
    )
    return torch.from_numpy(np.ascontiguousarray(solution)).reshape(count, nodes, dim).to(rhs.device)
