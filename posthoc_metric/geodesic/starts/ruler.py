"""Lengths of many short straight segments between known points, as cheaply as the metric allows."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ...matrix_field import square
from ...metric import MetricParts

#: up to this latent dimension a point is known by its (d, d) matrix, above by the embedding's value
MOST_COLUMNS = 8
#: points weighed at once: a weight may compare each with hundreds of centres
_POINTS = 30_000
_CHUNK_BYTES = 64 * 2**20


class Ruler(Protocol):
    """Knows some points well enough to measure segments between them."""

    def know(self, points: Tensor) -> Tensor:
        """What must be known of points (n, d): one row each."""

    def lengths(self, a: Tensor, b: Tensor, known_a: Tensor, known_b: Tensor) -> Tensor:
        """Lengths (E,) of the segments from ``a`` to ``b`` (E, d); NaN where the metric is."""

    def between(self, points: Tensor, known: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Lengths (E,) of the segments from the ``a``-th (E,) to the ``b``-th of known points (n, d)."""


def make_ruler(parts: MetricParts, dim: int) -> Ruler:
    """Matrices in few dimensions, chords of the embedding in many."""
    if dim <= MOST_COLUMNS or parts.embedding is None:
        return TensorRuler(parts)
    return ChordRuler(parts)


class TensorRuler:
    """Speeds at the two ends from ``J_FᵀJ_F + U`` there, their squares averaged in between; the weight by Simpson."""

    def __init__(self, parts: MetricParts):
        self.parts = parts
        self.bare = MetricParts(embedding=parts.embedding, field=parts.field)

    def know(self, points: Tensor) -> Tensor:
        width = 1 if self.parts.embedding is None else self.parts.embedding.output_dim
        chunk = max(64, _CHUNK_BYTES // (8 * width * (points.shape[1] + 1)))
        return torch.cat([self.bare.tensor(part) for part in points.split(chunk)])

    def lengths(self, a: Tensor, b: Tensor, known_a: Tensor, known_b: Tensor) -> Tensor:
        weights = [self.weights(ends) for ends in (a, b)]
        return self._lengths(a, b, forms(known_a), forms(known_b), *weights)

    def between(self, points: Tensor, known: Tensor, a: Tensor, b: Tensor) -> Tensor:
        weights, known = self.weights(points), forms(known)
        ends = [None if weights is None else weights.index_select(0, side) for side in (a, b)]
        rows = [values.index_select(0, side) for values in (points, known) for side in (a, b)]
        return self._lengths(*rows, *ends)

    def weights(self, points: Tensor) -> Tensor | None:
        """The weight (n,) at points (n, d), if the metric has one."""
        return None if self.parts.weight is None else self._weights(points)

    def _weights(self, points: Tensor) -> Tensor:
        assert self.parts.weight is not None
        return torch.cat([self.parts.weight(part) for part in points.split(_POINTS)])

    def _lengths(
        self, a: Tensor, b: Tensor, known_a: Tensor, known_b: Tensor, weight_a: Tensor | None, weight_b: Tensor | None
    ) -> Tensor:
        """Of segments, with the :func:`forms` of the matrices at their ends."""
        products = _products(b - a)
        first, last = (_weighed(known, products) for known in (known_a, known_b))
        middle = (first + last) / 2
        if weight_a is not None and weight_b is not None:
            size = _size(products, a.shape[1])
            first, last = first + weight_a * size, last + weight_b * size
            middle = middle + self._weights((a + b) / 2) * size
        first, middle, last = (squares.clamp_min(0).sqrt() for squares in (first, middle, last))
        return (first + last + 4 * middle) / 6

    def along(self, curves: Tensor, known: Tensor) -> Tensor:
        """Lengths (..., m-1) of the pieces of many curves (..., m, d) of close points, by the trapezoidal rule.

        Args:
            known: :func:`forms` of the matrices at the points (..., m, d (d + 1) / 2).
        """
        products = _products(curves.diff(dim=-2))
        squares = [_weighed(known[..., ends, :], products) for ends in (slice(None, -1), slice(1, None))]
        if self.parts.weight is not None:
            weight = self._weights(curves.flatten(0, -2)).view(curves.shape[:-1])
            size = _size(products, curves.shape[-1])
            squares = [squares[0] + weight[..., :-1] * size, squares[1] + weight[..., 1:] * size]
        speeds = [square.clamp_min_(0).sqrt_() for square in squares]
        return speeds[0].add_(speeds[1]).div_(2)


class ChordRuler:
    """Chords of the embedding over the halves of a segment, and the weight by Simpson on each half."""

    def __init__(self, parts: MetricParts):
        self.parts = parts
        assert parts.embedding is not None
        self.embedding = parts.embedding

    def know(self, points: Tensor) -> Tensor:
        chunk = max(16, _CHUNK_BYTES // (8 * self.embedding.output_dim))
        # float32 is ample for choosing a path and halves what has to be kept
        return torch.cat([self.embedding(part).float() for part in points.split(chunk)])

    def lengths(self, a: Tensor, b: Tensor, known_a: Tensor, known_b: Tensor) -> Tensor:
        chunk = max(16, _CHUNK_BYTES // (24 * self.embedding.output_dim))
        pieces = zip(a.split(chunk), b.split(chunk), known_a.split(chunk), known_b.split(chunk), strict=True)
        return torch.cat([self._lengths(*piece) for piece in pieces])

    def between(self, points: Tensor, known: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return self.lengths(points[a], points[b], known[a], known[b])

    def _lengths(self, a: Tensor, b: Tensor, known_a: Tensor, known_b: Tensor) -> Tensor:
        middle = (a + b) / 2
        value = self.embedding(middle)
        total = torch.zeros_like(a[:, 0])
        for left, right, chord in ((a, middle, value - known_a), (middle, b, known_b - value)):
            squares = chord.square().sum(1).expand(3, -1)
            if self.parts.weight is not None:
                where = torch.cat([left, (left + right) / 2, right])
                squares = squares + self.parts.weight(where).view(3, -1) * (right - left).square().sum(1)
            if self.parts.field is not None:
                step = right - left
                squares = squares + square(self.parts.field, (left + right) / 2, step)
            total = total + squares.clamp_min(0).sqrt().mul(squares.new_tensor([1 / 6, 2 / 3, 1 / 6])[:, None]).sum(0)
        return total


def forms(matrices: Tensor) -> Tensor:
    """What each of the products ``v_i v_j``, ``j <= i``, counts in ``vᵀ M v``: (n, d, d) -> (n, d (d + 1) / 2)."""
    dim = matrices.shape[-1]
    entries = [matrices[:, i, j] * (1 if i == j else 2) for i in range(dim) for j in range(i + 1)]
    return torch.stack(entries, dim=1)


def _products(vectors: Tensor) -> list[Tensor]:
    """The products ``v_i v_j``, ``j <= i``, of vectors (..., d), each (...)."""
    columns = vectors.unbind(-1)
    return [left * right for i, left in enumerate(columns) for right in columns[: i + 1]]


def _size(products: list[Tensor], dim: int) -> Tensor:
    """``‖v‖²`` (...) from the products."""
    return torch.stack([products[i * (i + 3) // 2] for i in range(dim)]).sum(0)


def _weighed(coefficients: Tensor, products: list[Tensor]) -> Tensor:
    """``vᵀ M v`` (...) from :func:`forms` (..., k) and the products: sums of single entries are the quickest."""
    total = coefficients[..., 0] * products[0]
    for k, product in enumerate(products[1:], 1):
        total.addcmul_(coefficients[..., k], product)
    return total
