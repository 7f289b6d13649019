"""The geodesic equation: the latent acceleration that keeps a curve straight.

For ``M = J_FᵀJ_F + w I + U`` the equation ``d/dt (M v) = ½ ∇(vᵀ M v)`` becomes

    M a = -J_Fᵀ F''(v, v) + ½ ‖v‖² ∇w - (∇w·v) v + ½ ∇(vᵀ U v) - (∂_v U) v,

in which of the embedding's second derivatives only the one along ``v`` is left (the Gauss equation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._precision import DIFFERENCE_STEPS, computes_in_single, rounds_as_single
from ..field_derivative import FieldDerivative
from ..metric import MetricParts

#: relative size of the eigenvalues of M below which a direction has no length and gets no acceleration
_NO_LENGTH = 1e-13
#: dimensions up to which three Jacobians cost less than one of them and two products
_FEW = 4
#: to what accelerations by differences are good, double and single; a tighter error control follows rounding
_GOOD = 1e-11, 1e-6


class Acceleration:
    """Accelerations under one metric.

    Args:
        parts: the metric's structure.
        probe: points (N, d) it will be used near.

    Attributes:
        attainable: of :func:`attainable`.
    """

    def __init__(self, parts: MetricParts, probe: Tensor):
        self.parts = parts
        self.field = None if parts.field is None else FieldDerivative(parts.field, probe)
        singles = _singles(parts, probe)
        self.relative_step, self.attainable = DIFFERENCE_STEPS[singles[0]], _GOOD[any(singles)]

    def __call__(self, z: Tensor, v: Tensor, spread: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Accelerations (P, d) and squared speeds (P,) at points and velocities (P, d).

        ``spread`` (P,) sets the scale of difference steps point by point; by default the length of ``v``, which is the
        extent of a curve that is run through in a unit of time.
        """
        dim = z.shape[1]
        force = torch.zeros_like(z)
        matrix = z.new_zeros(len(z), dim, dim)
        embedding, weight = self.parts.embedding, self.parts.weight
        if embedding is not None:
            size = v.norm(dim=1, keepdim=True).clamp_min(1e-300)
            direction = v / size
            floor = 1e-3 * z.abs().amax(1, keepdim=True)
            step = torch.maximum(size, floor) if spread is None else spread.clamp_min(1e-300)[:, None]
            step = self.relative_step * step
            offset = step * direction
            both = torch.cat([z + offset, z - offset])
            if dim <= _FEW:
                # a call costs as much as many rows
                jacobian, *beside = embedding.value_and_jacobian(torch.cat([z, both]))[1].chunk(3)
                ahead, behind = ((part @ direction[..., None])[..., 0] for part in beside)
            else:
                _, jacobian = embedding.value_and_jacobian(z)
                ahead, behind = embedding.jvp(both, direction.repeat(2, 1))[1].chunk(2)
            second = (ahead - behind) * size.square() / (2 * step)
            force -= (jacobian.mT @ second[..., None])[..., 0]
            matrix += jacobian.mT @ jacobian
        if weight is not None:
            w, slope = weight.value_and_gradient(z)
            force += 0.5 * v.square().sum(1, keepdim=True) * slope - (slope * v).sum(1, keepdim=True) * v
            matrix += w[:, None, None] * torch.eye(dim, dtype=z.dtype, device=z.device)
        if self.field is not None:
            tensors, pushed = self.field(z, v)
            force += 0.5 * (pushed.mT @ v[..., None])[..., 0] - (pushed @ v[..., None])[..., 0]
            matrix += tensors
        squares = torch.einsum("pi,pij,pj->p", v, matrix, v)
        return solve_metric(matrix, force), squares


def attainable(parts: MetricParts, probe: Tensor) -> float:
    """Relative error to which curves can be integrated near ``probe`` (N, d)."""
    return _GOOD[any(_singles(parts, probe))]


def _singles(parts: MetricParts, probe: Tensor) -> tuple[bool, bool]:
    """Whether the embedding and the field compute in single precision."""
    embedding = parts.embedding is not None and computes_in_single(parts.embedding, probe)
    # a field of constants beside an embedding takes none of its digits
    field = parts.field is not None and rounds_as_single(parts.field, probe)
    return embedding, field


def solve_metric(matrix: Tensor, force: Tensor) -> Tensor:
    """``matrix⁺ force``; NaN where the matrix is not finite."""
    bad = ~(torch.isfinite(matrix).flatten(1).all(1) & torch.isfinite(force).all(1))
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    values, vectors = torch.linalg.eigh(torch.where(bad[:, None, None], eye, matrix))
    inverse = torch.where(values > _NO_LENGTH * values[:, -1:], 1 / values, torch.zeros_like(values))
    solved = (vectors @ (inverse[..., None] * (vectors.mT @ force[..., None])))[..., 0]
    return solved.masked_fill(bad[:, None], float("nan"))
