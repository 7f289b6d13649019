"""The Fréchet mean: the point with the least mean of squared geodesic distances."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, describe, to_points, to_tensor
from ..errors import ConvergenceWarning, InvalidArgumentError
from ..metric import Metric
from .options import beneath, check_integer, check_positive
from .settling import departures
from .shooting import integrate
from .solve import geodesic
from .status import Status

#: how finely geodesics to a mean are relaxed: coarser ones leave more of a gradient than is asked for
_CAREFUL: dict[str, Any] = {"spans": 32, "rtol": 1e-4}
#: share of the decrease that the gradient promises which a step must bring
_ENOUGH = 0.2


@dataclass(frozen=True)
class FrechetMean:
    """A Fréchet mean and how it was found.

    Attributes:
        point: (d,).
        distances: of the points to it (N,).
        variance: weighted mean of the squared distances.
        gradient_norm: Riemannian norm of the mean logarithm, over the root of the variance; zero at a mean.
        steps: gradient steps.
        status: of the geodesic from the mean to every point, N of them.
        converged: whether ``gradient_norm`` is within the tolerance and every geodesic converged.
    """

    point: Any
    distances: Any
    variance: float
    gradient_norm: float
    steps: int
    status: tuple[Status, ...]
    converged: bool


def frechet_mean(
    metric: Metric,
    points: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    tol: float = 1e-3,
    max_steps: int = 30,
    **options: Any,
) -> FrechetMean:
    """The point with the least weighted mean of squared geodesic distances to ``points`` (N, d).

    Riemannian gradient descent from the nearest of the points to their average (Pennec 2006): steps along the mean of
    the logarithms, each as long as the parabola through the variances around the last has it.  Where the curvature is
    negative, whole steps go too far.

    Args:
        weights: (N,) non-negative; equal if not given.
        tol: ``gradient_norm`` at which it is found.
        max_steps: gradient steps.
        **options: of :func:`geodesic`.
    """
    check_positive(tol, "tol")
    check_integer(max_steps, "max_steps", 0)
    rows, restore = to_points(points, "points", metric.dim)
    if len(rows) == 0:
        raise InvalidArgumentError("`points` must hold at least one point; got none.")
    z = rows.double()
    share = torch.ones_like(z[:, 0]) if weights is None else to_tensor(weights, "weights")[0].to(z)
    if share.shape != (len(z),) or not bool((share >= 0).all()) or not float(share.sum()) > 0:
        raise InvalidArgumentError(
            f"`weights` must be {len(z)} non-negative numbers, not all zero; got {describe(weights)}."
        )
    share = share / share.sum()
    options = beneath(options, _CAREFUL)
    average = share @ z
    here = z[(z - average).norm(dim=1).argmin()]
    solution, variance, pull, norm = _pull(metric, here, z, share, options)
    step, number = 1.0, 0
    while norm > tol and number < max_steps and step > 1e-3:
        number += 1
        there, _, _, _, codes = integrate(metric, here[None], step * pull[None], 1e-6, 2000)
        if codes[0] is not Status.CONVERGED:
            step /= 2
            continue
        moved = _pull(metric, there[0], z, share, options)
        promised, gain = 2 * step * norm**2 * variance, variance - moved[1]
        step *= min(max(promised / (2 * max(promised - gain, 1e-300)), 0.1), 2.0)
        if gain >= _ENOUGH * promised:
            here, (solution, variance, pull, norm) = there[0], moved
    converged = norm <= tol and all(s is Status.CONVERGED for s in solution.status)
    cast = rows.dtype
    return FrechetMean(
        restore(here.to(cast)),
        restore(solution.double_length.to(cast)),
        variance,
        norm,
        number,
        solution.status,
        converged,
    )


def _pull(
    metric: Metric, here: Tensor, z: Tensor, share: Tensor, options: dict[str, Any]
) -> tuple[Any, float, Tensor, float]:
    solution = geodesic(metric, here.expand_as(z), z, **options)
    velocity = departures(metric, solution, options, settled=True).velocities
    usable = torch.isfinite(solution.double_length) & torch.isfinite(velocity).all(1)
    weight = torch.where(usable, share, torch.zeros_like(share))
    pull = weight @ velocity.masked_fill(~usable[:, None], 0.0)
    variance = float(weight @ solution.double_length.masked_fill(~usable, 0.0).square())
    square = float(metric.parts().inner(here[None], pull[None], pull[None])[0].clamp_min(0))
    return solution, variance, pull, (square / variance) ** 0.5 if variance > 0 else 0.0


def mean(metric: Metric, points: ArrayLike, **options: Any) -> Any:
    """Fréchet mean of ``points`` (N, d), a point (d,).  :func:`frechet_mean` takes the same options and gives facts.

    Warns:
        ConvergenceWarning: the mean was not reached to the tolerance.
    """
    found = frechet_mean(metric, points, **options)
    if not found.converged:
        warnings.warn(
            f"`mean` stopped after {found.steps} steps with a gradient norm of {found.gradient_norm:.2g}, or with "
            "geodesics that did not converge; see frechet_mean().",
            ConvergenceWarning,
            stacklevel=2,
        )
    return found.point
