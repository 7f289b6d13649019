"""GEORCE's update as published, batched over pairs: a peer for the benchmarks, no part of the library.

A curve is a discrete control problem: nodes ``z_0 = a``, ``z_{i+1} = z_i + u_i``, cost ``Σ u_iᵀ G(z_i) u_i``.  With
``ν_j = ∇_z u_jᵀ G(z) u_j`` at ``z_j`` the conditions of optimality, the metric held fixed, are solved by

    u_i = -½ G_i⁻¹ (μ + Σ_{j>i} ν_j),   (Σ_i G_i⁻¹) μ = -2 (b - a) - Σ_i G_i⁻¹ Σ_{j>i} ν_j,

and a line search goes from the present controls towards these (Rygaard & Hauberg 2025, algorithm 1; 100 controls and a
gradient below 1e-4, as published).
"""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_metric.field_derivative import FieldDerivative
from posthoc_metric.metric import Metric, MetricParts

_ARMIJO = 1e-4
_HALVINGS = 20


class _Problem:
    """Energies, metrics and gradients at the nodes of P curves of n controls."""

    def __init__(self, parts: MetricParts, probe: Tensor):
        self.parts = parts
        self.field = None if parts.field is None else FieldDerivative(parts.field, probe)
        self.step = 0.0
        if parts.embedding is not None:
            values = parts.embedding(probe[:4])
            single = bool((values.float().double() == values).all())
            self.step = float((probe.amax(0) - probe.amin(0)).max()) * (5e-3 if single else 6e-6)

    def energy(self, nodes: Tensor) -> Tensor:
        u = nodes.diff(dim=1)
        flat = u.reshape(-1, u.shape[2])
        return self.parts.inner(nodes[:, :-1].reshape(flat.shape), flat, flat).view(u.shape[:2]).sum(1)

    def linearise(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energies (P,), metrics (P, n, d, d) and ``ν`` (P, n, d), of which the first, at ``z_0``, is not used."""
        count, total, dim = nodes.shape
        u = nodes.diff(dim=1).reshape(-1, dim)
        z = nodes[:, :-1].reshape(-1, dim)
        metrics, slope = z.new_zeros(len(z), dim, dim), torch.zeros_like(z)
        embedding, weight = self.parts.embedding, self.parts.weight
        if embedding is not None:
            _, jacobian = embedding.value_and_jacobian(z)
            metrics = metrics + jacobian.mT @ jacobian
            pushed = (jacobian @ u[..., None])[..., 0]
            # ∇ ‖J u‖² = 2 (∂_u J)ᵀ J u, a difference of two pull-backs of what is held fixed
            size = u.norm(dim=1, keepdim=True).clamp_min(1e-300)
            offset = self.step * u / size
            ahead, behind = (embedding.vjp(z + way, pushed)[1] for way in (offset, -offset))
            slope = slope + size * (ahead - behind) / self.step
        if weight is not None:
            w, tilt = weight.value_and_gradient(z)
            metrics = metrics + w[:, None, None] * torch.eye(dim, dtype=z.dtype)
            slope = slope + u.square().sum(1, keepdim=True) * tilt
        if self.field is not None:
            tensors, derivative = self.field(z, u)
            metrics, slope = metrics + tensors, slope + (derivative.mT @ u[..., None])[..., 0]
        energy = torch.einsum("pi,pij,pj->p", u, metrics, u).view(count, -1).sum(1)
        return energy, metrics.view(count, -1, dim, dim), slope.view(count, -1, dim)


def georce(
    metric: Metric, start: Tensor, end: Tensor, *, controls: int = 100, tol: float = 1e-4, max_steps: int = 1000
) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes (B, n+1, d) of the geodesics between the rows of ``start`` and ``end``, which converged, and steps (B,)."""
    a, b = start.double(), end.double()
    problem = _Problem(metric.parts(), torch.cat([a, b]))
    share = torch.linspace(0, 1, controls + 1, dtype=a.dtype)[None, :, None]
    nodes = a[:, None] + share * (b - a)[:, None]
    final, steps = nodes.clone(), torch.zeros(len(a), dtype=torch.long)
    converged = torch.zeros(len(a), dtype=torch.bool)
    row = torch.arange(len(a))
    for _ in range(max_steps):
        energy, metrics, slope = problem.linearise(nodes)
        u = nodes.diff(dim=1)
        along = 2 * (metrics @ u[..., None])[..., 0]
        gradient = slope[:, 1:] - along[:, 1:] + along[:, :-1]
        done = gradient.flatten(1).norm(dim=1) <= tol
        wrong = ~torch.isfinite(gradient).flatten(1).all(1)
        final[row], converged[row] = nodes, done
        go = ~(done | wrong)
        row, nodes, u, energy, metrics, slope, gradient = (
            part[go] for part in (row, nodes, u, energy, metrics, slope, gradient)
        )
        if len(row) == 0:
            break
        steps[row] += 1
        later = slope[:, 1:].flip(1).cumsum(1).flip(1)
        later = torch.cat([later, torch.zeros_like(later[:, :1])], dim=1)
        inverse, _ = torch.linalg.inv_ex(metrics)
        way = nodes[:, -1] - nodes[:, 0]
        right = -2 * way - torch.einsum("pnij,pnj->pi", inverse, later)
        common, _ = torch.linalg.solve_ex(inverse.sum(1), right)
        wanted = -0.5 * (inverse @ (common[:, None] + later)[..., None])[..., 0]
        shift = torch.zeros_like(nodes)
        shift[:, 1:-1] = (wanted - u).cumsum(1)[:, :-1]
        fall = (gradient * shift[:, 1:-1]).sum((1, 2))
        size = torch.ones_like(fall)
        waiting = torch.arange(len(row))
        for _ in range(_HALVINGS):
            trial = nodes[waiting] + size[waiting, None, None] * shift[waiting]
            usable = torch.isfinite(trial).flatten(1).all(1)
            found = torch.full_like(fall[waiting], float("inf"))
            if bool(usable.any()):
                found[usable] = problem.energy(trial[usable])
            waiting = waiting[~(found <= energy[waiting] + _ARMIJO * size[waiting] * fall[waiting])]
            if len(waiting) == 0:
                break
            size[waiting] /= 2
        size[waiting] = 0
        nodes = nodes + size[:, None, None] * shift
        stuck = size == 0
        row, nodes = row[~stuck], nodes[~stuck]
        if len(row) == 0:
            break
    final[row] = nodes
    return final, converged, steps
