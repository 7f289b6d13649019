"""Which of a pair's curves are worth going on with: those of about the least length, one in every valley."""

from __future__ import annotations

import torch
from torch import Tensor

#: curves that come nearer than this share of their extent everywhere are in the same valley
_SAME = 0.01


def contenders(pair: Tensor, lengths: Tensor, shapes: Tensor, margin: float, least: Tensor) -> Tensor:
    """Of every pair its shortest curve, and those that are longer by less than ``margin`` and run elsewhere.

    Equal lengths, and curves that have none, go to the first that came.

    Args:
        pair: which pair each of Q curves belongs to (Q,).
        lengths: (Q,); NaN is longer than all.
        shapes: points at equal shares of the length (Q, m, d).
        least: what each may come to with more nodes (Q,): one that stays longer than the shortest is none.

    Returns:
        Mask (Q,).
    """
    keep = torch.zeros_like(pair, dtype=torch.bool)
    sizes = lengths.nan_to_num(nan=float("inf")).tolist()
    hopes = least.nan_to_num(nan=0.0).tolist()
    rivals: dict[int, list[int]] = {}
    for row, owner in enumerate(pair.tolist()):
        rivals.setdefault(owner, []).append(row)
    for rows in rivals.values():
        kept: list[int] = []
        for row in sorted(rows, key=lambda row: sizes[row]):
            # compared so that of curves without a length, infinite here, a margin of -1 leaves one
            near = not kept or (sizes[row] <= (1 + margin) * sizes[kept[0]] and hopes[row] <= sizes[kept[0]])
            if near and (not kept or _elsewhere(shapes, row, kept)):
                kept.append(row)
        keep[kept] = True
    return keep


def _elsewhere(shapes: Tensor, row: int, others: list[int]) -> bool:
    extent = (shapes[row].amax(0) - shapes[row].amin(0)).norm()
    apart = (shapes[others] - shapes[row]).norm(dim=-1).amax(1)
    return bool((apart > _SAME * extent).all())
