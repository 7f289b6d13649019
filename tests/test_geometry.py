"""Geometry against closed forms on the sphere, the hyperbolic plane and the torus, and against geomstats."""

import math

import numpy as np
import pytest
import torch
from family import vae
from scipy.integrate import trapezoid
from scipy.stats import kstest
from test_spaces import points, upper

import posthoc_metric as pm
from posthoc_metric.errors import ConvergenceWarning, InvalidArgumentError, NumericalError
from posthoc_metric.geodesic import exp, frechet_mean, log
from posthoc_metric.geometry import curvature, principal_geodesics, random_walk, sample_volume, transport, volume
from posthoc_metric.metric import FunctionMetric
from posthoc_metric.spaces import HalfPlane, LinearDecoder, Plane, Sphere, SwissRoll, Torus


@pytest.mark.parametrize(
    "space, z, value",
    [
        (Sphere(), points(8, 2), 1.0),
        (Sphere(radius=2.0), points(8, 2), 0.25),
        (HalfPlane(), upper(8), -1.0),
        (Plane([[2.0, 0.5], [0.5, 1.0]]), points(8, 2), 0.0),
        (SwissRoll(), 6 + points(8, 2), 0.0),
        (LinearDecoder(points(7, 2, 1)), points(8, 2), 0.0),
    ],
)
def test_gaussian_curvature_of_constant_curvature(space, z, value):
    torch.testing.assert_close(curvature(space, z), torch.full((8,), value, dtype=torch.float64), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("space, z, value", [(Sphere(5), points(8, 5), 1.0), (HalfPlane(4), upper(8, 4), -1.0)])
def test_sectional_curvature_of_any_plane_and_any_size_of_vectors(space, z, value):
    u, v = 100 * points(8, space.dim, 3), points(8, space.dim, 4)
    found = curvature(space, z, u, v)
    torch.testing.assert_close(found, torch.full((8,), value, dtype=torch.float64), rtol=1e-4, atol=1e-5)


def test_gaussian_curvature_that_varies():
    z = points(8, 2, scale=2.0)
    exact = z[:, 1].cos() / (2 + z[:, 1].cos())
    torch.testing.assert_close(curvature(Torus(), z), exact, rtol=1e-5, atol=1e-6)


def test_curvature_by_steps_that_are_given():
    z = points(8, 2, scale=2.0)
    exact = z[:, 1].cos() / (2 + z[:, 1].cos())
    errors = [float((curvature(Torus(), z, step=step) - exact).abs().max()) for step in (0.3, 3e-2, 3e-3)]
    assert errors[0] > 1e-4 > errors[1] > 1e-9 > errors[2]  # they are the steps that are taken


def test_curvature_through_a_single_precision_decoder():
    class Ball(torch.nn.Module):
        def forward(self, z):
            square = z.square().sum(1, keepdim=True)
            return torch.cat([2 * z, square - 1], 1) / (1 + square)

    metric = pm.PullbackMetric(pm.Decoder(Ball(), latent_dim=2))
    torch.testing.assert_close(curvature(metric, points(8, 2)), torch.ones(8).double(), rtol=0, atol=1e-2)


def test_curvature_of_a_bad_item_spares_the_others():
    z = upper(4)
    z[1, 1] = -1.0
    found = curvature(HalfPlane(), z)
    assert torch.isnan(found[1])
    torch.testing.assert_close(found[[0, 2, 3]], -torch.ones(3).double(), rtol=1e-5, atol=0)
    parallel = curvature(Sphere(3), points(2, 3), points(2, 3, 1), 2 * points(2, 3, 1))
    assert torch.isnan(parallel).all()


def test_curvature_where_a_direction_is_lost_to_rounding_is_nan():
    def folded(z):
        height = torch.sin(z[:, :1]) + z[:, 1:] ** 2
        return torch.cat([height, height.square()], dim=1)

    def few(z):
        return torch.sin(z @ torch.tensor([[1.0, 2.0, 0.5], [0.3, -1.0, 1.0]]).T.to(z))

    z = points(12, 2)
    assert torch.isnan(curvature(pm.PullbackMetric(pm.Decoder(folded, latent_dim=2)), z)).all()
    lost = pm.PullbackMetric(pm.Decoder(few, latent_dim=3))
    assert torch.isnan(curvature(lost, points(5, 3), points(5, 3, 1), points(5, 3, 2))).all()


def carry_on_the_sphere(space, a, b, v):
    """Parallel transport on the round sphere in the space around it, pulled back by the chart's derivative."""
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: space.to_ambient(x[None])[0]))
    p, q, w = space.to_ambient(a), space.to_ambient(b), (jacobian(a) @ v[..., None])[..., 0]
    carried = w - ((w * q).sum(1) / (1 + (p * q).sum(1)))[:, None] * (p + q)
    return torch.linalg.lstsq(jacobian(b), carried[..., None]).solution[..., 0]


