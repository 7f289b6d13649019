"""The fixed-point Gaussian-process solver of 2019, batched over pairs: kept for comparison, as published.

A curve is the mean of a Gaussian process with a squared-exponential kernel in time, a straight line as its prior
mean, conditioned on its two ends and on accelerations ``y_n`` at N mesh points.  A geodesic is a fixed point of

    y_n  <-  f(μ(t_n), μ'(t_n)),

``f`` being the right-hand side of the geodesic equation and ``μ``, ``μ'`` the mean under the present ``y``.

Mesh, length scale ``ℓ² = ½ / (N - 1)``, noise, steps, tolerance and limit are the published ones.  What differs: where
``M`` is singular its pseudo-inverse is taken instead of an exception, a failed pair keeps its last curve instead of
a straight line, and a pair that meets the tolerance is called converged only if its length is confirmed.

References:
    Arvanitidis, Hauberg, Hennig, Schober: Fast and Robust Shortest Paths on Manifolds Learned from Data,
    AISTATS 2019; the kernel's amplitude after Hennig, Hauberg: Probabilistic Solutions to Differential Equations and
    their Application to Riemannian Statistics, AISTATS 2014.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..metric import MetricParts
from .acceleration import Acceleration
from .curves.batch import Batch
from .curves.rows import alike, unpadded
from .curves.spline import Spline
from .options import START_NAMES, FixedPointOptions
from .refinement.judge import judge
from .refinement.refined import Refined
from .status import CODES, Status

#: variances of the noise that accelerations and ends are observed with
_NOISE = 1e-8
_END_NOISE = 1e-10
#: steps tried one after the other until the residual falls; the last is taken as it comes
_STEPS = (1.0, 0.33, 0.33**2, 0.33**3)
#: share of the steps within which a residual that still falls must have fallen last
_LATELY = 0.25


class Kernel:
    """``k(s, t) = exp(-(s - t)² / 2ℓ²)`` and those of its derivatives that the conditioning needs."""

    def __init__(self, length_scale: float):
        self.precision = length_scale**-2

    def __call__(self, s: Tensor, t: Tensor, by_s: int = 0, by_t: int = 0) -> Tensor:
        """``∂^by_s/∂s ∂^by_t/∂t k`` at all pairs of times (m,) and (n,): (m, n)."""
        p = self.precision
        r = p * (s[:, None] - t[None])
        # k depends on s - t alone: Hermite polynomials, with a sign for every derivative by t
        polynomial = {
            0: lambda: torch.ones_like(r),
            1: lambda: -r,
            2: lambda: r**2 - p,
            3: lambda: 3 * p * r - r**3,
            4: lambda: r**4 - 6 * p * r**2 + 3 * p**2,
        }[by_s + by_t]()
        return (-1.0) ** by_t * polynomial * torch.exp(-(r**2) / (2 * p))


@dataclass
class Posterior(Batch):
    """Curves of P pairs as functions of their accelerations, one latent direction at a time.

    Attributes:
        start, end: (P, d).
        weights: from accelerations (P, d, N) to the weights of all N + 2 observations (P, d, N+2, N).
        spread: latent scale of difference steps (P,), where it is not the same for all.
    """

    start: Tensor
    end: Tensor
    weights: Tensor
    spread: Tensor | None


class Process:
    """The Gaussian process over a mesh of N times, for outputs with covariance ``S``.

    The kernel is ``(vᵀ S v) S k(s, t)``, ``v`` being the way between the two ends; in the eigenvectors of ``S``
    the latent coordinates are independent of each other.
    """

    def __init__(self, mesh: int, covariance: Tensor):
        spacing = 1 / (mesh - 1)
        self.kernel = Kernel((0.5 * spacing) ** 0.5)
        self.times = torch.linspace(0, 1, mesh, dtype=covariance.dtype, device=covariance.device)
        self.ends = self.times[[0, -1]]
        values, self.axes = torch.linalg.eigh(covariance)
        self.values, self.covariance = values.clamp_min(0), covariance

    def condition(self, start: Tensor, end: Tensor, spread: Tensor | None) -> Posterior:
        """The posteriors of pairs (P, d)."""
        t, e, k = self.times, self.ends, self.kernel
        gram = torch.cat([torch.cat([k(t, t, 2, 2), k(t, e, 2, 0)], dim=1), torch.cat([k(e, t, 0, 2), k(e, e)], dim=1)])
        noise = torch.cat([torch.full_like(t, _NOISE), torch.full_like(e, _END_NOISE)]).diag()
        way = end - start
        amplitude = torch.einsum("pi,ij,pj->p", way, self.covariance, way)[:, None] * self.values
        amplitude = amplitude[..., None, None]
        # the prior mean meets the ends, so that only the accelerations are news
        news = torch.eye(len(gram), len(t), dtype=t.dtype, device=t.device).expand(*amplitude.shape[:2], -1, -1)
        solved, _ = torch.linalg.solve_ex(amplitude * gram + noise, news)
        return Posterior(start, end, amplitude * solved, spread)

    def curve(self, posterior: Posterior, accelerations: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Points and velocities (P, m, d) at ``times`` (m,) under ``accelerations`` (P, N, d)."""
        k, t, e = self.kernel, self.times, self.ends
        # one small product a pair: a product over the whole batch would round by its size
        axes = self.axes.expand(len(accelerations), -1, -1)
        turned = (accelerations @ axes).mT[..., None]
        coefficients = (posterior.weights @ turned)[..., 0].mT @ axes.mT
        way = (posterior.end - posterior.start)[:, None]
        points, velocities = (
            torch.cat([k(times, t, order, 2), k(times, e, order, 0)], dim=1).expand(len(axes), -1, -1) @ coefficients
            for order in (0, 1)
        )
        return posterior.start[:, None] + times[:, None] * way + points, way + velocities


