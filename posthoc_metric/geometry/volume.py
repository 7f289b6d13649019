"""Riemannian volume of a region of latent space, and samples from the volume measure."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from .._arrays import ArrayLike, as_tensor, check_count, check_seed, describe, to_tensor
from ..errors import InvalidArgumentError, NumericalError
from ..matrix_field import to_matrices
from ..metric import Metric, check_metric
from .region import Inside, admitted, check_inside

#: scrambled repetitions of the quasi-random rule, whose spread is its error
_REPEATS = 8
_CHUNK = 65_536
#: points of the box that chains are begun from, at least and at most; torch draws from no more than 16 million
_POOL = 4096, 2**20
#: effective points that chains are begun from at least; where there are fewer, so many chains at least are begun under
#: a power of the density, and moved by so many steps before the next
_FEWEST, _MEMBERS, _EACH = 100.0, 1024, 20
#: the longest local step of a chain over the shortest: where tails are heavy one size does not fit all
_SIZES = 4.0


@dataclass(frozen=True)
class Volume:
    """``∫ sqrt(det M) dz`` over a region.

    Attributes:
        value: the volume, in the unit of length to the power d.
        standard_error: of ``value``, from independent repetitions; infinite where no point was inside, which a
            small region and none have in common.
        evaluations: points at which the metric was asked.
    """

    value: float
    standard_error: float
    evaluations: int


def volume(
    metric: Metric, low: ArrayLike, high: ArrayLike, *, inside: Inside | None = None, num: int = 2**14, seed: int = 0
) -> Volume:
    """Riemannian volume of a box, or of the part of it where ``inside`` is true.

    Randomised quasi-Monte Carlo: scrambled Sobol points (Owen 1995), eight times.

    Args:
        metric: any metric.
        low, high: corners of the box (d,).
        inside: z (B, d) float64 tensor -> mask (B,), what of the box counts.
        num: points in all, rounded up to eight times a power of two.
        seed: of the scrambling.

    Raises:
        InvalidArgumentError: corners of a wrong shape or order, a bad number or seed, or ``inside`` gives no mask.
        NumericalError: the metric is not finite in the region, or the volume too large or too small for float64.
    """
    lower, sides = _box(metric, low, high)
    inside, seed = check_inside(inside), check_seed(seed)
    num = check_count(num, "num", 1, "the points of the rule")
    power = max(math.ceil(math.log2(num / _REPEATS)), 1)
    logs = []
    for child in np.random.SeedSequence(seed).spawn(_REPEATS):
        unit = qmc.Sobol(metric.dim, rng=np.random.default_rng(child)).random_base2(power)
        density = _log_density(metric, lower + torch.from_numpy(unit).to(lower) * sides, inside)
        logs.append(float(density.logsumexp(0)) - power * math.log(2))
    # in many dimensions neither the density nor the box need be numbers of float64 where the volume is
    top = max(logs) if math.isfinite(max(logs)) else 0.0
    shares = np.exp(np.array(logs) - top)
    mean = float(shares.mean())
    value = _from_log(top + math.log(mean) + float(sides.log().sum())) if mean > 0 else 0.0
    error = value * float(np.std(shares, ddof=1)) / (mean or 1.0) / math.sqrt(_REPEATS)
    # repetitions that all miss a region agree
    missed = inside is not None and mean == 0
    return Volume(value=value, standard_error=math.inf if missed else error, evaluations=_REPEATS * 2**power)


def _from_log(log: float) -> float:
    """The volume of a logarithm, where float64 has its digits."""
    if not math.log(sys.float_info.min) <= log <= math.log(sys.float_info.max):
        raise NumericalError(
            f"the volume must be a number of float64, from 1e-308 to 1e308; its natural logarithm is {log:.6g}. "
            "Measure in another unit: a metric times c² has a volume times c to the power of the dimension."
        )
    return math.exp(log)


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
    A step proposes ``z + h M(z)^(-1/2) ξ`` with a random h, half of the time, or else a uniform point of the box, and
    is accepted by Metropolis & Hastings' rule, which leaves the density exactly invariant (Girolami & Calderhead 2011).
    From some thirty dimensions on, and where modes are far apart, means may be several standard errors off: give a
    narrow box, or more steps.

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
    lower, sides = _box(metric, low, high)
    inside = check_inside(inside)
    count = check_count(count, "count", 1, "the points to draw")
    steps = check_count(steps, "steps", 1, "the steps of a chain")
    generator = torch.Generator().manual_seed(check_seed(seed))

    def uniform(n: int) -> Tensor:
        drawn = torch.rand(n, metric.dim, generator=generator, device="cpu", dtype=torch.float64)
        return lower + drawn.to(lower) * sides

    pool = uniform(min(max(16 * count, _POOL[0]), _POOL[1]))
    logs = _log_density(metric, pool, inside)
    counts = torch.isfinite(logs)
    if not bool(counts.any()):
        if inside is None:
            raise NumericalError(
                "the metric must not be singular all over the box; it is at every point tried. Repair it first "
                "(pm.repair)."
            )
        raise InvalidArgumentError("`inside` must be true somewhere in the box, and the metric not singular there.")

    def moved(here: _State, reach: float, power: float = 1.0, *, flat: bool = False) -> tuple[_State, int]:
        """One step of each chain under the density to the given power, and how many of them were accepted.

        Powers of the density have little to do with the metric's own lengths: their steps are ``flat``, alike
        everywhere.
        """
        n = len(here.z)
        local = torch.rand(n, generator=generator, device="cpu", dtype=torch.float64).to(here.z) < 0.5
        noise = torch.randn(n, metric.dim, generator=generator, device="cpu", dtype=torch.float64).to(here.z)
        size = reach * _SIZES ** -torch.rand(n, 1, generator=generator, device="cpu", dtype=torch.float64).to(here.z)
        move = noise if flat else torch.linalg.solve_triangular(here.factor.mT, noise[..., None], upper=True)[..., 0]
        move = size * move
        there = _State(metric, torch.where(local[:, None], here.z + move, uniform(n)), inside, lower, sides)
        forward, back = ((there.z - here.z) / size, (here.z - there.z) / size)
        log_ratio = power * (there.log_density - here.log_density)
        # density of the local proposal: sqrt(det M) exp(-½ Δᵀ M Δ / h²); the uniform one is symmetric
        if not flat:
            log_ratio = log_ratio + torch.where(local, there.log_proposal(back) - here.log_proposal(forward), 0.0)
        chance = torch.rand(n, generator=generator, device="cpu", dtype=torch.float64).to(here.z)
        accept = chance.log() < log_ratio
        return here.replace(accept, there), int(accept.sum())

    def drawn(weight: Tensor, n: int) -> tuple[_State, float]:
        """States of that many of the pool's points, and how far a step goes from them."""
        rows = torch.multinomial(weight.cpu(), n, replacement=True, generator=generator).to(pool.device)
        # the usual optimal scale of a random walk (Roberts & Rosenthal 2001) of where the volume lies, as the box may
        # be far wider
        share = weight / weight.sum()
        spread = float((share @ (pool - share @ pool).square()).sqrt().mean()) or float(sides.mean())
        return _State(metric, pool[rows], inside), 2.38 / math.sqrt(metric.dim) * spread

    few = _effective(logs, 1.0) < _FEWEST
    power = 0.0 if few else 1.0
    # where few points of the box count, nothing is known of where the others lie: the density is raised by degrees
    while power < 1:
        step = _tempered(logs, 1 - power)
        weight, power = (step * (logs - logs.max())).exp(), 1.0 if step == 1 - power else power + step
        here, spread = drawn(weight, max(count, _MEMBERS))
        for _ in range(_EACH):
            here, _ = moved(here, spread, power, flat=True)
        pool, logs = here.z, here.log_density
    here, spread = drawn(torch.ones_like(logs) if few else (logs - logs.max()).exp(), count)
    reach = spread * float(here.scale)
    accepted = 0
    for _ in range(steps):
        here, taken = moved(here, reach)
        accepted += taken
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


