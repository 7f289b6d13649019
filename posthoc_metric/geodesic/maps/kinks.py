"""The exponential map where a decoder has kinks, as under ReLU: the geodesic equation has no value there.

A decoder that is piecewise smooth has a Jacobian that jumps by ``u νᵀ`` at a kink with normal ``ν``.  A geodesic
crosses it as light crosses the face of a crystal: its momentum ``M v`` along the kink stays as it was (the first
variation of the energy by a point on it), and so does its speed, which tells the momentum along ``ν``.  It is never
thrown back: ways along the kink are as long on both sides, and speed that is enough for them on one is so on the other.
Between kinks the same rule in small steps is a symmetric, second-order integrator of the geodesic equation that needs
no second derivative of the decoder, so that one rule does for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...machine import AT_ONCE
from ...metric import MetricParts
from ...smooth_map import SmoothMap
from ..curves.batch import Batch
from ..curves.halving import narrowed

#: points along the straight way between which kinks are looked for, between how many of them, and how closely
_LOOKED_AT, _SUSPECTS, _HALVINGS = 257, 4, 6
#: share of the change that is left there if it jumps, and share of the derivative below which a jump is none
_KEPT, _SLIGHT = 0.25, 1e-4
#: steps, to begin with, at most, and at most where a rough answer will do
_FIRST, _MOST, _MOST_ROUGH = 128, 2048, 512
#: constant weight that keeps directions without length where they are, over the mean of the others
_LEAST = 1e-10
#: change of an end by the last doubling of the steps, over the way run, that is enough, and that will do
ENOUGH, ROUGH = 1e-4, 1e-3


@dataclass
class _State(Batch):
    """P geodesics under way, and what the metric was found to be next to them.

    Attributes:
        z, v: (P, d).
        seen: where the metric was asked (P, d).
        value: of the embedding there (P, D).
        jacobian: (P, D, d).
        weight: (P,).
        slope: of the weight (P, d).
    """

    z: Tensor
    v: Tensor
    seen: Tensor
    value: Tensor
    jacobian: Tensor
    weight: Tensor
    slope: Tensor


def has_kinks(parts: MetricParts, z: Tensor, v: Tensor) -> Tensor:
    """Whose straight way from ``z`` by ``v`` (P, d) crosses kinks of the embedding (P,).

    Where the derivative changes most its change is halved with the distance if it is smooth, and stays if it jumps.
    """
    if parts.embedding is None or parts.field is not None or len(z) == 0:
        return torch.zeros(len(z), dtype=torch.bool, device=z.device)
    block = max(1, AT_ONCE // (16 * _LOOKED_AT * parts.embedding.output_dim))
    return torch.cat([_jumps(parts.embedding, *some) for some in zip(z.split(block), v.split(block), strict=True)])


def _jumps(embedding: SmoothMap, z: Tensor, v: Tensor) -> Tensor:
    def pushed(times: Tensor) -> Tensor:
        points = z[:, None] + times[..., None] * v[:, None]
        found = embedding.jvp(points.flatten(0, 1), v[:, None].expand_as(points).flatten(0, 1))[1]
        return found.double().unflatten(0, points.shape[:2])

    times = torch.linspace(0, 1, _LOOKED_AT, dtype=z.dtype, device=z.device).expand(len(z), -1)
    values = pushed(times)
    changes = values.diff(dim=1).norm(dim=2)
    largest, where = changes.topk(_SUSPECTS, dim=1)
    rows = where[..., None].expand(-1, -1, values.shape[2])
    ends = values.gather(1, rows), values.gather(1, rows + 1)
    left = narrowed(pushed, _change, times.gather(1, where), times[:, 1:2], ends, _HALVINGS)
    size = values.norm(dim=2).amax(1, keepdim=True)
    return ((left > _KEPT * largest) & (left > _SLIGHT * size)).any(1)


def _change(before: Tensor, after: Tensor) -> Tensor:
    return (after - before).norm(dim=2)


def shoot_across(parts: MetricParts, z: Tensor, v: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where geodesics from ``z`` with velocities ``v`` (P, d) are at time one.

    Args:
        tol: change of the end, over the way run, by the last doubling of the steps at which that is enough.

    Returns:
        Ends and velocities (P, d), that change, NaN where there is no metric on the way (P,), and steps (P,).
    """
    end, velocity = torch.full_like(z, float("nan")), torch.full_like(v, float("nan"))
    error = torch.full_like(z[:, 0], float("nan"))
    steps = torch.zeros(len(z), dtype=torch.long, device=z.device)
    rows, number = torch.arange(len(z), device=z.device), _FIRST
    most = _MOST if tol < ROUGH else _MOST_ROUGH
    while len(rows) and number <= most:
        state = _begun(parts, z[rows], v[rows])
        for _ in range(number):
            state = _stepped(parts, state, 1 / number)
        error[rows] = (state.z - end[rows]).norm(dim=1) / v[rows].norm(dim=1).clamp_min(1e-300)
        end[rows], velocity[rows] = state.z, state.v
        steps[rows] += number
        going = torch.isfinite(state.z).all(1) & ~(error[rows] <= tol)
        rows, number = rows[going], 2 * number
    return end, velocity, error.masked_fill(~torch.isfinite(end).all(1), float("nan")), steps