@pytest.mark.parametrize("dim", [2, 4])
def test_transport_on_the_sphere(dim):
    space = Sphere(dim)
    a, b, v = points(6, dim, scale=0.4), points(6, dim, 1, 0.4), points(6, dim, 2)
    found = transport(space, a, b, v, rtol=1e-5)
    assert found.converged.all() and (found.norm_drift < 1e-4).all()
    torch.testing.assert_close(found.vectors, carry_on_the_sphere(space, a, b, v), rtol=5e-3, atol=5e-3)


def test_transport_tells_a_rotation_that_no_norm_shows():
    """Past the missing pole the chart turns a vector fast and leaves its norm alone."""
    space = Sphere()
    a, b = torch.tensor([[-0.9469, -1.1872]]).double(), torch.tensor([[1.0564, 1.4574]]).double()
    v = torch.tensor([[1.0, -0.5]]).double()
    exact = carry_on_the_sphere(space, a, b, v)
    for num in (63, 256):
        found = transport(space, a, b, v, num=num)
        off = space.norm(b, found.vectors - exact) / space.norm(a, v)
        assert found.geodesics.converged.all() and off < 1.5 * found.error + 1e-4
        assert found.converged == (num == 256)
    assert off < 1e-3


def test_transport_keeps_angles_with_the_geodesic_and_with_each_other():
    space, a, b = HalfPlane(), upper(5), upper(5, seed=1)
    u, v = points(5, 2, 2), points(5, 2, 3)
    over = [transport(space, a, b, x, rtol=1e-6).vectors for x in (u, v)]
    torch.testing.assert_close(space.inner(b, *over), space.inner(a, u, v), rtol=1e-3, atol=1e-4)
    along = transport(space, a, b, log(space, a, b), rtol=1e-6)
    torch.testing.assert_close(along.vectors, along.geodesics.velocity(1.0), rtol=2e-3, atol=1e-3)


def test_transport_of_a_pair_is_the_same_in_any_batch():
    torch.manual_seed(0)
    start, end, vectors = points(300, 2), points(300, 2, 1), points(300, 2, 2)
    every = transport(Sphere(), start, end, vectors, num=16).vectors
    alone = transport(Sphere(), start[:2], end[:2], vectors[:2], num=16).vectors
    torch.testing.assert_close(every[:2], alone, rtol=0, atol=1e-15)


def test_transport_of_a_pair_without_a_curve_is_nan_alone():
    def hole(z):
        return torch.where(z.norm(dim=1) < 0.3, float("nan"), 1.0)[:, None, None] * torch.eye(2).to(z)

    a, b = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double(), torch.tensor([[1.0, 1.0], [1.0, 1.0]]).double()
    found = transport(FunctionMetric(hole, 2), a, b, torch.ones(2, 2).double())
    assert torch.isnan(found.vectors[0]).all() and not found.converged[0]
    torch.testing.assert_close(found.vectors[1], torch.ones(2).double())


