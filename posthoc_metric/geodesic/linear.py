"""Banded systems of many curves, solved as one banded matrix.

The curves of a batch are laid one after the other on the diagonal of a single band matrix with zero
coupling between them, so that LAPACK does in one call what a loop over pairs or over nodes would do.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import cho_solve_banded, cholesky_banded, solve_banded
from torch import Tensor

from .elements import Model

#: curves that are solved together once some are not positive definite
_FEW = 8


def solve_model(model: Model, rhs: Tensor) -> tuple[Tensor, Tensor]:
    """Solve ``H x = rhs`` for a symmetric positive definite model ``H``, every curve apart.

    Args:
        model: of P curves.
        rhs: (P, n-1, d).

    Returns:
        ``x`` (P, n-1, d) and a mask (P,) of the curves whose matrix is positive definite; the rows of ``x`` of
        the others are zero.  A curve that is not finite counts as not positive definite.
    """
    count, nodes, dim = rhs.shape
    band = _lower_band(model)
    right = rhs.reshape(count, nodes * dim).cpu().numpy().copy()
    good = np.isfinite(band).all(axis=(0, 2)) & np.isfinite(right).all(axis=1)
    if not _solve(band, right, good, once=True):
        # every failure is found by starting anew, from no farther back than a few curves
        for first in range(0, count, _FEW):
            few = slice(first, first + _FEW)
            _solve(band[:, few], right[few], good[few], once=False)
    return torch.from_numpy(right).view(rhs.shape).to(rhs.device), torch.from_numpy(good).to(rhs.device)


def _solve(band: np.ndarray, right: np.ndarray, good: np.ndarray, *, once: bool) -> bool:
    """Put solutions (P, m), zero where ``good`` (P,) is not, in the place of ``right``.

    ``good`` loses the curves that are not positive definite.  With ``once`` the first of them ends it, unsolved.
    """
    while True:
        # a curve that fails becomes the identity, so that it cannot touch its neighbours
        band[:, ~good] = 0.0
        band[0, ~good] = 1.0
        right[~good] = 0.0
        try:
            factor = cholesky_banded(band.reshape(len(band), -1), lower=True, check_finite=False)
            right[:] = cho_solve_banded((factor, True), right.reshape(-1), check_finite=False).reshape(right.shape)
            return True
        except np.linalg.LinAlgError as error:
            good[_leading_minor(error) // right.shape[1]] = False
            if once:
                return False


def _leading_minor(error: np.linalg.LinAlgError) -> int:
    """LAPACK names the order of the first minor that is not positive definite; SciPy says it first in its words."""
    return int(str(error).split("-th")[0]) - 1


def _lower_band(model: Model) -> np.ndarray:
    """LAPACK's lower band storage ``band[i - j, j] = H[i, j]`` of every curve: (3d, P, (n-1) d)."""
    blocks, near, far = (part.cpu().numpy() for part in (model.diagonal, model.near, model.far))
    count, nodes, dim, _ = blocks.shape
    band = np.zeros((3 * dim, count, nodes, dim))
    for j in range(dim):
        band[: dim - j, :, :, j] = np.moveaxis(blocks[:, :, j:, j], 2, 0)
        # H[(k+1) d + i, k d + j] is the transpose of the coupling of k with k+1
        band[dim - j : 2 * dim - j, :, :-1, j] = np.moveaxis(near[:, :, j, :], 2, 0)
        band[2 * dim - j : 3 * dim - j, :, 1:-2:2, j] = np.moveaxis(far[:, :, j, :], 2, 0)
    return band.reshape(3 * dim, count, nodes * dim)


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
