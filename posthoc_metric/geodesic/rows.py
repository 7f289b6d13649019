"""Maps asked for rows in sixteens, so that what a row gets does not depend on its neighbours.

Matrix products and convolutions take other paths through their arithmetic for other numbers of rows, and what is
left over at the end of a block is summed in another order: the last digits of a float32 row tell how many
rows stood beside it, and an iteration makes more of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DecoderError
from ..metric import MetricParts
from ..smooth_map import SmoothMap
from .guard import GuardedMap, guard

_ROWS = 16


class EvenMap:
    """``F`` in whole blocks of rows, the last one filled with copies of the first row."""

    def __init__(self, embedding: SmoothMap):
        self.embedding = embedding
        self.latent_dim = embedding.latent_dim
        self.output_dim = embedding.output_dim

    def __call__(self, z: Tensor) -> Tensor:
        return _even(self.embedding, z)

    def jvp(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        value, pushed = _even(self.embedding.jvp, z, v)
        return value, pushed

    def vjp(self, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        value, pulled = _even(self.embedding.vjp, z, u)
        return value, pulled

    def value_and_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        value, jacobian = self.embedding.value_and_jacobian(z)
        return value, jacobian


class EvenWeight:
    """``w`` in whole blocks of rows."""

    def __init__(self, weight: Any):
        self.weight = weight

    def __call__(self, z: Tensor) -> Tensor:
        return _even(self.weight, z)

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = _even(self.weight.value_and_gradient, z)
        return value, gradient


@dataclass(frozen=True)
class EvenParts(MetricParts):
    """Parts whose rows do not depend on their neighbours, and of which products are formed ``most`` at a time."""

    most: int = 1024

    def inner(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """``uᵀ M(z) v`` (B,)."""
        ask = super().inner
        pieces = zip(z.split(self.most), u.split(self.most), v.split(self.most), strict=True)
        return torch.cat([ask(at, left, left if v is u else right) for at, left, right in pieces])


def even_rows(parts: MetricParts, memory_limit: int) -> EvenParts:
    """``parts`` whose rows do not depend on their neighbours, with their arrays of width D under ``memory_limit``."""
    embedding, weight = parts.embedding, parts.weight
    if isinstance(embedding, GuardedMap):
        embedding = embedding.embedding
    if embedding is not None:
        embedding = EvenMap(embedding)
    width = 1 if embedding is None else embedding.output_dim
    # values and what is pushed forward, in the decoder's precision and in double, and copies of the last rows
    most = max(1, memory_limit // (8 * 6 * width * _ROWS)) * _ROWS
    safe = guard(MetricParts(embedding, None if weight is None else EvenWeight(weight), parts.field))
    return EvenParts(safe.embedding, safe.weight, safe.field, most)


def _even(call: Callable[..., Any], *rows: Tensor) -> Any:
    count = len(rows[0])
    missing = -count % _ROWS
    if missing == 0 or count == 0:
        return call(*rows)
    try:
        answer = call(*(torch.cat([part, part[:1].expand(missing, -1)]) for part in rows))
    except DecoderError as error:
        # the copies are bad where the first row is
        raise DecoderError(str(error), rows=tuple(row for row in error.rows if row < count)) from None
    return answer[:count] if isinstance(answer, Tensor) else tuple(values[:count] for values in answer)
