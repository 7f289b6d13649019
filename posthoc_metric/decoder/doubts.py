"""Why a latent dimension that a model runs on may not be the one it was made for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import nn

from .parts import Part
from .widths import TRANSPOSED, Width


def doubt(part: Part, width: Width, outputs: int, others: Iterable[Width], runs_on: Callable[[int], bool]) -> str:
    """A refusal to take ``width``, read off a layer, for that of ``part``; empty where nothing speaks against it.

    Args:
        width: a width on which ``part`` runs.
        outputs: how many numbers it then gives for each latent.
        others: all that were suggested.
        runs_on: whether ``part`` runs on latents of another dimension.
    """
    dim, shape, source = width
    reason = _reason(part, width, outputs, others, runs_on) if source.startswith("first ") else ""
    if not reason:
        return ""
    wide, confirmed = (shape, f"latent_shape={shape}") if shape else (f"{dim} numbers", f"latent_dim={dim}")
    return (
        f"`latent_dim` must be confirmed: {part.name} runs on latents of {wide}, as its {source} suggests, but "
        f"{reason}. If they are right pass {confirmed}; else pass latent_dim= or latent_shape= as they are and, if "
        "another part of the model decodes those, its name as method=."
    )


def _reason(part: Part, width: Width, outputs: int, others: Iterable[Width], runs_on: Callable[[int], bool]) -> str:
    dim, shape, _ = width
    if shape is not None and _cuts_pixels(part):
        return (
            "that layer cuts off padding, as those made for feature maps do: of one pixel alone a part of its weights "
            "would never be used"
        )
    told = {other: source for other, _, source in others if source.startswith("attribute ")}
    if told and dim not in told:
        first, source = next(iter(told.items()))
        return f"its {source} says {first}, on which it fails"
    if outputs == dim and _narrowest(part) < dim:
        return "it gives as many numbers as it takes, through a layer of fewer, as a whole autoencoder does with data"
    if shape is None and runs_on(dim + 1):
        return f"it runs on {dim + 1} as well"
    return ""


def _narrowest(part: Part) -> float:
    layers = (module for root in part.roots for module in root.modules() if isinstance(module, nn.Linear))
    return min((layer.out_features for layer in layers), default=math.inf)


def _cuts_pixels(part: Part) -> bool:
    layers = (module for root in part.roots for module in root.modules() if isinstance(module, TRANSPOSED))
    first = next(layers, None)
    return first is not None and any(first.padding)
