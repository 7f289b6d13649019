"""Levenberg-Marquardt steps inside a trust region, all curves at once, each with a radius and a damping of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..curves.batch import Batch
from ..curves.elements import Model
from ..curves.linear import solve_model
from .linearisation import Linearisation

#: damping at or below which the next step tries to do without
UNDAMPED = 1e-2
#: how many times as far as its own model says a Gauss-Newton step may go
_FARTHEST = 3.0


@dataclass
class Step(Batch):
    """Moves of P curves.

    Attributes:
        move: of the inner nodes (P, n-1, d).
        predicted: what the energy should fall by (P,).
        residual: ``sqrt(gᵀ H⁻¹ g / E)`` (P,), ``inf`` where no damping gives a step.
        size: of the move, relative to the curve's length (P,).
        bowl: whether the model is positive definite as it is (P,).
    """

    move: Tensor
    predicted: Tensor
    residual: Tensor
    size: Tensor
    bowl: Tensor


def step_in_region(
    here: Linearisation, model: Model, inertia: Tensor, radius: Tensor, damping: Tensor
) -> tuple[Step, Tensor, Tensor]:
    """The minimiser of the model in the trust region, nearly: damping is raised until it is inside and convex.

    Args:
        here: P curves.
        model: all that is known of the Hessian; changed in place.
        inertia: blocks of the norm in which steps are measured (P, n-1, d, d).
        radius: of the region (P,).
        damping: that of the last step (P,).

    Returns:
        The steps, and their dampings and radii (P,): zero where no step is possible.
    """
    move = torch.zeros_like(here.gradient)
    size = torch.zeros_like(here.energy)
    bowl = torch.zeros_like(size, dtype=torch.bool)
    # the last damping is a good first guess; a tenth of it lets a curve grow out of it
    mu = torch.where(damping > UNDAMPED, damping / 10, torch.zeros_like(damping))
    todo = torch.arange(len(mu), device=mu.device)
    stiff, whole = todo[:0], model
    for trial in range(60):
        # all curves are tried once: no copies of everything
        rows, norm, energy = (None, inertia, here.energy) if trial == 0 else (todo, inertia[todo], here.energy[todo])
        push = (mu[todo] * energy)[:, None, None, None] * norm
        found, convex = _damped(model, rows, push, here.gradient)
        if trial == 0:
            bowl = convex & (mu == 0)
        if not bool(convex.all()):
            # far from a minimum the Gauss-Newton part alone gives longer steps than damping what is indefinite
            saddle = todo[~convex]
            if trial == 0:
                stiff, whole = saddle, model.take(saddle)
            model.put_rows(saddle, here.convex.take(saddle))
            found[~convex], convex[~convex] = _damped(model, saddle, push[~convex], here.gradient)
        length = (found * (norm @ found[..., None])[..., 0]).sum((1, 2)).clamp_min(0).sqrt()
        ratio = length / radius[todo]
        inside = convex & (ratio <= 1.2)
        if trial == 0:
            move, size = found, length
        else:
            move[todo], size[todo] = found, length
        if bool(inside.all()):
            todo = todo[:0]
            break
        excess = torch.where(convex, ratio.clamp(2.0, 30.0), 10.0)
        todo, excess = todo[~inside], excess[~inside]
        mu[todo] = (mu[todo] * excess).clamp_min(UNDAMPED)
    move[todo] = 0.0
    slope = -(here.gradient * move).sum((1, 2))
    braking = mu * here.energy * size.square()
    # sᵀHs is slope less damping; by Cauchy-Schwarz the undamped decrement is at least slope² / sᵀHs
    bent = (slope - braking).clamp_min(1e-9 * slope.abs() + 1e-300)
    decrement = slope.square() / bent
    residual = (decrement / here.energy.clamp_min(1e-300)).sqrt()
    # a curve for which no damping gives a step has nothing to be judged by
    residual[todo] = float("inf")
    predicted = 0.5 * (slope + braking)
    if len(stiff):
        # the way is the Gauss-Newton part's, how far to go is for all that is known to say
        along = move[stiff]
        bend = (along * whole.times(along)).sum((1, 2))
        most = (1.2 * radius[stiff] / size[stiff].clamp_min(1e-300)).clamp(1, _FARTHEST)
        far = torch.where(bend > 0, slope[stiff] / bend.clamp_min(1e-300), most).clamp_min(1).minimum(most)
        gain = far * slope[stiff] - far.square() * bend / 2
        predicted[stiff] = torch.where(far > 1, gain, predicted[stiff])
        move[stiff], size[stiff] = far[:, None, None] * along, far * size[stiff]
    radius = radius.clone()
    radius[todo] = 0.0
    return Step(move, predicted, residual, size, bowl), mu, radius


def _damped(model: Model, rows: Tensor | None, push: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Steps of the curves ``rows``, or of all of them."""
    damped, down = (model, gradient) if rows is None else (model.take(rows), gradient[rows])
    return solve_model(Model(damped.diagonal + push, damped.near, damped.far), -down)
