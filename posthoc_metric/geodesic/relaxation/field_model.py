"""What a field of matrices adds to the second-order model of a curve's energy, be its matrices singular or not.

With ``P`` the derivative of ``U(z) v`` by ``z``, Gauss-Newton for ``U^(1/2) v`` holds ``½ Pᵀ U⁻¹ P``, half of what
mixes place and velocity, and ``2 U``.  A field beside an embedding need not have an inverse: in directions that it
does not see, what mixes place and velocity is no part of a square, and belongs to the rest of the Hessian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..curves.elements import Model, add_blocks

#: a pivot of Cholesky's below this share of the largest entry, or such an eigenvalue, is rounding
_NOTHING = 1e-12
#: entries below which a matrix is zero: their reciprocals are not finite
_LEAST = 1e-290


def add_field_model(
    convex: Model, rest: Model, coupled: Tensor, tensors: Tensor, pushed: Tensor, bend: Tensor | None
) -> None:
    """Add the blocks of a field's integrand at its places, each (P, n/2, q, d, d), in place.

    Args:
        coupled: :func:`~.elements.couplings` of the places.
        tensors: ``U(z)``.
        pushed: ``P[a, i] = ∂_i (U(z) v)_a``.
        bend: the second derivatives of ``vᵀ U(z) v`` by ``z``, where they are known.
    """
    curved, seen = _gauss_newton(tensors, pushed)
    add_blocks(convex, coupled, curved / 2, seen.mT, 2 * tensors)
    # unknown second derivatives are those of a field whose logarithm is linear
    add_blocks(rest, coupled, curved / 2 if bend is None else bend - curved / 2, (pushed + (pushed - seen)).mT)


def _gauss_newton(tensors: Tensor, pushed: Tensor) -> tuple[Tensor, Tensor]:
    """``Pᵀ U⁺ P``, and of ``P`` what lies in the range of ``U``, each (..., d, d)."""
    curved = pushed.mT @ torch.linalg.solve_ex(tensors, pushed)[0]
    factor, info = torch.linalg.cholesky_ex(tensors)
    size = tensors.diagonal(dim1=-2, dim2=-1).amax(-1)
    least = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
    singular = (info != 0) | ~(least > _NOTHING * size) | ~(size > _LEAST)
    singular &= torch.isfinite(tensors).flatten(-2).all(-1) & torch.isfinite(pushed).flatten(-2).all(-1)
    if not bool(singular.any()):
        return curved, pushed
    values, vectors = torch.linalg.eigh(tensors[singular])
    known = values > (_NOTHING * values[:, -1:]).clamp_min(_LEAST)
    along = vectors.mT @ pushed[singular]
    inverse = torch.where(known, 1 / torch.where(known, values, 1.0), 0.0)
    curved, seen = curved.clone(), pushed.clone()
    curved[singular] = along.mT @ (inverse[..., None] * along)
    seen[singular] = vectors @ (known[..., None] * along)
    return curved, seen
