"""Single outputs that jump: beside smooth ones they pass for flat, and their derivative is zero without a word."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

#: outputs that are looked at closely
_MOST = 8


def flat_outputs(function: Function, z: Tensor, v: Tensor, step: float) -> Tensor:
    """Which outputs differ among ``z`` (B, d) by more than rounding but are the same at ``z + step v`` in every row.

    Args:
        function: (B, d) -> (B, D).
        z, v: (B, d), latents and unit directions.
        step: so short that a smooth output changes by many roundings.
    """
    here, there = function(z), function(z + step * v)
    eps = torch.finfo(here.dtype).eps
    size, extent = here.abs().amax(dim=0), here.amax(dim=0) - here.amin(dim=0)
    apart = float((z - z.mean(dim=0)).square().mean().sqrt())
    varies = torch.isfinite(here).all(dim=0) & (extent > 64 * eps * apart / step * size)
    return torch.nonzero(varies & (here == there).all(dim=0)).flatten()


def stepped_outputs(function: Function, z: Tensor, v: Tensor, step: float) -> tuple[list[int], int]:
    """Outputs that jump between latents, at most eight of them, and how many others are under the same suspicion.

    Of the suspects that :func:`flat_outputs` found a clamped or steep one is none; halving the way between two
    of the latents, always towards the larger change, tells them apart: what is continuous changes ever less, what
    jumps does not.

    Args:
        function, z, v, step: of :func:`flat_outputs`.
    """
    suspects = flat_outputs(function, z, v, step)
    if not len(suspects):
        return [], 0
    here = function(z)
    eps = torch.finfo(here.dtype).eps
    size = here.abs().amax(dim=0)
    spread = max(1, len(suspects) // _MOST)
    chosen = suspects[::spread][:_MOST]
    values = here[:, chosen]
    index = torch.arange(len(chosen), device=z.device)
    low, high = values.argmin(dim=0), values.argmax(dim=0)
    ends, at_ends = (z[low], z[high]), (values[low, index], values[high, index])
    whole = (at_ends[1] - at_ends[0]).abs()
    changes = []
    for _ in range(40 if z.dtype == torch.float64 else 16):
        middle = 0.5 * (ends[0] + ends[1])
        at_middle = function(middle)[index, chosen]
        left = (at_middle - at_ends[0]).abs() >= (at_ends[1] - at_middle).abs()
        ends = torch.where(left[:, None], ends[0], middle), torch.where(left[:, None], middle, ends[1])
        at_ends = torch.where(left, at_ends[0], at_middle), torch.where(left, at_middle, at_ends[1])
        changes.append((at_ends[1] - at_ends[0]).abs())
    # latents far from a decoder's own are rounded where it subtracts their mean: steps too, but small ones
    least = torch.maximum((1e-5 if z.dtype == torch.float64 else 1e-3) * whole, 1e3 * eps * size[chosen])
    found = chosen[(changes[-1] > 0.5 * changes[-6]) & (changes[-1] > least)].tolist()
    return found, (len(suspects) - len(chosen)) if found else 0
