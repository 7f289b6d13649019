"""Where something changes most between two times, told by halving: what is smooth changes ever less, jumps do not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Change = Callable[[Tensor, Tensor], Tensor]


def narrowed(
    ask: Callable[[Tensor], Tensor],
    change: Change,
    begin: Tensor,
    width: Tensor,
    ends: tuple[Tensor, Tensor],
    times: int,
) -> Tensor:
    """What change is left (P, k) of intervals halved so many ``times``, always towards the larger change.

    Args:
        ask: values (P, k, ...) at shares (P, k).
        change: of two such values (P, k).
        begin, width: of the intervals (P, k), or what broadcasts to it.
        ends: the values at both of their ends.
    """
    left, right = ends
    for _ in range(times):
        width = width / 2
        middle = ask(begin + width)
        later = change(middle, right) > change(left, middle)
        begin = torch.where(later, begin + width, begin)
        wide = later.view(*later.shape, *[1] * (middle.ndim - 2))
        left, right = torch.where(wide, middle, left), torch.where(wide, right, middle)
    return change(left, right)
