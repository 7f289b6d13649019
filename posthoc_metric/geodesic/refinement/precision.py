"""Which pairs are too close for a decoder in single precision, whose chords would be little but rounding error."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._precision import is_single
from ...machine import AT_ONCE
from ...metric import MetricParts
from ...smooth_map import in_float64
from ..guard import guard
from ..relaxation.energy import CANCELLED
from .routes import FEW

#: spans that a curve may well need
_SPANS = 64
#: share of its energy that may be lost in rounding before steps go astray: Newton's, and those by gradients alone
_LOST, _LOST_BY_GRADIENTS = CANCELLED / 2, CANCELLED / 10


def too_close(parts: MetricParts, start: Tensor, end: Tensor) -> Tensor:
    """Of the pairs ``start``, ``end`` (B, d) those that a single-precision embedding tells apart too coarsely (B,).

    With n even chords of values of size ``s`` a curve as long as ``c`` has an energy that is known to
    ``2 ε s √n / c`` of itself.
    """
    close = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    if parts.embedding is None:
        return close
    most = _LOST if start.shape[1] <= FEW else _LOST_BY_GRADIENTS
    rows = max(4, AT_ONCE // (16 * parts.embedding.output_dim))
    for some in (start != end).any(1).nonzero().flatten().split(rows):
        first = parts.embedding(start[some])
        if not is_single(first):
            continue
        last = parts.embedding(end[some])
        lost = 2 * torch.finfo(torch.float32).eps * _SPANS**0.5 * first.norm(dim=1)
        close[some] = (last - first).norm(dim=1) * most < lost
    return close


def finer(parts: MetricParts) -> MetricParts | None:
    """Guarded ``parts`` whose embedding computes in float64, where it does not already and can be had."""
    found = None if parts.embedding is None else in_float64(parts.embedding)
    return None if found is None else guard(MetricParts(embedding=found, weight=parts.weight, field=parts.field))