def test_transport_along_a_curve_at_the_edge_of_the_metric_s_domain_is_nan():
    """Geodesics under sqrt(y) I run into y = 0, below which there is no metric: integration ended in 1e212, finite."""
    metric = FunctionMetric(lambda z: z[:, 1, None, None].sqrt() * torch.eye(2).to(z), 2)
    a, b = torch.tensor([[0.0, 1e-3], [0.0, 1.0]]).double(), torch.tensor([[1.0, 1e-3], [1.0, 1.0]]).double()
    found = transport(metric, a, b, torch.ones(2, 2).double())
    assert found.converged.tolist() == [False, True]
    assert torch.isnan(found.vectors[0]).all() and not found.norm_drift[0] < 1
    assert torch.isfinite(found.vectors[1]).all()


def test_volume_of_a_cap_and_of_a_hyperbolic_rectangle():
    # the chart's disc of radius r is a cap of height 2 r² / (1 + r²)
    cap = volume(Sphere(), [-0.8, -0.8], [0.8, 0.8], inside=lambda z: z.norm(dim=1) <= 0.8)
    exact = 2 * math.pi * 2 * 0.64 / 1.64
    assert abs(cap.value - exact) < max(5 * cap.standard_error, 1e-3 * exact) < 0.02 * exact
    strip = volume(HalfPlane(), [0.0, 1.0], [3.0, 2.0], num=2**10)
    assert abs(strip.value - 1.5) < 5 * strip.standard_error < 0.01 and strip.evaluations == 2**10
    assert volume(Plane(dim=4), np.zeros(4), np.full(4, 2.0), num=64).value == pytest.approx(16.0)


def test_a_volume_in_many_dimensions_need_not_have_a_density_that_is_a_number():
    small = FunctionMetric(lambda z: 1e-8 * torch.eye(100, dtype=z.dtype).expand(len(z), 100, 100), 100)
    found = volume(small, np.zeros(100), np.full(100, 1e4), num=64)
    assert found.value == pytest.approx(1.0, rel=1e-9) and found.standard_error < 1e-9
    with pytest.raises(NumericalError, match="its natural logarithm is -921.034. Measure in another unit"):
        volume(small, np.zeros(100), np.ones(100), num=64)
    drawn = sample_volume(small, 20, np.zeros(100), np.ones(100), steps=2)
    assert drawn.points.shape == (20, 100) and drawn.acceptance > 0.4
    # nothing of it is a volume as well
    assert volume(Sphere(), [0, 0], [1, 1], inside=lambda z: z[:, 0] > 5, num=16).value == 0.0


def test_a_volume_that_was_missed_is_not_known_to_be_none():
    # of the box the unit ball in 20 dimensions is a share of 2e-8
    ball = volume(Plane(dim=20), [-1.0] * 20, [1.0] * 20, inside=lambda z: z.norm(dim=1) < 1, num=2**10)
    assert ball.value == 0 and ball.standard_error == math.inf
    assert volume(LinearDecoder([[1.0, 1.0]]), [0, 0], [1, 1], num=16).standard_error == 0


def test_volume_samples_are_even_on_the_sphere():
    space, low, high = Sphere(), torch.tensor([-2.0, -2.0]), torch.tensor([2.0, 2.0])
    drawn = sample_volume(space, 2000, low, high, inside=lambda z: z.norm(dim=1) <= 2, steps=40)
    # by Archimedes the height of an even point is even, here from the pole at -1 to (r² - 1)/(r² + 1)
    height = space.to_ambient(drawn.points)[:, 2].double()
    top = 3 / 5
    share = ((height + 1) / (top + 1)).sort().values
    even = (torch.arange(2000) + 0.5) / 2000
    assert (share - even).abs().max() < 1.63 / math.sqrt(2000)
    assert 0.1 < drawn.acceptance < 1
    again = sample_volume(space, 2000, low, high, inside=lambda z: z.norm(dim=1) <= 2, steps=40)
    assert torch.equal(drawn.points, again.points) and drawn.points.dtype == torch.float32
    in_numpy = sample_volume(space, 3, low.double().numpy(), high.numpy(), steps=2).points
    assert isinstance(in_numpy, np.ndarray) and in_numpy.dtype == np.float64


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_samples_of_a_volume_that_no_point_of_the_box_finds(seed):
    """In ten dimensions, of a width of a twentieth of the box: chains all began at the same point, and stayed there."""

    def narrow(z):
        return torch.exp(-2 * z.square().sum(1))[:, None, None] * torch.eye(10, dtype=z.dtype)

    drawn = sample_volume(FunctionMetric(narrow, 10), 1000, [-2.0] * 10, [3.0] * 10, seed=seed, steps=100).points
    drawn = np.asarray(drawn)
    width = math.sqrt(0.05)
    assert np.abs(drawn.mean(0)).max() < 5 * width / math.sqrt(1000)
    assert np.abs(drawn.var(0) / width**2 - 1).max() < 5 * math.sqrt(2 / 1000)


