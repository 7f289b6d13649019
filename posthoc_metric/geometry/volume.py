"""Riemannian volume of a region of latent space."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import qmc

from .._arrays import ArrayLike, check_count, check_seed
from ..errors import NumericalError
from ..metric import Metric
from .region import Inside, box, check_inside, log_density

#: scrambled repetitions of the quasi-random rule, whose spread is its error
_REPEATS = 8


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
    lower, sides = box(metric, low, high)
    inside, seed = check_inside(inside), check_seed(seed)
    num = check_count(num, "num", 1, "the points of the rule")
    power = max(math.ceil(math.log2(num / _REPEATS)), 1)
    logs = []
    for child in np.random.SeedSequence(seed).spawn(_REPEATS):
        unit = qmc.Sobol(metric.dim, rng=np.random.default_rng(child)).random_base2(power)
        density = log_density(metric, lower + torch.from_numpy(unit).to(lower) * sides, inside)
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
