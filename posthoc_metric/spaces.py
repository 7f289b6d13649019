"""Metrics whose geodesics are known in closed form: the oracles that the solver is held to.

Each is a :class:`~posthoc_metric.metric.Metric` like any other; the solver knows nothing of the closed forms.
Three are given by ``tensor(z)`` alone, three by an embedding, so that both routes of the solver are tested.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._arrays import ArrayLike, check_count, check_range, describe, to_points, to_tensor
from .errors import InvalidArgumentError
from .metric import Metric, MetricParts, StructuredMetric


class _Measured(Metric):
    """With a closed-form distance, which subclasses write as :meth:`_distance`."""

    def distance(self, a: ArrayLike, b: ArrayLike) -> Any:
        """Geodesic distance between the rows of ``a`` and ``b``, (B,)."""
        left, restore = to_points(a, "a", self.dim)
        right, _ = to_points(b, "b", self.dim)
        if len(left) != len(right):
            raise InvalidArgumentError(f"`b` must have as many rows as `a` ({len(left)}); got {describe(b)}.")
        return restore(self._distance(left.double(), right.double()).to(left.dtype))

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError


class ClosedFormMetric(_Measured):
    """A metric ``tensor(z)`` with a closed-form distance; subclasses write :meth:`_tensor` and :meth:`_distance`."""

    def tensor(self, z: ArrayLike) -> Any:
        if isinstance(z, Tensor) and z.requires_grad:
            return self._tensor(z)
        points, restore = to_points(z, "z", self.dim)
        return restore(self._tensor(points))

    def _tensor(self, z: Tensor) -> Tensor:
        raise NotImplementedError


class EmbeddedMetric(StructuredMetric, _Measured):
    """The pullback of an embedding that is isometric to a space with a closed-form distance."""

    def __init__(self, embedding: Embedding):
        super().__init__(MetricParts(embedding=embedding), embedding.latent_dim)
        self.embedding = embedding


class Embedding:
    """A smooth map given by :meth:`value` and :meth:`derivative` in closed form (:class:`SmoothMap`)."""

    latent_dim: int
    output_dim: int

    def value(self, z: Tensor) -> Tensor:
        """``F(z)``, (B, d) -> (B, D)."""
        raise NotImplementedError

    def derivative(self, z: Tensor) -> Tensor:
        """``J(z)``, (B, D, d)."""
        raise NotImplementedError

    def __call__(self, z: Tensor) -> Tensor:
        return self.value(z)

    def jvp(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(z), (self.derivative(z) @ v[..., None])[..., 0]

    def vjp(self, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(z), (self.derivative(z).mT @ u[..., None])[..., 0]

    def value_and_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(z), self.derivative(z)


class Plane(ClosedFormMetric):
    """``R^d`` with a constant metric; geodesics are straight lines.

    Args:
        matrix: symmetric positive definite (d, d); the identity of ``dim`` rows if it is not given.
        dim: d, where no matrix is given.
    """

    def __init__(self, matrix: ArrayLike | None = None, *, dim: int = 2):
        constant = _constant(np.eye(_dimension(dim)) if matrix is None else matrix, "(d, d)")
        if constant.shape[0] != constant.shape[1]:
            raise InvalidArgumentError(f"`matrix` must be square; got {describe(matrix)}.")
        if not torch.allclose(constant, constant.mT) or bool((torch.linalg.eigvalsh(constant) <= 0).any()):
            raise InvalidArgumentError("`matrix` must be symmetric positive definite; its eigenvalues are not all > 0.")
        self.matrix = constant
        self.dim = len(constant)

    def _tensor(self, z: Tensor) -> Tensor:
        return self.matrix.to(z).expand(len(z), -1, -1)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        step = b - a
        return ((step @ self.matrix.to(a)) * step).sum(-1).sqrt()


class Sphere(ClosedFormMetric):
    """The sphere of dimension d and radius r in stereographic coordinates, ``M = 4 r² I / (1 + ‖z‖²)²``.

    The pole that is projected from is missing; a pair whose great circle passes near it leaves the chart.
    """

    def __init__(self, dim: int = 2, radius: float = 1.0):
        self.dim = _dimension(dim)
        self.radius = _positive(radius, "radius", "the radius of the sphere")

    def _tensor(self, z: Tensor) -> Tensor:
        factor = 4 * self.radius**2 / (1 + z.square().sum(-1)) ** 2
        return factor[:, None, None] * torch.eye(self.dim, dtype=z.dtype, device=z.device)

    def to_ambient(self, z: Tensor) -> Tensor:
        """Points on the sphere in ``R^(d+1)``, (B, d) -> (B, d+1)."""
        square = z.square().sum(-1, keepdim=True)
        return self.radius * torch.cat([2 * z, square - 1], dim=-1) / (1 + square)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        # half the chord's angle by atan2: arccos would lose half the digits of near pairs
        p, q = self.to_ambient(a), self.to_ambient(b)
        return 2 * self.radius * torch.atan2((p - q).norm(dim=-1), (p + q).norm(dim=-1))


class HalfPlane(ClosedFormMetric):
    """The hyperbolic half-space, ``M = I / z_d²`` for ``z_d > 0``; NaN below, where there is no metric."""

    def __init__(self, dim: int = 2):
        self.dim = _dimension(dim)

    def _tensor(self, z: Tensor) -> Tensor:
        return self._height(z).pow(-2)[:, None, None] * torch.eye(self.dim, dtype=z.dtype, device=z.device)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return 2 * torch.asinh((a - b).norm(dim=-1) / (2 * (self._height(a) * self._height(b)).sqrt()))

    @staticmethod
    def _height(z: Tensor) -> Tensor:
        return torch.where(z[:, -1] > 0, z[:, -1], float("nan"))


class _LinearMap(Embedding):
    def __init__(self, matrix: Tensor):
        self.matrix = matrix
        self.output_dim, self.latent_dim = matrix.shape

    def value(self, z: Tensor) -> Tensor:
        return z @ self.matrix.to(z).mT

    def derivative(self, z: Tensor) -> Tensor:
        return self.matrix.to(z).expand(len(z), -1, -1)


class LinearDecoder(EmbeddedMetric):
    """The pullback of ``f(z) = A z``: constant, singular where ``A`` (D, d) loses rank."""

    def __init__(self, matrix: ArrayLike):
        constant = _constant(matrix, "(D, d)")
        super().__init__(_LinearMap(constant))
        self.matrix = constant

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return ((b - a) @ self.matrix.to(a).mT).norm(dim=-1)


class _Roll(Embedding):
    latent_dim, output_dim = 2, 3

    def value(self, z: Tensor) -> Tensor:
        angle, height = z.unbind(-1)
        return torch.stack([angle * angle.cos(), height, angle * angle.sin()], dim=-1)

    def derivative(self, z: Tensor) -> Tensor:
        angle = z[:, 0]
        one, zero = torch.ones_like(angle), torch.zeros_like(angle)
        by_angle = torch.stack([angle.cos() - angle * angle.sin(), zero, angle.sin() + angle * angle.cos()], dim=-1)
        return torch.stack([by_angle, torch.stack([zero, one, zero], dim=-1)], dim=-1)


class SwissRoll(EmbeddedMetric):
    """The roll ``(t, h) -> (t cos t, h, t sin t)``; flat, so a distance is Pythagoras on the spiral's arc length."""

    def __init__(self) -> None:
        super().__init__(_Roll())

    @staticmethod
    def arc(t: Tensor) -> Tensor:
        """Arc length of the Archimedean spiral from its centre, ``½ (t sqrt(1 + t²) + asinh t)``."""
        return 0.5 * (t * (1 + t.square()).sqrt() + torch.asinh(t))

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.hypot(self.arc(b[:, 0]) - self.arc(a[:, 0]), b[:, 1] - a[:, 1])


