"""The part of latent space that a caller's ``inside`` admits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._arrays import as_tensor, describe
from ..errors import InvalidArgumentError

#: which latents (B, d) belong to a region: a mask (B,)
Inside = Callable[[Tensor], Tensor]


def check_inside(inside: Any) -> Inside | None:
    """``inside`` as a function, or nothing.

    Raises:
        InvalidArgumentError: it cannot be called.
    """
    if inside is not None and not callable(inside):
        raise InvalidArgumentError(
            f"`inside` must be a function z (B, d) -> mask (B,), or left out; got {describe(inside)}. "
            "Pass one such as lambda z: z.norm(dim=1) < 2."
        )
    return inside  # type: ignore[no-any-return]


def admitted(inside: Inside | None, z: Tensor) -> Tensor:
    """Which of the points z (B, d) belong to the region (B,), bool; all where there is none.

    Raises:
        InvalidArgumentError: ``inside`` returns no mask with an entry for each point.
    """
    if inside is None:
        return torch.ones(len(z), dtype=torch.bool, device=z.device)
    found = inside(z)
    try:
        mask = as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        mask = None
    # of numbers every one but zero would count as inside, such as a distance to the border
    if mask is None or tuple(mask.shape) != (len(z),) or mask.is_floating_point() or mask.is_complex():
        raise InvalidArgumentError(
            f"`inside` must return a mask of shape ({len(z)},) for {len(z)} points, true or false for each; got "
            f"{describe(found)}. Compare numbers with a bound, and join conditions on several coordinates by .all(1)."
        )
    return mask.to(z.device).bool()
