"""Tabulated curves as polygons: rounded off, measured in latent space, and tabulated anew."""

from __future__ import annotations

import torch
from torch import Tensor

#: of a moving average over three nodes
_ROUNDS = 8


def smoothed(nodes: Tensor) -> Tensor:
    """Round off the corners of a tabulated path; the ends stay."""
    nodes = nodes.clone()
    for _ in range(_ROUNDS):
        middles = nodes[:, :-1] + nodes[:, 1:]
        nodes[:, 1:-1] = (middles[:, :-1] + middles[:, 1:]).div_(4)
    return nodes


def run_along(share: Tensor) -> Tensor:
    """Running sums (Q, m+1) from 0 to 1 of shares (Q, m)."""
    total = torch.cat([torch.zeros_like(share[:, :1]), share.cumsum(1)], dim=1)
    return total / total[:, -1:].clamp_min(1e-300)


def norms(vectors: Tensor) -> Tensor:
    """Euclidean lengths (...) of vectors (..., d), d small."""
    return sum(column.square() for column in vectors.unbind(-1)).sqrt()  # type: ignore[union-attr]


def met(run: Tensor, values: Tensor, targets: Tensor) -> Tensor:
    """Values (Q, m+1, k), linearly between them, where the increasing ``run`` (Q, m+1) meets ``targets`` (Q, j)."""
    count, number, width = values.shape
    left = (torch.searchsorted(run, targets, right=True) - 1).clamp_(0, number - 2)
    left += number * torch.arange(count, device=run.device)[:, None]
    flat, index = torch.cat([run[..., None], values], dim=2).flatten(0, 1), left.flatten()
    low, high = flat.index_select(0, index), flat.index_select(0, index + 1)
    share = ((targets.flatten() - low[:, 0]) / (high[:, 0] - low[:, 0]).clamp_min_(1e-300)).clamp_(0, 1)
    return torch.lerp(low[:, 1:], high[:, 1:], share[:, None]).view(*targets.shape, width)
