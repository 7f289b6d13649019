"""Curves of one pair that are on their way to the same geodesic, of which one is enough."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: a curve whose nodes are nearer to another than this share of its extent will end as that
_NEAR = 0.01
#: share by which the energies of two curves may differ of which the one of less stands for both
_LEVEL = 0.02


def couples_of(pair: Tensor) -> Tensor:
    """Any two of the curves (P,) that are of one pair: numbers (2, k)."""
    order = pair.argsort(stable=True)
    sizes = torch.unique_consecutive(pair[order], return_counts=True)[1]
    found = [order.new_zeros(2, 0)]
    # the curves of one pair stand side by side
    for apart in range(1, int(sizes.max()) if len(sizes) else 0):
        one, other = order[:-apart], order[apart:]
        same = pair[one] == pair[other]
        found.append(torch.stack([one[same], other[same]]))
    return torch.cat(found, dim=1)


def doubles(nodes: Tensor, energy: Tensor, couples: Tensor) -> Tensor:
    """Of the ``couples`` (2, k) of curves (P, n+1, d) that are as good as one, that of more energy: numbers (m,)."""
    one, other = couples
    extent = (nodes[one].amax(1) - nodes[one].amin(1)).norm(dim=-1)
    near = _apart(nodes[one], nodes[other]).amax(1) <= _NEAR * extent
    return torch.where(energy[one] <= energy[other], other, one)[near]


def parted_by_no_hill(
    energies: Callable[[Tensor, Tensor], Tensor], nodes: Tensor, knots: Tensor, energy: Tensor, couples: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the ``couples`` (2, k) of curves (P, n+1, d) at about one level in one valley, that of more energy.

    In many dimensions a valley is wide: its curves may be far apart in directions that matter little, and still agree
    in length.  The energy of the curve half way between them tells whether it is one.

    Args:
        energies: of curves (m, n+1, d) with time steps (m, n).
        knots: (P, n+1).
        energy: (P,).

    Returns:
        Numbers of curves (m,), and of those that were compared with another at the price of one energy (k',).
    """
    of_less, order = energy[couples].sort(dim=0, stable=True)
    low, high = couples.gather(0, order)
    level = of_less[1] <= (1 + _LEVEL) * of_less[0]
    low, high, mean = low[level], high[level], of_less[:, level].mean(0)
    if not len(low):
        return high, high
    between = energies((nodes[low] + nodes[high]) / 2, (knots[low] + knots[high]).diff(dim=1) / 2)
    return high[between <= mean], high


def _apart(nodes: Tensor, others: Tensor) -> Tensor:
    """How far inner nodes (k, n-1) are from the two spans of the other curve's that meet at its node of their number.

    Curves with one course need not have their nodes at the same places.
    """
    point, corner = nodes[:, 1:-1], others[:, 1:-1]
    distances = []
    for end in (others[:, :-2], others[:, 2:]):
        way = end - corner
        share = ((point - corner) * way).sum(-1) / way.square().sum(-1).clamp_min(1e-300)
        distances.append((point - corner - share.clamp(0, 1)[..., None] * way).norm(dim=-1))
    return torch.minimum(*distances)
