"""The places where an audit looks, and what it measures there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..smooth_map import condition_numbers
from ..support import Support
from ..uncertainty.measurement import VOID_OFFSETS

#: ``(n, d) -> (n, d, d)``, or ``(n,)`` for multiples of the identity
Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shell:
    """Points (n, d) of one kind: held-out data, one offset, or the gaps between clusters.

    ``offset`` is nominal for a shell, the median over the points for data and gaps.
    """

    name: str
    offset: float
    points: Tensor

    @property
    def is_void(self) -> bool:
        """Whether the inflation must be in full force here."""
        return self.name.startswith("offset") and self.offset >= 1


def shells(support: Support, count: int, *, reach: float = math.inf, seed: int = 0) -> tuple[Shell, ...]:
    """Held-out data, growing offsets up to ``reach``, and gaps: up to ``count`` points each.

    The data are the audit's own share, which neither model nor calibration has seen, and the rays of the
    shells are drawn anew.
    """
    held_out = support.audit[:count]
    found = [Shell("data", float(support.offset(held_out).median()), held_out)]
    for index, offset in enumerate(offset for offset in VOID_OFFSETS if offset <= reach):
        found.append(Shell(f"offset {offset:g}", offset, support.shell(offset, count, seed=seed + 7919 + index)))
    gaps = support.gaps(count, seed=seed + 104_729)
    if len(gaps):
        found.append(Shell("gaps", float(support.offset(gaps).median()), gaps))
    return tuple(found)


@dataclass(frozen=True)
class Statistics:
    """What a metric is like on a shell; quantiles over its points.

    Attributes:
        log_volume_q05, log_volume_q50, log_volume_q95: ``½ log det M / d``.
        condition_number_q50, condition_number_q95: κ(J) = sqrt of the ratio of extreme eigenvalues of M.
        smallest_eigenvalue_q05, largest_eigenvalue_q95: of M.
        smoothness_q95: ``‖M^(-1/2) (∂_u M) M^(-1/2)‖_F`` per R over random unit u.
    """

    log_volume_q05: float
    log_volume_q50: float
    log_volume_q95: float
    condition_number_q50: float
    condition_number_q95: float
    smallest_eigenvalue_q05: float
    largest_eigenvalue_q95: float
    smoothness_q95: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ShellRow:
    """One shell and what each metric is like there, by the metric's name."""

    shell: Shell
    metrics: dict[str, Statistics]

    @property
    def name(self) -> str:
        return self.shell.name

    @property
    def offset(self) -> float:
        return self.shell.offset

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "offset": self.offset,
            "points": len(self.shell.points),
            "metrics": {name: found.as_dict() for name, found in self.metrics.items()},
        }


def log_volumes(eigenvalues: Tensor) -> Tensor:
    """``½ log det M / d`` (n,) from ascending eigenvalues (n, d); ``-inf`` where M is singular."""
    return 0.5 * eigenvalues.log().mean(1)


def statistics(eigenvalues: Tensor, smoothness: Tensor) -> Statistics:
    """Summarise eigenvalues (n, d) and smoothness (m,) of one metric on one shell."""
    volumes, conditions = log_volumes(eigenvalues), condition_numbers(eigenvalues)
    return Statistics(
        log_volume_q05=quantile(volumes, 0.05),
        log_volume_q50=quantile(volumes, 0.5),
        log_volume_q95=quantile(volumes, 0.95),
        condition_number_q50=quantile(conditions, 0.5),
        condition_number_q95=quantile(conditions, 0.95),
        smallest_eigenvalue_q05=quantile(eigenvalues[:, 0], 0.05),
        largest_eigenvalue_q95=quantile(eigenvalues[:, -1], 0.95),
        smoothness_q95=quantile(smoothness, 0.95),
    )


def quantile(values: Tensor, q: float) -> float:
    """A quantile that is one of the values, so that infinities do not turn into NaN."""
    if not len(values):
        return float("nan")
    return float(torch.quantile(values, q, interpolation="higher" if q > 0.5 else "lower"))
