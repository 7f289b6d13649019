"""What any geodesic distance must satisfy, whatever the metric: properties drawn by Hypothesis."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import posthoc_metric as pm
from posthoc_metric.geodesic import geodesic
from posthoc_metric.metric import FunctionMetric, Metric, MetricParts, PullbackMetric, StructuredMetric
from posthoc_metric.spaces import HalfPlane, Plane, Sphere, SwissRoll, Torus

quickly = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    # shrinking costs hundreds of solves; the examples are small as they are
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def _module() -> nn.Sequential:
    """A float64 tanh decoder, R² -> R¹², without torch's own random state."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for one, other in ((2, 16), (16, 12)):
        linear = nn.Linear(one, other, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(1.5 / one**0.5 * torch.randn(other, one, generator=generator, dtype=torch.float64))
            linear.bias.copy_(0.5 * torch.randn(other, generator=generator, dtype=torch.float64))
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


@functools.cache
def _latents() -> Tensor:
    return 0.7 * torch.randn(150, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@functools.cache
def space(name: str) -> Metric:
    return {
        "plane": lambda: Plane([[2.0, 0.5], [0.5, 1.0]]),
        "sphere": Sphere,
        "half-plane": HalfPlane,
        "Swiss roll": SwissRoll,
        "torus": Torus,
        "decoder": lambda: PullbackMetric(pm.Decoder(_module(), latent_dim=2)),
        "repaired": lambda: pm.repair(pm.Decoder(_module(), latent_dim=2), _latents()),
    }[name]()


#: names, and where in each space the points are drawn
SPACES = ("plane", "sphere", "half-plane", "Swiss roll", "torus", "decoder", "repaired")
CLOSED = SPACES[:4]
# a lattice: coincident points and coordinates come often, differences that a shift would round away do not
coordinate = st.integers(-64, 64).map(lambda number: number / 64)


def rows(count: int, corners: int = 3) -> st.SearchStrategy[list[Tensor]]:
    """``corners`` tensors (count, 2) with entries in [-1, 1]."""
    entry = st.lists(coordinate, min_size=2 * count * corners, max_size=2 * count * corners)
    return entry.map(lambda values: list(torch.tensor(values, dtype=torch.float64).view(corners, count, 2)))


def place(name: str, z: Tensor) -> Tensor:
    """[-1, 1]² to where ``name`` is worth asking."""
    if name == "half-plane":
        return torch.stack([z[:, 0], z[:, 1].exp()], dim=1)
    return {"Swiss roll": 6 + z, "torus": 0.8 * z, "sphere": 0.7 * z}.get(name, z)


def fine_lengths(metric: Metric, points: Tensor) -> Tensor:
    """Lengths (B,) of polygons (B, m, d) by the midpoint rule."""
    step, middle = points.diff(dim=1), (points[:, 1:] + points[:, :-1]) / 2
    return metric.norm(middle.reshape(-1, 2), step.reshape(-1, 2)).view(len(points), -1).sum(1)


def agree(one, other) -> Tensor:
    """Whether two solutions' lengths agree within what both claim; rounding aside."""
    slack = one.length_error + other.length_error + 1e-9 * (one.length + 1e-3)
    return (one.length - other.length).abs() <= 2 * slack


@pytest.mark.parametrize("name", SPACES)
@quickly
@given(corners=rows(3, 2))
def test_symmetry_and_reversal(name, corners):
    metric, (a, b) = space(name), (place(name, z) for z in corners)
    there, back = geodesic(metric, a, b), geodesic(metric, b, a)
    assert there.converged.all() and back.converged.all()
    assert agree(there, back).all()
    times = torch.linspace(0, 1, 9)
    away = (there(times) - back(times).flip(1)).norm(dim=2).amax(1)
    # energies that agree to tol² leave curves that agree to tol, where nothing is flat
    assert (away <= 0.05 * (b - a).norm(dim=1) + 1e-9).all()


@pytest.mark.parametrize("name", SPACES)
@quickly
@given(corners=rows(2, 3))
def test_triangle_inequality(name, corners):
    metric, (a, b, c) = space(name), (place(name, z) for z in corners)
    solution = geodesic(metric, torch.cat([a, b, a]), torch.cat([b, c, c]))
    assert solution.converged.all()
    one, two, whole = solution.length.view(3, -1)
    slack = solution.length_error.view(3, -1).sum(0) + 1e-9 * whole
    assert (whole <= one + two + slack).all()


@pytest.mark.parametrize("name", SPACES)
@quickly
@given(corners=rows(3, 2))
def test_no_longer_than_the_straight_line_and_no_shorter_than_can_be(name, corners):
    metric, (a, b) = space(name), (place(name, z) for z in corners)
    solution = geodesic(metric, a, b)
    line = a[:, None] + torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None] * (b - a)[:, None]
    assert (solution.length <= fine_lengths(metric, line) * (1 + 1e-5) + solution.length_error).all()
    # the returned curve is as long as it is said to be, by chords that the solver never saw
    curve = solution(torch.linspace(0, 1, 1001, dtype=torch.float64))
    measured = fine_lengths(metric, curve)
    assert ((measured - solution.length).abs() <= solution.length_error + 1e-5 * measured + 1e-12).all()
    if name in CLOSED:
        exact = metric.distance(a, b)
        assert (measured >= exact * (1 - 1e-5)).all()
        assert ((solution.length - exact).abs() <= 3 * solution.length_error + 1e-6 * exact).all()


@pytest.mark.parametrize("name", SPACES)
@quickly
@given(corners=rows(3, 1))
def test_a_point_is_at_no_distance_from_itself(name, corners):
    a = place(name, corners[0])
    solution = geodesic(space(name), a, a)
    assert solution.converged.all() and (solution.length == 0).all() and (solution.length_error == 0).all()
    assert torch.equal(solution.points, a[:, None].expand_as(solution.points))


class _Scaled(StructuredMetric):
    """``c² M``, part by part, so that the solver takes the same route."""

    def __init__(self, metric: Metric, factor: float):
        parts = metric.parts()
        embedding = None if parts.embedding is None else _ScaledMap(parts.embedding, factor)
        weight = None if parts.weight is None else _ScaledWeight(parts.weight, factor**2)
        scaled = None if parts.field is None else (lambda z: factor**2 * parts.field(z))
        super().__init__(MetricParts(embedding, weight, scaled), metric.dim)
        self.support = metric.support


class _ScaledMap:
    def __init__(self, inner, factor):
        self.inner, self.factor = inner, factor
        self.latent_dim, self.output_dim = inner.latent_dim, inner.output_dim

    def __call__(self, z):
        return self.factor * self.inner(z)

    def jvp(self, z, v):
        return tuple(self.factor * part for part in self.inner.jvp(z, v))

    def vjp(self, z, u):
        value, pulled = self.inner.vjp(z, u)
        return self.factor * value, self.factor * pulled

    def value_and_jacobian(self, z):
        return tuple(self.factor * part for part in self.inner.value_and_jacobian(z))


class _ScaledWeight:
    def __init__(self, inner, factor):
        self.inner, self.factor = inner, factor

    def __call__(self, z):
        return self.factor * self.inner(z)

    def value_and_gradient(self, z):
        return tuple(self.factor * part for part in self.inner.value_and_gradient(z))


@pytest.mark.parametrize("name", SPACES)
@quickly
@given(corners=rows(2, 2), power=st.integers(-20, 20))
def test_lengths_scale_with_the_metric(name, corners, power):
    metric, (a, b) = space(name), (place(name, z) for z in corners)
    factor = 2.0**power
    one, other = geodesic(metric, a, b), geodesic(_Scaled(metric, factor), a, b)
    assert other.converged.all()
    slack = one.length_error + other.length_error / factor + 1e-9 * one.length
    assert ((other.length / factor - one.length).abs() <= slack).all()


@pytest.mark.parametrize("name", SPACES)
@quickly
@given(
    corners=rows(2, 2),
    angle=st.floats(0.0, 6.28),
    stretch=st.floats(0.5, 2.0),
    size=st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]),
    shift=st.floats(-3.0, 3.0),
)
def test_linear_coordinates_do_not_matter(name, corners, angle, stretch, size, shift):
    # coincident points have a test of their own
    assume(bool((corners[0] != corners[1]).any(1).all()))
    metric, (a, b) = space(name), (place(name, z) for z in corners)
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=torch.float64)
    matrix = size * torch.diag(torch.tensor([stretch, 1 / stretch], dtype=torch.float64)) @ turn
    inverse = torch.linalg.inv(matrix)

    def to(z: Tensor) -> Tensor:
        return (z + shift) @ matrix.T

    def fn(y: Tensor) -> Tensor:
        return inverse.T @ metric.parts().tensor(y @ inverse.T - shift) @ inverse

    moved: Metric = FunctionMetric(fn, 2)
    parts = metric.parts()
    if parts.embedding is not None and parts.weight is None:
        moved = StructuredMetric(MetricParts(embedding=_Composed(parts.embedding, inverse, shift)), 2)
    one, other = geodesic(metric, a, b), geodesic(moved, to(a), to(b), starts="straight")
    # what converged in both coordinates has one length; a repaired metric is asked by its tensor only
    slack = one.length_error + other.length_error + 1e-6 * one.length
    both = one.converged & other.converged
    assert ((other.length - one.length) <= 2 * slack)[both].all()
    if name != "repaired":
        assert both.all()
        assert ((other.length - one.length).abs() <= 2 * slack).all()