@dataclass
class _State(Batch):
    """Curves at work, or left behind.

    Attributes:
        wanted: accelerations that the geodesic equation asks for on the present curve (P, N, d).
        best, best_step: the smallest residual so far and when it was (P,).
    """

    row: Tensor
    posterior: Posterior
    accelerations: Tensor
    wanted: Tensor
    best: Tensor
    best_step: Tensor

    @property
    def cost(self) -> Tensor:
        return _cost(self.accelerations, self.wanted)


def solve_fixed_point(
    parts: MetricParts, start: Tensor, end: Tensor, latents: Tensor | None, options: FixedPointOptions
) -> Refined:
    """The published iteration for pairs (B, d), its curves measured as the relaxation's are.

    Pairs whose metric has no value on the straight line are ``NOT_FINITE``; those that no longer come nearer to
    a fixed point, or whose every step leads where there is no value, are ``DIVERGED``.
    """
    count, dim = start.shape
    process = Process(options.mesh, _covariance(latents, start))
    # without latents to set it, the scale of a pair is its own and not that of its neighbours
    spread = (end - start).norm(dim=1) if latents is None else None
    acceleration = Acceleration(parts, torch.cat([start, end]) if latents is None else latents[:512])
    steps = torch.zeros(count, dtype=torch.long, device=start.device)
    evaluations = torch.zeros_like(steps)
    status = torch.full_like(steps, CODES[Status.STEP_LIMIT])
    width = 1 if parts.embedding is None else parts.embedding.output_dim
    # the process's matrices, and Jacobians with two pushed vectors at the mesh points
    numbers = options.mesh * (4 * dim * (options.mesh + 2) + width * (2 * dim + 6))
    block = max(1, options.memory_limit // (8 * numbers))
    knots = torch.linspace(0, 1, options.spans + 1, dtype=start.dtype, device=start.device)
    nodes, slopes = [], []
    for rows in torch.arange(count, device=start.device).split(block):
        posterior = process.condition(start[rows], end[rows], None if spread is None else spread[rows])
        found = _iterate(process, acceleration, posterior, rows, steps, evaluations, status, options)
        points, velocities = process.curve(posterior, found, knots)
        points[:, 0], points[:, -1] = start[rows], end[rows]
        nodes.append(points)
        slopes.append(velocities)
    spline = Spline(knots.expand(count, -1).contiguous(), torch.cat(nodes), torch.cat(slopes))
    facts, clock, asked = judge(parts, spline, options.memory_limit)
    evaluations += asked
    lost = ~torch.isfinite(facts.length)
    status[lost & (status != CODES[Status.NOT_FINITE])] = CODES[Status.DIVERGED]
    settled = status == CODES[Status.CONVERGED]
    confirmed = facts.length_error <= options.rtol * facts.length
    status[settled & ~confirmed] = CODES[Status.UNRESOLVED]
    facts.status = status
    kind = torch.full_like(steps, START_NAMES.index("straight"))
    return Refined(facts, kind, spline, clock, steps, evaluations, torch.zeros_like(kind, dtype=torch.bool))


def _iterate(
    process: Process,
    acceleration: Acceleration,
    posterior: Posterior,
    rows: Tensor,
    steps: Tensor,
    evaluations: Tensor,
    status: Tensor,
    options: FixedPointOptions,
) -> Tensor:
    """Accelerations (P, N, d) of the last curves that had a value; counts and states are written in place."""

    def ask(who: Posterior, accelerations: Tensor, which: Tensor) -> Tensor:
        points, velocities = process.curve(who, accelerations, process.times)
        evaluations[rows[which]] += len(process.times)
        usable = (torch.isfinite(points) & torch.isfinite(velocities)).all(2, keepdim=True)
        z, v = (alike(part.masked_fill(~usable, 0.0)) for part in (points, velocities))
        spread = None
        if who.spread is not None:
            spread = alike(who.spread[:, None, None].expand_as(points))[:, 0]
        answer, _ = acceleration(z, v, spread)
        return unpadded(answer, points).masked_fill(~usable, float("nan"))

    def leave(why: Status, who: Tensor) -> None:
        status[rows[active.row[who]]] = CODES[why]
        final[active.row[who]] = active.accelerations[who]

    row = torch.arange(len(rows), device=rows.device)
    final = posterior.start.new_zeros(len(rows), len(process.times), posterior.start.shape[1])
    wanted = ask(posterior, final, row)
    active = _State(row, posterior, final.clone(), wanted, _cost(final, wanted), torch.zeros_like(row))
    nowhere = ~torch.isfinite(active.best)
    leave(Status.NOT_FINITE, nowhere)
    active = active.take(~nowhere)
    for number in range(options.max_steps + 1):
        done = ((active.accelerations - active.wanted).square() < options.tol).flatten(1).all(1)
        if bool(done.any()):
            leave(Status.CONVERGED, done)
            active = active.take(~done)
        if len(active.row) == 0:
            return final
        if number == options.max_steps:
            break
        steps[rows[active.row]] += 1
        pending = torch.arange(len(active.row), device=rows.device)
        moved, asked = active.accelerations.clone(), active.wanted.clone()
        for size in _STEPS:
            here = active.take(pending)
            trial = here.accelerations + size * (here.wanted - here.accelerations)
            there = ask(here.posterior, trial, here.row)
            cost = _cost(trial, there)
            accept = cost < here.cost if size > _STEPS[-1] else torch.isfinite(cost)
            moved[pending[accept]], asked[pending[accept]] = trial[accept], there[accept]
            pending = pending[~accept]
            if len(pending) == 0:
                break
        going = torch.ones_like(active.row, dtype=torch.bool)
        going[pending] = False
        leave(Status.DIVERGED, ~going)
        active.accelerations, active.wanted = moved, asked
        better = active.cost < active.best
        active.best = torch.where(better, active.cost, active.best)
        active.best_step[better] = number + 1
        active = active if len(pending) == 0 else active.take(going)
    falling = active.best_step > (1 - _LATELY) * options.max_steps
    leave(Status.STEP_LIMIT, falling)
    leave(Status.DIVERGED, ~falling)
    return final


def _cost(accelerations: Tensor, wanted: Tensor) -> Tensor:
    return (accelerations - wanted).square().sum((1, 2))


def _covariance(latents: Tensor | None, like: Tensor) -> Tensor:
    """The sample covariance of the latents (d, d); the identity without any."""
    if latents is None or len(latents) < 2:
        return torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    centred = latents.to(like) - latents.to(like).mean(0)
    return centred.mT @ centred / (len(latents) - 1)
