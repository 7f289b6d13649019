"""What a batch of geodesics came to, before and after the repair."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._arrays import as_tensor
from ..diagnostics import share_off_data

if TYPE_CHECKING:
    from ..geodesic import Solution
    from ..repair import RepairedMetric


@dataclass(frozen=True)
class Curves:
    """One kind of curve between the pairs.

    Attributes:
        converged: how many pairs' geodesics converged.
        median_length: in the metric's own unit, that of the decoder's output; of those that have a curve.
        off_data_mean: mean over the pairs of the share of the latent length at offset > 0.
        off_data_pairs: how many pairs' curves leave the data at all.
        statuses: name, advice and number of pairs of each status that occurs, most frequent first.
    """

    converged: int
    median_length: float
    off_data_mean: float
    off_data_pairs: int
    statuses: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "statuses": list(self.statuses)}


@dataclass(frozen=True)
class PairStatistics:
    """The same pairs joined by the decoder's own geodesics and by the repaired metric's.

    Attributes:
        pairs: how many.
        straight_off_data_mean: share of the straight lines' length at offset > 0, mean over the pairs.
        before, after: the decoder's own geodesics and the repaired metric's.
    """

    pairs: int
    straight_off_data_mean: float
    before: Curves
    after: Curves

    def as_dict(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "straight_off_data_mean": self.straight_off_data_mean,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
        }


def pair_statistics(repaired: RepairedMetric, before: Solution, after: Solution) -> PairStatistics:
    """Summarise two solutions for the same pairs."""
    straight = straight_lines(after.points[:, 0], after.points[:, -1])
    return PairStatistics(
        pairs=len(after.points),
        straight_off_data_mean=float(share_off_data(straight, repaired.geometry).nanmean()),
        before=_curves(repaired, before),
        after=_curves(repaired, after),
    )


def straight_lines(start: Any, end: Any, num: int = 65) -> Tensor:
    """Points (B, num, d) float64 on the straight lines from start (B, d) to end (B, d)."""
    first, last = as_tensor(start).double(), as_tensor(end).double()
    t = torch.linspace(0, 1, num, dtype=torch.float64, device=first.device)
    return first[:, None] + t[None, :, None] * (last - first)[:, None]


def _curves(repaired: RepairedMetric, solution: Solution) -> Curves:
    points = as_tensor(solution.points).double()
    finite = torch.isfinite(points).flatten(1).all(1)
    shares = share_off_data(points[finite], repaired.geometry)
    lengths = as_tensor(solution.length).double()[finite]
    counts = Counter(solution.status)
    return Curves(
        converged=int(as_tensor(solution.converged).sum()),
        # torch's own median of an even number is the lower of the middle two
        median_length=float(lengths.quantile(0.5)) if len(lengths) else float("nan"),
        off_data_mean=float(shares.mean()) if len(shares) else float("nan"),
        off_data_pairs=int((shares > 0).sum()),
        statuses=tuple({"name": s.name, "advice": s.value, "pairs": n} for s, n in counts.most_common()),
    )
