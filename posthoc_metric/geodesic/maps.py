"""Exponential and logarithmic map, and the Fréchet mean."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, describe, to_points, to_tensor
from ..errors import ConvergenceWarning, InvalidArgumentError
from ..metric import Metric
from .acceleration import attainable
from .options import check_integer, check_positive
from .shooting import integrate, shoot
from .solve import geodesic
from .status import Status

#: up to this dimension the logarithm is polished, as its derivative costs d shots
_POLISH_DIM = 16
#: how finely the geodesic is relaxed before: many nodes cost less than one shot through a decoder, and where geodesics
#: part fast a shot needs a velocity that is nearly right
_FINE: dict[str, Any] = {"spans": 64, "tol": 1e-4, "rtol": 1e-5}
#: shots, by how much each must come nearer than the last, and how near the best must have come to count
_SHOTS, _NEARER, _NEAR = 8, 0.5, 1e-3

#: how finely geodesics to a mean are relaxed: coarser ones leave more of a gradient than is asked for
_CAREFUL: dict[str, Any] = {"spans": 32, "rtol": 1e-4}
#: share of the decrease that the gradient promises which a step must bring
_ENOUGH = 0.2


def exp(metric: Metric, z: ArrayLike, v: ArrayLike, *, rtol: float = 1e-8, max_steps: int = 5000) -> Any:
    """Exponential map: where the geodesics from ``z`` (B, d) with velocities ``v`` (B, d) are at time one, (B, d).

    :func:`shoot` gives the velocities there, the drift of the conserved speed, the steps and a status as well.

    Warns:
        ConvergenceWarning: rows that did not arrive; they are NaN.
    """
    shot = shoot(metric, z, v, rtol=rtol, max_steps=max_steps)
    _warn("exp", shot.status, "are NaN; see shoot() for each row's status")
    return shot.points


@dataclass(frozen=True)
class Logarithm:
    """Initial velocities of geodesics.

    Attributes:
        velocities: (B, d); their Riemannian norm is ``length``.
        length: (B,).
        miss: latent distance by which the shot with that velocity misses, over that of the pair (B,); NaN where the
            velocity was not shot.
        status: B of them; of the relaxed geodesic, or ``UNRESOLVED`` where shooting did not come near.  That need not
            mean a wrong velocity, which is then the relaxed geodesic's: where geodesics part fast no shot hits.
        converged: (B,), bool.
    """

    velocities: Any
    length: Any
    miss: Any
    status: tuple[Status, ...]
    converged: Any


def logarithm(
    metric: Metric, z0: ArrayLike, z1: ArrayLike, *, polish: bool = True, rtol: float = 1e-8, **options: Any
) -> Logarithm:
    """Velocities at ``z0`` (B, d) of the geodesics that reach ``z1`` (B, d) at time one.

    The initial velocity of a finely relaxed geodesic, polished by Newton's method on what it hits.  The exponential
    map's derivative comes from d more shots and is kept up to date by those that follow (Broyden 1965).

    Above 16 dimensions the velocity of the geodesic is returned as it is.  A curve's direction errs with the root of
    what its length errs by: by several per cent where the length is right to 1e-4.  ``rtol`` of the geodesic cannot be
    given here; for surer directions take :func:`geodesic` with small ``rtol`` and ``rough_rtol``, and ``velocity(0.0)``
    of what it returns.

    Args:
        polish: shoot.
        rtol: of the shots; see :func:`shoot`.
        **options: of :func:`geodesic`.
    """
    polish &= metric.dim <= _POLISH_DIM
    if polish:
        options = _below(options, _FINE)
    solution = geodesic(metric, z0, z1, **options)
    start, restore = to_points(z0, "z0", metric.dim)
    end, _ = to_points(z1, "z1", metric.dim)
    a, b = start.double(), end.to(start.device).double()
    velocity = solution.double_velocity(0.0)
    length = solution.double_length.clone()
    miss = torch.full_like(length, float("nan"))
    status = list(solution.status)
    if polish:
        rows = torch.tensor([s is not Status.NOT_FINITE for s in status], device=a.device).nonzero().flatten()
        if len(rows):
            with torch.no_grad():
                better, off = _polish(metric, a[rows], b[rows], velocity[rows], rtol)
                velocity[rows], miss[rows] = better, off
                length[rows] = metric.parts().inner(a[rows], better, better).clamp_min(0).sqrt()
        for row in (miss > _NEAR).nonzero().flatten().tolist():
            status[row] = Status.UNRESOLVED
    cast = start.dtype
    converged = torch.tensor([s is Status.CONVERGED for s in status], dtype=torch.bool, device=a.device)
    return Logarithm(
        restore(velocity.to(cast)), restore(length.to(cast)), restore(miss.to(cast)), tuple(status), restore(converged)
    )


def log(metric: Metric, z0: ArrayLike, z1: ArrayLike, **options: Any) -> Any:
    """Logarithmic map: velocities at ``z0`` (B, d) whose geodesics reach ``z1`` (B, d) at time one, (B, d).

    :func:`logarithm` gives lengths, misses and a status as well, and takes the same options.

    Warns:
        ConvergenceWarning: rows whose velocity is not to be trusted.
    """
    found = logarithm(metric, z0, z1, **options)
    _warn("log", found.status, "may be wrong; see logarithm() for each row's status")
    return found.velocities


def _polish(metric: Metric, a: Tensor, b: Tensor, v: Tensor, rtol: float) -> tuple[Tensor, Tensor]:
    """Newton's method for ``exp(a, v) = b``; an item that does not come near is left as it was.

    Where geodesics part fast, a shot with nearly the right velocity misses by far, and one that misses by less need not
    have a better one.
    """
    count, dim = a.shape
    apart, good = (b - a).norm(dim=1).clamp_min(1e-300), max(rtol, attainable(metric.parts(), a))
    # every item is shot with its own velocity and with d velocities beside it, all in one batch
    beside = good**0.5 * v.norm(dim=1).clamp_min(1e-300)[:, None, None]
    offsets = torch.cat([a.new_zeros(1, dim), torch.eye(dim, dtype=a.dtype, device=a.device)])
    hits = _hits(metric, a[:, None].expand(-1, dim + 1, -1), v[:, None] + beside * offsets, rtol)
    derivative = ((hits[:, 1:] - hits[:, :1]) / beside).mT
    best, hit = v.clone(), hits[:, 0].clone()
    first_miss = ((b - hit).norm(dim=1) / apart).nan_to_num(nan=float("inf"))
    best_miss = first_miss.clone()
    todo = torch.arange(count, device=a.device)
    for _ in range(_SHOTS):
        todo = todo[torch.isfinite(derivative[todo]).flatten(1).all(1) & (best_miss[todo] > 10 * good)]
        change, info = torch.linalg.solve_ex(derivative[todo], (b - hit)[todo][..., None])
        usable = (info == 0) & torch.isfinite(change[..., 0]).all(1)
        todo, change = todo[usable], change[usable, :, 0]
        if len(todo) == 0:
            break
        end = _hits(metric, a[todo], best[todo] + change, rtol)
        miss = ((b[todo] - end).norm(dim=1) / apart[todo]).nan_to_num(nan=float("inf"))
        off = end - hit[todo] - (derivative[todo] @ change[..., None])[..., 0]
        derivative[todo] += off[:, :, None] * (change / change.square().sum(1, keepdim=True))[:, None]
        better, nearer = miss < best_miss[todo], miss < _NEARER * best_miss[todo]
        best[todo[better]] += change[better]
        hit[todo[better]], best_miss[todo[better]] = end[better], miss[better]
        todo = todo[nearer]
    near = best_miss <= _NEAR
    miss = torch.where(near, best_miss, first_miss)
    return torch.where(near[:, None], best, v), torch.where(torch.isfinite(miss), miss, float("nan"))


def _hits(metric: Metric, start: Tensor, velocity: Tensor, rtol: float) -> Tensor:
    """Where velocities (..., d) lead from points (..., d) in a unit of time."""
    dim = start.shape[-1]
    return integrate(metric, start.reshape(-1, dim), velocity.reshape(-1, dim), rtol, 2000)[0].view(start.shape)


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
    options = _below(options, _CAREFUL)
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
    velocity = solution.double_velocity(0.0)
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


def _below(options: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Options of the caller's, and ours where they leave room and are those of the same solver."""
    if options.get("solver", "relaxation") != "relaxation":
        return options
    room = {name: value for name, value in ours.items() if name != "spans" or "max_spans" not in options}
    return room | options


def _warn(name: str, status: tuple[Status, ...], what: str) -> None:
    rows = [row for row, one in enumerate(status) if one is not Status.CONVERGED]
    if rows:
        shown = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
        warnings.warn(f"`{name}` did not converge in rows {shown}: they {what}.", ConvergenceWarning, stacklevel=3)
