"""Levenberg-Marquardt steps inside a trust region, all curves at once, each with a radius and a damping of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Batch
from .elements import Model
from .energy import Linearisation
from .linear import solve_model

#: damping at or below which the next step tries to do without
UNDAMPED = 1e-2


@dataclass
class Step(Batch):
    """Moves of P curves.

    Attributes:
        move: of the inner nodes (P, n-1, d).
        predicted: what the energy should fall by (P,).
        residual: ``sqrt(gᵀ H⁻¹ g / E)`` (P,), ``inf`` where no damping gives a step.
        size: of the move, relative to the curve's length (P,).
    """

    move: Tensor
    predicted: Tensor
    residual: Tensor
    size: Tensor


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
    # the last damping is a good first guess; a tenth of it lets a curve grow out of it
    mu = torch.where(damping > UNDAMPED, damping / 10, torch.zeros_like(damping))
    todo = torch.arange(len(mu), device=mu.device)
    for _ in range(60):
        push = (mu[todo] * here.energy[todo])[:, None, None, None] * inertia[todo]
        found, convex = _damped(model, todo, push, here.gradient)
        if not bool(convex.all()):
            # far from a minimum the Gauss-Newton part alone gives longer steps than damping what is indefinite
            saddle = todo[~convex]
            model.put_rows(saddle, here.convex.take(saddle))
            found[~convex], convex[~convex] = _damped(model, saddle, push[~convex], here.gradient)
        length = torch.einsum("pki,pkij,pkj->p", found, inertia[todo], found).clamp_min(0).sqrt()
        inside = convex & (length <= 1.2 * radius[todo])
        move[todo], size[todo] = found, length
        excess = torch.where(convex, (length / radius[todo]).clamp(2.0, 30.0), 10.0)
        mu[todo] = torch.where(inside, mu[todo], (mu[todo] * excess).clamp_min(UNDAMPED))
        todo = todo[~inside]
        if len(todo) == 0:
            break
    move[todo] = 0.0
    slope = -(here.gradient * move).sum((1, 2))
    braking = mu * here.energy * size.square()
    # sᵀHs is slope less damping; by Cauchy-Schwarz the undamped decrement is at least slope² / sᵀHs
    bent = (slope - braking).clamp_min(1e-9 * slope.abs() + 1e-300)
    decrement = slope.square() / bent
    residual = (decrement / here.energy.clamp_min(1e-300)).sqrt()
    # a curve for which no damping gives a step has nothing to be judged by
    residual[todo] = float("inf")
    radius = radius.clone()
    radius[todo] = 0.0
    return Step(move, 0.5 * (slope + braking), residual, size), mu, radius


def _damped(model: Model, rows: Tensor, push: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    damped = model.take(rows)
    damped.diagonal += push
    return solve_model(damped, -gradient[rows])
