"""The front door: geodesics between pairs of points under any metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import nan
from typing import Any, TypeGuard

import torch
from torch import Tensor

from .._arrays import ArrayLike, Restore, describe, refuse_transformed, to_points
from ..errors import InvalidArgumentError, NumericalError
from ..gradients import recorded, wanted
from ..metric import FunctionMetric, Metric, MetricParts, check_metric
from ..surroundings import lasting, own_precision
from .curves.placement import Clock
from .curves.spline import Spline
from .first_variation import length_of
from .guard import guard
from .options import GIVEN, START_NAMES, FixedPointOptions, RelaxationOptions, solver_options
from .pairs import Pairs, spread_pairs
from .refinement.candidates import Facts
from .refinement.refined import Refined
from .solution import Solution
from .starts.given import curves_of
from .status import CODES, STATUSES, Status

#: change of a matrix with the rest of the batch that rounding in single precision does not explain
_COUPLED = 1e-3


def geodesic(
    metric: Metric | Callable[[Any], Any],
    start: ArrayLike,
    end: ArrayLike,
    *,
    support: ArrayLike | None = None,
    initial: Solution | ArrayLike | None = None,
    solver: str = "relaxation",
    n_jobs: int | None = 1,
    **options: Any,
) -> Solution:
    """Geodesics between the rows of ``start`` and ``end``, all pairs at once, each independent of the others.

    Curves start from the straight line and from shortest paths: through a grid (d <= 3), with a few more through other
    valleys, and through the graph of ``support`` (d > 3, or 3 where the grid has not resolved the metric).  In
    the plane they move to the shortest way that the grid knows through a corridor around them.  A trust-region
    Gauss-Newton method relaxes their energy with ever more nodes; the shortest is kept, and its length is integrated
    anew inside the spans.

    **Which options when**

    - Few pairs, whatever the cost: ``rtol=1e-6, tol=1e-4, max_spans=1024``, and ``rough_rtol=1e-6`` to match.
    - Many rough distances: ``rtol=1e-2, rough_rtol=1e-2, spans=8``.  Nearly all are good to a hundredth, but one in
      ten is off by more than its ``length_error``: few nodes miss shorter ways beside a curve.
    - ReLU decoders: the defaults.  Their lengths are good to ``rough_rtol`` (1e-3); a tighter one multiplies the work,
      because at kinks the error only halves when the nodes double.
    - No data near the pairs, or d > 3: give ``support``; without it only the straight line is tried.
    - A smooth metric without walls: ``starts="straight"`` saves the grid.  Where there are walls, what
      converges may be a longer curve through another valley, of which nothing is said.
    - A path that you know, or a solution of pairs that have moved a little: ``initial=``; with ``starts="given"`` it is
      relaxed alone, which is quicker, and stays in its valley unless that ends.
    - d = 1: the defaults.  There is one way between two points, of which only the length is integrated, by adaptive
      bisection; of the options ``rtol``, ``rough_rtol`` and ``max_spans`` matter.  The metric is evaluated at some 480
      points along the way before a length is believed; a feature narrower than 1/400 of the way may be missed.
    - A metric given as a function, in two and more dimensions: the defaults.  Curves are looked at in 240 places along
      the way before a length is believed; a wall narrower than 1/200 of the way may be missed.
    - Many pairs on several cores: ``n_jobs=-1``.  In few dimensions the operations are small and torch's threads gain
      little.  Workers are started at the first call (seconds) and kept; lengths agree to rounding with one process.
    - d > 8 with a decoder: preconditioned L-BFGS takes the place of Gauss-Newton by itself, with one vector-Jacobian
      product a node and step and no Jacobian kept; memory stays near ``memory_limit`` plus the decoder's own.  Curves
      that still slope after it, as where the metric is nearly singular, go on by Gauss-Newton steps up to d = 32.  For
      d from 4 to 8 L-BFGS takes over the curves that Gauss-Newton steps do not bring on, and those with kinks.
    - Folds, where a decoder's image turns back, as of an arm that reaches a point with its elbow on either side, or of
      any map onto no more outputs than latents: the defaults, up to d = 8.  Curves that leap there are relaxed by
      their length, with nodes at even latent distances.
    - float32 decoders: the defaults.  Pairs whose outputs are so near that their difference is little but rounding are
      solved on a float64 copy of the model, where it can be copied; the others, as the model is.
    - ReLU generators with d of 50 and more: lengths to 1e-3 take some 256 spans.  Give ``max_spans=1024``, or
      ``rough_rtol=5e-3`` for a fraction of the time.

    **The other solver**, ``solver="fixed-point"``, is that of Arvanitidis, Hauberg, Hennig & Schober (Fast and Robust
    Shortest Paths on Manifolds Learned from Data, AISTATS 2019), for comparison: a curve is the mean of a Gaussian
    process, iterated to satisfy the geodesic equation at a few times.  It starts from the straight line, knows no
    walls, and ends a pair that meets its published criterion without a confirmed length as ``UNRESOLVED``, one that
    does not meet it as ``STEP_LIMIT`` or ``DIVERGED``; its other facts are measured like any curve's.  Where ``M`` is
    singular it goes on with the pseudo-inverse, where the published code stops.  Its options are those of
    :class:`FixedPointOptions`.

    **What a status means, and what to do**: each :class:`Status` carries its advice as ``str(status)``.

    **By symptom**

    - ``UNRESOLVED``, ``length_error`` a few thousandths of ``length``: the decoder has kinks, or the curve runs along
      a wall; raise ``max_spans`` or accept it with a larger ``rough_rtol``.
    - ``UNRESOLVED``, ``length_error`` as large as ``length``: the metric changes within less than the nodes are
      apart, as where an end lies far up the wall of a repair (``metric.offset`` of both ends tells), or the output
      jumps (``repair`` warns of that); raise ``max_spans`` for a wall, nothing helps across a jump.
    - ``UNRESOLVED`` under a metric given as a function that jumps, as costs of obstacles do: curves are not refracted
      at the jump, and ``length_error`` says what that may cost; a sigmoid in its place, a thousandth of the way wide,
      will do.
    - ``STEP_LIMIT``: nearly flat valleys, as near an antipode or along latents that the decoder ignores; raise
      ``max_steps``, or give the metric a floor with ``repair``.
    - ``STALLED``, or ``UNRESOLVED`` with a ``residual`` above 0.03: the decoder's float32 rounding; wrap
      ``copy.deepcopy(model).double()``.  In float64, a curve that hangs on steep kinks, as few leaky units in two or
      three dimensions make them; ``length_error`` says how much shorter it may get.
    - ``UNRESOLVED`` with such a ``residual`` where the decoder is smooth and in float64: directions that hardly matter,
      into which curves stray; ``repair`` with a smaller ``max_condition_number``, such as 100.
    - ``DIVERGED``: only the fixed-point solver; use ``solver="relaxation"``.
    - ``NOT_FINITE``: the decoder has no value at an end, or somewhere on every curve that was tried; ``support``
      along a way around the hole gives another, but a curve that the hole's edge stops stays so.  The other pairs of
      the batch are not touched.
    - A length that is longer than one you know: another valley; give ``support``, or more of it, or the curve itself as
      ``initial``, and compare ``solution.start``.
    - ``speed_variation`` near or above 1 with ``CONVERGED``: a ridge of the metric takes a small share of the curve;
      ``solution(t)`` is at constant speed all the same.

    Args:
        metric: any :class:`~posthoc_metric.metric.Metric`; a subclass needs only ``dim`` and ``tensor(z)``.  A plain
            function z (B, d) -> M (B, d, d) is taken as :class:`~posthoc_metric.metric.FunctionMetric`, which made
            once keeps the grid of its start curves from call to call.
        start, end: (B, d) each; finite.
        support: latents (N, d) that say where the data lie, for start curves; ``metric.support`` if not given.
        initial: curves to start from besides: a :class:`Solution` of as many pairs, or points on the way (B, m, d), in
            any steps.  Ends that lie elsewhere are moved to ``start`` and ``end``, and the rest with them.  Curves that
            are not finite are passed over.  With ``starts="given"`` nothing else is tried.
        solver: "relaxation", or "fixed-point".
        n_jobs: processes that the pairs are dealt out to, as in joblib (-1: all cores; ``None``: what
            ``joblib.parallel_config`` says).  By default all are solved in this one, with the threads that torch has;
            the metric must be picklable for more, and ``Decoder.counting`` does not see what they evaluate.
        **options: fields of :class:`RelaxationOptions` or :class:`FixedPointOptions`, whose help says what they are
            (``from posthoc_metric.geodesic import RelaxationOptions``).

    Returns:
        A :class:`Solution` in the kind, dtype and device of ``start``.

    Raises:
        InvalidArgumentError: a wrong width, rows that are not finite (named), different numbers of rows,
            an unknown option or solver, a metric that cannot be pickled where ``n_jobs`` asks for it, a function whose
            matrix of a latent depends on the others.
        NumericalError: the metric has a negative eigenvalue at an end.
        WorkerError: processes that ``n_jobs`` asked for die again and again.

    Example:
        >>> import torch, posthoc_metric as pm
        >>> half_plane = pm.FunctionMetric(lambda z: torch.eye(2, dtype=z.dtype) / z[:, 1, None, None] ** 2, 2)
        >>> start, end = [[0.0, 1.0], [-1.0, 1.0]], [[0.0, 2.0], [1.0, 1.0]]
        >>> solution = pm.geodesic(half_plane, start, end)
        >>> solution.length.round(3)  # log 2, and 2 arsinh 1
        array([0.693, 1.763])
        >>> solution.status[0] is pm.Status.CONVERGED, solution(0.5).shape
        (True, (2, 2))
    """
    if _is_plain(metric):
        metric = FunctionMetric(metric, to_points(start, "start")[0].shape[1])
    metric = check_metric(metric)
    refuse_transformed(start, "start")
    refuse_transformed(end, "end")
    points, restore = to_points(start, "start", metric.dim)
    others, _ = to_points(end, "end", metric.dim)
    if len(points) != len(others):
        raise InvalidArgumentError(
            f"`end` must hold one point for each of the {len(points)} rows of `start`; got {describe(end)}."
        )
    chosen = solver_options(solver, options, geodesic)
    _check_given(chosen, initial)
    with torch.no_grad(), own_precision(), lasting():
        # what is kept with a metric is where its latents are
        device = points.device if metric.support is None else metric.support.device
        a, b = points.to(device).double(), others.to(device).double()
        known = metric.support if support is None else to_points(support, "support", metric.dim)[0]
        if known is not None and len(known) == 0:
            raise InvalidArgumentError("`support` must hold at least one latent; got none. Leave it out instead.")
        latents = None if known is None else known.to(device).double()
        own = None if initial is None else curves_of(initial, a, b)
        if len(a):
            _check_field(guard(metric.parts()), a, b)
        found = spread_pairs(metric, Pairs(a, b, own), latents, chosen, n_jobs) if len(a) else _nothing(a)
        solution = _assemble(metric, a, b, found, chosen.num_points, points.dtype, restore)
    if wanted(start, end) and isinstance(solution.length, Tensor):
        return replace(solution, length=length_of(recorded(start, points), recorded(end, others), solution))
    return solution


def _check_given(options: RelaxationOptions | FixedPointOptions, initial: Any) -> None:
    """Raise where curves are given and not asked for, or the other way round."""
    if isinstance(options, FixedPointOptions):
        if initial is not None:
            raise InvalidArgumentError(
                "`initial` is for solver='relaxation'; solver='fixed-point' starts from straight lines. Leave it out."
            )
    elif initial is None and options.starts == (GIVEN,):
        raise InvalidArgumentError("`starts='given'` needs curves to start from; got none. Give them as `initial`.")
    elif initial is not None and GIVEN not in options.starts:
        raise InvalidArgumentError(
            f"`initial` is given, but `starts` is {options.starts}. Add 'given' to it, or leave one of the two out."
        )


def _is_plain(metric: Any) -> TypeGuard[Callable[[Any], Any]]:
    """Whether it is a function from latents to matrices: anything that can be called, but for what is a decoder."""
    # a method of a module is a decoder's, and no metric
    module = isinstance(getattr(metric, "__self__", metric), torch.nn.Module)
    return callable(metric) and not module and not isinstance(metric, (Metric, type)) and not hasattr(metric, "jvp")


def _check_field(parts: MetricParts, start: Tensor, end: Tensor) -> None:
    """Raise where a field of matrices is no metric at the ends of the pairs: lengths would have no meaning."""
    if parts.field is None:
        return
    for points, name in ((start, "start"), (end, "end")):
        matrices = parts.field(points)
        usable = torch.isfinite(matrices).flatten(1).all(1)
        eye = torch.eye(points.shape[1], dtype=matrices.dtype, device=matrices.device)
        values = torch.linalg.eigvalsh(torch.where(usable[:, None, None], matrices, eye))
        bad = (values[:, 0] < -1e-6 * values.abs().amax(1)).nonzero().flatten().tolist()
        if bad:
            raise NumericalError(
                f"`metric` must be positive definite; at row {bad[0]} of `{name}` its smallest eigenvalue is "
                f"{float(values[bad[0], 0]):.3g}. Check the sign of what `tensor(z)` returns."
            )
    alone, together = (parts.field(torch.cat([start[:1], other[:1]]))[0] for other in (start, end))
    change = float((together - alone).norm() / alone.norm())
    if change > _COUPLED:
        raise InvalidArgumentError(
            f"`metric` must give every latent a matrix of its own; that of row 0 of `start` changes by {change:.2g} of "
            "its size with what else is in the batch. Sum and average over the last axis alone (dim=-1)."
        )


def _assemble(
    metric: Metric, a: Tensor, b: Tensor, found: Refined, num_points: int, dtype: torch.dtype, restore: Restore
) -> Solution:
    """The solution in the caller's kind, whichever solver found it."""
    facts, spline = found.facts, found.spline
    # where there is no curve, neither what it began from nor the length of that must pass for one
    gone = facts.status == CODES[Status.NOT_FINITE]
    lost = gone[:, None, None]
    spline = replace(spline, nodes=spline.nodes.masked_fill(lost, nan), slopes=spline.slopes.masked_fill(lost, nan))
    known = (facts.length, facts.energy, facts.speed_variation)
    length, energy, variation = (values.masked_fill(gone, nan) for values in known)
    times = torch.linspace(0, 1, num_points, dtype=a.dtype, device=a.device).expand(len(a), -1)
    curve, _ = spline.at(found.clock.at(times))
    curve[:, 0], curve[:, -1] = a, b
    curve.masked_fill_(lost, nan)

    def out(values: Tensor) -> Any:
        return restore(values.to(dtype) if values.is_floating_point() else values)

    return Solution(
        points=out(curve),
        length=out(length),
        energy=out(energy),
        residual=out(facts.residual),
        length_error=out(facts.length_error),
        speed_variation=out(variation),
        steps=out(found.steps),
        evaluations=out(found.evaluations),
        spans=out(facts.spans),
        start=tuple(START_NAMES[i] for i in found.kind.tolist()),
        status=tuple(STATUSES[i] for i in facts.status.tolist()),
        converged=out(facts.status == CODES[Status.CONVERGED]),
        _spline=spline,
        _clock=found.clock,
        double_length=length,
        rough=found.rough,
        _metric=metric,
        _restore=restore,
        _dtype=dtype,
    )


def _nothing(points: Tensor) -> Refined:
    """Of no pairs, whose points are (0, d)."""
    none, count = points.new_zeros(0), points.new_zeros(0, dtype=torch.long)
    knots, nodes = points.new_zeros(0, 2), points[:, None].expand(-1, 2, -1)
    facts = Facts(none, none, none, none, none, count, count, none)
    return Refined(facts, count, Spline(knots, nodes, nodes), Clock(knots, knots), count, count, none.bool())
