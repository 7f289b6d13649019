"""Sectional curvature; in two dimensions, the Gaussian curvature."""

from __future__ import annotations

from typing import Any

import torch

from .._arrays import ArrayLike, describe, to_points
from ..errors import InvalidArgumentError
from ..metric import Metric
from .jets import Jet, choose_step, christoffel_first


def curvature(
    metric: Metric, z: ArrayLike, u: ArrayLike | None = None, v: ArrayLike | None = None, *, step: float | None = None
) -> Any:
    """Sectional curvature at z of the planes spanned by u and v.

    ``K = R(u, v, v, u) / (‖u‖² ‖v‖² - <u, v>²)`` with, in coordinates (do Carmo, Riemannian Geometry, ch. 4),
    ``R(u, v, v, u) = ∂_u∂_v <u, v> - ½ ∂_u² <v, v> - ½ ∂_v² <u, u> + Γ(u,v)ᵀM⁻¹Γ(u,v) - Γ(u,u)ᵀM⁻¹Γ(v,v)``
    and Γ the Christoffel symbols of the first kind.  In two dimensions this is the Gaussian curvature.

    Args:
        metric: any positive definite metric.
        z: points (B, d), d >= 2.
        u, v: vectors (B, d), linearly independent; may be left out in two dimensions, where there is one plane only.
        step: latent distance of the differences; by default 2e-3 of the spread of the support (or of z), and 0.02
            where the decoder computes in single precision, which leaves three digits or so.

    Returns:
        (B,), in one over the unit of length squared; NaN where the metric is singular or
        not finite, or u and v are parallel.

    Raises:
        InvalidArgumentError: a wrong shape, one dimension, or no u and v in more than two.
    """
    points, restore = to_points(z, "z", metric.dim)
    if metric.dim < 2:
        raise InvalidArgumentError("`metric` must have at least 2 dimensions to be curved; it has 1.")
    where = points.double()
    if u is None and v is None and metric.dim == 2:
        left, right = torch.eye(2).to(where)[:, None].expand(2, len(where), 2)
    else:
        if u is None or v is None:
            raise InvalidArgumentError(
                "`u` and `v` must both be given, one vector for each row of `z`, to say which planes; only in two "
                f"dimensions may both be left out, and here d = {metric.dim}."
            )
        left, right = (to_points(x, name, metric.dim)[0].to(where) for x, name in ((u, "u"), (v, "v")))
        for x, name in ((left, "u"), (right, "v")):
            if len(x) != len(where):
                raise InvalidArgumentError(
                    f"`{name}` must hold one vector for each of the {len(where)} rows of `z`; got {describe(x)}."
                )
        # differences are taken along the vectors, whose size says nothing of the metric's scale
        left, right = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-300) for x in (left, right))
    with torch.no_grad():
        jet = Jet(metric, where, choose_step(metric, where, step))
        second = (
            _pair(jet.mixed(left, right), left, right)
            - 0.5 * _pair(jet.twice_along(left), right, right)
            - 0.5 * _pair(jet.twice_along(right), left, left)
        )
        first = jet.first()
        uu, uv, vv = (christoffel_first(jet, a, b, first) for a, b in ((left, left), (left, right), (right, right)))
        raised, info = torch.linalg.solve_ex(jet.tensor, torch.stack([uv, vv], dim=2))
        numerator = second + (uv * raised[..., 0]).sum(1) - (uu * raised[..., 1]).sum(1)
        m = jet.tensor
        area = _pair(m, left, left) * _pair(m, right, right) - _pair(m, left, right).square()
        found = torch.where((info == 0) & (area > 0), numerator / area, float("nan"))
    return restore(found.to(points.dtype))


def _pair(m: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bi,bij,bj->b", a, m, b)
