"""A metric's parts as the solver calls them: rows that have no value become NaN and leave the others alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._arrays import bad_rows
from ..errors import DecoderError
from ..metric import MetricParts
from ..smooth_map import Pull, SmoothMap, in_float64, pull_rows, value_and_pull


class GuardedMap:
    """``F`` that answers NaN where it has no value, instead of raising for the whole batch."""

    def __init__(self, embedding: SmoothMap):
        self.embedding = embedding
        self.latent_dim = embedding.latent_dim
        self.output_dim = embedding.output_dim

    def __call__(self, z: Tensor) -> Tensor:
        return self._ask(lambda points: (self.embedding(points),), (self.output_dim,), z)[0]

    def jvp(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        value, pushed = self._ask(self.embedding.jvp, (self.output_dim,), z, v)
        return value, pushed

    def vjp(self, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        value, pulled = self._ask(self.embedding.vjp, (self.latent_dim,), z, u)
        return value, pulled

    def in_float64(self) -> GuardedMap | None:
        finer = in_float64(self.embedding)
        return None if finer is None else GuardedMap(finer)

    @property
    def pull_rows(self) -> int:
        return pull_rows(self.embedding)

    def value_and_pull(self, z: Tensor) -> tuple[Tensor, Pull]:
        if bad_rows(z) is None:
            try:
                value, pull = value_and_pull(self.embedding, z)
                return value, lambda u: self._pulled(pull, z, u)
            except DecoderError as error:
                if not error.rows:
                    raise
        return self(z), lambda u: self.vjp(z, u)[1]

    def _pulled(self, pull: Pull, z: Tensor, u: Tensor) -> Tensor:
        if bad_rows(u) is None:
            try:
                return pull(u)
            except DecoderError as error:
                if not error.rows:
                    raise
        return self.vjp(z, u)[1]

    def value_and_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        value, jacobian = self._ask(self.embedding.value_and_jacobian, (self.output_dim, self.latent_dim), z)
        return value, jacobian

    def _ask(
        self, call: Callable[..., tuple[Tensor, ...]], shape: tuple[int, ...], *rows: Tensor
    ) -> tuple[Tensor, ...]:
        """``call(*rows)``, asked again without the rows that have no value; ``shape`` is that of the last answer."""
        bad = torch.zeros(len(rows[0]), dtype=torch.bool, device=rows[0].device)
        for part in map(bad_rows, rows):
            if part is not None:
                bad |= part
        answers: tuple[Tensor, ...] | None = None
        while answers is None and not bool(bad.all()):
            try:
                answers = call(*(filled(part, bad) for part in rows))
            except DecoderError as error:
                if not error.rows:
                    raise
                bad[torch.tensor(error.rows, device=bad.device)] = True
        if answers is None:
            nan = rows[0].new_full((len(bad), self.output_dim), float("nan"))
            last = rows[0].new_full((len(bad), *shape), float("nan"))
            return nan, last
        if not bool(bad.any()):
            return answers
        return tuple(values.masked_fill(bad.view(-1, *[1] * (values.ndim - 1)), float("nan")) for values in answers)


def filled(rows: Tensor, bad: Tensor) -> Tensor:
    """The rows with the first good one in place of the bad: products of fewer rows are summed in another order."""
    if not bool(bad.any()):
        return rows
    first = (~bad).nonzero()[0, 0]
    return rows[torch.where(bad, first, torch.arange(len(bad), device=bad.device))]


def guard(parts: MetricParts) -> MetricParts:
    """``parts`` with a guarded embedding."""
    if parts.embedding is None or isinstance(parts.embedding, GuardedMap):
        return parts
    return MetricParts(embedding=GuardedMap(parts.embedding), weight=parts.weight, field=parts.field)