@pytest.mark.parametrize("dim, radius", [(3, 20.0), (7, 2.0)])
def test_volume_samples_are_even_where_the_box_is_far_wider_than_the_volume(dim, radius):
    """Steps as wide as the box were refused: of 1,000 points 795 were copies, and radii 13 standard errors off."""
    drawn = sample_volume(
        Sphere(dim), 1000, [-radius] * dim, [radius] * dim, inside=lambda z: z.norm(dim=1) < radius
    ).points
    r = np.linspace(0, radius, 20_001)
    density = r ** (dim - 1) / (1 + r**2) ** dim
    moments = [trapezoid(r**power * density, r) / trapezoid(density, r) for power in (1, 2)]
    deviation = math.sqrt((moments[1] - moments[0] ** 2) / 1000)
    assert abs(np.linalg.norm(drawn, axis=1).mean() - moments[0]) < 4 * deviation
    assert len(np.unique(drawn, axis=0)) > 990


def test_more_points_of_a_volume_than_a_sixteenth_of_what_torch_draws_from():
    drawn = sample_volume(Plane(), 1_050_000, [0.0, 0.0], [1.0, 2.0], steps=1).points
    assert drawn.shape == (1_050_000, 2)
    assert abs(drawn.mean(axis=0) - np.array([0.5, 1.0])).max() < 0.01


@pytest.mark.parametrize(("edge", "seed"), [(1e-2, 0), (1e-3, 1), (1e-4, 2)])
def test_samples_where_nearly_all_the_volume_lies_along_a_face_of_the_box(edge, seed):
    # uniform in x and with density 1 / y², of which a uniform point of the box meets hardly anything
    drawn = sample_volume(HalfPlane(), 2000, [0.0, edge], [1.0, 5.0], seed=seed)
    share = (1 / edge - 1 / drawn.points[:, 1]) / (1 / edge - 1 / 5.0)
    for values in (drawn.points[:, 0], share):
        assert kstest(values, "uniform").pvalue > 0.01
    assert drawn.acceptance > 0.15


def test_metropolis_steps_leave_the_volume_measure_alone_where_the_metric_is_no_scalar():
    def shear(z):
        m = torch.zeros(len(z), 2, 2).to(z)
        m[:, 0, 0], m[:, 1, 1] = (2 * z[:, 0]).exp(), 1 + z[:, 0].square()
        m[:, 0, 1] = m[:, 1, 0] = 0.3 * z[:, 0].exp()
        return m

    drawn = sample_volume(FunctionMetric(shear, 2), 3000, [0.0, 0.0], [1.0, 1.0], steps=60).points
    x = torch.linspace(0, 1, 2001, dtype=torch.float64)
    density = ((2 * x).exp() * (1 + x**2 - 0.09)).sqrt()
    mean = torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
    assert abs(drawn[:, 0].mean() - mean) < 4 * 0.29 / math.sqrt(3000)
    assert abs(drawn[:, 1].mean() - 0.5) < 4 * 0.29 / math.sqrt(3000)


