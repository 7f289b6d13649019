"""Derivatives of a metric that is known only as a field of matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ._precision import rounds_in_single
from .matrix_field import SlopedField, square
from .surroundings import recording

#: dimensions up to which second derivatives are asked for
_MOST_CURVED = 8
#: distance between points, over that from the origin, that is none but for rounding
_LEAST = 1e-12
#: lengths of the difference steps that derivatives are probed by, tried one after the other
_PROBED = (1.0, 1e-3)


class FieldDerivative:
    """``U(z)`` and the derivative of ``U(z) v`` along every coordinate, in closed form where the field has one
    (:class:`~posthoc_metric.matrix_field.SlopedField`), by autograd, or by central differences.

    Closed forms and autograd are used only where they agree with a finite difference at ``probe``: a field that
    detaches part of its graph gives gradients that are silently wrong.

    Difference steps follow each point's own velocity, which is the extent of its curve, and the choice between the
    routes is one that no few points of a batch can turn: what a curve gets does not depend on its neighbours.

    Args:
        field: (N, d) -> (N, d, d).
        probe: points (N, d) to compare the two routes at.
    """

    def __init__(self, field: Callable[[Tensor], Tensor], probe: Tensor):
        self.field = field
        with torch.no_grad():
            some = _usable(field, probe)
            self._single = single = rounds_in_single(field, probe)
        # twice continuously differentiable fields: eps^(1/3) of the scale on which the field varies
        self.step = 5e-3 if single else 1e-5
        self._least = 5e-6 if single else 1e-11
        v = _probing(some)
        self._few = some, v
        self._tolerance = 1e-2 if single else 1e-4
        sloped = field if isinstance(field, SlopedField) else None
        closed = sloped.slope(some, v) if sloped is not None and len(some) else None
        self.sloped = sloped if self._true(closed) else None

    @cached_property
    def by_autograd(self) -> bool:
        """Whether autograd finds what differences do; not looked for before somebody wants it."""
        return bool(len(self._few[0])) and self._true(self._graph(*self._few))

    @property
    def row_bytes(self) -> int:
        """What a row takes in :meth:`pull`, approximately."""
        dim = self._few[0].shape[1]
        return 8 * dim**2 * (4 if self.sloped is not None or self.by_autograd else (4 if self._single else 2) * dim + 4)

    @cached_property
    def twice(self) -> bool:
        """Whether autograd finds second derivatives at a bearable price.

        Asked of few points, as some functions of torch (``cdist``) have them for many only; and not before somebody
        wants them, as they cost as much as many calls.
        """
        few, v = self._few
        if not self.by_autograd or few.shape[1] > _MOST_CURVED:
            return False
        try:
            self._curved(few, v)
        except RuntimeError:
            return False
        return True

    def curved(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a call gives, and the second derivatives of ``vᵀ U(z) v`` by ``z`` (N, d, d) where :attr:`twice`."""
        return self._curved(z, v) if self.twice else (*self(z, v), None)

    def __call__(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``U(z)`` (N, d, d), and ``P[n, a, i] = ∂_i (U(z_n) v_n)_a`` (N, d, d)."""
        found = None if self.sloped is None else self.sloped.slope(z, v)
        if found is not None:
            return found
        return self._autograd(z, v) if self.by_autograd else self._difference(z, v)

    def pull(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``U(z) v`` and ``∂_z (vᵀ U(z) v)``, each (N, d)."""
        found = None if self.sloped is None else self.sloped.pull(z, v)
        if found is not None:
            return found
        if self.by_autograd:
            # one backward pass for the square, where a call takes d of them
            with recording():
                at, way = (part.detach().clone().requires_grad_(True) for part in (z, v))
                by_place, along = torch.autograd.grad(square(self.field, at, way).sum(), (at, way))
            return along / 2, by_place
        tensors, pushed = self._difference(z, v)
        return (tensors @ v[..., None])[..., 0], (pushed.mT @ v[..., None])[..., 0]

    def _true(self, found: tuple[Tensor, Tensor] | None) -> bool:
        """Whether derivatives at the points probed are those that differences give, but for their own errors."""
        if found is None:
            return False
        (z, v), tolerance = self._few, self._tolerance
        # where points lie far apart for how fast the field varies, the first steps leap over what it does
        return any(_agrees(scale * found[1], self._difference(z, scale * v), scale * v, tolerance) for scale in _PROBED)

    def _graph(self, probe: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """What autograd finds, if it can."""
        with recording():
            z = probe.detach().clone().requires_grad_(True)
            try:
                return self._autograd(probe, v) if self.field(z).requires_grad else None
            except (RuntimeError, TypeError, AttributeError):
                # NumPy inside, or an operation without a derivative: the field is not torch's to differentiate
                return None

    def _curved(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with recording():
            points = z.detach().clone().requires_grad_(True)
            matrices = self.field(points)
            pushed = (matrices @ v[..., None])[..., 0]
            # one pass along v, recorded, instead of one along every coordinate
            (slope,) = torch.autograd.grad(pushed, points, v, create_graph=True)
            first = _rows(pushed, points, again=True)
            second = _rows(slope, points, again=False) if slope.requires_grad else torch.zeros_like(first)
        return matrices.detach().to(z.dtype), first.detach(), second

    def _autograd(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        with recording():
            points = z.detach().clone().requires_grad_(True)
            matrices = self.field(points)
            pushed = (matrices @ v[..., None])[..., 0]
            rows = _rows(pushed, points, again=False)
        return matrices.detach().to(z.dtype), rows

    def _difference(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        count, dim = z.shape
        # where v is zero so is U v, and any step will do that is longer than roundings of z
        step = torch.maximum(self.step * v.norm(dim=1), self._least * z.abs().amax(1)).clamp_min(1e-300)
        offsets = step[:, None] * torch.eye(dim, dtype=z.dtype, device=z.device)[:, None]
        # steps of single precision are so long that twice as long ones must tell what they leave out (Richardson)
        reaches = (1, 2) if self._single else (1,)
        ends = torch.stack([z + sign * reach * offsets for reach in reaches for sign in (1, -1)])
        # as they come out, far from the origin
        length = (ends[::2] - ends[1::2]).abs().amax(3).clamp_min(1e-300)
        shifted = torch.cat([z[None], ends.flatten(0, 1)]).reshape(-1, dim)
        with torch.no_grad():
            matrices = self.field(shifted).to(z.dtype).view(2 * dim * len(reaches) + 1, count, dim, dim)
        pushed = (matrices @ v[..., None])[..., 0]
        ahead, behind = pushed[1:].view(len(reaches), 2, dim, count, dim).unbind(1)
        slopes = (ahead - behind) / length[..., None]
        slope = (4 * slopes[0] - slopes[1]) / 3 if self._single else slopes[0]
        return matrices[0], slope.permute(1, 2, 0)


def _usable(field: Callable[[Tensor], Tensor], probe: Tensor) -> Tensor:
    """The first 16 of the points (N, d) where the field is finite, or as many as there are."""
    found, count = [], 0
    for some in probe.split(64):
        found.append(some[torch.isfinite(field(some)).flatten(1).all(1)])
        count += len(found[-1])
        if count >= 16:
            break
    return torch.cat(found)[:16]


def _probing(probe: Tensor) -> Tensor:
    """Velocities (N, d) short enough to stay where the field varies, wherever the points (N, d) lie."""
    if len(probe) == 0:
        return probe
    size, far = (probe - probe.median(0).values).norm(dim=1).median(), probe.abs().median()
    size = torch.where(size > _LEAST * far, size, 1e-3 * far) + 1e-300
    return torch.linspace(0.5, 1.0, probe.shape[1], dtype=probe.dtype, device=probe.device).expand_as(probe) * size


def _agrees(found: Tensor, known: tuple[Tensor, Tensor], v: Tensor, tolerance: float) -> bool:
    """Whether derivatives along ``v`` (N, d) are those ``known`` but for rounding, at half of the points or more."""
    matrices, approximate = known
    error = (found - approximate).abs().amax((1, 2))
    scale = approximate.abs().amax((1, 2))
    # what detaches a part of its graph does so at most points; at a few the differences may be the worse ones
    rounding = 1e-9 * (matrices @ v[..., None]).abs().amax((1, 2)) / v[:, -1]
    agree = error <= tolerance * scale + rounding
    return bool(2 * int(agree.sum()) >= len(agree))


def _rows(values: Tensor, points: Tensor, *, again: bool) -> Tensor:
    """The derivatives of each of the columns of ``values`` (N, d) by ``points`` (N, d): (N, d, d).

    With ``again`` what they were found from is kept.
    """
    rows, last = [], values.shape[1] - 1
    for a, way in enumerate(torch.eye(last + 1, dtype=values.dtype, device=values.device)):
        (grad,) = torch.autograd.grad(
            values, points, way.expand_as(values), retain_graph=again or a < last, allow_unused=True
        )
        rows.append(torch.zeros_like(points) if grad is None else grad)
    return torch.stack(rows, dim=1)
