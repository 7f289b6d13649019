"""Eigenvalues of the decoder's own metric at many points, without holding the matrices of all of them at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DecoderError
from ..smooth_map import SmoothMap, gram_rows

#: up to so many dimensions eigenvalues are those of JᵀJ, whatever the number of outputs; beyond them those of a smaller
#: JJᵀ, which are the same but for rounding, are found in a fraction of the time
_FEW_DIMENSIONS = 128


@dataclass(frozen=True)
class Spectra:
    """Of ``JᵀJ`` at n points.

    Attributes:
        values: ascending eigenvalues, (n, d); NaN where the metric is not finite.
        grams: the matrices themselves at those points that were to be kept, (m, d, d).
        bad: where the metric is not finite, (n,).
    """

    values: Tensor
    grams: Tensor
    bad: Tensor


def spectra(decoder: SmoothMap, points: Tensor, kept: Tensor) -> Spectra:
    """Eigenvalues at points (n, d), and the matrices at those that the mask ``kept`` (n,) names.

    All of the matrices would fill memory: in d = 512 a thousand take 2 GiB.
    """
    count, dim = points.shape
    values = points.new_empty(count, dim)
    grams = points.new_empty(int(kept.sum()), dim, dim)
    begun = 0
    rows = gram_rows(decoder, dim)
    for start in range(0, count, rows):
        some = slice(start, start + rows)
        jacobian = _jacobian(decoder, points[some])
        if decoder.output_dim < dim and dim > _FEW_DIMENSIONS:
            values[some] = _eigenvalues(jacobian @ jacobian.mT, dim)
            found = jacobian[kept[some]].mT @ jacobian[kept[some]]
        else:
            square = jacobian.mT @ jacobian
            values[some] = _eigenvalues(square, dim)
            found = square[kept[some]]
        grams[begun : begun + len(found)] = found
        begun += len(found)
    return Spectra(values, grams, ~torch.isfinite(values).all(1))


def _eigenvalues(squares: Tensor, dim: int) -> Tensor:
    """Ascending (n, dim) of matrices (n, m, m) with m ≤ dim, none below zero; NaN where a matrix is not finite."""
    finite = torch.isfinite(squares).flatten(1).all(1)
    values = squares.new_zeros(len(squares), dim)
    lowest = dim - squares.shape[1]
    if bool(finite.all()):
        values[:, lowest:] = torch.linalg.eigvalsh(squares)
    else:
        values[finite, lowest:] = torch.linalg.eigvalsh(squares[finite])
        values[~finite] = torch.nan
    return values.clamp_min_(0)


def _jacobian(decoder: SmoothMap, points: Tensor) -> Tensor:
    """``J(z)`` (B, D, d) in double precision; NaN where the decoder says that it is not finite."""
    try:
        return decoder.value_and_jacobian(points)[1].to(points)
    except DecoderError as error:
        if not error.rows:
            raise
        if len(points) == 1:
            return points.new_full((1, decoder.output_dim, points.shape[1]), torch.nan)
        # the rows are not always all that fail; one by one they are found
        return torch.cat([_jacobian(decoder, point) for point in points.split(1)])
