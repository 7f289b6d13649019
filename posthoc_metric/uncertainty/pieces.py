"""Points a few at a time, so that what is formed of each of them with every centre stays in a processor's cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: bytes of one number for every point and centre, on a processor, where 8 MiB take half as long again, and on an
#: accelerator
_CACHED, _MOST_BYTES = 2**20, 512 * 2**20


def in_pieces(ask: Callable[[Tensor], tuple[Tensor, ...]], z: Tensor, centres: int) -> tuple[Tensor, ...]:
    """``ask(z)`` for points (B, d), so many at a time that their numbers for all the ``centres`` are few."""
    held = _CACHED if z.device.type == "cpu" else _MOST_BYTES
    # products of matrices round the rows beyond a multiple of four otherwise
    rows = max(4, held // (32 * centres) * 4)
    if len(z) <= rows:
        return ask(z)
    return tuple(torch.cat(parts) for parts in zip(*map(ask, z.split(rows)), strict=True))