def _log_density(metric: Metric, z: Tensor, inside: Inside | None) -> Tensor:
    """``½ log det M(z)`` (B,); minus infinity where the metric is singular or nothing counts."""
    counts = admitted(inside, z)
    found = z.new_full((len(z),), -torch.inf)
    for part in counts.nonzero().flatten().split(_CHUNK):
        try:
            found[part] = as_tensor(metric.log_volume(z[part])).to(z)
        except NumericalError as error:
            raise NumericalError(f"{error} What of the box should not count is left out by `inside`.") from None
    if not bool((found < torch.inf).all()):
        raise NumericalError("the volume must be finite in the region; it is not. Leave that part out by `inside`.")
    return found


def _box(metric: Metric, low: ArrayLike, high: ArrayLike) -> tuple[Tensor, Tensor]:
    check_metric(metric)
    corners = [to_tensor(value, name)[0].double() for value, name in ((low, "low"), (high, "high"))]
    for corner, value, name in zip(corners, (low, high), ("low", "high"), strict=True):
        if tuple(corner.shape) != (metric.dim,) or not bool(torch.isfinite(corner).all()):
            raise InvalidArgumentError(f"`{name}` must be {metric.dim} finite numbers; got {describe(value)}.")
    if not bool((corners[1] > corners[0]).all()):
        raise InvalidArgumentError(f"`high` must exceed `low` in every coordinate; got {high!r:.60} and {low!r:.60}.")
    return corners[0], corners[1].to(corners[0]) - corners[0]
