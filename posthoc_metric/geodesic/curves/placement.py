"""Operations on discrete curves: placing nodes and joining batches of different resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Batch
from .quadrature import Rule
from .spline import Spline


def invert(grid: Tensor, values: Tensor, targets: Tensor) -> Tensor:
    """Where the increasing piecewise linear function with ``values`` (P, m) at ``grid`` (P, m) meets ``targets``."""
    values = values.contiguous()
    span = (torch.searchsorted(values, targets.contiguous(), right=True) - 1).clamp(0, values.shape[1] - 2)
    low, high = values.gather(1, span), values.gather(1, span + 1)
    share = ((targets - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    left, right = grid.gather(1, span), grid.gather(1, span + 1)
    return left + share * (right - left)


#: share of the nodes that are placed evenly in time whatever the curve
_LEAST = 1e-3


def respace(spline: Spline, density: Tensor, spans: int) -> tuple[Tensor, Tensor]:
    """Knots and nodes of ``spans`` spans, so that each holds an equal share of ``density`` (P, n) of the old spans."""
    # a span of no length still takes its time: knots that coincide make no spline
    even = spline.knots.diff(dim=1)
    share = density / density.sum(1, keepdim=True).clamp_min(1e-300) + _LEAST * even
    share = share / share.sum(1, keepdim=True)
    cumulative = torch.cat([torch.zeros_like(share[:, :1]), share.cumsum(1)], dim=1)
    targets = torch.linspace(0, 1, spans + 1, dtype=share.dtype, device=share.device).expand(len(share), -1)
    knots = invert(spline.knots, cumulative, targets).clone()
    knots[:, 0], knots[:, -1] = 0.0, 1.0
    nodes, _ = spline.at(knots)
    nodes[:, 0], nodes[:, -1] = spline.nodes[:, 0], spline.nodes[:, -1]
    return knots, nodes


#: share of a curve's old times in new ones
_KEPT = 0.1


def even(like: Tensor, spans: int) -> Tensor:
    """Evenly spaced times (P, spans+1) for P curves, which ``like`` (P, ...) has."""
    times = torch.linspace(0, 1, spans + 1, dtype=like.dtype, device=like.device)
    return times.repeat(len(like), 1)


def retimed(clock: Clock, knots: Tensor) -> Tensor:
    """Times at which a curve, run at nearly constant speed, is where it was at ``knots`` (P, n+1).

    Of all timings of a curve constant speed has the least energy; a share of the old one keeps knots apart where
    hardly any length is run.
    """
    times = torch.lerp(invert(clock.shares, clock.times, knots), knots, _KEPT)
    times[:, 0], times[:, -1] = 0.0, 1.0
    return times


@dataclass
class Clock(Batch):
    """When a curve is where: knots' time ``times`` (P, m) against the share of the length run by then (P, m)."""

    times: Tensor
    shares: Tensor

    def at(self, shares: Tensor) -> Tensor:
        """Times (P, k) at which the given shares (P, k) of the length have been run."""
        return invert(self.times, self.shares, shares)


#: points of a span at which a clock is tabulated at most, and of a curve of more spans than that takes
_TICKS, _MOST_TICKS = 8, 256


