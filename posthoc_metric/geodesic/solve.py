"""The front door: geodesics between pairs of points under any metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, Restore, describe, to_points
from ..errors import InvalidArgumentError
from ..metric import Metric
from .curves import Clock
from .guard import guard
from .options import START_NAMES, RelaxationOptions, make_options
from .refinement import Refiner
from .relaxation import STATUSES
from .solution import Solution
from .spline import Spline
from .starts import make_starts
from .status import Status


def geodesic(
    metric: Metric,
    start: ArrayLike,
    end: ArrayLike,
    *,
    support: ArrayLike | None = None,
    solver: str = "relaxation",
    **options: Any,
) -> Solution:
    """Geodesics between the rows of ``start`` and ``end``, all pairs at once, each independent of the others.

    Args:
        metric: any :class:`~posthoc_metric.metric.Metric`; a subclass needs only ``dim`` and ``tensor(z)``.
        start, end: (B, d) each; finite.
        support: latents (N, d) that say where the data lie, for start curves; ``metric.support`` if not given.
        solver: "relaxation".
        **options: fields of :class:`RelaxationOptions`.

    Returns:
        A :class:`Solution` in the kind, dtype and device of ``start``.

    Raises:
        InvalidArgumentError: a wrong width, rows that are not finite (named), different numbers of rows,
            an unknown option or solver.
    """
    if not isinstance(metric, Metric):
        raise InvalidArgumentError(
            f"`metric` must be a posthoc_metric.Metric; got {describe(metric)}. "
            "Wrap a function with FunctionMetric(fn, dim), or a decoder with PullbackMetric(decoder)."
        )
    points, restore = to_points(start, "start", metric.dim)
    others, _ = to_points(end, "end", metric.dim)
    if len(points) != len(others):
        raise InvalidArgumentError(
            f"`end` must hold one point for each of the {len(points)} rows of `start`; got {describe(end)}."
        )
    if solver != "relaxation":
        raise InvalidArgumentError(f"`solver` must be 'relaxation'; got {describe(solver)}.")
    chosen = make_options(RelaxationOptions, options)
    a, b = points.double(), others.to(points.device).double()
    if len(a) == 0:
        return _empty(metric, points, restore, chosen)
    known = metric.support if support is None else to_points(support, "support", metric.dim)[0]
    latents = None if known is None else known.to(a.device).double()
    parts = guard(metric.parts())
    with torch.no_grad():
        starts = make_starts(metric, parts, a, b, latents, chosen.starts)
        refined = Refiner(parts, starts, len(a), chosen).run()
        facts, spline, clock = refined.facts, refined.spline, refined.clock
        times = torch.linspace(0, 1, chosen.num_points, dtype=a.dtype, device=a.device).expand(len(a), -1)
        curve, _ = spline.at(clock.at(times))
    curve[:, 0], curve[:, -1] = a, b
    curve[facts.status == STATUSES.index(Status.NOT_FINITE)] = float("nan")

    def out(values: Tensor) -> Any:
        return restore(values.to(points.dtype) if values.is_floating_point() else values)

    status = tuple(STATUSES[i] for i in facts.status.tolist())
    return Solution(
        points=out(curve),
        length=out(facts.length),
        energy=out(facts.energy),
        residual=out(facts.residual),
        length_error=out(facts.length_error),
        speed_variation=out(facts.speed_variation),
        steps=out(refined.steps),
        evaluations=out(refined.evaluations),
        spans=out(facts.spans),
        start=tuple(START_NAMES[i] for i in refined.kind.tolist()),
        status=status,
        converged=out(facts.status == STATUSES.index(Status.CONVERGED)),
        _spline=spline,
        _clock=clock,
        _length=facts.length,
        _metric=metric,
        _restore=restore,
        _dtype=points.dtype,
    )


def _empty(metric: Metric, points: Tensor, restore: Restore, options: RelaxationOptions) -> Solution:
    """The solution of no pairs."""
    none = restore(points.new_zeros(0))
    count = restore(torch.zeros(0, dtype=torch.long))
    knots = torch.zeros(0, 2, dtype=torch.float64)
    nodes = torch.zeros(0, 2, points.shape[1], dtype=torch.float64)
    return Solution(
        points=restore(points.new_zeros(0, options.num_points, points.shape[1])),
        length=none,
        energy=none,
        residual=none,
        length_error=none,
        speed_variation=none,
        steps=count,
        evaluations=count,
        spans=count,
        start=(),
        status=(),
        converged=restore(torch.zeros(0, dtype=torch.bool)),
        _spline=Spline(knots, nodes, nodes),
        _clock=Clock(knots, knots),
        _length=torch.zeros(0, dtype=torch.float64),
        _metric=metric,
        _restore=restore,
        _dtype=points.dtype,
    )
