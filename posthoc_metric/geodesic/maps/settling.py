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

from ..._arrays import as_tensor
from ...machine import working_memory
from ...metric import Metric, MetricParts
from ..acceleration import attainable
from ..curves.batch import Batch, in_blocks
from ..curves.placement import between, even
from ..curves.spline import interpolate
from ..guard import guard
from ..relaxation.energy import CurveEnergy
from ..relaxation.gauss_newton import relax
from ..solution import Solution
from .momentum import leaving

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
class Settled(Departures):
    """The same of settled curves, and these at even times (P, n+1, d); NaN, and of infinite error, where there is none.

    Stationary curves run at constant speed.
    """

    curves: Tensor


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
    parts = guard(metric.parts())
    spline, energy = solution.curve[0].take(rows), _energy(parts, solution, rows, options)
    left, _ = leaving(parts, energy, spline)
    some = Departures(torch.where(torch.isfinite(left), left, velocities[rows]), found.errors[rows])
    if settled:
        better = _settled(parts, energy, solution, rows)
        some.put(better.errors <= SURE, better)
    found.put_rows(rows, some)
    # at kinks the length is known better than how fast a curve leaves
    rough = (solution.rough & (found.errors > by_length) & torch.isfinite(found.velocities).all(1)).nonzero().flatten()
    if len(rough):
        left = found.velocities[rough]
        size = parts.inner(solution.curve[0].nodes[rough, 0], left, left).clamp_min(0).sqrt()
        found.velocities[rough] = left * torch.where(size > 0, length[rough] / size, 1.0)[:, None]
    return found


def settle(metric: Metric, solution: Solution, options: dict[str, Any]) -> Settled:
    """The curves of a relaxation with ``options``, settled where that succeeds to :data:`SURE` (B)."""
    found = _none(solution.curve[0].nodes[:, 0])
    rows = (torch.isfinite(solution.double_length) & (solution.double_length > 0)).nonzero().flatten()
    if len(rows) and options.get("solver", "relaxation") == "relaxation":
        parts = guard(metric.parts())
        better = _settled(parts, _energy(parts, solution, rows, options), solution, rows)
        known = better.errors <= SURE
        found.put_rows(rows[known], better.take(known))
    return found


def _energy(parts: MetricParts, solution: Solution, rows: Tensor, options: dict[str, Any]) -> CurveEnergy:
    probe = solution.curve[0].nodes[rows, ::8].flatten(0, 1)[:512]
    return CurveEnergy(parts, probe, options.get("memory_limit", working_memory()))


def _settled(parts: MetricParts, energy: CurveEnergy, solution: Solution, rows: Tensor) -> Settled:
    """Of the rows that have a curve; of none where Jacobians do not fit into the memory limit."""
    spline, clock = solution.curve[0].take(rows), solution.curve[1].take(rows)
    if energy.lean(_MOST + 1, spline.nodes.shape[2]):
        return _none(spline.nodes[:, 0])
    curves, _ = spline.at(clock.at(even(spline.nodes, _MOST)))
    wanted = sure(parts, curves[:, 0])
    block = energy.at_once(_MOST + 1, curves.shape[2])
    return in_blocks(
        torch.arange(len(rows), device=rows.device), block, lambda few: _settle(parts, energy, curves[few], wanted)
    )


def _none(like: Tensor) -> Settled:
    lost = torch.full_like(like, float("nan"))
    return Settled(lost, torch.full_like(like[:, 0], float("inf")), lost[:, None].repeat(1, _MOST + 1, 1))


def sure(parts: MetricParts, probe: Tensor) -> float:
    """Relative error of a velocity near ``probe`` (N, d) that is as good as exact."""
    return max(_WANTED, _GRAINS * attainable(parts, probe))


def _settle(parts: MetricParts, energy: CurveEnergy, curves: Tensor, wanted: float) -> Settled:
    """Of curves (P, _MOST + 1, d) at constant speed; velocities are NaN of those that are not finite."""
    found = _none(curves[:, 0])
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
        found.curves[rows] = spline.at(even(spline.nodes, _MOST))[0][better]
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
