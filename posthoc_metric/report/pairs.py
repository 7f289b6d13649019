"""What a batch of geodesics came to, before and after the repair."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._arrays import as_tensor
from ..decoder.observation import observation_of
from ..diagnostics import share_off_data

if TYPE_CHECKING:
    from ..geodesic import Solution
    from ..repair import RepairedMetric

#: points of a curve, at constant speed, by which its share off the data is measured: as many for every number shown
SAMPLES = 257


@dataclass(frozen=True)
class Curves:
    """One kind of curve between the pairs.

    Attributes:
        converged: how many pairs' geodesics converged.
        median_length: in the metric's own unit; of those that have a curve.
        off_data_mean: mean over the pairs of the share of the latent length at offset > 0.
        off_data_pairs: how many pairs' curves leave the data at all.
        statuses: name, advice and number of pairs of each status that occurs, most frequent first.
        off_data: share of each pair's curve (B,), of which the others are; NaN for a pair without one.
    """

    converged: int
    median_length: float
    off_data_mean: float
    off_data_pairs: int
    statuses: tuple[dict[str, Any], ...]
    off_data: Tensor = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        facts = {**vars(self), "statuses": list(self.statuses)}
        del facts["off_data"]
        return facts


@dataclass(frozen=True)
class PairStatistics:
    """The same pairs joined by the decoder's own geodesics and by the repaired metric's.

    Attributes:
        pairs: how many.
        unit: of the lengths, in words.
        straight_off_data_mean: share of the straight lines' length at offset > 0, mean over the pairs.
        before, after: the decoder's own geodesics and the repaired metric's.
    """

    pairs: int
    unit: str
    straight_off_data_mean: float
    before: Curves
    after: Curves

    def as_dict(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "unit": self.unit,
            "straight_off_data_mean": self.straight_off_data_mean,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
        }


def pair_statistics(repaired: RepairedMetric, before: Solution, after: Solution) -> PairStatistics:
    """Summarise two solutions for the same pairs."""
    straight = straight_lines(after.points[:, 0], after.points[:, -1])
    return PairStatistics(
        pairs=len(after.points),
        unit=f"units of the {'Fisher-Rao metric' if fisher_rao_family(repaired.decoder) else 'decoder output'}",
        straight_off_data_mean=float(share_off_data(straight, repaired.geometry).nanmean()),
        before=_curves(repaired, before),
        after=_curves(repaired, after),
    )


def shares_off_data(repaired: RepairedMetric, solution: Solution) -> Tensor:
    """Share (B,) of each curve's latent length at offset > 0; NaN for a pair without a curve."""
    return share_off_data(sampled(solution, SAMPLES), repaired.geometry)


def has_curve(solution: Solution) -> Tensor:
    """Whether each pair has a curve (B,)."""
    return torch.isfinite(as_tensor(solution.points).detach()).flatten(1).all(1)


def sampled(solution: Solution, num: int) -> Tensor:
    """Points (B, num, d) float64 at constant speed."""
    t = torch.linspace(0, 1, num, dtype=torch.float64, device="cpu")
    return as_tensor(solution(t)).detach().double()


def fisher_rao_family(decoder: Any) -> str | None:
    """The distributions of which a decoder's output are Fisher-Rao coordinates; ``None`` where it is of none."""
    observed = observation_of(decoder)
    return None if observed is None else observed.family


def straight_lines(start: Any, end: Any, num: int = SAMPLES) -> Tensor:
    """Points (B, num, d) float64 on the straight lines from start (B, d) to end (B, d)."""
    first, last = as_tensor(start).double(), as_tensor(end).double()
    t = torch.linspace(0, 1, num, dtype=torch.float64, device=first.device)
    return first[:, None] + t[None, :, None] * (last - first)[:, None]


def _curves(repaired: RepairedMetric, solution: Solution) -> Curves:
    every, known = shares_off_data(repaired, solution), has_curve(solution)
    shares, lengths = every[known], as_tensor(solution.length).double()[known]
    counts = Counter(solution.status)
    return Curves(
        converged=int(as_tensor(solution.converged).sum()),
        # torch's own median of an even number is the lower of the middle two
        median_length=float(lengths.quantile(0.5)) if len(lengths) else float("nan"),
        off_data_mean=float(shares.mean()) if len(shares) else float("nan"),
        off_data_pairs=int((shares > 0).sum()),
        statuses=tuple({"name": s.name, "advice": s.value, "pairs": n} for s, n in counts.most_common()),
        off_data=every,
    )
