"""Start curves of the caller's own: a solution of pairs nearby, a path that was planned or seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._arrays import describe, refuse_transformed, to_tensor
from ...errors import InvalidArgumentError
from ...metric import MetricParts
from ..options import GIVEN, START_NAMES
from ..solution import Solution
from .start_curves import SPANS, StartCurves, rounded, timed


def curves_of(initial: Any, start: Tensor, end: Tensor) -> Tensor:
    """What is given as ``initial`` for the pairs of rows of ``start`` and ``end`` (B, d), as (B, m, d) in float64.

    Curves that end elsewhere are moved there, by a share that changes evenly from one end to the other.

    Raises:
        InvalidArgumentError: it is no solution, and no array of that shape.
    """
    if isinstance(initial, Solution):
        initial = initial(torch.linspace(0, 1, SPANS + 1, dtype=torch.float64))
    refuse_transformed(initial, "initial")
    points, _ = to_tensor(initial, "initial")
    count, dim = start.shape
    if points.ndim != 3 or len(points) != count or points.shape[1] < 2 or points.shape[2] != dim:
        raise InvalidArgumentError(
            f"`initial` must be a Solution or hold one curve for each pair, of two points or more: ({count}, m, "
            f"{dim}); got {describe(initial)}. For one pair give curve[None]."
        )
    points = points.to(start)
    share = torch.linspace(0, 1, points.shape[1], dtype=start.dtype, device=start.device)[:, None]
    return points + torch.lerp((start - points[:, 0])[:, None], (end - points[:, -1])[:, None], share)


def as_given(parts: MetricParts, curves: Tensor) -> StartCurves:
    """Start curves along those of ``curves`` (B, m, d) that are finite."""
    rows = torch.isfinite(curves).flatten(1).all(1).nonzero().flatten()
    unknown = torch.full_like(curves[rows, 0, 0], float("inf"))
    return timed(parts, rounded(curves[rows], unknown, rows, START_NAMES.index(GIVEN)))
