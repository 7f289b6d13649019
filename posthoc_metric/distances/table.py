"""A table of a metric on a grid, for two and three latent dimensions: microseconds instead of a decoder's call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, as_tensor, check_count, check_range, check_seed, to_points
from .._warn import warn_caller
from ..errors import ConvergenceWarning, InvalidArgumentError, NumericalError
from ..metric import Metric
from .splines import GHOSTS, Level, dilate, make_level, places

_MOST_DIM = 3
_COARSEST = 16
#: nodes of one level, which bounds memory
_MOST_NODES = 2_000_000
_CHECKED = 2_000
_CHUNK = 65_536


@dataclass(frozen=True)
class TableError:
    """Relative error of lengths of tangent vectors, worst direction, at random points of the box.

    Attributes:
        median, p99, largest: over ``points`` random points.
    """

    points: int
    median: float
    p99: float
    largest: float


class MetricTable(Metric):
    """A metric tabulated on nested grids inside a box; outside the box the metric itself answers.

    What is tabulated is ``M = L D Lᵀ`` by the logarithms of D and the entries below the diagonal of the unit
    triangular L, so that whatever comes out is positive definite.  Cubic B-splines make it twice
    continuously differentiable.  A cell is refined where the metric at its nodes is not met to ``rtol``.

    Args:
        metric: any positive definite metric with d <= 3.
        points: latents (N, d); the box holds them with a margin of 10 % of its longest side.
        rtol: relative error of lengths that refinement aims at.
        max_levels: grids, each twice as fine as the one before; the coarsest has 16 cells along the longest side.
        seed: of the points at which the error is measured.

    Attributes:
        exact: the metric that was tabulated.
        error: a :class:`TableError`, measured after the table was made.
        evaluations: points at which ``metric`` was asked.
        low, high: corners of the box (d,).

    Raises:
        InvalidArgumentError: more than three dimensions, no points, or a value out of range.
        NumericalError: the metric is not finite and positive definite in the box.

    Warns:
        ConvergenceWarning: the 99th percentile of the measured error exceeds ``rtol``.
    """

    def __init__(self, metric: Metric, points: ArrayLike, *, rtol: float = 1e-3, max_levels: int = 6, seed: int = 0):
        if not isinstance(metric, Metric) or metric.dim > _MOST_DIM:
            raise InvalidArgumentError(
                f"`metric` must be a Metric of at most {_MOST_DIM} dimensions, or a grid has too many nodes; got "
                f"{type(metric).__name__} of dimension {getattr(metric, 'dim', None)}. Use the metric itself."
            )
        max_levels = check_count(max_levels, "max_levels", 1, "the number of grids")
        seed = check_seed(seed)
        self.rtol = check_range(rtol, "rtol", 0.0, 1.0, "the relative error of lengths to aim at")
        latents = to_points(points, "points", metric.dim)[0].double()
        if not len(latents):
            raise InvalidArgumentError("`points` must hold at least one point to put a box around; it has no rows.")
        self.exact = metric
        self.dim = metric.dim
        self.support = metric.support
        low, high = latents.amin(0), latents.amax(0)
        side = float((high - low).max()) or 1.0
        self.low, self.high = low - 0.1 * side, high + 0.1 * side
        self.evaluations = 0
        self.levels: tuple[Level, ...] = ()
        with torch.no_grad():
            self._build(max_levels)
            self.error = self._check(seed)
        if self.error.p99 > self.rtol:
            warn_caller(
                f"the table misses the metric by {self.error.p99:.1g} (relative, 99th percentile; {self.rtol:g} was "
                "asked for): it varies faster than the finest grid. Raise `max_levels`, or use the metric itself.",
                ConvergenceWarning,
            )

    @property
    def decoder(self) -> Any:
        """The decoder of the metric itself, if it has one."""
        return getattr(self.exact, "decoder", None)

    def tensor(self, z: ArrayLike) -> Any:
        """``M(z)`` (B, d, d), interpolated inside the box."""
        points, restore = to_points(z, "z", self.dim)
        return restore(self._tensor(points).to(points.dtype))

    def _tensor(self, points: Tensor) -> Tensor:
        where = points.detach().to(self.low.device).double()
        inside = ((where >= self.low) & (where <= self.high)).all(1)
        if bool(inside.all()):
            return _compose(self._parameters(where), self.dim)
        out = where.new_full((len(where), self.dim, self.dim), float("nan"))
        out[inside] = _compose(self._parameters(where[inside]), self.dim)
        outside = ~inside & torch.isfinite(where).all(1)
        if bool(outside.any()):
            out[outside] = as_tensor(self.exact.tensor(where[outside])).to(out)
        return out

    def _parameters(self, z: Tensor) -> Tensor:
        total = z.new_zeros(len(z), self.dim * (self.dim + 1) // 2)
        for level in self.levels:
            level.add_to(total, z)
        return total

    def _build(self, max_levels: int) -> None:
        """Add level after level, where the ones before miss the metric."""
        sides = self.high - self.low
        cells = (_COARSEST * sides / sides.max()).ceil().long().clamp_min(1)
        wanted: Tensor | None = None
        for _ in range(max_levels):
            shape = tuple(int(n) + 1 + 2 * GHOSTS for n in cells)
            step = sides / cells
            if self.levels and math.prod(shape) > _MOST_NODES:
                break
            if wanted is None:
                wanted = torch.ones(shape, dtype=torch.bool, device=step.device)
            index = wanted.reshape(-1).nonzero().flatten()
            values = step.new_zeros(wanted.numel(), self.dim * (self.dim + 1) // 2)
            nodes = places(self.low, step, shape, index)
            matrices = self._evaluate(nodes)
            before = self._parameters(nodes)
            values[index] = _decompose(matrices) - before
            missed = wanted.clone()
            if self.levels:
                missed.view(-1)[index] = _length_error(matrices, _compose(before, self.dim)) > self.rtol
            self.levels += (make_level(self.low, step, shape, values),)
            if not bool(missed.any()):
                break
            wanted, cells = _halve(dilate(missed, -1, 1), shape), 2 * cells

    def _evaluate(self, nodes: Tensor) -> Tensor:
        self.evaluations += len(nodes)
        found = torch.cat([as_tensor(self.exact.tensor(part)).double() for part in nodes.split(_CHUNK)])
        _, info = torch.linalg.cholesky_ex(found.nan_to_num(nan=-1.0))
        bad = (info != 0) | ~torch.isfinite(found).flatten(1).all(1)
        if bool(bad.any()):
            first = nodes[bad][:1].tolist()
            raise NumericalError(
                f"the metric must be finite and positive definite in the box to be tabulated; it is not, for example "
                f"at {first}. Repair it first (pm.repair), or choose `points` away from there."
            )
        return found

    def _check(self, seed: int) -> TableError:
        generator = torch.Generator().manual_seed(seed)
        random = torch.rand(_CHECKED, self.dim, generator=generator, device="cpu", dtype=torch.float64).to(self.low)
        where = self.low + random * (self.high - self.low)
        error = _length_error(self._evaluate(where), _compose(self._parameters(where), self.dim))
        return TableError(_CHECKED, float(error.median()), float(torch.quantile(error, 0.99)), float(error.max()))


def _decompose(matrices: Tensor) -> Tensor:
    """``log D`` and the entries of L below its diagonal, (B, d(d+1)/2)."""
    factor = torch.linalg.cholesky(matrices)
    root = factor.diagonal(dim1=1, dim2=2)
    unit = factor / root[:, None, :]
    row, column = torch.tril_indices(matrices.shape[1], matrices.shape[1], offset=-1, device=matrices.device)
    return torch.cat([2 * root.log(), unit[:, row, column]], dim=1)


def _compose(parameters: Tensor, dim: int) -> Tensor:
    unit = torch.eye(dim, dtype=parameters.dtype, device=parameters.device).repeat(len(parameters), 1, 1)
    row, column = torch.tril_indices(dim, dim, offset=-1, device=parameters.device)
    unit[:, row, column] = parameters[:, dim:]
    factor = unit * (0.5 * parameters[:, None, :dim]).exp()
    return factor @ factor.mT


def _length_error(exact: Tensor, found: Tensor) -> Tensor:
    """Largest relative error (B,) of a vector's length under ``found`` for ``exact``."""
    factor = torch.linalg.cholesky(exact)
    left = torch.linalg.solve_triangular(factor, found, upper=False)
    whitened = torch.linalg.solve_triangular(factor, left.mT, upper=False)
    values = torch.linalg.eigvalsh((whitened + whitened.mT) / 2).clamp_min(0)
    return (values.sqrt() - 1).abs().amax(1)


def _halve(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Nodes of the grid twice as fine that lie in or beside the nodes of ``mask``."""
    for axis, size in enumerate(shape):
        cells = size - 1 - 2 * GHOSTS
        fine = torch.arange(2 * cells + 1 + 2 * GHOSTS, device=mask.device) - GHOSTS
        coarse = torch.div(fine, 2, rounding_mode="floor") + GHOSTS
        mask = mask.index_select(axis, coarse) | mask.index_select(axis, (coarse + fine % 2).clamp(max=size - 1))
    return mask
