"""The region of latent space that a volume is of: a box, or what of it a caller's ``inside`` admits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, as_tensor, describe, to_tensor
from ..errors import InvalidArgumentError, NumericalError
from ..metric import Metric, check_metric

_CHUNK = 65_536
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


def log_density(metric: Metric, z: Tensor, inside: Inside | None) -> Tensor:
    """``½ log det M(z)`` (B,); minus infinity where the metric is singular or nothing counts."""
    counts = admitted(inside, z)
    found = z.new_full((len(z),), -torch.inf)
    for part in counts.nonzero().flatten().split(_CHUNK):
        try:
            found[part] = as_tensor(metric.log_volume(z[part])).to(z)
        except NumericalError as error:
            raise NumericalError(f"{error} What of the box should not count is left out by `inside`.") from None
    if not bool((found < torch.inf).all()):
        raise NumericalError("the volume must be finite in the region; it is not. Leave that part out by `inside`.")
    return found


def box(metric: Metric, low: ArrayLike, high: ArrayLike) -> tuple[Tensor, Tensor]:
    check_metric(metric)
    corners = [to_tensor(value, name)[0].double() for value, name in ((low, "low"), (high, "high"))]
    for corner, value, name in zip(corners, (low, high), ("low", "high"), strict=True):
        if tuple(corner.shape) != (metric.dim,) or not bool(torch.isfinite(corner).all()):
            raise InvalidArgumentError(f"`{name}` must be {metric.dim} finite numbers; got {describe(value)}.")
    if not bool((corners[1] > corners[0]).all()):
        raise InvalidArgumentError(f"`high` must exceed `low` in every coordinate; got {high!r:.60} and {low!r:.60}.")
    return corners[0], corners[1].to(corners[0]) - corners[0]
