"""Latent axes of very unequal scale: what the repair adds is alike in all directions, and then too much along some."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: by how much the steepest direction of the decoder may stand out against the latents' spread.  Trained decoders have
#: 0.5 to 1.1; repaired lengths across the void exceed the decoder's by up to twice as much as this number
_MOST = 4.0
_POINTS = 200


def mismatch(grams: Tensor, spreads: Tensor) -> float:
    """How much the decoder's costliest unit step falls if each axis is measured in its own spread.

    The median over points of ``√λ_max(G) · s / √λ_max(SGS)``, with ``S`` the spreads on the diagonal and ``s`` their
    root mean square: 1 where the decoder is steepest along an axis of the usual spread, large where it is along one on
    which the latents scarcely differ, infinite where it is along those alone on which they do not differ at all.  An
    axis that the decoder ignores says nothing, whatever its spread.  (κ(J) would not do: such an axis hides behind it
    what the others are like.)

    Args:
        grams: ``JᵀJ`` at some latents (n, d, d).
        spreads: the latents' standard deviation along each axis (d,).
    """
    few = grams[:_POINTS]
    costliest = torch.linalg.eigvalsh(few)[:, -1].clamp_min(0)
    in_spreads = torch.linalg.eigvalsh(few * spreads[:, None] * spreads)[:, -1].clamp_min(0)
    found = (costliest * spreads.square().mean() / in_spreads).sqrt()
    return float(found.nan_to_num(nan=1.0, posinf=torch.inf).median())


def about_scales(found: float, spreads: Tensor) -> str:
    """A warning of axes whose scale does not suit the decoder; empty where it does."""
    if found <= _MOST:
        return ""
    if math.isinf(found):
        return (
            "the decoder's output changes only along latent axes on which the latents do not differ: their standard "
            f"deviations go from {float(spreads.min()):.2g} to {float(spreads.max()):.2g}. What the repair adds is "
            "alike in all directions, so lengths across the void come out too large without bound. Check that "
            "`latents` are latents of this decoder, with their axes in its order."
        )
    return (
        "the latent axes are of very unequal scale: their standard deviations go from "
        f"{float(spreads.min()):.2g} to {float(spreads.max()):.2g}, and the decoder's costliest unit step is "
        f"{found:.0f} times costlier than if every axis were divided by its own. What the repair adds is alike in all "
        f"directions, so lengths across the void may come out {found:.0f} times too large and more. Repair in "
        "standardised latents: `scale = latents.std(0)` (1 for an axis without any), wrap "
        "`lambda u: model(u * scale)`, and pass `latents / scale`."
    )
