"""Sectional curvature; in two dimensions, the Gaussian curvature."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_range, describe, to_points
from ..errors import InvalidArgumentError
from ..metric import Metric, check_metric
from .jets import Jet, christoffel_first, computes_single


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
        step: latent distance of the differences.  By default a share of how far along each line the metric is about a
            parabola and changes by no more than a third, found for each row from this row alone: a hundredth, or three
            tenths where the metric is computed in single precision, which leaves three digits or so.  Where the metric
            is flat to within rounding it is a share of the size of z or of the metric's support, or of one if that is
            larger and there is no support: give it if latents are much smaller than one and the metric has features as
            small, which are stepped over otherwise.

    Returns:
        (B,), in one over the unit of length squared; NaN where the metric is singular to within rounding or not finite,
        or u and v are parallel.

    The metric is asked for at ``4 (d + 4) + 1`` points for each row, and to find the steps at two or four more for each
    trial on each of ``d + 4`` lines: about five trials on an axis, one or two on a line of the vectors, and never more
    than 16.  A trial may lie outside the metric's domain, where it must give NaN or infinity; no difference does where
    a trial has told that the domain ends.

    Raises:
        InvalidArgumentError: a wrong shape, one dimension, or no u and v in more than two.
    """
    points, restore = to_points(z, "z", check_metric(metric).dim)
    if metric.dim < 2:
        raise InvalidArgumentError("`metric` must have at least 2 dimensions to be curved; it has 1.")
    where = points.double()
    rounding = torch.finfo(points.dtype).eps
    if u is None and v is None and metric.dim == 2:
        left, right = torch.eye(2, dtype=where.dtype, device=where.device)[:, None].expand(2, len(where), 2)
    else:
        if u is None or v is None:
            raise InvalidArgumentError(
                "`u` and `v` must both be given, one vector for each row of `z`, to say which planes; only in two "
                f"dimensions may both be left out, and here d = {metric.dim}."
            )
        given = [to_points(x, name, metric.dim)[0] for x, name in ((u, "u"), (v, "v"))]
        for x, name in zip(given, "uv", strict=True):
            if len(x) != len(where):
                raise InvalidArgumentError(
                    f"`{name}` must hold one vector for each of the {len(where)} rows of `z`; got {describe(x)}."
                )
        # what two vectors of low precision need to differ by
        rounding = max(torch.finfo(x.dtype).eps for x in given)
        left, right = (x.to(where) for x in given)
    if step is not None:
        step = check_range(step, "step", 0.0, float("inf"), "the latent distance between points of a difference")
    if len(where) == 0:
        return restore(points.new_zeros(0))
    with torch.no_grad():
        jet = Jet(metric, where, computes_single(metric, where))
        left, right, flat = _span(jet.tensor, left, right, 64 * rounding)
        steps, left, right = _steps(jet, left, right, step)
        both = (left + right, left - right)
        # the mixed derivative by polarisation
        mixed = [jet.twice_along(w, h) for w, h in zip(both, steps.diagonals, strict=True)]
        second = (
            _pair(mixed[0] - mixed[1], left, right) / 4
            - 0.5 * _pair(jet.twice_along(left, steps.left), right, right)
            - 0.5 * _pair(jet.twice_along(right, steps.right), left, left)
        )
        first = jet.first(steps.axes)
        uu, uv, vv = (christoffel_first(a, b, first) for a, b in ((left, left), (left, right), (right, right)))
        raised, info = torch.linalg.solve_ex(jet.tensor, torch.stack([uv, vv], dim=2))
        numerator = second + (uv * raised[..., 0]).sum(1) - (uu * raised[..., 1]).sum(1)
        m, flat = jet.tensor, flat | jet.singular
        area = _pair(m, left, left) * _pair(m, right, right) - _pair(m, left, right).square()
        found = torch.where((info == 0) & (area > 0) & ~flat, numerator / area, float("nan"))
    return restore(found.to(points.dtype))


class _Steps(NamedTuple):
    """Steps of the differences along the axes (B, d), both vectors (B,) each, and their sum and difference."""

    axes: Tensor
    left: Tensor
    right: Tensor
    diagonals: tuple[Tensor, Tensor]


def _span(m: Tensor, u: Tensor, v: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same planes by orthogonal vectors of latent length one, and which are none (B,).

    The curvature is that of the plane, but where u and v are nearly parallel it would come from small differences.
    """
    u, v = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-300) for x in (u, v))
    rest = v - (_pair(m, u, v) / _pair(m, u, u))[:, None] * u
    # the length of v were its coordinates orthogonal: rounding is a share of this
    whole = torch.einsum("bii,bi->b", m, v.square())
    flat = ~(_pair(m, rest, rest) > tolerance**2 * whole)
    size = rest.norm(dim=1, keepdim=True)
    return u, torch.where(flat[:, None], v, rest / size), flat


def _steps(jet: Jet, u: Tensor, v: Tensor, step: float | None) -> tuple[_Steps, Tensor, Tensor]:
    """Steps, and u and v as long as the metric stays about what it is."""
    if step is not None:
        one = torch.full_like(u[:, 0], step)
        u, v = (jet.even(step * x) / step for x in (u, v))
        return _Steps(torch.full_like(u, step), one, one, (one, one)), u, v
    axes = jet.axis_reaches()
    lines = torch.stack([u, v], dim=1)
    guess = 1 / (lines / axes[:, None]).norm(dim=2).clamp_min(1e-300)
    found = jet.reaches(lines, guess, 1e4 * guess)
    reach = torch.where(torch.isfinite(found), found, guess)
    u, v = (jet.even(jet.share * x) / jet.share for x in (lines * reach[..., None]).unbind(1))
    ones = torch.ones_like(reach)
    found = jet.reaches(torch.stack([u + v, u - v], dim=1), 0.5 * ones, ones).clamp_max(1.0)
    # halves and quarters of even steps are even
    diagonals = torch.ldexp(torch.full_like(found, 0.5), torch.frexp(found).exponent)
    one = torch.full_like(u[:, 0], jet.share)
    return _Steps(jet.share * axes, one, one, (jet.share * diagonals[:, 0], jet.share * diagonals[:, 1])), u, v


def _pair(m: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("bi,bij,bj->b", a, m, b)
