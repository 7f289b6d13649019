"""Which of a pair's curves are worth going on with: lengths of few nodes do not yet tell valleys apart."""

from __future__ import annotations

import torch
from torch import Tensor

#: points at which two curves are compared
_COMPARED = 9
#: curves that come nearer than this share of their extent everywhere are in the same valley
_SAME = 0.01


def contenders(pair: Tensor, lengths: Tensor, shapes: Tensor, margin: float) -> Tensor:
    """Of every pair its shortest curve, and those that are longer by less than ``margin`` and run elsewhere.

    Equal lengths, and curves that have none, go to the first that came.

    Args:
        pair: which pair each of Q curves belongs to (Q,).
        lengths: (Q,); NaN is longer than all.
        shapes: points at equal shares of the length (Q, m, d).

    Returns:
        Mask (Q,).
    """
    keep = torch.zeros_like(pair, dtype=torch.bool)
    sizes = lengths.nan_to_num(nan=float("inf")).tolist()
    rivals: dict[int, list[int]] = {}
    for row, owner in enumerate(pair.tolist()):
        rivals.setdefault(owner, []).append(row)
    for rows in rivals.values():
        kept: list[int] = []
        for row in sorted(rows, key=lambda row: sizes[row]):
            if not kept or (sizes[row] <= (1 + margin) * sizes[kept[0]] and _elsewhere(shapes, row, kept)):
                kept.append(row)
        keep[kept] = True
    return keep


def _elsewhere(shapes: Tensor, row: int, others: list[int]) -> bool:
    extent = (shapes[row].amax(0) - shapes[row].amin(0)).norm()
    apart = (shapes[others] - shapes[row]).norm(dim=-1).amax(1)
    return bool((apart > _SAME * extent).all())


def compared_shares(like: Tensor) -> Tensor:
    """The shares of the length (m,) at which ``shapes`` are taken."""
    return torch.linspace(0, 1, _COMPARED, dtype=like.dtype, device=like.device)
