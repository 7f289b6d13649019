"""Twice continuously differentiable cubic curves through nodes, a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Batch
from .linear import solve_tridiagonal


@dataclass
class Spline(Batch):
    """Cubic Hermite form of P curves.

    Attributes:
        knots: times (P, n+1), increasing from 0 to 1.
        nodes: (P, n+1, d).
        slopes: velocities at the nodes (P, n+1, d).
    """

    knots: Tensor
    nodes: Tensor
    slopes: Tensor

    def inside(self, fraction: Tensor) -> tuple[Tensor, Tensor]:
        """Points and velocities at the given fractions of every span.

        Args:
            fraction: (q,) in [0, 1].

        Returns:
            Two tensors (P, n, q, d).
        """
        h = self.knots.diff(dim=1)[:, :, None, None]
        u = fraction.to(self.nodes)[None, None, :, None]
        return _hermite(
            u, h, self.nodes[:, :-1, None], self.nodes[:, 1:, None], self.slopes[:, :-1, None], self.slopes[:, 1:, None]
        )

    def at(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Points and velocities (P, m, d) at ``times`` (P, m)."""
        last = self.knots.shape[1] - 2
        span = (torch.searchsorted(self.knots, times.contiguous(), right=True) - 1).clamp(0, last)
        left = self.knots.gather(1, span)
        h = (self.knots.gather(1, span + 1) - left)[..., None]

        def pick(values: Tensor, offset: int) -> Tensor:
            return values.gather(1, (span + offset)[..., None].expand(-1, -1, values.shape[2]))

        u = (times - left)[..., None] / h
        return _hermite(u, h, pick(self.nodes, 0), pick(self.nodes, 1), pick(self.slopes, 0), pick(self.slopes, 1))


def _hermite(u: Tensor, h: Tensor, a: Tensor, b: Tensor, va: Tensor, vb: Tensor) -> tuple[Tensor, Tensor]:
    step = b - a
    first, second = h * va - step, step - h * vb
    point = a + u * step + u * (1 - u) * ((1 - u) * first + u * second)
    velocity = (step + (1 - u) * (1 - 3 * u) * first + u * (2 - 3 * u) * second) / h
    return point, velocity


def interpolate(knots: Tensor, nodes: Tensor) -> Spline:
    """The not-a-knot cubic spline through ``nodes`` (P, n+1, d) at ``knots`` (P, n+1), n >= 3.

    Slopes solve the usual tridiagonal system (de Boor, A Practical Guide to Splines, ch. IV); the third
    derivative is continuous across the first and last inner knot, which keeps the order four at the ends.
    A curve that is not finite, or whose knots do not increase, gives slopes that are not finite and touches no other.
    """
    bad = ~(torch.isfinite(nodes).flatten(1).all(1) & torch.isfinite(knots).all(1) & (knots.diff(dim=1) > 0).all(1))
    if bool(bad.any()):
        filled = torch.linspace(0, 1, knots.shape[1], dtype=knots.dtype, device=knots.device).expand_as(knots)
        spline = interpolate(torch.where(bad[:, None], filled, knots), nodes.masked_fill(bad[:, None, None], 0.0))
        return Spline(knots, nodes, spline.slopes.masked_fill(bad[:, None, None], float("nan")))
    h = knots.diff(dim=1)
    secant = nodes.diff(dim=1) / h[..., None]
    lower, diagonal, upper = (torch.zeros_like(knots) for _ in range(3))
    right = torch.zeros_like(nodes)
    lower[:, 1:-1], upper[:, 1:-1] = h[:, 1:], h[:, :-1]
    diagonal[:, 1:-1] = 2 * (h[:, 1:] + h[:, :-1])
    right[:, 1:-1] = 3 * (h[:, 1:, None] * secant[:, :-1] + h[:, :-1, None] * secant[:, 1:])
    for end, h0, h1, s0, s1 in (
        (0, h[:, 0], h[:, 1], secant[:, 0], secant[:, 1]),
        (-1, h[:, -1], h[:, -2], secant[:, -1], secant[:, -2]),
    ):
        both = h0 + h1
        diagonal[:, end] = h1
        (upper if end == 0 else lower)[:, end] = both
        right[:, end] = (((h0 + 2 * both) * h1)[:, None] * s0 + (h0**2)[:, None] * s1) / both[:, None]
    return Spline(knots, nodes, solve_tridiagonal(lower, diagonal, upper, right))
