"""Derivatives of a metric's inner products, by differences of fourth order with steps of each row's own."""

from __future__ import annotations

import torch
from torch import Tensor

from .._precision import computes_in_single, rounds_in_single
from ..matrix_field import to_matrices
from ..metric import Metric

# f'(0) and f''(0) from f at -2h, -h, 0, h, 2h
_FIRST = (1 / 12, -2 / 3, 0.0, 2 / 3, -1 / 12)
_SECOND = (-1 / 12, 4 / 3, -5 / 2, 4 / 3, -1 / 12)
_AT = (-2, -1, 0, 1, 2)

#: roundings of a matrix with a unit diagonal, for each of its rows, that an eigenvalue must exceed
_SINGULAR = 64
#: step of a difference over the reach of its line: truncation grows with its fourth power, rounding falls with its
#: square, so that the best is about the sixth root of the precision, double and single
_SHARES = 0.01, 0.3
#: what bounds a reach: the metric's relative change, and how far that is from a parabola, as a share of it
_CHANGE, _BEND = 0.3, 0.02
#: factors to the reach, estimated at a trial, between which the trial will do
_NEAR = 0.7, 2.2
#: changes that are taken for this at least, so that a next trial is longer by a factor of 500 at most
_NOISE = 1e-6
#: change above which it is told how it bends, and the least bend that is told, double and single
_TELLING = (1e-10, 1.2e-3), (2e-6, 2e-4)
#: change below which the longest trial counts as flat
_FLAT = 2e-3
#: trials of one line at most; each asks for the metric twice, or four times where it is told how that bends
_ROUNDS = 16
#: the first and the longest trial over the size of the coordinates
_FIRST_TRIAL, _LONGEST_TRIAL = 1e-8, 1e4
#: points at which the metric is asked at once, at least
_CHUNK = 4096


