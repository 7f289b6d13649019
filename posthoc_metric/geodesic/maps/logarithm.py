"""The logarithmic map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._arrays import ArrayLike, to_points
from ...metric import Metric, check_metric
from ...surroundings import lasting, own_precision
from ..acceleration import attainable
from ..guard import guard
from ..options import beneath, check_positive
from ..relaxation.matrix_free import MOST_COLUMNS
from ..solve import geodesic
from ..status import Status, warn
from .kinks import ROUGH, has_kinks
from .settling import SURE, departures, sure
from .shooting import integrate

#: how finely the geodesic is relaxed in few dimensions, where that costs little
_FINE: dict[str, Any] = {"spans": 64, "tol": 1e-4, "rtol": 1e-5}
#: up to this dimension the logarithm is polished, as its derivative costs d shots
_POLISH_DIM = 16
#: shots, by how much each must come nearer than the last, and how near the best must have come to count
_SHOTS, _NEARER, _NEAR = 8, 0.5, 1e-3
#: error of a velocity, over one that is as good as exact, from which on it is shot
_DOUBTFUL = 10
#: miss of a first shot from which others can still come near
_FAR = 0.5


@dataclass(frozen=True)
class Logarithm:
    """Initial velocities of geodesics.

    Attributes:
        velocities: (B, d); their Riemannian norm is ``length``.
        length: (B,).
        error: estimated relative error of the velocities in the metric's norm, before they are shot (B,); infinite
            where nothing tells.
        miss: latent distance by which the shot with that velocity misses, over that of the pair (B,); NaN where the
            velocity was not shot.  Where geodesics part fast a right velocity misses, too.
        status: B of them; of the relaxed geodesic, or ``UNRESOLVED`` where neither ``error`` nor ``miss`` vouches for
            the velocity.
        converged: (B,), bool.
    """

    velocities: Any
    length: Any
    error: Any
    miss: Any
    status: tuple[Status, ...]
    converged: Any


def logarithm(
    metric: Metric, z0: ArrayLike, z1: ArrayLike, *, polish: bool = True, rtol: float = 1e-8, **options: Any
) -> Logarithm:
    """Velocities at ``z0`` (B, d) of the geodesics that reach ``z1`` (B, d) at time one.

    A curve's direction errs with the root of what its length errs by, so that a relaxed geodesic is settled first:
    Newton's method with ever more nodes, up to 256 spans, and the derivative of the discrete energy by the first of
    them, which gives the velocity to fourth order (Marsden & West 2001).  Up to 16 dimensions what is not sure then is
    shot, and where the shot comes near polished by Newton's method on what it hits; the exponential map's derivative
    comes from d more shots and is kept up to date by those that follow (Broyden 1965).  Across a decoder's kinks
    geodesics part and near shots need not hit near points: there a shot tells the ``miss`` and polishes nothing.

    Args:
        polish: settle and shoot; else the velocity is that of the geodesic as it was relaxed.
        rtol: of the shots; see :func:`shoot`.
        **options: of :func:`geodesic`.

    Returns:
        A :class:`Logarithm` in the kind and dtype of ``z0``.

    Raises:
        InvalidArgumentError, NumericalError, WorkerError: as :func:`geodesic`.
    """
    options = beneath(options, _FINE) if check_metric(metric).dim <= MOST_COLUMNS else options
    check_positive(rtol, "rtol")
    solution = geodesic(metric, z0, z1, **options)
    start, restore = to_points(z0, "z0", metric.dim)
    end, _ = to_points(z1, "z1", metric.dim)
    with torch.no_grad(), own_precision(), lasting():
        # what was solved is where the metric's latents are
        length = solution.double_length.clone()
        a, b = (points.to(length.device).double() for points in (start, end))
        miss = torch.full_like(length, float("nan"))
        status, parts = list(solution.status), guard(metric.parts())
        left = departures(metric, solution, options, settled=polish)
        velocity, error = left.velocities, left.errors
        usable = torch.isfinite(velocity).all(1)
        # a shot costs more than all that came before
        rows = (usable & (error > _DOUBTFUL * sure(parts, a))).nonzero().flatten()
        # in one dimension there is one direction to leave in
        if polish and 1 < metric.dim <= _POLISH_DIM and len(rows):
            velocity[rows], miss[rows] = _polish(metric, a[rows], b[rows], velocity[rows], rtol)
        rows = usable.nonzero().flatten()
        if len(rows):
            length[rows] = parts.inner(a[rows], velocity[rows], velocity[rows]).clamp_min(0).sqrt()
    if polish:
        # of no way at all there is no direction to be wrong in
        doubtful = (error > SURE) & ~(miss <= _NEAR) & (length > 0)
        for row in doubtful.nonzero().flatten().tolist():
            status[row] = Status.UNRESOLVED if status[row] is Status.CONVERGED else status[row]
    converged = torch.tensor([s is Status.CONVERGED for s in status], dtype=torch.bool, device=a.device)
    velocity, length, error, miss = (restore(part.to(start.dtype)) for part in (velocity, length, error, miss))
    return Logarithm(velocity, length, error, miss, tuple(status), restore(converged))


def log(metric: Metric, z0: ArrayLike, z1: ArrayLike, **options: Any) -> Any:
    """Logarithmic map: velocities at ``z0`` (B, d) whose geodesics reach ``z1`` (B, d) at time one, (B, d).

    :func:`logarithm` gives lengths, misses and a status as well, and takes the same options.

    Warns:
        ConvergenceWarning: rows whose velocity is not to be trusted.
    """
    found = logarithm(metric, z0, z1, **options)
    warn("log", found.status, "may be wrong; see logarithm() for each row's status")
    return found.velocities


def _polish(metric: Metric, a: Tensor, b: Tensor, v: Tensor, rtol: float) -> tuple[Tensor, Tensor]:
    """Newton's method for ``exp(a, v) = b``; an item that does not come near is left as it was.

    Where geodesics part fast, a shot with nearly the right velocity misses by far, and one that misses by less need not
    have a better one.
    """
    dim = a.shape[1]
    apart, good = (b - a).norm(dim=1).clamp_min(1e-300), max(rtol, attainable(metric.parts(), a))
    hit = _hits(metric, a, v, rtol)
    first_miss = ((b - hit).norm(dim=1) / apart).nan_to_num(nan=float("inf"), posinf=float("inf"))
    best, best_miss = v.clone(), first_miss.clone()
    # geodesics part at kinks, so that near ones need not hit near points
    smooth = ~has_kinks(guard(metric.parts()), a, v)
    todo = (smooth & (first_miss > 10 * good) & (first_miss <= _FAR)).nonzero().flatten()
    derivative = a.new_zeros(len(a), dim, dim)
    if len(todo):
        # all items at once, each with d velocities beside its own
        beside = good**0.5 * v[todo].norm(dim=1).clamp_min(1e-300)[:, None, None]
        around = v[todo, None] + beside * torch.eye(dim, dtype=a.dtype, device=a.device)
        hits = _hits(metric, a[todo, None].expand(-1, dim, -1), around, rtol)
        derivative[todo] = ((hits - hit[todo, None]) / beside).mT
    for _ in range(_SHOTS):
        todo = todo[torch.isfinite(derivative[todo]).flatten(1).all(1) & (best_miss[todo] > 10 * good)]
        change, info = torch.linalg.solve_ex(derivative[todo], (b - hit)[todo][..., None])
        usable = (info == 0) & torch.isfinite(change[..., 0]).all(1)
        todo, change = todo[usable], change[usable, :, 0]
        if len(todo) == 0:
            break
        end = _hits(metric, a[todo], best[todo] + change, rtol)
        miss = ((b[todo] - end).norm(dim=1) / apart[todo]).nan_to_num(nan=float("inf"), posinf=float("inf"))
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
    return integrate(metric, start.reshape(-1, dim), velocity.reshape(-1, dim), rtol, 2000, ROUGH)[0].view(start.shape)
