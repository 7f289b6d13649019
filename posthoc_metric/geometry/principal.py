"""Principal geodesics: PCA in the tangent space of the Fréchet mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .._arrays import ArrayLike, as_tensor, check_count, to_points
from .._warn import warn_caller
from ..errors import ConvergenceWarning, InvalidArgumentError, NumericalError
from ..geodesic import Status, exp, frechet_mean, logarithm
from ..matrix_field import to_matrices
from ..metric import Metric, check_metric

#: spread over the distance to the mean below which points differ by rounding only
_NO_SPREAD = 1e-9


@dataclass(frozen=True)
class PrincipalGeodesics:
    """Directions in which points spread, as geodesics through their mean.

    Attributes:
        mean: Fréchet mean (d,).
        directions: latent velocities at the mean (k, d), orthonormal in its metric.
        variances: of the points along them (k,), in units of length squared, descending.
        explained: share of the total variance (k,); NaN, with a warning, where the points are all one, as in
            scikit-learn's PCA.
        scores: coordinates of the points (N, k); NaN in rows whose geodesic to the mean has no curve.
        status: of the geodesic from the mean to each point, N of them.
        mean_converged: whether the mean was found to the tolerance.
    """

    mean: Any
    directions: Any
    variances: Any
    explained: Any
    scores: Any
    status: tuple[Status, ...]
    mean_converged: bool
    _metric: Metric

    def points(self, scores: ArrayLike) -> Any:
        """Latents (n, d) at the given coordinates (n, k): the exponential map at the mean."""
        coordinates, restore = to_points(scores, "scores", len(self.directions), what="number of directions")
        centre = as_tensor(self.mean).double()
        velocities = coordinates.to(centre) @ as_tensor(self.directions).double()
        return restore(exp(self._metric, centre.expand_as(velocities), velocities).to(coordinates.dtype))


def principal_geodesics(
    metric: Metric, points: ArrayLike, num: int | None = None, **options: Any
) -> PrincipalGeodesics:
    """Tangent PCA (Fletcher et al. 2004): principal components of the logarithms at the Fréchet mean.

    Args:
        metric: any positive definite metric.
        points: (N, d), N >= 2.
        num: k, from 1 to d; all if not given.  There are never more than points that have a geodesic to the mean.
        **options: of :func:`posthoc_metric.geodesic`.

    Raises:
        InvalidArgumentError: fewer than two points, or a bad ``num``.
        NumericalError: the metric is singular at the mean, or fewer than two points have a geodesic to it.

    Warns:
        ConvergenceWarning: the points are all one, so that no direction explains any variance.
    """
    rows, restore = to_points(points, "points", check_metric(metric).dim)
    if len(rows) < 2:
        raise InvalidArgumentError(f"`points` must hold at least 2 points to spread; got {len(rows)}.")
    num = metric.dim if num is None else check_count(num, "num", 1, "the number of directions")
    if num > metric.dim:
        raise InvalidArgumentError(
            f"`num` must be an integer from 1 to {metric.dim}, the latent dimension; got {num}. "
            "Ask for fewer directions."
        )
    z = rows.double()
    centre = frechet_mean(metric, z, **options)
    logs = logarithm(metric, centre.point.expand_as(z), z, **options)
    middle = centre.point[None].to(z)
    factor, info = torch.linalg.cholesky_ex(to_matrices(metric.tensor(middle), middle, "`tensor(z)`")[0])
    good = torch.isfinite(logs.velocities).all(1)
    if int(info) or int(good.sum()) < 2:
        raise NumericalError(
            "the metric must be positive definite at the mean, and at least 2 points must have a geodesic to it. "
            "Repair it first (pm.repair), or leave stray points out."
        )
    flat = logs.velocities @ factor
    _, spread, axes = torch.linalg.svd(flat[good] - flat[good].mean(0), full_matrices=False)
    values = torch.zeros(metric.dim, dtype=z.dtype, device=z.device)
    values[: len(spread)] = spread.square() / int(good.sum())
    total = values.sum()
    if float(spread.norm()) <= _NO_SPREAD * float(flat[good].norm(dim=1).max()):
        total = torch.full_like(total, float("nan"))
        warn_caller(
            "principal_geodesics: `points` do not spread, so that `explained` is NaN and the directions mean nothing. "
            "Pass points that differ.",
            ConvergenceWarning,
        )
    # the sign that makes the largest entry positive, so that it does not depend on the decomposition's whim
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    kept = min(num, len(axes))
    directions = torch.linalg.solve_triangular(factor.mT, axes[:kept].mT, upper=True).mT
    dtype = rows.dtype
    return PrincipalGeodesics(
        mean=restore(centre.point.to(dtype)),
        directions=restore(directions.to(dtype)),
        variances=restore(values[:kept].to(dtype)),
        explained=restore((values[:kept] / total).to(dtype)),
        scores=restore((flat @ axes[:kept].mT).to(dtype)),
        status=logs.status,
        mean_converged=centre.converged,
        _metric=metric,
    )
