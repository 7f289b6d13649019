"""Whether geodesics between data stay on the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..geodesic import geodesic
from ..metric import Metric
from ..support import Support

if TYPE_CHECKING:
    from ..repair import RepairedMetric

_SAMPLES = 64


@dataclass(frozen=True)
class Faithfulness:
    """Shares of curves between held-out data that lie off the data (offset > 0), by Euclidean latent length.

    Attributes:
        straight, before, after: mean share for straight lines, geodesics of the decoder and of the repaired metric.
        before_converged, after_converged: share of pairs whose geodesic converged.
        pairs: how many pairs were followed.
    """

    straight: float
    before: float
    after: float
    before_converged: float
    after_converged: float
    pairs: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def faithfulness(repaired: RepairedMetric, pairs: int, *, seed: int = 0) -> Faithfulness:
    """Follow geodesics between random pairs of held-out latents, in one batch for each metric."""
    generator = torch.Generator().manual_seed(seed)
    held_out = repaired.geometry.audit
    count = min(pairs, len(held_out) // 2)
    drawn = held_out[torch.randperm(len(held_out), generator=generator)[: 2 * count].to(held_out.device)]
    start, end = drawn[:count], drawn[count:]
    t = torch.linspace(0, 1, _SAMPLES, dtype=start.dtype, device=start.device)
    straight = start[:, None] + t[None, :, None] * (end - start)[:, None]
    before, before_converged = _followed(repaired.decoder_metric, start, end, repaired.geometry)
    after, after_converged = _followed(repaired, start, end, repaired.geometry)
    return Faithfulness(
        straight=float(share_off_data(straight, repaired.geometry).mean()),
        before=before,
        after=after,
        before_converged=before_converged,
        after_converged=after_converged,
        pairs=count,
    )


def _followed(metric: Metric, start: Tensor, end: Tensor, support: Support) -> tuple[float, float]:
    solution = geodesic(metric, start, end)
    finite = torch.isfinite(solution.length)
    shares = share_off_data(solution.points[finite], support)
    return float(shares.mean()), float(solution.converged.double().mean())


def share_off_data(curves: Tensor, support: Support) -> Tensor:
    """Share (B,) of the Euclidean length of curves (B, T, d) whose offset exceeds zero, by segment midpoints."""
    steps = (curves[:, 1:] - curves[:, :-1]).norm(dim=2)
    middle = 0.5 * (curves[:, 1:] + curves[:, :-1])
    off = (support.offset(middle.flatten(0, 1)) > 0).reshape(steps.shape)
    total = steps.sum(1)
    return torch.where(total > 0, (steps * off).sum(1) / total.clamp_min(1e-300), torch.zeros_like(total))
