"""Samples from the volume measure of a region of latent space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_count, check_seed, to_tensor
from ..errors import InvalidArgumentError, NumericalError
from ..matrix_field import to_matrices
from ..metric import Metric
from .region import Inside, admitted, box, check_inside, log_density

#: points of the box that chains are begun from, at least and at most; torch draws from no more than 16 million
_POOL = 4096, 2**20
#: effective points that chains are begun from at least, and for each of them; where there are fewer, so many chains at
#: least are begun under a power of the density, and moved by so many steps before the next
_FEWEST, _SHARED, _MEMBERS, _EACH = 100.0, 0.25, 1024, 20
#: the longest local step of a chain over the shortest: where tails are heavy one size does not fit all, least of all
#: under a power of the density, where the metric does not say where steps must be short
_SIZES, _FLAT_SIZES = 4.0, 1000.0
#: the share of local steps to be accepted (Roberts & Rosenthal 2001), and by how much the log of their size follows it
_ACCEPTED, _GAIN = 0.3, 1.0


@dataclass(frozen=True)
class VolumeSample:
    """Draws from the volume measure.

    Attributes:
        points: (n, d), in the kind and dtype of ``low``.
        acceptance: share of proposals accepted, over all steps.
    """

    points: Any
    acceptance: float


def sample_volume(
    metric: Metric,
    count: int,
    low: ArrayLike,
    high: ArrayLike,
    *,
    inside: Inside | None = None,
    steps: int = 200,
    seed: int = 0,
) -> VolumeSample:
    """Draw points with density ``sqrt(det M)`` on a box, or on the part of it where ``inside`` is true.

    Every point is the end of a chain of its own, started by importance resampling from random points of the box; where
    hardly any of these count, by degrees, under rising powers of the density (Del Moral, Doucet & Jasra 2006).
    A step proposes ``z + h M(z)^(-1/2) ξ`` with a random h, half of the time, or else another uniform value of one
    coordinate or of all, and is accepted by Metropolis & Hastings' rule, which leaves the density exactly invariant
    (Girolami & Calderhead 2011); during the first half of the steps h is fitted to what is accepted.
    From some thirty dimensions on, where modes are far apart, and where the density varies by more than ten orders of
    magnitude, means may be several standard errors off: give a narrow box, or more steps.

    Args:
        metric: any positive definite metric.
        count: n.
        low, high: corners of the box (d,).
        inside: z (B, d) float64 tensor -> mask (B,), what of the box counts.
        steps: of each chain.
        seed: of everything drawn.

    Raises:
        InvalidArgumentError: corners of a wrong shape or order, a bad number or seed, ``inside`` gives no mask, or no
            point of the box is inside.
        NumericalError: the metric is singular or not finite in the region.
    """
    lower, sides = box(metric, low, high)
    inside = check_inside(inside)
    count = check_count(count, "count", 1, "the points to draw")
    steps = check_count(steps, "steps", 1, "the steps of a chain")
    generator = torch.Generator().manual_seed(check_seed(seed))

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device="cpu", dtype=torch.float64).to(lower)

    def uniform(n: int) -> Tensor:
        return lower + rand(n, metric.dim) * sides

    pool = uniform(min(max(16 * count, _POOL[0]), _POOL[1]))
    logs = log_density(metric, pool, inside)
    counts = torch.isfinite(logs)
    if not bool(counts.any()):
        if inside is None:
            raise NumericalError(
                "the metric must not be singular all over the box; it is at every point tried. Repair it first "
                "(pm.repair)."
            )
        raise InvalidArgumentError("`inside` must be true somewhere in the box, and the metric not singular there.")

    def moved(here: _State, reach: Tensor, power: float | None = None) -> tuple[_State, int, float]:
        """One step of each chain, how many of them were accepted, and what share of the local ones.

        Under a ``power`` of the density, which has little to do with the metric's own lengths, local steps are alike
        everywhere; otherwise ``reach`` is in lengths of the metric.
        """
        n, flat = len(here.z), power is not None
        local = rand(n) < 0.5
        noise = torch.randn(n, metric.dim, generator=generator, device="cpu", dtype=torch.float64).to(here.z)
        size = reach * (_FLAT_SIZES if flat else _SIZES) ** -rand(n, 1)
        move = noise if flat else torch.linalg.solve_triangular(here.factor.mT, noise[..., None], upper=True)[..., 0]
        move = size * move
        # one axis at a time, too: where the volume lies along a face of the box, no other step goes far along it
        axis = torch.randint(2 * metric.dim, (n, 1), generator=generator, device="cpu").to(here.z.device)
        kept = (axis < metric.dim) & (axis != torch.arange(metric.dim, device=axis.device))
        jump = torch.where(kept, here.z, uniform(n))
        there = _State(metric, torch.where(local[:, None], here.z + move, jump), inside, lower, sides)
        log_ratio = (1.0 if power is None else power) * (there.log_density - here.log_density)
        # density of the local proposal: sqrt(det M) exp(-½ Δᵀ M Δ / h²); the uniform one is symmetric
        if not flat:
            forward, back = ((there.z - here.z) / size, (here.z - there.z) / size)
            log_ratio = log_ratio + torch.where(local, there.log_proposal(back) - here.log_proposal(forward), 0.0)
        accept = rand(n).log() < log_ratio
        share = float((accept & local).sum() / local.sum()) if bool(local.any()) else _ACCEPTED
        return here.replace(accept, there), int(accept.sum()), share

    def drawn(weight: Tensor, n: int) -> tuple[_State, Tensor]:
        """States of that many of the pool's points, and how far a step goes from them along each axis (d,)."""
        rows = torch.multinomial(weight.cpu(), n, replacement=True, generator=generator).to(pool.device)
        # the usual optimal scale of a random walk (Roberts & Rosenthal 2001) of where the volume lies, as the box may
        # be far wider
        share = weight / weight.sum()
        spread = (share @ (pool - share @ pool).square()).sqrt()
        spread = torch.where(spread > 0, spread, sides)
        return _State(metric, pool[rows], inside), 2.38 / math.sqrt(metric.dim) * spread

    few = _effective(logs, 1.0) < max(_FEWEST, _SHARED * count)
    power = 0.0 if few else 1.0
    # where few points of the box count, nothing is known of where the others lie: the density is raised by degrees
    while power < 1:
        step = _tempered(logs, 1 - power)
        weight, power = (step * (logs - logs.max())).exp(), 1.0 if step == 1 - power else power + step
        here, spread = drawn(weight, max(count, _MEMBERS))
        for _ in range(_EACH):
            here, _, _ = moved(here, spread, power)
        pool, logs = here.z, here.log_density
    here, spread = drawn(torch.ones_like(logs) if few else (logs - logs.max()).exp(), count)
    reach = spread.mean() * here.scale
    accepted = 0
    for done in range(steps):
        here, taken, share = moved(here, reach)
        accepted += taken
        # what such a spread is worth in the metric's lengths is a guess; a size that still changed would bias the draws
        if done < steps // 2:
            reach = reach * math.exp(_GAIN * (share - _ACCEPTED))
    first, restore = to_tensor(low, "low")
    return VolumeSample(restore(here.z.to(first.dtype)), accepted / (steps * count))


