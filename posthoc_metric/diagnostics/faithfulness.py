"""Whether geodesics between data stay on the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import radius_neighbors_graph
from torch import Tensor

from ..geodesic import geodesic
from ..support import Support
from ..uncertainty.centres import nearest

if TYPE_CHECKING:
    from ..repair import RepairedMetric

#: the offset of the audit's first shell
FAR = 0.25
_SAMPLES = 64
#: how often a segment of a curve is cut in two, of which it is not known on which side of an offset it lies
_HALVINGS = 5
#: error of a length up to which a curve with kinks counts as found: beyond it the shares below hardly move, and a
#: decoder with kinks takes half as long as to the solver's own
_ROUGH = 5e-3
_MOST_LINKED = 5_000


@dataclass(frozen=True)
class Followed:
    """Curves between held-out data, mean over pairs.

    Attributes:
        off_data: share of the Euclidean latent length at offset > 0, where 5 % of held-out data lie too.
        far: the share at offset > 0.25, the first shell of the audit.
        converged: share of the pairs whose geodesic converged, where the decoder has kinks to 5e-3 of its length; 1
            for straight lines.
    """

    off_data: float
    far: float
    converged: float


@dataclass(frozen=True)
class Faithfulness:
    """Straight lines, geodesics of the decoder's own metric and of the repaired one, between the same pairs.

    Attributes:
        straight, before, after: what was found of each kind of curve.
        pairs: how many were followed.
        error: standard error of ``after.off_data - before.off_data``, by how much it differs between the pairs; 0 of
            fewer than two.
    """

    straight: Followed
    before: Followed
    after: Followed
    pairs: int
    error: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def faithfulness(repaired: RepairedMetric, pairs: int, *, seed: int = 0) -> Faithfulness | None:
    """Follow geodesics between held-out latents that the data connect, in one batch for each metric.

    No repair can keep a curve on the data where there are none between its ends.  So a pair is drawn only if a
    chain of training latents joins it whose balls of radius q95 overlap: along it the offset never exceeds zero.
    ``None`` where there is no such pair.
    """
    support = repaired.geometry
    start, end = connected_pairs(support, pairs, seed=seed)
    if not len(start):
        return None
    t = torch.linspace(0, 1, _SAMPLES, dtype=start.dtype, device=start.device)
    straight = start[:, None] + t[None, :, None] * (end - start)[:, None]
    before, after = (geodesic(metric, start, end, rough_rtol=_ROUGH) for metric in (repaired.decoder_metric, repaired))
    own, repaired_own = (share_off_data(solution.points, support) for solution in (before, after))
    return Faithfulness(
        straight=_followed(straight, share_off_data(straight, support), start.new_ones(len(start)), support),
        before=_followed(before.points, own, before.converged, support),
        after=_followed(after.points, repaired_own, after.converged, support),
        pairs=len(start),
        error=_standard_error(repaired_own - own),
    )


def connected_pairs(support: Support, count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Up to ``count`` pairs of held-out latents at offset ≤ 0 that the data connect; each (n, d)."""
    training = support.training[:_MOST_LINKED]
    centred = (training - support.mean).cpu().numpy()
    links = radius_neighbors_graph(centred, 2 * support.spread)
    _, component = connected_components(links, directed=False)
    held_out = support.audit[support.distance(support.audit) <= support.spread]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(held_out), generator=generator, device="cpu")
    held_out = held_out[order.to(held_out.device)][: 20 * count]
    if len(held_out) < 2:
        return held_out[:0], held_out[:0]
    _, nearest_row = nearest(held_out - support.mean, training - support.mean)
    label = torch.from_numpy(component)[nearest_row.cpu()]
    order = torch.argsort(label, stable=True)
    first, second = order[:-1:2], order[1::2]
    joined = label[first] == label[second]
    drawn = torch.randperm(int(joined.sum()), generator=generator, device="cpu")[:count]
    return held_out[first[joined][drawn]], held_out[second[joined][drawn]]


def _followed(curves: Tensor, off_data: Tensor, converged: Tensor, support: Support) -> Followed:
    """Means over the pairs that have a curve."""
    return Followed(
        off_data=float(off_data.nanmean()),
        far=float(share_off_data(curves, support, beyond=FAR).nanmean()),
        converged=float(converged.double().mean()),
    )


def _standard_error(differences: Tensor) -> float:
    """Of the mean of differences (n,), those that are NaN left out."""
    known = differences[~differences.isnan()]
    return float(known.std() / len(known) ** 0.5) if len(known) > 1 else 0.0


def share_off_data(curves: Tensor, support: Support, *, beyond: float = 0.0) -> Tensor:
    """Share (B,) of the Euclidean length of polygons (B, T, d) at an offset above ``beyond``.

    A segment whose middle is farther from that offset than from its ends lies on one side of it, as offsets change by
    no more than the way gone over the radius; others are halved, and the last pieces count by their middles.
    NaN for a curve that is not finite.
    """
    shares = curves.new_full((len(curves),), torch.nan)
    known = torch.isfinite(curves).flatten(1).all(1)
    curves = curves[known]
    off, segments = curves.new_zeros(len(curves)), curves.diff(dim=1)
    total = segments.norm(dim=2).sum(1)
    begin, step = curves[:, :-1].flatten(0, 1), segments.flatten(0, 1)
    whose = torch.arange(len(curves), device=curves.device).repeat_interleave(curves.shape[1] - 1)
    for left in range(_HALVINGS, -1, -1):
        excess, size = support.offset(begin + 0.5 * step) - beyond, step.norm(dim=1)
        sure = excess.abs() * support.radius > 0.5 * size if left else torch.ones_like(whose, dtype=torch.bool)
        off.index_add_(0, whose[sure], torch.where(excess > 0, size, 0.0)[sure])
        begin, step, whose = begin[~sure], 0.5 * step[~sure], whose[~sure]
        begin, step, whose = torch.cat([begin, begin + step]), torch.cat([step, step]), torch.cat([whose, whose])
    shares[known] = torch.where(total > 0, off / total.clamp_min(1e-300), torch.zeros_like(total))
    return shares
