"""From a score to what is added to the metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..matrix_field import SlopedField, square
from ..surroundings import leaf, recording
from .base import UncertaintyModel
from .floor import Floor


@dataclass(frozen=True)
class Gate:
    """``w(z) = ε(z) + 1 / (1/W + (e^{-u/δ₁} + e^{-u/δ₂}) / V)`` with ``u = score(z) - k``, and its gradient.

    A precision network read from the score: below the knee ``w`` falls off steeply, above it ``w`` climbs gently
    to its ceiling.  One slope for both would either let curves stray beside the data or make the metric stiff.

    Attributes:
        model: the fitted uncertainty model.
        knee: k, the score at which ``w`` is V / 2.
        level: V, at most the costliest eigenvalue on the data.
        steep, gentle: δ₁ and δ₂, in units of the score.
        ceiling: W, what ``w`` tends to in the void.
        floor: ε, itself a smooth function of z.
        even: what share of ``w - ε`` is alike in all directions, whatever the model's shape.
        reach: the offset from the data, in data radii, out to which it was calibrated; the weight does not hang on it.
    """

    model: UncertaintyModel
    knee: float
    level: float
    steep: float
    gentle: float
    ceiling: float
    floor: Floor
    even: float = 0.0
    reach: float = math.inf

    def weight(self, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``w - ε`` and its first and second derivative by the score, each (B,), from scores (B,)."""
        u = score - self.knee
        # the logarithms of the three parts of 1 / (w - ε), and the largest, which keeps their sum in range
        least = -math.log(self.ceiling)
        first, second = (u / -scale - math.log(self.level) for scale in (self.steep, self.gentle))
        top = torch.maximum(first, second).clamp_min(least)
        first, second = (first - top).exp(), (second - top).exp()
        total = first + second + (least - top).exp()
        weight = (-top).exp() / total
        steep, gentle = first / total / self.steep, second / total / self.gentle
        slope = steep + gentle
        return weight, weight * slope, weight * (2 * slope.square() - steep / self.steep - gentle / self.gentle)

    @property
    def device(self) -> torch.device:
        """Where the model and the floor are; points come from and results go back to any other."""
        return self.floor.centres.device

    def __call__(self, z: Tensor) -> Tensor:
        """``w(z)`` (B,)."""
        here = z.to(self.device)
        return (self.floor(here) + self.weight(self.model.score(here))[0]).to(z.device)

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``w(z)`` (B,) and ``∇w(z)`` (B, d), closed-form where the model's score is."""
        value, gradient = self._value_and_gradient(z.to(self.device))
        return value.to(z.device), gradient.to(z.device)

    def _value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model.score_and_gradient(z)
        if found is None:
            with recording():
                point = leaf(z)
                score = self.model.score(point)
                (gradient,) = torch.autograd.grad(score.sum(), point)
            found = score.detach(), gradient
        weight, slope, _ = self.weight(found[0])
        floor, tilt = self.floor.value_and_gradient(z)
        return floor + weight, tilt + slope[:, None] * found[1]

    def value_gradient_hessian(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """``w(z)`` (B,), ``∇w(z)`` (B, d), and its second derivatives (B, d, d) where the model's score has them."""
        here = z.to(self.device)
        found = self.model.score_gradient_hessian(here)
        if found is None:
            return *self.value_and_gradient(z), None
        score, gradient, bend = found
        weight, slope, curvature = self.weight(score)
        floor, tilt, bowl = self.floor.value_gradient_hessian(here)
        hessian = slope[:, None, None] * bend
        hessian.baddbmm_((curvature[:, None] * gradient)[:, :, None], gradient[:, None])
        if bowl is not None:
            hessian += bowl
        parts = floor + weight, tilt + slope[:, None] * gradient, hessian
        return parts[0].to(z.device), parts[1].to(z.device), parts[2].to(z.device)

    def numbers(self) -> dict[str, float]:
        """The numbers that calibration chose; the floor has a state of its own."""
        return {name: float(getattr(self, name)) for name in ("knee", "level", "steep", "gentle", "ceiling", "even")}


@dataclass(frozen=True)
class ShapedField:
    """``U(z) = ε I + (w - ε) S(z)``, for a model whose ignorance has a shape S.

    Attributes:
        gate: of the model.
        shape: S.
    """

    gate: Gate
    shape: Callable[[Tensor], Tensor]

    def __call__(self, z: Tensor) -> Tensor:
        """(B, d) -> (B, d, d)."""
        floor, weight, here = self._parts(z)
        identity = torch.eye(z.shape[1], dtype=z.dtype, device=here.device)
        return (floor[:, None, None] * identity + weight[:, None, None] * self.shape(here)).to(z.device)

    def square(self, z: Tensor, v: Tensor) -> Tensor:
        """``vᵀ U(z) v``, (B, d), (B, d) -> (B,)."""
        floor, weight, here = self._parts(z)
        way = v.to(here)
        return (floor * way.square().sum(1) + weight * square(self.shape, here, way)).to(z.device)

    def slope(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """``U(z)`` and ``∂_i (U(z) v)_a``, each (B, d, d), where the model's score and shape have closed forms."""
        here, way = z.to(self.gate.device), v.to(self.gate.device)
        found = self._slopes(here)
        shape = self.shape.slope(here, way) if isinstance(self.shape, SlopedField) else None
        if found is None or shape is None:
            return None
        floor, tilt, weight, climb = found
        identity = torch.eye(z.shape[1], dtype=here.dtype, device=here.device)
        field = floor[:, None, None] * identity + weight[:, None, None] * shape[0]
        pushed = way[:, :, None] * tilt[:, None] + weight[:, None, None] * shape[1]
        pushed += (shape[0] @ way[..., None]) * climb[:, None]
        return field.to(z.device), pushed.to(z.device)

    def pull(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """``U(z) v`` and ``∂_z (vᵀ U(z) v)``, each (B, d), where the model's score and shape have closed forms."""
        here, way = z.to(self.gate.device), v.to(self.gate.device)
        found = self._slopes(here)
        shape = self.shape.pull(here, way) if isinstance(self.shape, SlopedField) else None
        if found is None or shape is None:
            return None
        floor, tilt, weight, climb = found
        along = floor[:, None] * way + weight[:, None] * shape[0]
        square, inner = way.square().sum(1, keepdim=True), (way * shape[0]).sum(1, keepdim=True)
        return along.to(z.device), (square * tilt + inner * climb + weight[:, None] * shape[1]).to(z.device)

    def _slopes(self, here: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """``ε`` (B,) and ``∇ε`` (B, d), and the same of ``w - ε``, where the model's score has a closed form."""
        found = self.gate.model.score_and_gradient(here)
        if found is None:
            return None
        weight, climb, _ = self.gate.weight(found[0])
        return *self.gate.floor.value_and_gradient(here), weight, climb[:, None] * found[1]

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``ε`` (B,), ``w - ε`` (B,), and ``z`` where the model is."""
        here = z.to(self.gate.device)
        return self.gate.floor(here), self.gate.weight(self.gate.model.score(here))[0], here