class Jet:
    """A metric and its derivatives at points z (B, d).

    Args:
        metric: any metric.
        z: (B, d) float64.
        single: whether the metric is computed in single precision; of :func:`computes_single`.
    """

    def __init__(self, metric: Metric, z: Tensor, single: bool):
        self.metric = metric
        self.z = z
        #: step of a difference over the reach of its line
        self.share = _SHARES[single]
        self._telling, self._straight = (pair[single] for pair in _TELLING)
        self._eps = torch.finfo(torch.float32 if single else torch.float64).eps
        self.tensor = _tensor(metric, z)

    @property
    def axes(self) -> Tensor:
        """Directions of the coordinates, (B, d, d)."""
        return torch.eye(self.z.shape[1], dtype=self.z.dtype, device=self.z.device).expand(len(self.z), -1, -1)

    @property
    def singular(self) -> Tensor:
        """Where the metric has an eigenvalue that is no more than rounding, in units of each coordinate's own (B,)."""
        size = self.tensor.diagonal(dim1=1, dim2=2).sqrt()
        known = torch.isfinite(self.tensor).flatten(1).all(1) & (size > 0).all(1)
        own = torch.where(known[:, None], size, 1.0)
        unit = torch.where(known[:, None, None], self.tensor / (own[:, :, None] * own[:, None]), 0.0)
        return ~known | (torch.linalg.eigvalsh(unit)[:, 0] <= _SINGULAR * size.shape[1] * torch.finfo(size.dtype).eps)

    def even(self, offset: Tensor) -> Tensor:
        """``offset`` (B, d) in whole units of the last place of z, so that differences lie evenly far from the origin.

        Eight units, so that halves and quarters are whole as well.
        """
        exponent = torch.frexp(self.z.abs() + 4 * offset.abs()).exponent
        unit = torch.ldexp(torch.full_like(offset, 8 * self._eps), exponent)
        whole = (offset / unit).round() * unit
        return torch.where(whole != 0, whole, offset)

    def first(self, steps: Tensor) -> Tensor:
        """``∂_k M_ij``, (B, d, d, d) with k first, for a step along each axis (B, d), which are made even."""
        count, dim = self.z.shape
        steps = self.even(steps)
        ways, total = torch.diag_embed(steps), self.z.new_zeros(count, dim, dim, dim)
        for place, weight in zip(_AT, _FIRST, strict=True):
            if weight:
                # all axes in one call, which costs a decoder's small ones most
                there = (self.z[:, None] + place * ways).flatten(0, 1)
                total += weight * _tensor(self.metric, there).view_as(total)
        return total / steps[:, :, None, None]

    def twice_along(self, u: Tensor, step: Tensor) -> Tensor:
        """``∂_u ∂_u M`` (B, d, d) for directions u (B, d) and steps (B,)."""
        total = torch.zeros_like(self.tensor)
        for place, weight in zip(_AT, _SECOND, strict=True):
            where = self.tensor if place == 0 else _tensor(self.metric, self.z + (place * step[:, None]) * u)
            total = total + weight * where
        return total / step[:, None, None].square()

    def axis_reaches(self) -> Tensor:
        """:meth:`reaches` of the axes, (B, d), searched from far below; flat axes get the longest of the others.

        Upwards from far below, since far away a periodic metric may look like itself.
        """
        size = coordinate_size(self.metric, self.z)[:, None].expand_as(self.z)
        found = self.reaches(self.axes, _FIRST_TRIAL * size, _LONGEST_TRIAL * size)
        curved = torch.isfinite(found)
        longest = found.masked_fill(~curved, 0.0).amax(1, keepdim=True)
        return torch.where(curved, found, torch.where(longest > 0, longest, size))

    def reaches(self, lines: Tensor, start: Tensor, longest: Tensor) -> Tensor:
        """How far along each line the metric is about a parabola and changes by no more than a third or so of itself.

        The change of an entry is measured against the diagonal, ``|ΔM_ij| / sqrt(M_ii M_jj)``, which knows no units of
        the coordinates.  A trial where the metric is not finite is too long.  A row's reach follows from this row
        alone.

        Args:
            lines: directions (B, n, d).
            start: the first trials (B, n), best too short.
            longest: where to stop (B, n); infinity is returned where the metric has not changed until there.
        """
        count, many, dim = lines.shape
        h, low, high = start.flatten().clone(), start.new_zeros(count * many), torch.full_like(start, torch.inf)
        high, most, floor, lines = high.flatten(), longest.flatten(), 1e-7 * start.flatten(), lines.reshape(-1, dim)
        row = torch.arange(count, device=start.device).repeat_interleave(many)
        found = h.clone()
        todo = torch.isfinite(self.tensor).flatten(1).all(1)[row].nonzero().flatten()
        for _ in range(_ROUNDS):
            if len(todo) == 0:
                break
            at, now = row[todo], h[todo]
            change, factor = self._trial(at, now[:, None] * lines[todo])
            short, long = factor > _NEAR[1], factor < _NEAR[0]
            low[todo], high[todo] = torch.where(short, now, low[todo]), torch.where(long, now, high[todo])
            under, over = low[todo], high[todo]
            trial = now * factor
            # not beyond what was too long nor below what was too short
            between = torch.where((under > 0) & torch.isfinite(over), (under * over).sqrt(), trial)
            trial = torch.where(short, torch.minimum(trial, between), torch.maximum(trial, between))
            ended = short & (now >= most[todo])
            found[todo] = torch.where(under > 0, under, trial)
            found[todo] = torch.where(~short & ~long, now * factor.clamp_max(2.0), found[todo])
            found[todo] = torch.where(ended, torch.where(change < _FLAT, torch.inf, now), found[todo])
            h[todo] = torch.maximum(torch.minimum(trial, most[todo]), floor[todo])
            todo = todo[(short | long) & ~ended & (over > 2 * under)]
        return found.view(count, many)

    def _trial(self, at: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of the metric from rows ``at`` (n,) by offsets (n, d) to both sides, and factors to the reach."""
        middle = self.tensor[at]
        size = middle.diagonal(dim1=1, dim2=2).abs().sqrt()
        size = (size[:, :, None] * size[:, None, :]).clamp_min(1e-300)
        ahead, behind = self._sides(at, offset)
        change = _largest(ahead - middle, size).maximum(_largest(behind - middle, size)).nan_to_num(nan=torch.inf)
        factor = (_CHANGE / change.clamp_min(_NOISE)).sqrt()
        told = ((change > self._telling) & (factor >= _NEAR[0])).nonzero().flatten()
        if len(told):
            # a parabola's odd part doubles and its even part becomes four times as large
            near, back = self._sides(at[told], 0.5 * offset[told])
            odd = (ahead - behind)[told] / 2 - (near - back)
            even = (ahead + behind)[told] - 4 * (near + back) + 6 * middle[told]
            bend = _largest(odd, size[told]).maximum(_largest(even, size[told])) / change[told]
            bend = bend.nan_to_num(nan=torch.inf).clamp_min(self._straight)
            factor[told] = torch.minimum(factor[told], (_BEND / bend).sqrt())
        return change, factor.clamp_min(1e-3)

    def _sides(self, at: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        ahead, behind = _tensor(self.metric, torch.cat([self.z[at] + offset, self.z[at] - offset])).chunk(2)
        return ahead, behind


def _largest(difference: Tensor, size: Tensor) -> Tensor:
    return (difference.abs() / size).flatten(1).amax(1)


def computes_single(metric: Metric, z: Tensor) -> bool:
    """Whether the metric is computed in single precision at points z (B, d)."""
    parts = metric.parts()
    embedding = parts.embedding is not None and computes_in_single(parts.embedding, z)
    return embedding or (parts.field is not None and rounds_in_single(parts.field, z))


def coordinate_size(metric: Metric, z: Tensor) -> Tensor:
    """Size of the coordinates at each row (B,): theirs, or the spread of the support, or one where there is none."""
    spread = 1.0
    if metric.support is not None and len(metric.support) > 1:
        spread = float(metric.support.double().std(0, correction=0).mean()) or 1.0
    return z.abs().amax(1).clamp_min(spread)


def christoffel_first(u: Tensor, v: Tensor, first: Tensor) -> Tensor:
    """``Γ(u, v)`` of the first kind (B, d): ``½ (∂_u M v + ∂_v M u - ∇(uᵀ M v))`` for u, v (B, d)."""
    by_u, by_v = (torch.einsum("bkij,bk->bij", first, x) for x in (u, v))
    gradient = torch.einsum("bkij,bi,bj->bk", first, u, v)
    return 0.5 * ((by_u @ v[..., None])[..., 0] + (by_v @ u[..., None])[..., 0] - gradient)


def _tensor(metric: Metric, z: Tensor) -> Tensor:
    return torch.cat([to_matrices(metric.tensor(part), part, "`tensor(z)`") for part in z.split(_CHUNK)])
