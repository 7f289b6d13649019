"""Fields of symmetric matrices: what a user's own return, and what they say of single directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ._arrays import bad_rows, describe, name_rows
from .errors import InvalidArgumentError
from .surroundings import own_precision


@runtime_checkable
class DirectedField(Protocol):
    """A field that knows what its matrices say of single directions for less than the matrices cost."""

    def __call__(self, z: Tensor) -> Tensor:
        """``U(z)``, (B, d) -> (B, d, d)."""

    def square(self, z: Tensor, v: Tensor) -> Tensor:
        """``vᵀ U(z) v``, (B, d), (B, d) -> (B,); differentiable wherever the field is."""


@runtime_checkable
class SlopedField(Protocol):
    """A field that knows its derivative for less than autograd takes, one backward pass a dimension."""

    def __call__(self, z: Tensor) -> Tensor:
        """``U(z)``, (B, d) -> (B, d, d)."""

    def slope(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """``U(z)`` (B, d, d) and ``P[n, a, i] = ∂_i (U(z_n) v_n)_a`` (B, d, d); ``None`` where there is no closed
        form."""

    def pull(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """``U(z) v`` (B, d) and ``∂_z (vᵀ U(z) v)`` (B, d), without the matrices; ``None`` as before."""


def square(field: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> Tensor:
    """``vᵀ U(z) v`` (B,) of any field ``U``."""
    if isinstance(field, DirectedField):
        return field.square(z, v)
    return ((field(z) @ v[..., None])[..., 0] * v).sum(-1)


class CheckedField:
    """A user's field as the solver asks for it: matrices in the dtype of the points, whatever kind is returned.

    A solver may come to where there is no number: the field is not asked there, and other rows do not learn of it.

    Args:
        field: (B, d) -> (B, d, d) tensors, arrays or nested lists.
        name: what messages call it.
    """

    def __init__(self, field: Callable[[Tensor], Any], name: str):
        self._field = field
        self._name = name
        self._symmetric = False

    def __call__(self, z: Tensor) -> Tensor:
        bad = bad_rows(z.detach())
        if bad is not None:
            if bool(bad.all()):
                # it hangs on the points, or nothing could be differentiated by them
                return (z[..., None] * torch.nan).expand(*z.shape, z.shape[1])
            # of fewer rows products would be summed in another order
            return self(torch.where(bad[:, None], z[~bad][:1], z)).masked_fill(bad[:, None, None], torch.nan)
        with own_precision():
            matrices = self._matrices(z)
        # once: it may cost as much as the field, and a transpose that was forgotten is missing at every point
        if not self._symmetric and len(z):
            check_symmetric(matrices.detach(), self._name)
            self._symmetric = True
        return matrices

    def _matrices(self, z: Tensor) -> Tensor:
        """NaN at points where the field's own linear algebra fails, as an inverse does at the edge of a domain."""
        try:
            # it may write into what it is given
            return to_matrices(self._field(z.clone()), z, self._name)
        except (torch.linalg.LinAlgError, np.linalg.LinAlgError):
            if len(z) == 1:
                return z.new_full((1, z.shape[1], z.shape[1]), torch.nan)
            return torch.cat([self._matrices(half) for half in z.tensor_split(2)])


def to_matrices(found: Any, points: Tensor, name: str) -> Tensor:
    """What a user's field returned for points (B, d), as a tensor (B, d, d) of their dtype and on their device.

    Raises:
        InvalidArgumentError: it is no dense array of real numbers of that shape.
    """
    expected = (*points.shape, points.shape[1])
    matrices = found if isinstance(found, Tensor) else _from_array(found, points)
    if matrices is None or not _dense(matrices) or matrices.shape != expected:
        raise InvalidArgumentError(
            f"{name} must return real numbers of shape {expected} for {len(points)} points; got {describe(found)}. "
            "Keep the batch axis first."
        )
    return matrices.to(points)


def check_symmetric(matrices: Tensor, name: str) -> None:
    """Raise unless matrices (B, d, d), those that are finite, are symmetric but for rounding."""
    size, skew = matrices.abs().flatten(1), (matrices - matrices.mT).abs().flatten(1)
    crooked = (skew > 1e-3 * size.amax(1, keepdim=True)).any(1)
    if bool(crooked.any()):
        raise InvalidArgumentError(
            f"{name} must return symmetric matrices; {name_rows(crooked)} not. Return 0.5 * (M + M.mT), or M.mT @ M."
        )


def _dense(matrices: Tensor) -> bool:
    plain = matrices.layout is torch.strided and not matrices.is_nested and matrices.device.type != "meta"
    return plain and not matrices.is_complex()


def _from_array(found: Any, points: Tensor) -> Tensor | None:
    """A float64 tensor of an array or of nested lists; ``None`` where they hold no real numbers."""
    try:
        array = np.asarray(found)
    except (TypeError, ValueError, RuntimeError):
        if points.requires_grad:
            # NumPy takes nothing that requires grad: whoever differentiates learns of it and does without
            raise
        return None
    return torch.from_numpy(array.astype(np.float64)) if array.dtype.kind in "fiu" else None