def _begun(parts: MetricParts, z: Tensor, v: Tensor) -> _State:
    return _State(z, v, z, *_asked(parts, z))


def _asked(parts: MetricParts, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert parts.embedding is not None
    value, jacobian = parts.embedding.value_and_jacobian(z)
    least = _LEAST * jacobian.square().sum((1, 2)) / z.shape[1]
    if parts.weight is None:
        return value, jacobian, least, torch.zeros_like(z)
    weight, slope = parts.weight.value_and_gradient(z)
    return value, jacobian, weight + least, slope


def _stepped(parts: MetricParts, state: _State, h: float) -> _State:
    """The geodesics a step of time ``h`` later, which turn where the Jacobian's change is centred."""
    step = h * state.v
    ahead = state.z + step
    value, jacobian, weight, slope = _asked(parts, ahead)
    change = jacobian - state.jacobian
    mean = (state.weight + weight) / 2
    force = h / 8 * (state.slope + slope)
    v = _pressed(state.jacobian, state.v, state.weight, mean, force)
    v = _pressed(jacobian, _refracted(state.jacobian, jacobian, v, mean), mean, weight, force)
    # from where the value is off a straight continuation it is told how long ago that ended
    start = state.value + _times(state.jacobian, state.z - state.seen)
    late, bent = value - start - _times(state.jacobian, step), _times(change, step)
    share = (late * bent).sum(1) / bent.square().sum(1).clamp_min(1e-300)
    share = torch.where(bent.square().sum(1) > 0, share, 0.5).clamp(0, 1)
    z = ahead + share[:, None] * h * (v - state.v)
    return _State(z, v, ahead, value, jacobian, weight, slope)


def _pressed(jacobian: Tensor, v: Tensor, before: Tensor, after: Tensor, force: Tensor) -> Tensor:
    """Velocities (P, d) after the weight has changed: ``d(w v) = ½ ‖v‖² ∇w dt``, the force by half a step's slopes.

    The mean of the squared velocities before and after makes it symmetric in time.
    """
    form = jacobian.mT @ jacobian
    dim = v.shape[1]
    eye = torch.eye(dim, dtype=v.dtype, device=v.device)
    momentum = _times(form, v) + before[:, None] * v
    matrix = form + after[:, None, None] * eye
    new = v
    for _ in range(2):
        squares = (v.square().sum(1) + new.square().sum(1)) / 2
        new = torch.linalg.solve_ex(matrix, momentum + squares[:, None] * force)[0]
    return new


def _refracted(before: Tensor, after: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """Velocities (P, d) after the Jacobian has changed, of the same speed."""
    unit = torch.eye(v.shape[1], dtype=v.dtype, device=v.device)
    eye = weight[:, None, None] * unit
    middle = (before + after).mT / 2
    crossed = torch.linalg.solve_ex(middle @ after + eye, _times(middle @ before + eye, v))[0]
    change, far = after - before, after.mT @ after + eye
    energy = (v * _times(before.mT @ before + eye, v)).sum(1)
    now = (crossed * _times(far, crossed)).sum(1)
    gram = change.mT @ change
    usable = torch.isfinite(gram).flatten(1).all(1)
    normal = torch.linalg.eigh(torch.where(usable[:, None, None], gram, unit))[1][..., -1]
    push = torch.linalg.solve_ex(far, normal)[0]
    across, room = (normal * crossed).sum(1), (normal * push).sum(1)
    root = across.square() - room * (now - energy)
    more = (root.clamp_min(0).sqrt() * across.sign() - across) / room
    # of several kinks in one step none has a normal that makes up for what the step lost
    scaled = crossed * (energy / now.clamp_min(1e-300)).sqrt()[:, None]
    found = torch.where((root >= 0)[:, None], crossed + more[:, None] * push, scaled)
    return torch.where(usable[:, None], found, float("nan"))


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors[..., None])[..., 0]