def test_brownian_motion_spreads_as_its_closed_forms_say():
    start = torch.zeros(4000, 2).double()
    flat = random_walk(Plane([[4.0, 0.0], [0.0, 1.0]]), start, steps=4, time=0.5)
    torch.testing.assert_close(flat[:, -1].var(0), torch.tensor([0.125, 0.5]).double(), rtol=0.1, atol=0)
    # on the unit sphere E[cos(distance)] = exp(-t), from the first spherical harmonic
    space = Sphere()
    round_ = random_walk(space, start, steps=20, time=0.3)
    assert round_.shape == (4000, 21, 2)
    cosine = space.distance(start, round_[:, -1]).cos().mean()
    assert abs(float(cosine) - math.exp(-0.3)) < 0.015
    # on the hyperbolic plane E[cosh(distance)] = exp(t)
    start = torch.tensor([[0.0, 1.0]]).double().repeat(4000, 1)
    bent = random_walk(HalfPlane(), start, steps=20, time=0.3)
    assert abs(float(HalfPlane().distance(start, bent[:, -1]).cosh().mean()) - math.exp(0.3)) < 0.04


def test_steps_of_a_walk_are_as_good_as_exact_geodesics():
    # log heights have variance t; exact steps lack a share of (d - 1) t / 6, second-order ones exceed by 7 %
    start = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]]).double().repeat(40_000, 1)
    heights = random_walk(HalfPlane(5), start, steps=1, time=0.016)[:, -1, -1].log()
    assert float(heights.var()) / 0.016 == pytest.approx(1 - 4 * 0.016 / 6, abs=0.02)


def test_a_walk_passes_the_pole_that_a_chart_lacks():
    start = torch.zeros(500, 2).double()
    path = random_walk(Sphere(), start, steps=50, time=2.0)
    assert torch.isfinite(path).all() and (path.norm(dim=2) > 30).any(), "nobody came near the pole"
    assert abs(float(Sphere().distance(start, path[:, -1]).cos().mean()) - math.exp(-2)) < 0.08


def test_a_walk_does_not_jump_over_the_wall_of_a_repair():
    member = vae(2)
    repaired = pm.repair(pm.Decoder(member.decoder, latent_dim=2), member.latents, member.data)
    path = random_walk(repaired, member.latents[:100].double(), steps=30, time=4.0)
    assert torch.isfinite(path).all() and (path[:, -1] != path[:, 0]).any(1).all()
    assert repaired.geometry.offset(path.flatten(0, 1)).max() < 1


def test_a_walk_stays_where_there_is_a_metric():
    path = random_walk(HalfPlane(), torch.tensor([[0.0, 1.0]]).double().repeat(200, 1), steps=10, time=20.0)
    assert torch.isfinite(path).all() and (path[..., 1] > 0).all()


def test_a_walk_stays_inside():
    path = random_walk(Plane(dim=2), torch.zeros(50, 2), steps=30, time=5.0, inside=lambda z: z.norm(dim=1) < 1)
    assert path.dtype == torch.float32 and (path.norm(dim=2) < 1).all()


def test_principal_geodesics_of_a_plane_are_its_principal_components():
    z = points(40, 3) @ torch.diag(torch.tensor([3.0, 1.0, 0.3]).double())
    found = principal_geodesics(Plane(dim=3), z)
    values, axes = torch.linalg.eigh(torch.cov(z.T, correction=0))
    torch.testing.assert_close(found.variances, values.flip(0), rtol=1e-6, atol=0)
    torch.testing.assert_close((found.directions @ axes.flip(1)).diagonal().abs(), torch.ones(3).double())
    torch.testing.assert_close(found.points(found.scores), z, rtol=1e-5, atol=1e-5)
    assert found.mean_converged and found.explained.sum() == pytest.approx(1.0)


def test_points_on_one_geodesic_have_one_principal_geodesic():
    space = HalfPlane()
    z = torch.stack([torch.zeros(9), torch.linspace(-1, 1, 9).exp()], 1).double()
    found = principal_geodesics(space, z, 1)
    torch.testing.assert_close(found.mean, torch.tensor([0.0, 1.0]).double(), rtol=0, atol=2e-3)
    assert found.explained[0] == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(found.variances[0], torch.linspace(-1, 1, 9).double().square().mean(), rtol=1e-3, atol=0)
    torch.testing.assert_close(space.norm(found.mean[None], found.directions), torch.ones(1).double())