class _Composed:
    """``F(A⁻¹ y - s)``."""

    def __init__(self, inner, inverse, shift):
        self.inner, self.inverse, self.shift = inner, inverse, shift
        self.latent_dim, self.output_dim = inner.latent_dim, inner.output_dim

    def _back(self, y):
        return y @ self.inverse.T - self.shift

    def __call__(self, y):
        return self.inner(self._back(y))

    def jvp(self, y, v):
        return self.inner.jvp(self._back(y), v @ self.inverse.T)

    def vjp(self, y, u):
        value, pulled = self.inner.vjp(self._back(y), u)
        return value, pulled @ self.inverse

    def value_and_jacobian(self, y):
        value, jacobian = self.inner.value_and_jacobian(self._back(y))
        return value, jacobian @ self.inverse


@pytest.mark.parametrize("name", CLOSED)
@quickly
@given(corners=rows(3, 2), bend=st.floats(-0.4, 0.4))
def test_smooth_coordinates_do_not_matter(name, corners, bend):
    """A shear that bends: ``y = (u, v + bend sin(2u))``, whose inverse and Jacobian are known."""
    metric, (a, b) = space(name), (place(name, z) for z in corners)

    def there(z: Tensor) -> Tensor:
        return torch.stack([z[:, 0], z[:, 1] + bend * (2 * z[:, 0]).sin()], dim=1)

    def fn(y: Tensor) -> Tensor:
        z = torch.stack([y[:, 0], y[:, 1] - bend * (2 * y[:, 0]).sin()], dim=1)
        slope = -2 * bend * (2 * y[:, 0]).cos()
        one, zero = torch.ones_like(slope), torch.zeros_like(slope)
        jacobian = torch.stack([torch.stack([one, zero], 1), torch.stack([slope, one], 1)], 1)
        return jacobian.mT @ metric.parts().tensor(z) @ jacobian

    solution = geodesic(FunctionMetric(fn, 2), there(a), there(b), starts="straight")
    exact = metric.distance(a, b)
    assert solution.converged.all()
    assert ((solution.length - exact).abs() <= 3 * solution.length_error + 1e-6 * exact).all()


@pytest.mark.parametrize("name", ("plane", "sphere", "half-plane", "Swiss roll", "decoder"))
@settings(quickly, max_examples=4)
@given(corners=rows(2, 2))
def test_exponential_and_logarithm_are_inverse(name, corners):
    metric, (a, b) = space(name), (place(name, z) for z in corners)
    b = a + 0.5 * (b - a)
    found = metric.log(a, b)
    torch.testing.assert_close(metric.exp(a, found), b, rtol=0, atol=1e-5)
    if name in CLOSED:
        exact = metric.distance(a, b)
        assert ((metric.norm(a, found) - exact).abs() <= 1e-5 * exact + 1e-12).all()
