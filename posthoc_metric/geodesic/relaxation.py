"""Damped Gauss-Newton steps with a structured secant correction, all curves at once, each for itself.

The Gauss-Newton model of the discrete energy is block tridiagonal and positive semi-definite.  What it lacks is
block diagonal for the chords (the decoder's second derivative along the curve's bend), and is learnt from
Jacobians at successive nodes as in NL2SOL (Dennis, Gay & Welsch 1981), node by node.  Every curve has its own
Levenberg-Marquardt damping (Marquardt 1963) and leaves the batch when it is done.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .energy import CurveEnergy, Linearisation, Model
from .linear import solve_block_tridiagonal
from .status import Status

#: damping at which a step is below rounding
_MU_MAX = 1e12


@dataclass(frozen=True)
class Relaxed:
    """What :func:`relax` made of P curves.

    Attributes:
        nodes: (P, n+1, d).
        energy: (P,).
        residual: ``sqrt(gᵀ H⁻¹ g / E)`` (P,): twice the relative energy still to be gained, as a root.
        status: P of them.
        steps: accepted and rejected steps (P,).
        evaluations: points at which the metric was linearised, (P,).
    """

    nodes: Tensor
    energy: Tensor
    residual: Tensor
    status: list[Status]
    steps: Tensor
    evaluations: Tensor


def relax(
    energy: CurveEnergy, nodes: Tensor, knots: Tensor, *, tol: float, max_steps: int, noise: float = 0.0
) -> Relaxed:
    """Minimise the discrete energy over the inner nodes.

    Args:
        nodes: start curves (P, n+1, d).
        knots: their times (P, n+1).
        tol: residual at which a curve is done.
        max_steps: steps for each curve.
        noise: relative rounding error of the embedding's values.
    """
    count, total, dim = nodes.shape
    here = energy.linearise(nodes.clone(), knots.diff(dim=1))
    final = Relaxed(
        here.nodes.clone(), here.energy.clone(), torch.full_like(here.energy, float("inf")),
        [Status.STEP_LIMIT] * count, torch.zeros(count, dtype=torch.long, device=nodes.device),
        torch.full((count,), total, device=nodes.device),
    )
    active = torch.arange(count, device=nodes.device)
    h = knots.diff(dim=1)
    mu = torch.full_like(here.energy, 1e-2)
    secant = torch.zeros_like(here.convex.diagonal)
    residual = torch.full_like(here.energy, float("inf"))

    def leave(done: Tensor, why: Status) -> None:
        """Write the curves of mask ``done`` into the result and drop them."""
        nonlocal active, here, h, mu, secant, residual
        rows = active[done]
        final.nodes[rows], final.energy[rows] = here.nodes[done], here.energy[done]
        final.residual[rows] = residual[done]
        for row in rows.tolist():
            final.status[row] = why
        keep = ~done
        active, here, h, mu = active[keep], here.take(keep), h[keep], mu[keep]
        secant, residual = secant[keep], residual[keep]

    broken = ~_finite(here)
    if bool(broken.any()):
        leave(broken, Status.NOT_FINITE)
    for _ in range(max_steps + 1):
        if len(active) == 0:
            return final
        step, predicted, decrement, mu = _damped_step(here, h, secant, mu)
        residual = (decrement / here.energy.clamp_min(1e-300)).clamp_min(0).sqrt()
        # near the smallest energy that the embedding's precision can tell apart there is nothing left to gain
        floor = noise * here.energy
        done = (residual <= tol) | (decrement <= floor) | (here.energy <= 0)
        if bool(done.any()):
            leave(done, Status.CONVERGED)
            step, predicted = step[~done], predicted[~done]
        stuck = mu >= _MU_MAX
        if bool(stuck.any()):
            leave(stuck, Status.STALLED)
            step, predicted = step[~stuck], predicted[~stuck]
        if len(active) == 0:
            return final
        moved = here.nodes.clone()
        moved[:, 1:-1] += step
        there = energy.linearise(moved, h, here)
        final.steps[active] += 1
        final.evaluations[active] += total - 2
        gain = (here.energy - there.energy) / predicted.clamp_min(1e-300)
        accept = _finite(there) & (gain > 1e-4)
        mu = torch.where(accept, mu * torch.where(gain > 0.7, 0.1, torch.where(gain > 0.25, 0.5, 2.0)), mu * 8)
        mu = torch.where(accept, mu, mu.clamp_min(1e-2)).clamp(1e-8, _MU_MAX)
        secant = _update_secant(secant, here, there, step, accept)
        if bool(accept.all()):
            here = there
        else:
            here.put(accept, there)
    final.nodes[active], final.energy[active], final.residual[active] = here.nodes, here.energy, residual
    return final


def _finite(state: Linearisation) -> Tensor:
    return torch.isfinite(state.energy) & torch.isfinite(state.gradient).flatten(1).all(1)


def _damped_step(here: Linearisation, h: Tensor, secant: Tensor, mu: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Step, decrease of the model, undamped Newton decrement and the damping that made the model convex."""
    inertia = here.convex.diagonal * (h[:, :-1] * h[:, 1:])[..., None, None]
    full = Model(here.convex.diagonal + here.rest.diagonal + secant, here.convex.coupling + here.rest.coupling)
    step = torch.zeros_like(here.gradient)
    todo = torch.ones_like(mu, dtype=torch.bool)
    mu = mu.clone()
    for _ in range(40):
        rows = todo.nonzero().flatten()
        matrix = full.diagonal[rows] + mu[rows, None, None, None] * inertia[rows]
        found, good = solve_block_tridiagonal(matrix, full.coupling[rows], -here.gradient[rows])
        step[rows[good]] = found[good]
        todo[rows[good]] = False
        if not bool(todo.any()):
            break
        mu[todo] = (mu[todo] * 10).clamp_min(1e-2)
    slope = -(here.gradient * step).sum((1, 2))
    damp = mu * torch.einsum("pki,pkij,pkj->p", step, inertia, step)
    predicted = 0.5 * (slope + damp)
    # sᵀHs = slope - damp; the undamped decrement is at least slope² / sᵀHs by Cauchy-Schwarz
    decrement = slope.square() / (slope - damp).clamp_min(1e-12 * slope.abs() + 1e-300)
    return step, predicted, decrement, mu


def _update_secant(secant: Tensor, here: Linearisation, there: Linearisation, step: Tensor, accept: Tensor) -> Tensor:
    """Powell's symmetric update in the metric's scale, block by block, where the step was taken."""
    if here.jacobians is None or there.jacobians is None or there.bend is None:
        return secant
    old = (here.jacobians.mT @ there.bend[..., None])[..., 0]
    new = (there.jacobians.mT @ there.bend[..., None])[..., 0]
    miss = 2 * (new - old) - (secant @ step[..., None])[..., 0]
    weighted = (there.convex.diagonal @ step[..., None])[..., 0]
    length = (weighted * step).sum(-1).clamp_min(1e-300)[..., None, None]
    outer = miss[..., :, None] * weighted[..., None, :]
    along = (miss * step).sum(-1)[..., None, None] * weighted[..., :, None] * weighted[..., None, :]
    updated = secant + (outer + outer.mT) / length - along / length**2
    usable = accept[:, None, None, None] & torch.isfinite(updated).flatten(2).all(-1)[..., None, None]
    return torch.where(usable, updated, secant)