def test_geomstats_agrees_on_the_hyperbolic_plane(geomstats):
    from geomstats.geometry.poincare_half_space import PoincareHalfSpace
    from geomstats.learning.frechet_mean import FrechetMean

    space, other = HalfPlane(), PoincareHalfSpace(2)
    a, b, v = upper(6), upper(6, seed=1), points(6, 2, 2)
    np.testing.assert_allclose(exp(space, a, v), other.metric.exp(v.numpy(), a.numpy()), rtol=1e-5)
    np.testing.assert_allclose(log(space, a, b), other.metric.log(b.numpy(), a.numpy()), rtol=1e-3, atol=1e-4)
    estimator = FrechetMean(other).fit(a.numpy())
    np.testing.assert_allclose(frechet_mean(space, a).point, estimator.estimate_, rtol=5e-3, atol=5e-3)


def test_geomstats_agrees_on_the_sphere_s_transport(geomstats):
    from geomstats.geometry.hypersphere import Hypersphere

    space, other = Sphere(), Hypersphere(2)
    a, b, v = points(4, 2, scale=0.4), points(4, 2, 1, 0.4), points(4, 2, 2)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: space.to_ambient(x[None])[0]))
    p, q = space.to_ambient(a).numpy(), space.to_ambient(b).numpy()
    ambient = (jacobian(a) @ v[..., None])[..., 0].numpy()
    expected = other.metric.parallel_transport(ambient, p, end_point=q)
    found = transport(space, a, b, v, rtol=1e-6).vectors
    np.testing.assert_allclose((jacobian(b) @ found[..., None])[..., 0], expected, rtol=1e-3, atol=1e-3)


def relative(found, exact):
    return ((found - exact) / exact).abs().max()


def test_a_row_s_curvature_is_its_own_at_any_scale():
    heights = torch.logspace(-4, 4, 17, dtype=torch.float64)
    z = torch.stack([torch.linspace(-1, 1, 17).double(), heights], 1)
    found = curvature(HalfPlane(), z)
    assert relative(found, -torch.ones(17).double()) < 1e-7
    alone = torch.cat([curvature(HalfPlane(), row[None]) for row in z])
    assert torch.equal(found, alone)
    z = torch.tensor([[0.0, 1.0], [5000.0, 1.0], [0.0, 2.0], [1e5, 1.0], [1.0, 1e5 + 1]], dtype=torch.float64)
    assert relative(curvature(Torus(), z), z[:, 1].cos() / (2 + z[:, 1].cos())) < 1e-6


@pytest.mark.parametrize("units", [[1e-4, 1e-4], [1e4, 1e4], [1e-4, 1.0], [1e3, 1e-3]])
def test_curvature_in_other_units_of_the_coordinates(units):
    unit = torch.tensor(units).double()
    metric = FunctionMetric(lambda z: Sphere().tensor(z / unit) / (unit[:, None] * unit), 2)
    assert relative(curvature(metric, points(20, 2) * unit), torch.ones(20).double()) < 1e-6


@pytest.mark.parametrize("size", [0.3, 1e-3])
def test_curvature_of_ripples_however_flat(size):
    def field(z):
        return (1 + size * z[:, 0].sin())[:, None, None] * torch.eye(2).to(z)

    z = points(20, 2, scale=3.0)
    f = 1 + size * z[:, 0].sin()
    exact = (size * z[:, 0].sin() / f + (size * z[:, 0].cos() / f).square()) / (2 * f)
    torch.testing.assert_close(curvature(FunctionMetric(field, 2), z), exact, rtol=1e-6, atol=1e-8)


def test_curvature_within_a_domain_that_ends_near_by():
    def disc(z):
        inside = 1 - z.square().sum(1)
        return torch.where(inside > 0, 4 / inside.square(), float("nan"))[:, None, None] * torch.eye(2).to(z)

    radius = 1 - torch.tensor([1.0, 1e-2, 1e-4, 1e-6]).double()
    z = radius[:, None] * torch.tensor([0.6, -0.8]).double()
    assert relative(curvature(FunctionMetric(disc, 2), z), -torch.ones(4).double()) < 1e-4


