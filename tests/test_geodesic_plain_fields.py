"""Metrics that are known as matrices alone, and vary by orders of magnitude, fail, or lie far from the origin."""

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.optimize import brentq

from posthoc_metric import Decoder, FunctionMetric, PullbackMetric, repair
from posthoc_metric.geodesic import Status, geodesic, shoot
from posthoc_metric.spaces import HalfPlane


def pairs(count=30):
    return 1.7 * torch.randn(2, count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def cubed(z):
    return torch.stack([z[..., 0] ** 3 + 0.01 * z[..., 0], z[..., 1]], -1)


def of_cubed(z):
    return torch.diag_embed(torch.stack([(3 * z[:, 0].square() + 0.01).square(), torch.ones_like(z[:, 1])], 1))


def power(z, k):
    """The pullback of ``w = z^(k+1) / (k+1)`` of a complex number, flat but for its cone point at the origin."""
    return torch.eye(2, dtype=z.dtype) * z.square().sum(1)[:, None, None] ** k


def over_a_cone(a, b, k):
    first, second = torch.view_as_complex(a), torch.view_as_complex(b)
    turn = (k + 1) * torch.angle(first / second).abs()
    one, other = (w.abs() ** (k + 1) / (k + 1) for w in (first, second))
    chord = (one**2 + other**2 - 2 * one * other * torch.cos(turn)).clamp_min(0).sqrt()
    return torch.where(turn >= torch.pi, one + other, chord)


@pytest.mark.parametrize("metric", ["cubed", "cone of 4π", "cone of 6π", "cone of 8π"])
def test_curves_do_not_leap_over_what_few_points_miss(metric):
    """Their energy between few points of quadrature can be far below any curve's."""
    a, b = pairs()
    if metric == "cubed":
        solution, exact = geodesic(of_cubed, a, b), (cubed(a) - cubed(b)).norm(dim=1)
    else:
        k = ["cone of 4π", "cone of 6π", "cone of 8π"].index(metric) + 1
        solution, exact = geodesic(lambda z: power(z, k), a, b), over_a_cone(a, b, k)
    excess = solution.length / exact - 1
    assert int(solution.converged.sum()) >= 29
    assert float(excess[solution.converged].abs().max()) < 3e-3


def test_what_still_slopes_is_not_called_converged():
    """The residual that steps were judged by may come of a model that is too stiff."""
    a, b = pairs()
    solution = geodesic(lambda z: power(z, 2), a, b, spans=128, max_spans=128, max_steps=12)
    wrong = (solution.length - over_a_cone(a, b, 2)).abs() > 3 * solution.length_error
    assert not bool((wrong & solution.converged).any())


def test_what_is_not_resolved_has_an_error():
    """Of a ridge that is a hundredth of the way wide few nodes see nothing, and all measures of them agree."""

    def ridge(z):
        slope = 5e4 * z[:, 0] * torch.exp(-z[:, 0].square() / 2e-4)
        return torch.diag_embed(torch.stack([1 + slope.square(), torch.ones_like(slope)], 1))

    a = torch.tensor([[0.7474373220461772, 1.1482157647332807]], dtype=torch.float64)
    b = torch.tensor([[-4.208069744643778, 2.111366830575258]], dtype=torch.float64)
    solution = geodesic(ridge, a, b)
    assert solution.status == (Status.UNRESOLVED,)
    assert float(solution.length_error) >= 3e-4 * float(solution.length)


def refracted(profile, start, end):
    """Length of the ray that crosses the ground of index ``sqrt(profile(x))`` from (x0, y0) to (x1, y1), by Snell."""
    (x0, y0), (x1, y1) = start, end
    # the trapezoidal rule is nearly exact for a bell that is cut into so many pieces
    x = np.linspace(x0, x1, 400_001)
    index = np.sqrt(profile(x))

    def miss(p):
        return trapezoid(p / np.sqrt(index**2 - p**2), x) - abs(y1 - y0)

    p = brentq(miss, 0.0, 1 - 1e-12)
    return trapezoid(index**2 / np.sqrt(index**2 - p**2), x)


@pytest.mark.parametrize("height", [1e2, 1e4])
def test_walls_that_stand_between_the_points_of_a_quadrature(height):
    """On flat ground, a 600th of the way wide: 16 spans agree with every other rule that misses it, too."""
    exp = {torch.Tensor: torch.exp, np.ndarray: np.exp}

    def profile(x):
        return 1 + height * exp[type(x)](-(((x - 0.548) / 0.004) ** 2))

    def walled(z):
        return profile(z[:, 0])[:, None, None] * torch.eye(2, dtype=z.dtype)

    generator = torch.Generator().manual_seed(0)
    out, beside = (torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2))
    up = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    a, b = torch.stack([-2 - 0.3 * out, up[0]], 1), torch.stack([2 + 0.3 * beside, up[1]], 1)
    solution = geodesic(walled, a, b)
    exact = [refracted(profile, *pair) for pair in zip(a.numpy(), b.numpy(), strict=True)]
    off = (solution.length - torch.tensor(exact)).abs()
    assert bool((off <= 2 * solution.length_error.clamp_min(1.5e-4 * solution.length)).all())
    assert int(solution.converged.sum()) >= 4


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("far", [0.0, 1e5, 3e7, 1e8])
def test_far_from_the_origin_lengths_are_as_near_it(kind, far):
    corner = torch.tensor([far, 0.0], dtype=torch.float64)

    def half_plane(z):
        if kind == "torch":
            return torch.eye(2, dtype=z.dtype) / (z - corner)[:, 1, None, None].square()
        with np.errstate(all="ignore"):  # on the edge
            return np.eye(2) / (z.detach().numpy() - corner.numpy())[:, 1, None, None] ** 2

    a, b = torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]], dtype=torch.float64)
    solution = geodesic(half_plane, corner + a, corner + b)
    assert solution.status == (Status.CONVERGED,)
    assert float(solution.length) == pytest.approx(float(HalfPlane().distance(a, b)), rel=3e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_coordinates_of_any_size(scale):
    a, b = scale * torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]], dtype=torch.float64)
    solution = geodesic(lambda z: torch.eye(2, dtype=z.dtype) / z[:, 1, None, None].square(), a, b)
    assert float(solution.length) == pytest.approx(float(HalfPlane().distance(a / scale, b / scale)), rel=1e-5)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_linear_algebra_that_fails_at_a_point_is_no_number_there(kind):
    """As an inverse does at the edge of its domain, where starts are looked for too."""

    def inverse(z):
        matrices = torch.diag_embed(z)
        return torch.linalg.inv(matrices) if kind == "torch" else np.linalg.inv(matrices.detach().numpy())

    a, b = torch.tensor([[[0.5, 0.5], [0.0, 0.5]], [[2.0, 2.0], [1.0, 0.5]]], dtype=torch.float64)
    solution = geodesic(inverse, a, b)
    assert solution.converged.tolist() == [True, False]
    assert float(solution.length[0]) == pytest.approx(2.0, rel=1e-5) and bool(solution.length[1].isnan())


