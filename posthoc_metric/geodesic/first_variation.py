"""Gradients of geodesic lengths by the ends: the first variation of length (do Carmo 1992, chapter 9).

As the ends move by δa and δb a geodesic's length changes as if its points moved with them, ``(1 - t) δa + t δb`` at the
time t, since it does not change to first order as a geodesic bends between its ends.  The textbook's boundary terms
``M γ' / L`` are the same of a geodesic, but follow every error of the velocities there; these average over the curve.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..field_derivative import FieldDerivative
from ..gradients import once, refuse_batched
from ..machine import working_memory
from ..metric import MetricParts
from ..smooth_map import value_and_pull
from .curves.placement import Clock
from .curves.spline import Spline
from .guard import guard
from .refinement.precision import finer, too_close
from .solution import Solution

#: intervals of a curve, at least and for each of its spans; even numbers
_LEAST, _TO_A_SPAN = 64, 4


def length_of(start: Tensor, end: Tensor, solution: Solution) -> Tensor:
    """``solution.length`` (B,) in the graph of the ends (B, d), once differentiable.

    Its gradient is zero where the ends are one point, and NaN where there is no curve, unless the caller's loss leaves
    that length out.
    """
    return _Length.apply(start, end, solution)  # type: ignore[no-untyped-call, no-any-return]


class _Length(torch.autograd.Function):
    @staticmethod
    def forward(start: Tensor, end: Tensor, solution: Solution) -> Tensor:
        return solution.length.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.solution = inputs[2]

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, Tensor, None]:
        start, end = ctx.saved_tensors
        refuse_batched(weights)
        with torch.no_grad():
            # of a mask's zero times NaN an encoder would learn NaN from every row
            by_ends = slopes(ctx.solution, weights.to(ctx.solution.double_length.device) != 0)
            by_start, by_end = (weights.to(x)[:, None] * y.to(x) for x, y in zip((start, end), by_ends, strict=True))
        return once(by_start, start, end, weights), once(by_end, start, end, weights), None


def slopes(solution: Solution, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of the lengths by the first and by the last point, (B, d) float64; zero but where ``asked`` (B,)."""
    parts, (spline, clock), length = guard(solution.parts), solution.curve, solution.double_length
    found = torch.full_like(spline.nodes[:, :2], float("nan"))
    found[(length == 0) | ~asked] = 0.0
    # beyond 1 are the knots that fill a curve of few spans up to the most in the batch
    spans = (spline.knots <= 1).sum(1) - 1
    known = asked & (length > 0)
    if not bool(known.any()):
        return found[:, 0], found[:, 1]
    if spline.nodes.shape[2] == 1:
        # between two points there is one way, and an end's own speed is all that counts
        rows, tips = known.nonzero().flatten(), spline.nodes[known][:, [0, -1]]
        way = torch.ones_like(tips).flatten(0, 1)
        speeds = parts.inner(tips.flatten(0, 1), way, way).clamp_min(0).sqrt().view_as(tips)
        found[rows] = speeds * tips.diff(dim=1).sign() * tips.new_tensor([[-1.0], [1.0]])
        return found[:, 0], found[:, 1]
    # as in the solver: their chords are little but rounding in single precision
    close = torch.zeros_like(known)
    close[known] = too_close(parts, spline.nodes[known, 0], spline.nodes[known, -1])
    precise = finer(solution.parts) if bool(close.any()) else None
    field = None if parts.field is None else FieldDerivative(parts.field, spline.nodes[known].flatten(0, 1))
    for exact, count in product((False, True), torch.unique(spans[known]).tolist()):
        chosen = precise if exact and precise is not None else parts
        intervals = max(_LEAST, _TO_A_SPAN * count)
        rows = ((spans == count) & (close == exact) & known).nonzero().flatten()
        for some in rows.split(_at_once(chosen, field, intervals)) if len(rows) else ():
            found[some] = _of_length(chosen, field, spline.take(some), clock.take(some), intervals)
    return found[:, 0], found[:, 1]


def _at_once(parts: MetricParts, field: FieldDerivative | None, intervals: int) -> int:
    """How many curves of so many intervals, of whose outputs five tables are kept."""
    width = 1 if parts.embedding is None else parts.embedding.output_dim
    row_bytes = 40 * width + (0 if field is None else field.row_bytes)
    return max(1, working_memory() // (row_bytes * intervals))


def _of_length(
    parts: MetricParts, field: FieldDerivative | None, spline: Spline, clock: Clock, intervals: int
) -> Tensor:
    """Derivatives (P, 2, d) of the curves' lengths by the first and by the last point, all others moving along."""
    count, _, dim = spline.nodes.shape
    t = torch.linspace(0, 1, intervals + 1, dtype=torch.float64, device=spline.nodes.device)
    points, _ = spline.at(clock.at(t.expand(count, -1)))
    outputs, pull = points.new_zeros(*points.shape[:2], 1), None
    if parts.embedding is not None:
        values, pull = value_and_pull(parts.embedding, points.reshape(-1, dim))
        outputs = values.to(points).view(count, intervals + 1, -1)
    by_points, by_outputs = _of_chords(parts, field, points, outputs)
    # those through every other point, whose errors, of second order, are four times as large
    coarse = _of_chords(parts, field, points[:, ::2], outputs[:, ::2])
    for fine, found in zip((by_points, by_outputs), coarse, strict=True):
        fine *= 4 / 3
        fine[:, ::2] -= found / 3
    if pull is not None:
        by_points += pull(by_outputs.reshape(-1, by_outputs.shape[2])).to(points).view_as(points)
    return torch.stack([((1 - t)[:, None] * by_points).sum(1), (t[:, None] * by_points).sum(1)], dim=1)


def _of_chords(
    parts: MetricParts, field: FieldDerivative | None, points: Tensor, outputs: Tensor
) -> tuple[Tensor, Tensor]:
    """The derivatives of ``Σ sqrt(‖Δx‖² + Δzᵀ A Δz)``, A in the middle of a chord, by points z and by outputs x."""
    chords, steps, middles = outputs.diff(dim=1), points.diff(dim=1), (points[:, 1:] + points[:, :-1]) / 2
    ways, places = steps.reshape(-1, steps.shape[2]), middles.reshape(-1, steps.shape[2])
    pushed, sloped = torch.zeros_like(ways), torch.zeros_like(ways)
    if parts.weight is not None:
        weight, slope = parts.weight.value_and_gradient(places)
        pushed += weight[:, None] * ways
        sloped += ways.square().sum(1, keepdim=True) * slope
    if field is not None:
        along, slope = field.pull(places, ways)
        pushed += along
        sloped += slope
    pushed, sloped = pushed.view_as(steps), sloped.view_as(steps)
    lengths = (chords.square().sum(2) + (pushed * steps).sum(2)).sqrt()[..., None]
    share = torch.where(lengths > 0, 1 / lengths, 0.0)
    return _at_ends(share * pushed, share * sloped / 4), _at_ends(share * chords)


def _at_ends(pulls: Tensor, shifts: Tensor | float = 0.0) -> Tensor:
    """What moves the n + 1 points of n chords (P, n, ·): a chord's pull at its end, against it at its start, and its
    shift at both."""
    none = torch.zeros_like(pulls[:, :1])
    return torch.cat([none, shifts + pulls], dim=1) + torch.cat([shifts - pulls, none], dim=1)