def _effective(logs: Tensor, power: float) -> float:
    """How many points as good as equally weighted ones there are, of log weights (n,) times ``power``."""
    weight = (power * (logs[torch.isfinite(logs)] - logs.max())).exp()
    return float(weight.sum().square() / weight.square().sum())


def _tempered(logs: Tensor, most: float) -> float:
    """The largest power up to ``most`` that leaves half of the points (n,), or of those that count, effective."""
    half, low, high = 0.5 * _effective(logs, 0.0), 0.0, most
    if _effective(logs, most) >= half:
        return most
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _effective(logs, middle) >= half else (low, middle)
    return high


class _State:
    """Points, the logarithm of their density, and the Cholesky factor of the metric there."""

    def __init__(
        self, metric: Metric, z: Tensor, inside: Inside | None, low: Tensor | None = None, sides: Tensor | None = None
    ):
        self.z = z
        allowed = admitted(inside, z)
        if low is not None and sides is not None:
            allowed = allowed & ((z >= low) & (z <= low + sides)).all(1)
        matrices = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).repeat(len(z), 1, 1)
        if bool(allowed.any()):
            matrices[allowed] = to_matrices(metric.tensor(z[allowed]), z[allowed], "`tensor(z)`")
        self.factor, info = torch.linalg.cholesky_ex(matrices)
        if bool((info != 0).any()):
            raise NumericalError(
                f"the metric must be positive definite in the region; it is not at {z[info != 0][0].tolist()}. "
                "Repair it first (pm.repair), or leave that part out by `inside`."
            )
        self.half_log_det = self.factor.diagonal(dim1=1, dim2=2).log().sum(1)
        self.log_density = torch.where(allowed, self.half_log_det, -torch.inf)

    @property
    def scale(self) -> Tensor:
        """Typical Riemannian length of a latent unit vector."""
        return (self.half_log_det / self.z.shape[1]).exp().median()

    def log_proposal(self, step: Tensor) -> Tensor:
        return self.half_log_det - 0.5 * (self.factor.mT @ step[..., None]).square().sum((1, 2))

    def replace(self, accept: Tensor, other: _State) -> _State:
        for name in ("z", "factor", "half_log_det", "log_density"):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, torch.where(accept.view(-1, *(1,) * (mine.ndim - 1)), theirs, mine))
        return self