class _Ring(Embedding):
    latent_dim, output_dim = 2, 3

    def __init__(self, radius: float, tube: float):
        self.radius, self.tube = radius, tube

    def value(self, z: Tensor) -> Tensor:
        u, v = z.unbind(-1)
        out = self.radius + self.tube * v.cos()
        return torch.stack([out * u.cos(), out * u.sin(), self.tube * v.sin()], dim=-1)

    def derivative(self, z: Tensor) -> Tensor:
        u, v = z.unbind(-1)
        out = self.radius + self.tube * v.cos()
        by_u = torch.stack([-out * u.sin(), out * u.cos(), torch.zeros_like(u)], dim=-1)
        by_v = self.tube * torch.stack([-v.sin() * u.cos(), -v.sin() * u.sin(), v.cos()], dim=-1)
        return torch.stack([by_u, by_v], dim=-1)


class Torus(StructuredMetric):
    """The torus of revolution in angles ``(u, v)`` on the plane that covers it: ``u`` around, ``v`` through the hole.

    Its geodesics have no elementary closed form, so it has no ``distance``; the tests hold the solver to
    an initial-value problem integrated by SciPy, along which Clairaut's constant is conserved.
    """

    def __init__(self, radius: float = 2.0, tube: float = 1.0):
        radius = _positive(radius, "radius", "the radius of the ring")
        tube = _positive(tube, "tube", "the radius of the tube")
        if not radius > tube:
            raise InvalidArgumentError(f"`radius` must exceed `tube` > 0; got radius {radius} and tube {tube}.")
        self.embedding = _Ring(radius, tube)
        super().__init__(MetricParts(embedding=self.embedding), self.embedding.latent_dim)

    def clairaut(self, z: Tensor, v: Tensor) -> Tensor:
        """Clairaut's constant ``(R + r cos z_2)² v_1``, conserved along geodesics; (B, 2), (B, 2) -> (B,)."""
        return (self.embedding.radius + self.embedding.tube * z[:, 1].cos()).square() * v[:, 0]


def _dimension(value: Any) -> int:
    return check_count(value, "dim", 1, "the dimension of the space")


def _positive(value: Any, name: str, what: str) -> float:
    return check_range(value, name, 0.0, float("inf"), what)


def _constant(matrix: ArrayLike, shape: str) -> Tensor:
    """A copy float64 of a finite matrix, neither side of which is empty."""
    constant = to_tensor(matrix, "matrix")[0].double().clone()
    if constant.ndim != 2 or not constant.numel():
        raise InvalidArgumentError(f"`matrix` must have shape {shape}, neither of them zero; got {describe(matrix)}.")
    if not bool(torch.isfinite(constant).all()):
        raise InvalidArgumentError(f"`matrix` must be finite; got {describe(matrix)} with NaN or infinity in it.")
    return constant
