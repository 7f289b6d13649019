"""From start curves to a confirmed geodesic: coarse to fine, the best start kept, nodes where they are needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..metric import MetricParts
from .batch import Batch
from .curves import Clock, make_clock, pad, respace
from .energy import CurveEnergy
from .options import RelaxationOptions
from .quadrature import POINTS_A_SPAN, measure
from .relaxation import relax
from .spline import Spline, interpolate
from .status import Status

#: coarse curves are compared before they are stationary to the tolerance asked for
_COARSE_TOL = 3e-2


@dataclass
class Facts(Batch):
    """What is known of P curves; see :class:`~posthoc_metric.geodesic.Solution`."""

    length: Tensor
    energy: Tensor
    residual: Tensor
    length_error: Tensor
    speed_variation: Tensor
    steps: Tensor
    evaluations: Tensor
    spans: Tensor
    candidate: Tensor
    status: Tensor


STATUSES = tuple(Status)


def refine(
    parts: MetricParts, candidates: list[tuple[Tensor, Tensor]], options: RelaxationOptions, noise: float
) -> tuple[Facts, Spline, Clock]:
    """Geodesics of B pairs from lists of start curves.

    Args:
        candidates: for every kind of start, its knots (B, n+1) and nodes (B, n+1, d), n the coarsest number of spans.
        noise: relative rounding error of the embedding's values.
    """
    count = len(candidates[0][0])
    device = candidates[0][0].device
    probe = torch.cat([nodes.flatten(0, 1) for _, nodes in candidates])
    energy = CurveEnergy(parts, probe[torch.isfinite(probe).all(1)][:512])
    knots, nodes = (torch.cat([candidate[i] for candidate in candidates]) for i in (0, 1))
    curves = _relax_and_measure(parts, energy, knots, nodes, options, _COARSE_TOL, noise)
    best, facts = _keep_shortest(curves[0], count, len(candidates))
    spline = curves[1].take(best)
    density = curves[2][best]
    done: list[tuple[Tensor, Spline, Clock]] = []
    rows = torch.arange(count, device=device)
    final = facts.take(rows)
    spans = knots.shape[1] - 1
    while len(rows):
        spans *= 2
        knots, nodes = respace(spline, density, spans)
        present, spline, density, clock = _relax_and_measure(parts, energy, knots, nodes, options, options.tol, noise)
        before = final.take(rows)
        # the length of the interpolated curve errs with the third to fourth power of the spacing
        change = (present.length - before.length).abs() / 7
        shortfall = present.length * present.residual.square()
        present.length_error = present.length_error + change + shortfall
        present.steps += before.steps
        present.evaluations += before.evaluations
        present.candidate = before.candidate
        confirmed = present.length_error <= options.rtol * present.length
        converged = present.status == STATUSES.index(Status.CONVERGED)
        present.status[converged & ~confirmed] = STATUSES.index(Status.UNRESOLVED)
        broken = present.status == STATUSES.index(Status.NOT_FINITE)
        leave = (converged & confirmed) | broken | (spans * 2 > options.max_spans)
        final.put_rows(rows, present)
        if bool(leave.any()):
            done.append((rows[leave], spline.take(leave), clock.take(leave)))
        rows, spline, density = rows[~leave], spline.take(~leave), density[~leave]
    joined, clock = pad([item[1] for item in done], [item[2] for item in done], [item[0] for item in done], count)
    return final, joined, clock


def _keep_shortest(facts: Facts, count: int, kinds: int) -> tuple[Tensor, Facts]:
    """Indices of the shortest finite candidate of every pair, and its facts with the work of all of them."""
    lengths = facts.length.view(kinds, count).nan_to_num(nan=float("inf"))
    winner = lengths.argmin(dim=0)
    index = winner * count + torch.arange(count, device=winner.device)
    kept = facts.take(index)
    kept.candidate = winner
    kept.steps = facts.steps.view(kinds, count).sum(0)
    kept.evaluations = facts.evaluations.view(kinds, count).sum(0)
    return index, kept


def _relax_and_measure(
    parts: MetricParts,
    energy: CurveEnergy,
    knots: Tensor,
    nodes: Tensor,
    options: RelaxationOptions,
    tol: float,
    noise: float,
) -> tuple[Facts, Spline, Tensor, Clock]:
    relaxed = relax(energy, nodes, knots, tol=tol, max_steps=options.max_steps, noise=noise)
    spline = interpolate(knots, relaxed.nodes)
    measured = measure(parts, spline)
    mean = measured.speeds.mean((1, 2)).clamp_min(1e-300)
    spans = knots.shape[1] - 1
    facts = Facts(
        length=measured.length,
        energy=measured.energy,
        residual=relaxed.residual,
        length_error=measured.error,
        speed_variation=(measured.speeds.amax((1, 2)) - measured.speeds.amin((1, 2))) / mean,
        steps=relaxed.steps,
        evaluations=relaxed.evaluations + POINTS_A_SPAN * spans + 1,
        spans=torch.full_like(relaxed.steps, spans),
        candidate=torch.zeros_like(relaxed.steps),
        status=torch.tensor([STATUSES.index(status) for status in relaxed.status], device=knots.device),
    )
    lost = ~torch.isfinite(facts.length) & (facts.status == STATUSES.index(Status.CONVERGED))
    facts.status[lost] = STATUSES.index(Status.UNRESOLVED)
    return facts, spline, _density(spline, measured.spans, measured.span_errors), make_clock(spline, measured.speeds)


def _density(spline: Spline, lengths: Tensor, errors: Tensor) -> Tensor:
    """How many nodes a span deserves: by Riemannian length, latent length and error of the quadrature.

    Where the metric is small a curve crosses much latent space in little length, and what it crosses
    goes unseen unless the nodes count latent length too.
    """
    latent = (spline.nodes[:, 1:] - spline.nodes[:, :-1]).norm(dim=-1)
    root = errors.pow(0.2)
    shares = [part / part.sum(1, keepdim=True).clamp_min(1e-300) for part in (lengths, latent, root)]
    density = 0.5 * shares[0] + 0.25 * shares[1] + 0.25 * shares[2]
    usable = torch.isfinite(density).all(1, keepdim=True) & (density.sum(1, keepdim=True) > 0)
    return torch.where(usable, density, spline.knots.diff(dim=1))