class Bump(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, z):
        z = z.to(self.dtype)
        return torch.cat([z, 0.5 * torch.tanh(z[:, :1]) * torch.tanh(z[:, 1:])], 1)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-2), (torch.float64, 1e-7)])
def test_curvature_at_the_origin_and_whole_numbers_of_either_precision(dtype, tolerance):
    # at the origin the surface is the saddle xy/2, and the graph's curvature -1/4
    metric = pm.PullbackMetric(pm.Decoder(Bump(dtype), latent_dim=2))
    found = curvature(metric, torch.zeros(1, 2).double())
    assert relative(found, torch.tensor([-0.25]).double()) < tolerance
    spread = torch.tensor([[0.0, 0.0], [1.0, 1.0], [40.0, 0.0]]).double()
    assert (curvature(metric, spread)[:1] - found).abs() < tolerance


def test_curvature_of_nearly_parallel_vectors_is_that_of_the_plane_and_of_parallel_ones_nan():
    space, z, u = Sphere(3), points(200, 3), points(200, 3, 1)
    for v in (u, 0.3 * u, -7.1 * u, u / 3):
        assert torch.isnan(curvature(space, z, u, v)).all()
        assert torch.isnan(curvature(space, z, u.float(), v.float())).all()
    near = curvature(space, z, u, u + 1e-6 * points(200, 3, 2))
    assert relative(near, torch.ones(200).double()) < 1e-5


def half_plane_transport(a, b, v):
    """Parallel transport on the hyperbolic plane in complex numbers."""
    p, q, w = (torch.view_as_complex(x.contiguous()) for x in (a, b, v))
    turn = (q - p.conj()) / (p - q.conj())
    return torch.view_as_real(w * (b[:, 1] / a[:, 1]) * turn / turn.abs())


def test_transport_of_pairs_of_very_different_size():
    heights = torch.tensor([1e-4, 1e-2, 1.0, 1e3, 1e4]).double()
    metric = FunctionMetric(lambda z: z[:, 1].pow(-2)[:, None, None] * torch.eye(2).to(z), 2)
    a = heights[:, None] * torch.tensor([0.0, 1.0]).double()
    b = heights[:, None] * torch.tensor([1.0, 2.0]).double()
    v = heights[:, None] * torch.tensor([0.5, 1.0]).double()
    found = transport(metric, a, b, v)
    assert found.converged.all()
    assert (metric.norm(b, found.vectors - half_plane_transport(a, b, v)) < 1e-4 * metric.norm(a, v)).all()
    alone = transport(metric, a[:1], b[:1], v[:1])
    assert metric.norm(b[:1], found.vectors[:1] - alone.vectors) < 1e-6 * metric.norm(a[:1], v[:1])


def test_transport_is_as_near_as_its_geodesics():
    space, a, b, v = Sphere(), points(60, 2, 0, 0.7), points(60, 2, 1, 0.7), points(60, 2, 2)
    found, exact = transport(space, a, b, v), carry_on_the_sphere(space, a, b, v)
    error = space.norm(b, found.vectors - exact) / space.norm(a, v)
    assert found.converged.all() and error.median() < 1e-6
    # one pair is 0.18 short of the antipode, where what a curve misses by grows the most
    near, others = space.distance(a, b).max() > 2.95, error.topk(2).values[1]
    assert near and error.max() < 4e-4 and others < 2e-4
    # what the caller asks for stands above
    coarse = transport(space, a, b, v, tol=5e-3, spans=16, rtol=3e-4)
    assert (space.norm(b, coarse.vectors - exact) / space.norm(a, v)).max() > 1e-3


class BentSphere:
    """A sphere's chart bent by a shear that grows with the coordinates before: so that relaxed curves are not exact."""

    def __init__(self, dim):
        self.sphere, self.mix = Sphere(dim), points(dim, dim, 5, dim**-0.5).tril(-1)

    def to_ambient(self, z):
        return self.sphere.to_ambient(z + 0.8 * torch.sin(2 * z @ self.mix.mT))


