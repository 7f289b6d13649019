"""The least that is added everywhere, so that no direction is free where the decoder has lost one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from ..support import without_strays
from .centres import place_centres
from .measurement import Measured
from .moments import Moments
from .pieces import in_pieces

#: centres up to so many dimensions, and beyond, where more cells are hardly smaller and cost as much as the decoder;
#: with fewer in d = 10, a decoder that all but loses a direction here and there is lifted where it does not, too
_MOST_CENTRES, _MOST_BEYOND, _FEW_DIMENSIONS = 512, 128, 32
#: a bound found on a sample is met a little more tightly, to hold on others
_MARGIN = 0.85
_SHARE = 0.985
_LEAST = 0.2


@dataclass(frozen=True)
class Floor:
    """``ε(z) = a · exp(Σ_k p_k(z) l_k)``, what the points around z need to be well conditioned.

    ``p_k`` are Gaussian kernel weights over centres (Nadaraya 1964; Watson 1964) and ``l_k`` the logarithm of what the
    points near centre k need on average.  It bounds κ(J) without a Jacobian of its own, and stays away from where the
    decoder is well conditioned by itself: a constant would be too much there.

    Attributes:
        centres: (K, d), relative to ``origin`` (d,).
        bandwidth: of the kernel, ().
        logs: ``l_k``, (K,).
        level: a, (); zero where the decoder is well conditioned by itself.
    """

    centres: Tensor
    origin: Tensor
    bandwidth: Tensor
    logs: Tensor
    level: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """``ε(z)``, (B, d) -> (B,)."""
        if not bool(self.level > 0):
            return z.new_zeros(len(z))
        return in_pieces(lambda some: (self.level * (self._shares(some) @ self.logs).exp(),), z, len(self.logs))[0]

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``ε(z)`` (B,) and ``∇ε(z)`` (B, d)."""
        if not bool(self.level > 0):
            return z.new_zeros(len(z)), torch.zeros_like(z)
        value, gradient = in_pieces(self._value_and_gradient, z, len(self.logs))
        return value, gradient

    def _value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        shares = self._shares(z)
        mean = shares @ self.logs
        value = self.level * mean.exp()
        # z itself cancels from the gradient of a weighted mean with Gaussian weights: Σ_k p_k (l_k - l) c_k / h²
        gradient = shares.mul_(self.logs - mean[:, None]) @ self.centres
        return value, gradient * (value / self.bandwidth.square())[:, None]

    def value_gradient_hessian(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """``ε(z)`` (B,), ``∇ε(z)`` (B, d) and its second derivatives (B, d, d), ``None`` where there are none."""
        if not bool(self.level > 0):
            return z.new_zeros(len(z)), torch.zeros_like(z), None
        moments = Moments(self.centres)

        def ask(some: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self._value_gradient_hessian(some, moments)

        value, gradient, hessian = in_pieces(ask, z, len(self.logs))
        return value, gradient, hessian

    def _value_gradient_hessian(self, z: Tensor, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
        square = self.bandwidth.square()
        shares = self._shares(z)
        mean, centre = shares @ self.logs, shares @ self.centres
        value = self.level * mean.exp()
        # derivatives of a mean l with Gaussian weights are its cumulants with the centres: Σ_k q_k c_k
        # and Σ_k q_k (c_k - c)(c_k - c)ᵀ with q_k = p_k (l_k - l), which add up to zero
        tilt, hessian = moments(shares.mul_(self.logs - mean[:, None]))
        tilt, centre = tilt / square, centre / square
        hessian *= (value / square.square())[:, None, None]
        scaled = value[:, None] * tilt
        hessian.baddbmm_(
            torch.stack([scaled, scaled, value[:, None] * centre], dim=2),
            torch.stack([tilt, -centre, -tilt], dim=1),
        )
        return value, scaled, hessian

    def _shares(self, z: Tensor) -> Tensor:
        """``p_k(z)``, (B, d) -> (B, K)."""
        offset, directions = self._kernel
        return torch.softmax(torch.addmm(offset, z - self.origin, directions), dim=1)

    @cached_property
    def _kernel(self) -> tuple[Tensor, Tensor]:
        """``-‖z - c_k‖² / 2h²`` without its part that is the same for all centres: a number and a vector of each."""
        square = self.bandwidth.square()
        return -self.centres.square().sum(1) / (2 * square), self.centres.T / square

    def state(self) -> dict[str, Tensor]:
        """The tensors that rebuild it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def fit_floor(measured: Measured, bound: float) -> Floor:
    """The smallest floor of its form that keeps κ(J) ≤ ``bound`` on 98.5 % of the points on the data and just off them.

    What a point needs is the smallest ε with ``(λ_max + ε) / (λ_min + ε) ≤ bound²``.
    """
    near = [index for index, offset in enumerate(measured.offsets) if offset < 0.5]
    points = torch.cat([measured.data_points, measured.support_points, *(measured.void_points[i] for i in near)])
    values = torch.cat([measured.data, measured.support, *(measured.void[i] for i in near)])
    largest = values[:, -1].clamp_min(1e-12 * float(values[:, -1].max()))
    # of a bound near one no share is left, and nothing would be added at all
    square = max(_MARGIN * bound, bound**0.5) ** 2
    needed = ((values[:, -1] - square * values[:, 0]) / (square - 1)).clamp_min(0)
    most = _MOST_CENTRES if points.shape[1] <= _FEW_DIMENSIONS else _MOST_BEYOND
    found = place_centres(points, min(most, max(len(points) // 3, 1)), seed=0)
    total = torch.zeros(len(found.points), dtype=torch.float64, device=points.device)
    # a share of what a lost direction would need keeps the logarithm finite where nothing is needed
    total = total.index_add_(0, found.labels, needed + _LEAST * largest / square)
    logs = (total / found.counts).log()
    ordinary = without_strays(points)
    origin = ordinary.mean(0)
    pooled = (found.mean_square_radius * found.counts).sum() / found.counts.sum()
    width = torch.maximum(pooled / points.shape[1], 1e-6 * ordinary.var(0, correction=0).sum()).sqrt()
    plain = Floor(found.points - origin, origin, width, logs, torch.ones_like(width))
    level = torch.quantile(needed / plain(points), _SHARE)
    return Floor(plain.centres, origin, width, logs, level)