def make_clock(spline: Spline, speeds: Tensor, rule: Rule) -> Clock:
    """The clock of ``spline`` from its speeds (P, n, 5) at the points of a ``rule`` in its spans.

    Inside a span the speed is the polynomial through its five values, and the length its integral.
    """
    number = max(1, min(_TICKS, _MOST_TICKS // speeds.shape[1]))
    ticks = torch.linspace(0, 1, number + 1, dtype=speeds.dtype, device=speeds.device)
    powers = torch.arange(5, dtype=speeds.dtype, device=speeds.device)
    nodes = torch.tensor(rule.fractions, dtype=speeds.dtype, device=speeds.device)
    integrate = torch.linalg.solve((nodes[:, None] ** powers).mT, (ticks[:, None] ** (powers + 1) / (powers + 1)).mT)
    h = spline.knots.diff(dim=1)[..., None]
    run = (speeds @ integrate) * h
    count, spans, _ = run.shape
    before = torch.cat([torch.zeros_like(run[:, :1, -1]), run[:, :, -1].cumsum(1)], dim=1)
    inside = before[:, :-1, None] + run[:, :, :-1]
    lengths = torch.cat([inside.reshape(count, -1), before[:, -1:]], dim=1)
    moments = spline.knots[:, :-1, None] + ticks[:-1] * h
    times = torch.cat([moments.reshape(count, -1), spline.knots[:, -1:]], dim=1)
    shares = lengths / lengths[:, -1:]
    # the polynomial can run backwards beside a spike of the speed; a clock does not; and a curve of no length
    # or no finite length is timed by its knots
    shares = torch.cummax(shares, dim=1).values
    usable = torch.isfinite(shares).all(1) & (lengths[:, -1] > 0)
    return Clock(times, torch.where(usable[:, None], shares, times))


def pad(splines: list[Spline], clocks: list[Clock], rows: list[Tensor], count: int) -> tuple[Spline, Clock]:
    """One spline and clock of ``count`` curves from groups of different numbers of spans; ``rows`` says what is where.

    Shorter curves repeat their last node at times beyond 1, where no time in [0, 1] finds them.
    """
    most = max(spline.knots.shape[1] for spline in splines)
    dim = splines[0].nodes.shape[2]
    knots = splines[0].knots.new_empty(count, most)
    nodes = splines[0].nodes.new_empty(count, most, dim)
    slopes = torch.zeros_like(nodes)
    for spline, where in zip(splines, rows, strict=True):
        have = spline.knots.shape[1]
        beyond = torch.arange(2, most - have + 2, dtype=knots.dtype, device=knots.device)
        knots[where] = torch.cat([spline.knots, beyond.expand(len(where), -1)], dim=1)
        nodes[where] = torch.cat([spline.nodes, spline.nodes[:, -1:].expand(-1, most - have, -1)], dim=1)
        slopes[where] = torch.cat([spline.slopes, torch.zeros_like(nodes[where][:, have:])], dim=1)
    widest = max(clock.times.shape[1] for clock in clocks)
    times, shares = knots.new_full((count, widest), 1.0), knots.new_full((count, widest), 2.0)
    for clock, where in zip(clocks, rows, strict=True):
        times[where, : clock.times.shape[1]] = clock.times
        shares[where, : clock.times.shape[1]] = clock.shares
    return Spline(knots, nodes, slopes), Clock(times, shares)


def between(knots: Tensor, values: Tensor, times: Tensor) -> Tensor:
    """Values (P, n-1, ...) at inner knots (P, n+1), linearly between them at the inner of other times (P, m+1)."""
    inner, at = knots[:, 1:-1].contiguous(), times[:, 1:-1].contiguous()
    place = torch.searchsorted(inner, at).clamp(1, inner.shape[1] - 1)
    left, right = inner.gather(1, place - 1), inner.gather(1, place)
    share = ((at - left) / (right - left)).clamp(0, 1)[:, :, None]
    flat = values.flatten(2)
    index = place[..., None].expand(-1, -1, flat.shape[2])
    found = flat.gather(1, index - 1) * (1 - share) + flat.gather(1, index) * share
    return found.view(*at.shape, *values.shape[2:])


def density(spline: Spline, lengths: Tensor, errors: Tensor) -> Tensor:
    """How many nodes a span deserves: by Riemannian length, latent length and error of the quadrature.

    Where the metric is small a curve crosses much latent space in little length, and what it crosses
    goes unseen unless the nodes count latent length too.
    """
    latent = spline.nodes.diff(dim=1).norm(dim=-1)
    shares = [part / part.sum(1, keepdim=True).clamp_min(1e-300) for part in (lengths, latent, errors.sqrt().sqrt())]
    density = 0.5 * shares[0] + 0.25 * shares[1] + 0.25 * shares[2]
    usable = torch.isfinite(density).all(1, keepdim=True) & (density.sum(1, keepdim=True) > 0)
    return torch.where(usable, density, spline.knots.diff(dim=1))