def test_transport_beyond_eight_dimensions_is_as_near():
    dim = 10
    space = BentSphere(dim)
    metric = pm.PullbackMetric(pm.Decoder(space.to_ambient, latent_dim=dim))
    a, b, v = points(8, dim, 0, 0.4), points(8, dim, 1, 0.4), points(8, dim, 2)
    found, exact = transport(metric, a, b, v), carry_on_the_sphere(space, a, b, v)
    error = metric.norm(b, found.vectors - exact) / metric.norm(a, v)
    assert found.converged.all() and error.max() < 1e-4


def test_identical_points_have_no_share_of_no_variance():
    with pytest.warns(ConvergenceWarning, match="do not spread"):
        found = principal_geodesics(Sphere(), torch.tensor([[0.3, 0.2]]).double().expand(5, 2))
    assert torch.isnan(found.explained).all() and (found.variances < 1e-12).all()
    few = principal_geodesics(Plane(dim=4), points(2, 4))
    assert len(few.directions) == 2
    assert len(principal_geodesics(Plane(dim=4), points(9, 4), np.int64(3)).directions) == 3


def test_a_walk_and_a_volume_take_numpy_s_integers_and_say_what_is_wrong_with_the_rest():
    box = ([-1.0, -1.0], [1.0, 1.0])
    assert volume(Sphere(), *box, num=np.int64(64), seed=np.int64(3)).evaluations == 64
    mask = {"inside": lambda z: z.norm(dim=1) < 1}
    for seed in (-1, "a", 1.5, True):
        for call in (
            lambda **k: volume(Sphere(), *box, num=64, **k),
            lambda **k: sample_volume(Sphere(), 3, *box, steps=2, **k),
            lambda **k: random_walk(Sphere(), points(2, 2), steps=2, time=0.1, **k),
        ):
            with pytest.raises(InvalidArgumentError, match="`seed` must"):
                call(seed=seed)
            call(**mask)
            for inside in (3, lambda z: z < 1, lambda z: 1 - z.norm(dim=1), lambda z: None):
                with pytest.raises(InvalidArgumentError, match="`inside` must"):
                    call(inside=inside)


def test_bad_input_is_named():
    z = points(3, 3)
    for call, words in [
        (lambda: curvature(Sphere(3), z), "planes"),
        (lambda: curvature(Sphere(3), z, z, z[:2]), "`v` must hold"),
        (lambda: curvature(Sphere(1), z[:, :1]), "at least 2"),
        (lambda: curvature(Sphere(), z[:, :2], step=-1.0), "step"),
        (lambda: transport(Sphere(3), z, z, z[:1]), "vectors"),
        (lambda: transport(Sphere(3), z, z, z, num=0), "num"),
        (lambda: volume(Sphere(), [0.0], [1.0, 1.0]), "2 finite"),
        (lambda: volume(Sphere(), [0.0, 1.0], [1.0, 1.0]), "exceed"),
        (lambda: sample_volume(Sphere(), 0, [0.0, 0.0], [1.0, 1.0]), "count"),
        (lambda: sample_volume(Sphere(), 2, [0, 0], [1, 1], inside=lambda z: z[:, 0] > 5), "inside"),
        (lambda: random_walk(Sphere(), z[:, :2], steps=0, time=1.0), "steps"),
        (lambda: random_walk(Sphere(), z[:, :2], steps=1, time=0.0), "time"),
        (lambda: principal_geodesics(Sphere(3), z[:1]), "at least 2"),
        (lambda: principal_geodesics(Sphere(3), z, 4), "num"),
        (lambda: principal_geodesics(Sphere(3), z, 2).points(z), "`scores` must have 2 columns, the number of dir"),
    ]:
        with pytest.raises(InvalidArgumentError, match=words):
            call()
    flat = LinearDecoder([[1.0, 0.0], [0.0, 0.0]])
    for call in (
        lambda: sample_volume(flat, 2, [0.0, 0.0], [1.0, 1.0]),
        lambda: random_walk(flat, z[:, :2], steps=1, time=1.0),
    ):
        with pytest.raises((NumericalError, InvalidArgumentError), match="singular|positive definite"):
            call()
