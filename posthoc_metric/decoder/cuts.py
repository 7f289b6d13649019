"""Outputs that jump along a cut through the latents: an angle that wraps around, a sign chosen to suit a hemisphere.

Between its jumps such an output is smooth, so its derivatives are right and nothing shows where only those are looked
at; but a curve that crosses the cut has no length there, and no refinement resolves it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._arrays import listed
from .engine import Engine
from .promises import in_float64
from .settle import ROWS

Function = Callable[[Tensor], Tensor]

#: so many latents at most are joined to the nearest of as many others, where a small jump is not lost among smooth
#: changes, and to any of them, where there is more to meet
_ENDS = 64
#: halvings, by the precision: sigmoids of a slope up to 1e7 or 1e3 are then seen to be continuous
_HALVINGS = {torch.float64: 30, torch.float32: 18}
#: changes of an output that matter, in its extent over the latents
_LEAST = 0.02
#: outputs of a smaller extent than this, in the largest, are held to this instead
_NARROW = 0.01
#: a change that shrinks less than by half over so many halvings does not shrink
_LAST = 5


def about_cuts(engine: Engine, latents: Tensor) -> str:
    """A warning of jumps between latents (N, d) in random order; empty where there is none, or one was given before."""
    found = engine.found
    if "jump" in found.warning or len(latents) < 2:
        return ""
    count = min(_ENDS, len(latents) // 2)
    here, there = latents[: 2 * count].to(found.call.device).split(count)
    first = torch.cat([here, here])
    second = torch.cat([there[torch.cdist(here.double(), there.double()).argmin(dim=1)], there])
    with engine.eval_mode(), torch.random.fork_rng(devices=[]), torch.no_grad():
        few = first[:ROWS].to(found.call.dtype)
        call = in_float64(found.call, few, found.call(few), found.place.unit) or found.call

        def function(z: Tensor) -> Tensor:
            return torch.cat([call(rows) for rows in engine.chunks(z, 2)])

        segments, outputs = jumps(function, first.to(call.dtype), second.to(call.dtype))
    if not segments:
        return ""
    where = listed(outputs).replace("row", "output", 1)
    return (
        f"the decoder's output jumps on {segments} of {len(first)} segments between latents, in {where}: "
        "an angle that wraps around, a sign flipped to suit a hemisphere, a threshold. Geodesics do not see the jump, "
        "and those that cross it cannot be resolved. Wrap the layer before that step (method=, output=), give sin and "
        "cos instead of an angle, or leave out the flip."
    )


def jumps(function: Function, first: Tensor, second: Tensor) -> tuple[int, list[int]]:
    """On how many segments an output jumps, and which outputs do.

    Each segment is halved, always towards the larger change, until the change is too small to matter: that of what is
    continuous soon is, that of what jumps never.  So most segments cost a few rows only.

    Args:
        function: (B, d) -> (B, D).
        first, second: the segments' ends (n, d).
    """
    at_first, at_second = function(first), function(second)
    both = torch.cat([at_first, at_second])
    eps = torch.finfo(both.dtype).eps
    extent = both.amax(dim=0) - both.amin(dim=0)
    unit = torch.maximum(extent.clamp_min(_NARROW * float(extent.max())), 1e4 * eps * both.abs().amax(dim=0))
    unit = unit.clamp_min(torch.finfo(both.dtype).tiny)
    before: list[Tensor] = []
    for _ in range(_HALVINGS.get(first.dtype, _HALVINGS[torch.float32])):
        middle = 0.5 * (first + second)
        at_middle = function(middle)
        sides = _change(at_first, at_middle, unit), _change(at_middle, at_second, unit)
        left = sides[0] >= sides[1]
        change = torch.maximum(*sides)
        first, second = torch.where(left[:, None], first, middle), torch.where(left[:, None], middle, second)
        at_first = torch.where(left[:, None], at_first, at_middle)
        at_second = torch.where(left[:, None], at_middle, at_second)
        # a segment of few roundings cannot be halved further: steep and broken look alike there
        resolved = (second - first).abs().amax(dim=1) > 32 * eps * torch.maximum(first.abs(), second.abs()).amax(dim=1)
        kept = (change > _LEAST) & resolved
        before = [earlier[kept] for earlier in (*before, change)][-_LAST - 1 :]
        first, second, at_first, at_second = first[kept], second[kept], at_first[kept], at_second[kept]
        if not len(first):
            return 0, []
    broken = before[-1] > 0.5 * before[0]
    step = ((at_second - at_first).abs() / unit)[broken]
    return len(step), torch.nonzero((step > _LEAST).any(dim=0)).flatten().tolist()


def _change(one: Tensor, other: Tensor, unit: Tensor) -> Tensor:
    """The largest change of any output, (B,); none where one is not finite."""
    return ((other - one).abs() / unit).amax(dim=1).nan_to_num(nan=0.0, posinf=0.0)
