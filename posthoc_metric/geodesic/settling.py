"""Geodesics settled until the direction in which they leave is sure, which their length tells little of.

A length is right to the square of what the direction is, and a relaxation ends when the length is: directions are then
off by a few per cent.  From there a few Newton steps make a curve stationary, in as many dimensions as its Jacobians
fit into memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import as_tensor
from ..machine import working_memory
from ..metric import Metric, MetricParts
from .acceleration import attainable
from .batch import Batch, in_blocks
from .curves import between, even
from .energy import CurveEnergy
from .guard import guard
from .momentum import leaving
from .relaxation import relax
from .solution import Solution
from .spline import interpolate

#: spans of the curves, at first and at most, and Newton steps at each number of them
_FIRST, _MOST, _STEPS = 32, 256, 30
#: relative error up to which a velocity is vouched for
SURE = 1e-2
#: the one that will do, in double precision, and over what a decoder's own allows
_WANTED, _GRAINS = 1e-6, 100
#: residual of a curve that is stationary enough, over the error that will do
_STILL = 0.5
#: what is left of the last doubling's change: a fifteenth at fourth order, and a third where walls are narrow
_LEFT = 1 / 3


@dataclass
class Departures(Batch):
    """Initial velocities (P, d), and their relative errors in the metric's norm (P,), infinite where not known."""

    velocities: Tensor
    errors: Tensor


@dataclass
class _Settling(Batch):
    """Curves at work: their nodes, what is learnt of their Hessian and how fast they settle, and how they left last."""

    row: Tensor
    nodes: Tensor
    secant: Tensor
    rate: Tensor
    velocities: Tensor


def departures(metric: Metric, solution: Solution, options: dict[str, Any], *, settled: bool) -> Departures:
    """How geodesics leave that were found with ``options``; as they were relaxed, or settled where that succeeds.

    Errors of velocities that are not settled, or not to :data:`SURE`, are not known.
    """
    velocities, length = solution.double_velocity(0.0), solution.double_length
    found = Departures(velocities, torch.full_like(velocities[:, 0], float("inf")))
    by_length = as_tensor(solution.length_error).to(length) / length.clamp_min(1e-300)
    relaxed = options.get("solver", "relaxation") == "relaxation"
    if metric.dim == 1 and relaxed:
        # there is one direction, and the velocity is as right as the length
        return Departures(velocities, by_length)
    rows = (torch.isfinite(velocities).all(1) & (length > 0)).nonzero().flatten()
    if len(rows) == 0 or not relaxed:
        return found
    parts, limit = guard(metric.parts()), options.get("memory_limit", working_memory())
    spline, clock = solution.curve[0].take(rows), solution.curve[1].take(rows)
    energy = CurveEnergy(parts, spline.nodes[:, ::8].flatten(0, 1)[:512], limit)
    left, _ = leaving(parts, energy, spline)
    some = Departures(torch.where(torch.isfinite(left), left, velocities[rows]), found.errors[rows])
    if settled and not energy.lean(_MOST + 1, metric.dim):
        curves, _ = spline.at(clock.at(even(spline.nodes, _MOST)))
        block = energy.at_once(_MOST + 1, metric.dim)
        wanted = sure(parts, curves[:, 0])
        order = torch.arange(len(rows), device="cpu")
        better = in_blocks(order, block, lambda few: _settle(parts, energy, curves[few], wanted))
        known = better.errors <= SURE
        some.put(known, better)
    found.put_rows(rows, some)
    # at kinks the length is known better than how fast a curve leaves
    rough = (solution.rough & (found.errors > by_length) & torch.isfinite(found.velocities).all(1)).nonzero().flatten()
    if len(rough):
        left = found.velocities[rough]
        size = parts.inner(solution.curve[0].nodes[rough, 0], left, left).clamp_min(0).sqrt()
        found.velocities[rough] = left * torch.where(size > 0, length[rough] / size, 1.0)[:, None]
    return found


def sure(parts: MetricParts, probe: Tensor) -> float:
    """Relative error of a velocity near ``probe`` (N, d) that is as good as exact."""
    return max(_WANTED, _GRAINS * attainable(parts, probe))


def _settle(parts: MetricParts, energy: CurveEnergy, curves: Tensor, wanted: float) -> Departures:
    """Of curves (P, _MOST + 1, d) at constant speed; velocities are NaN of those that are not finite."""
    start = curves[:, 0]
    found = Departures(torch.full_like(start, float("nan")), torch.full_like(start[:, 0], float("inf")))
    spans = _FIRST
    nodes = curves[:, :: _MOST // spans]
    secant = nodes.new_zeros(*nodes[:, 1:-1].shape, nodes.shape[2])
    row = torch.arange(len(curves), device=curves.device)
    active = _Settling(row, nodes, secant, torch.zeros_like(found.errors), found.velocities.clone())
    while len(active.row):
        knots = even(active.nodes, spans)
        here = relax(
            energy, active.nodes, knots, tol=_STILL * wanted, max_steps=_STEPS, rate=active.rate, secant=active.secant
        )
        spline = interpolate(knots, here.nodes)
        velocities, metric = leaving(parts, energy, spline)
        change = velocities - active.velocities
        size, changed = (torch.einsum("pi,pij,pj->p", v, metric, v).clamp_min(0).sqrt() for v in (velocities, change))
        # a residual is that of a whole curve, and its ends may be off by more; and geodesics leave as fast as
        # they are long
        errors = (_LEFT * changed / size.clamp_min(1e-300)).maximum(2 * here.residual)
        errors = errors.maximum((size / here.energy.clamp_min(1e-300).sqrt() - 1).abs()).nan_to_num(nan=float("inf"))
        # where a decoder's rounding is what is left, or walls stand nearer than nodes, more of these say no more
        better = errors < found.errors[active.row]
        rows = active.row[better]
        found.velocities[rows], found.errors[rows] = velocities[better], errors[better]
        going = (errors > wanted) & (better | (spans == _FIRST))
        if 2 * spans > _MOST:
            break
        finer = even(active.nodes, 2 * spans)
        # parabolas through few nodes may leave the region where there is a metric
        usable = torch.isfinite(velocities).all(1)[:, None, None]
        nodes = torch.where(usable, spline.at(finer)[0], curves[active.row, :: _MOST // (2 * spans)])
        nodes[:, 0], nodes[:, -1] = here.nodes[:, 0], here.nodes[:, -1]
        secant = between(knots, here.secant, finer)
        active = _Settling(active.row, nodes, secant, here.rate, velocities).take(going)
        spans *= 2
    return found