@pytest.mark.parametrize("way", [-16.0, 16.0])
def test_a_shot_through_many_orders_of_magnitude_keeps_its_precision(way):
    """Straight up the half-plane heights are exponentials of the length run."""
    shot = shoot(HalfPlane(), [[0.0, 1.0]], [[0.0, way]], max_steps=400)
    assert shot.status == (Status.CONVERGED,)
    assert float(shot.points[0, 1]) == pytest.approx(np.exp(way), rel=1e-6)


@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.CalibrationWarning")
@pytest.mark.parametrize("far", [0.0, 1e5])
@pytest.mark.parametrize("repaired", [False, True])
def test_gradients_where_axes_are_of_unequal_scale_or_far_from_the_origin(repaired, far):
    scale, corner = torch.tensor([1e5, 1.0]).double() if far == 0 else torch.ones(2).double(), torch.tensor([far, 0.0])

    def decode(z):
        u = (z - corner.to(z)) / scale.to(z)
        columns = [u[:, 0].sin(), u[:, 1].cos(), (u[:, 0] + 2 * u[:, 1]).sin(), u[:, 0] * u[:, 1]]
        return torch.stack(columns, 1)

    spread = torch.randn(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scale + corner
    decoder = Decoder(decode, latent_dim=2, probe=spread[:8])
    metric = repair(decoder, spread) if repaired else PullbackMetric(decoder)
    z = (torch.tensor([[0.3, 0.4], [1.5, -1.0]]).double() * scale + corner).requires_grad_()
    (found,) = torch.autograd.grad(metric.log_volume(z).sum(), z)
    z = z.detach()
    steps = 1e-4 * torch.diag(scale)
    known = torch.stack([(metric.log_volume(z + h) - metric.log_volume(z - h)) / (2 * h.sum()) for h in steps], 1)
    assert float(((found - known) * scale).norm() / (known * scale).norm()) < 1e-4


@pytest.mark.parametrize("far", [0.0, 1e5])
def test_gradients_of_a_function_in_numpy_far_from_the_origin(far):
    metric = FunctionMetric(lambda z: np.eye(2) * np.exp(2 * np.sin(np.asarray(z)[:, 1, None, None] - far)), 2)
    z = torch.tensor([[0.0, far + 0.5], [1.0, far + 1.2]], dtype=torch.float64, requires_grad=True)
    metric.log_volume(z).sum().backward()
    assert z.grad[:, 1].tolist() == pytest.approx([2 * np.cos(0.5), 2 * np.cos(1.2)], rel=1e-4)


def test_lengths_along_a_bent_valley_err_by_no_more_than_they_say():
    """The plane sheared along a sine, sixty times as stiff across: flat, its distances are those of the image."""

    def sheared(z: torch.Tensor) -> torch.Tensor:
        jacobian = torch.zeros(len(z), 2, 2, dtype=z.dtype)
        jacobian[:, 0, 0], jacobian[:, 1, 0], jacobian[:, 1, 1] = 1.0, -60 * z[:, 0].cos(), 60.0
        return jacobian.mT @ jacobian

    generator = torch.Generator().manual_seed(3)
    start, end = (4 * torch.rand(40, 2, generator=generator, dtype=torch.float64) - 2 for _ in range(2))
    image = [torch.stack([z[:, 0], 60 * (z[:, 1] - z[:, 0].sin())], dim=1) for z in (start, end)]
    exact = (image[1] - image[0]).norm(dim=1)
    solution = geodesic(FunctionMetric(sheared, 2), start, end)
    assert solution.converged.all()
    assert ((solution.length - exact).abs() <= 1.5 * solution.length_error + 1e-9 * exact).all()
