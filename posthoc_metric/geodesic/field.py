"""Derivatives of a metric that is known only as a field of matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._arrays import is_single
from ..errors import InvalidArgumentError

#: dimensions up to which second derivatives are asked for
_MOST_CURVED = 8


class FieldDerivative:
    """``U(z)`` and the derivative of ``U(z) v`` along every coordinate, by autograd or central differences.

    Autograd is used only where it agrees with a finite difference at ``probe``: a field that detaches
    part of its graph gives gradients that are silently wrong.

    Difference steps follow each point's own velocity, which is the extent of its curve, and the choice between the two
    routes is one that no few points of a batch can turn: what a curve gets does not depend on its neighbours.

    Args:
        field: (N, d) -> (N, d, d).
        probe: points (N, d) to compare the two routes at.
    """

    def __init__(self, field: Callable[[Tensor], Tensor], probe: Tensor):
        self.field = field
        with torch.no_grad():
            matrices = _checked(field(probe), probe)
        finite = torch.isfinite(matrices).flatten(1).all(1)
        single = is_single(matrices[finite])
        # twice continuously differentiable fields: eps^(1/3) of the scale on which the field varies
        self.step = 5e-3 if single else 1e-5
        self.by_autograd = self._agrees(probe[finite][:16], 1e-2 if single else 1e-4)

    def curved(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a call gives, and the second derivatives of ``vᵀ U(z) v`` by ``z`` (N, d, d), or ``None``.

        They are known where autograd gives them at a bearable price.
        """
        if not self.by_autograd or z.shape[1] > _MOST_CURVED:
            return *self(z, v), None
        with torch.enable_grad():
            points = z.detach().clone().requires_grad_(True)
            matrices = self.field(points)
            pushed = (matrices @ v[..., None])[..., 0]
            first = _rows(pushed, points, again=True)
            slope = (first * v[..., None]).sum(1)
            second = _rows(slope, points, again=False) if slope.requires_grad else torch.zeros_like(first)
        return matrices.detach().to(z.dtype), first.detach(), second

    def __call__(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``U(z)`` (N, d, d), and ``P[n, a, i] = ∂_i (U(z_n) v_n)_a`` (N, d, d)."""
        return self._autograd(z, v) if self.by_autograd else self._difference(z, v)

    def _agrees(self, probe: Tensor, tolerance: float) -> bool:
        if len(probe) == 0:
            return False
        # short enough to stay where the field varies, wherever the points of a batch lie
        size = (probe - probe.median(0).values).norm(dim=1).median().clamp_min(1e-3 * probe.abs().median()) + 1e-12
        v = torch.linspace(0.5, 1.0, probe.shape[1], dtype=probe.dtype, device=probe.device).expand_as(probe) * size
        with torch.enable_grad():
            z = probe.detach().clone().requires_grad_(True)
            try:
                if not self.field(z).requires_grad:
                    return False
                _, exact = self._autograd(probe, v)
            except (RuntimeError, TypeError, AttributeError):
                # NumPy inside, or an operation without a derivative: the field is not torch's to differentiate
                return False
        matrices, approximate = self._difference(probe, v)
        error = (exact - approximate).abs().amax((1, 2))
        scale = approximate.abs().amax((1, 2))
        # what detaches a part of its graph does so at most points; at a few the differences may be the worse ones
        rounding = 1e-9 * (matrices @ v[..., None]).abs().amax((1, 2)) / size
        agree = error <= tolerance * scale + rounding
        return bool(2 * int(agree.sum()) >= len(agree))

    def _autograd(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            points = z.detach().clone().requires_grad_(True)
            matrices = self.field(points)
            pushed = (matrices @ v[..., None])[..., 0]
            rows = _rows(pushed, points, again=False)
        return matrices.detach().to(z.dtype), rows

    def _difference(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        count, dim = z.shape
        # where v is zero so is U v, and any step will do
        step = self.step * torch.maximum(v.norm(dim=1), 1e-3 * z.abs().amax(1)).clamp_min(1e-12)
        offsets = step[:, None] * torch.eye(dim, dtype=z.dtype, device=z.device)[:, None]
        shifted = torch.cat([z[None], z + offsets, z - offsets]).reshape(-1, dim)
        with torch.no_grad():
            matrices = self.field(shifted).to(z.dtype).view(2 * dim + 1, count, dim, dim)
        pushed = (matrices @ v[..., None])[..., 0]
        slope = (pushed[1 : dim + 1] - pushed[dim + 1 :]) / (2 * step)[:, None]
        return matrices[0], slope.permute(1, 2, 0)


def _rows(values: Tensor, points: Tensor, *, again: bool) -> Tensor:
    """The derivatives of each of the columns of ``values`` (N, d) by ``points`` (N, d): (N, d, d).

    With ``again`` they can be differentiated themselves.
    """
    rows, last = [], values.shape[1] - 1
    for a, way in enumerate(torch.eye(last + 1, dtype=values.dtype, device=values.device)):
        (grad,) = torch.autograd.grad(
            values, points, way.expand_as(values), retain_graph=again or a < last, create_graph=again, allow_unused=True
        )
        rows.append(torch.zeros_like(points) if grad is None else grad)
    return torch.stack(rows, dim=1)


def _checked(matrices: Tensor, z: Tensor) -> Tensor:
    expected = (*z.shape, z.shape[1])
    if not isinstance(matrices, Tensor) or tuple(matrices.shape) != expected:
        came = tuple(matrices.shape) if hasattr(matrices, "shape") else type(matrices).__name__
        raise InvalidArgumentError(
            f"the metric's `tensor` must return a tensor of shape {expected} for {len(z)} points; got {came}. "
            "Keep the batch axis first and return what kind came in."
        )
    return matrices
