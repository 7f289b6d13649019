"""Fréchet means, and the derivatives of geodesics' energies by their common end that they are found with."""

import numpy as np
import pytest
import torch
from test_spaces import points

from posthoc_metric import Decoder, repair
from posthoc_metric.errors import InvalidArgumentError
from posthoc_metric.geodesic import Status, frechet_mean, geodesic, mean
from posthoc_metric.geodesic.means.star import stars
from posthoc_metric.metric import FunctionMetric, PullbackMetric
from posthoc_metric.spaces import HalfPlane, Plane, Sphere


def test_mean_of_a_symmetric_set_is_its_centre():
    around = torch.tensor([[0.4, 0.0], [-0.4, 0.0], [0.0, 0.4], [0.0, -0.4]], dtype=torch.float64)
    torch.testing.assert_close(mean(Sphere(), around), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-3)
    pair = torch.tensor([[0.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    found = frechet_mean(HalfPlane(), pair, tol=1e-5)
    assert found.converged and found.gradient_norm <= 1e-5
    torch.testing.assert_close(found.point, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-3)


def test_weights_of_a_mean():
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(mean(Plane(), corners, weights=[1.0, 3.0]), torch.tensor([0.75, 0.0]))
    with pytest.raises(InvalidArgumentError, match="weights"):
        mean(Plane(), corners, weights=[1.0, -1.0])
    with pytest.raises(InvalidArgumentError, match="at least one"):
        mean(Plane(), torch.zeros(0, 2))


def test_the_mean_of_points_far_apart_under_negative_curvature_takes_few_steps():
    space, z = HalfPlane(), points(20, 2)
    z = torch.stack([20 * z[:, 0], (2 * z[:, 1]).exp()], dim=1)
    found = frechet_mean(space, z)
    assert found.converged and found.steps <= 10

    def variance(point):
        return space.distance(point.expand_as(z), z).square().mean()

    angles = torch.linspace(0, 6, 7, dtype=torch.float64)
    for angle in angles:
        # a twentieth of a unit of the metric away
        beside = found.point + 0.05 * found.point[1] * torch.stack([angle.cos(), angle.sin()])
        assert variance(beside) > variance(found.point)


def test_a_mean_does_not_stay_on_a_summit_where_the_gradient_vanishes():
    def hill(z):
        height = 3 * torch.exp(-z.square().sum(1) / 0.18)
        return (1 + height)[:, None, None] * torch.eye(2, dtype=z.dtype)

    metric, pair = FunctionMetric(hill, 2), torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    found = frechet_mean(metric, pair)
    # by symmetry it lies on the second axis
    axis = torch.stack([torch.zeros(21, dtype=torch.float64), torch.linspace(0, 1, 21, dtype=torch.float64)], dim=1)
    squares = geodesic(metric, axis, pair[:1].expand_as(axis)).length.square()
    assert squares[0] > 1.1 * squares.min()
    assert found.converged and found.variance < 1.001 * squares.min()


@pytest.mark.parametrize("top", [0.0, 0.2])
def test_nor_does_one_in_many_dimensions(top):
    def hill(z):
        shifted = torch.cat([z[:, :1] - top, z[:, 1:]], dim=1)
        return torch.cat([z, 1.5 * torch.exp(-shifted.square().sum(1, keepdim=True) / 0.18)], dim=1)

    metric, pair = PullbackMetric(Decoder(hill, latent_dim=9)), torch.zeros(2, 9).double()
    pair[:, 0] = torch.tensor([-1.0, 1.0])
    found = frechet_mean(metric, pair)
    # every plane through the first axis is alike, and isometric to that of two dimensions, where Newton's steps lead
    flat = frechet_mean(PullbackMetric(Decoder(hill, latent_dim=2)), pair[:, :2], start=[0.0, 0.5])
    assert found.converged and found.variance == pytest.approx(flat.variance, rel=1e-3)
    assert float(found.point[1:].norm()) == pytest.approx(float(flat.point[1]), rel=1e-2)
    assert frechet_mean(metric, pair, start=[0.0] * 9, max_steps=0).variance > 2 * flat.variance


class KinkedHill(torch.nn.Module):
    """Of ReLU units, alike on both sides of the origin."""

    def __init__(self, dim):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        ways = torch.randn(dim, 400, dtype=torch.float64, generator=generator)
        self.ways = ways / ways.norm(dim=0)
        self.steps = torch.linspace(0.0, 1.0, 400, dtype=torch.float64)
        z = torch.randn(4000, dim, dtype=torch.float64, generator=generator)
        z = 1.5 * torch.rand(4000, 1, dtype=torch.float64, generator=generator) * z / z.norm(dim=1, keepdim=True)
        height = 1.5 * torch.exp(-z.square().sum(1, keepdim=True) / 0.3)
        units = self.units(z)
        self.share = torch.linalg.solve(units.mT @ units + torch.eye(units.shape[1]), units.mT @ height)

    def units(self, z):
        return torch.cat([(z @ self.ways).abs().sub(self.steps).relu(), torch.ones_like(z[:, :1])], dim=1)

    def forward(self, z):
        return torch.cat([z, self.units(z) @ self.share], dim=1)


def test_nor_does_one_of_curves_with_kinks():
    metric, pair = PullbackMetric(Decoder(KinkedHill(9), latent_dim=9)), torch.zeros(2, 9).double()
    pair[:, 0] = torch.tensor([-1.0, 1.0])
    found, top = frechet_mean(metric, pair), frechet_mean(metric, pair, start=[0.0] * 9, max_steps=0)
    assert found.rough and top.rough and top.gradient_norm < 1e-6
    assert found.variance < 0.8 * top.variance


def even(metric, centre, z, spans):
    """Nodes of geodesics from ``centre`` to ``z``, evenly timed."""
    return geodesic(metric, centre.expand_as(z), z)(torch.linspace(0, 1, spans + 1).double())


def differences(function, at, step=1e-4):
    """Gradients (P, 2) and second derivatives (P, 2, 2) of ``function`` (2,) -> (P,)."""
    ways = step * torch.eye(2, dtype=torch.float64)
    gradient = torch.stack([(function(at + a) - function(at - a)) / (2 * step) for a in ways], dim=1)
    bend = [
        function(at + a + b) - function(at + a - b) - function(at - a + b) + function(at - a - b)
        for a in ways
        for b in ways
    ]
    return gradient, torch.stack(bend, dim=1).view(-1, 2, 2) / (4 * step**2)


@pytest.mark.parametrize("space", [HalfPlane(), Sphere()])
def test_energies_bend_with_their_common_end_as_squared_distances_do(space):
    centre, z = torch.tensor([0.3, 0.8]).double(), points(5, 2).abs() + torch.tensor([0.0, 0.5])
    found = stars(space.parts(), even(space, centre, z, 32), 1e-8, 2**28)
    gradient, bend = differences(lambda c: space.distance(c.expand_as(z), z).square(), centre)
    torch.testing.assert_close(found.gradient, gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()))
    torch.testing.assert_close(found.bend, bend, rtol=0, atol=1e-5 * float(bend.abs().max()))
    step = torch.tensor([1e-3, -2e-3]).double()
    again = stars(space.parts(), found.moved(step), 1e-10, 2**28, found)
    # what the first order leaves
    assert (again.nodes - found.moved(step)).abs().max() < 20 * step.square().sum()


def test_a_curve_of_no_extent_bends_as_the_metric_says():
    space, centre = HalfPlane(), torch.tensor([[0.3, 0.8]]).double()
    z = torch.cat([centre, centre + 1])
    found = stars(space.parts(), even(space, centre[0], z, 8), 1e-6, 2**28)
    torch.testing.assert_close(found.bend[:1], 2 * space.tensor(centre), rtol=1e-5, atol=1e-8)


def small_repaired(dim, dtype=torch.float32):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(dim, 32), torch.nn.Tanh(), torch.nn.Linear(32, 40)).to(dtype)
    # a ring, so that the way to the mean leads off the data
    angle = 6.3 * torch.rand(400, generator=torch.Generator().manual_seed(1)).to(dtype)
    latents = torch.stack([angle.cos(), angle.sin()], dim=1).repeat(1, dim // 2) + 0.1 * torch.randn(400, dim).to(dtype)
    return repair(Decoder(net, latent_dim=dim), latents, net(latents).detach()), latents.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_under_a_repaired_decoder_is_a_minimum(dtype):
    metric, latents = small_repaired(4, dtype)
    z = latents[:7]
    found = frechet_mean(metric, z)
    assert found.converged and found.steps <= 20

    def variance(point):
        return float(torch.as_tensor(geodesic(metric, point.expand_as(z), z, rtol=1e-5).length).square().mean())

    least = variance(found.point)
    assert least == pytest.approx(found.variance, rel=1e-3)
    for way in torch.eye(4).double():
        for sign in (-1, 1):
            assert variance(found.point + 0.05 * sign * way) > least * (1 - 1e-4)


def test_a_mean_does_not_depend_on_the_memory_it_may_take():
    metric, latents = small_repaired(2, torch.float64)
    z = latents[:6]
    whole, pieces = (frechet_mean(metric, z, tol=1e-5, memory_limit=limit) for limit in (2**28, 300_000))
    assert whole.converged and pieces.converged
    torch.testing.assert_close(whole.point, pieces.point, rtol=0, atol=1e-4)


class OntoTheSphere(torch.nn.Module):
    """From a chart of the unit sphere by stereographic projection."""

    def forward(self, z):
        square = z.square().sum(1, keepdim=True)
        return torch.cat([2 * z, square - 1], dim=1) / (square + 1)


def mean_on_the_sphere(z, weights):
    """In the chart (d,), by the fixed point of exact logarithms."""
    points = OntoTheSphere()(z)
    pole = torch.nn.functional.normalize(weights @ points, dim=0)
    for _ in range(100):
        cosine = (points @ pole).clamp(-1, 1)
        angle = cosine.acos()
        step = (weights * angle / angle.sin()) @ (points - cosine[:, None] * pole)
        pole = torch.nn.functional.normalize(
            pole * step.norm().cos() + step * torch.sinc(step.norm() / torch.pi), dim=0
        )
    return pole[:-1] / (1 - pole[-1]), weights @ (points @ pole).acos().square()


@pytest.mark.parametrize("memory_limit", [2**28, 200_000])
@pytest.mark.parametrize("weights", [torch.ones(9), torch.arange(9.0)])
def test_a_mean_in_many_dimensions_is_that_on_the_sphere(weights, memory_limit):
    decoder = Decoder(OntoTheSphere().double(), latent_dim=12)
    z = 0.3 * torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    point, variance = mean_on_the_sphere(z, (weights / weights.sum()).double())
    with decoder.counting() as work:
        found = frechet_mean(
            PullbackMetric(decoder), z, weights=weights, tol=1e-5, rtol=1e-6, memory_limit=memory_limit
        )
    assert found.converged and not found.rough and found.gradient_norm <= 1e-5
    torch.testing.assert_close(found.point, point, rtol=0, atol=2e-5 * float(z.norm(dim=1).max()))
    assert found.variance == pytest.approx(float(variance), rel=1e-6)
    # no Jacobian of every node: that alone would be twelve products with it
    assert work.jvps < work.vjps
    # and where it is known from the beginning, no step is taken
    assert frechet_mean(PullbackMetric(decoder), z, weights=weights, start=point).steps == 0


@pytest.mark.parametrize("uncertainty", ["rbf", "gp"])
def test_a_mean_in_many_dimensions_is_a_minimum(uncertainty):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.Tanh(), torch.nn.Linear(32, 40)).double()
    latents = torch.randn(400, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    metric = repair(Decoder(net, latent_dim=10), latents, net(latents).detach(), uncertainty=uncertainty)
    z = latents[:6]
    found = frechet_mean(metric, z)
    assert found.converged and found.gradient_norm <= 1e-3

    def variance(point):
        return float(geodesic(metric, point.expand_as(z), z, rtol=1e-5).length.square().mean())

    least = variance(found.point)
    assert least == pytest.approx(found.variance, rel=1e-3)
    for way in torch.linalg.qr(torch.randn(10, 3, dtype=torch.float64))[0].T:
        for sign in (-1, 1):
            assert variance(found.point + 0.1 * sign * way) > least * (1 - 1e-4)


def test_points_that_cannot_be_reached_do_not_move_the_mean():
    def half(z):
        height = torch.where(z[:, 1] > 0, z[:, 1], float("nan"))
        return height.pow(-2)[:, None, None] * torch.eye(2, dtype=z.dtype)

    z = torch.tensor([[0.0, 0.5], [0.0, 2.0], [0.0, -1.0]]).double()
    found = frechet_mean(FunctionMetric(half, 2), z)
    assert not found.converged and np.isnan(float(found.distances[2]))
    torch.testing.assert_close(found.point, torch.tensor([0.0, 1.0]).double(), rtol=0, atol=2e-3)


def test_where_no_point_has_a_metric_there_is_no_mean():
    nowhere = FunctionMetric(lambda z: torch.full((len(z), 2, 2), float("nan"), dtype=z.dtype), 2)
    found = frechet_mean(nowhere, torch.tensor([[0.0, 0.5], [0.0, 2.0]]))
    assert not found.converged and torch.isnan(found.distances).all()


def small_kinked():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 40))
    latents = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    return Decoder(net, latent_dim=2), latents


def test_a_mean_of_curves_with_kinks_costs_little_and_says_how_well_it_is_known():
    decoder, latents = small_kinked()
    metric, z = repair(decoder, latents, decoder(latents)), latents[:12]
    with decoder.counting() as work:
        found = frechet_mean(metric, z)
    assert found.converged and found.rough and found.gradient_norm - found.gradient_error <= 3e-2
    # what one search for geodesics finds changes at the next
    assert found.gradient_error > 1e-4
    assert found.steps <= 12 and work.values <= 110_000
    # no worse than where many more steps lead
    strict = frechet_mean(metric, z, tol=1e-3, rough_tol=1e-3)
    assert found.variance <= strict.variance * (1 + 1e-3)


def test_a_mean_that_no_longer_gains_at_kinks_is_given_up_and_not_called_found():
    decoder, latents = small_kinked()
    metric, z = repair(decoder, latents, decoder(latents)), latents[:5]
    found = frechet_mean(metric, z, tol=1e-4, rough_tol=1e-4)
    assert found.rough and not found.converged and found.gradient_norm > 1e-4 and found.gradient_error > 0


@pytest.mark.parametrize(("options", "asked"), [({"rtol": "fine"}, "`rtol`"), ({"rough_rtoll": 1}, "`rough_rtol`")])
def test_options_of_geodesics_are_checked_before_they_are_loosened(options, asked):
    with pytest.raises(InvalidArgumentError, match=asked):
        frechet_mean(HalfPlane(), torch.tensor([[0.0, 0.5], [0.0, 2.0]]), **options)


def test_a_smooth_mean_is_not_settled_as_one_with_kinks():
    metric, latents = small_repaired(2, torch.float64)
    found = frechet_mean(metric, latents[:6], tol=1e-5)
    assert found.converged and not found.rough and found.gradient_norm <= 1e-5


def test_a_mean_is_found_from_where_it_is_told_to_start():
    space, z = HalfPlane(), torch.tensor([[0.0, 0.5], [0.0, 2.0]]).double()
    near = frechet_mean(space, z, start=[0.0, 1.0])
    assert near.converged and near.steps == 0
    with pytest.raises(InvalidArgumentError, match="start"):
        frechet_mean(space, z, start=[0.0])


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.0]])
@pytest.mark.parametrize("dim", [1, 2])
def test_the_mean_of_one_point_is_that_point_wherever_it_is_told_to_start(dim, weights):
    space = FunctionMetric(lambda z: (1 + z.square())[:, :, None] * torch.eye(dim, dtype=z.dtype), dim)
    z = torch.full((3, dim), 0.3, dtype=torch.float64)
    z[1] += 0.0 if weights is None else 1.0
    found = frechet_mean(space, z, start=[2.0] * dim, weights=weights)
    assert found.converged and torch.equal(found.point, z[0]) and found.variance == 0
    with pytest.raises(InvalidArgumentError, match="start"):
        frechet_mean(space, z, start=[float("nan")] * dim, weights=weights)


def test_a_mean_is_found_from_far_away_of_points_that_are_close_together():
    z = 1e-9 * torch.tensor([[0.0, 1.0], [0.0, -1.0], [2.0, 0.0]]).double() + torch.tensor([0.0, 1.0])
    found = frechet_mean(HalfPlane(), z, start=[1.0, 2.0])
    assert float((found.point - z.mean(0)).norm()) < 1e-8


def test_a_printed_mean_is_short_and_says_what_to_do():
    z = torch.tensor([[0.0, 0.5], [0.0, 2.0]]).double()
    text = repr(frechet_mean(HalfPlane(), z, start=[0.0, 1.0]))
    assert text.startswith("Fréchet mean of 2 points, d = 2: converged after 0 steps; variance 0.4805, gradient norm ")
    assert text.endswith("; 2 CONVERGED")

    def half(z):
        height = torch.where(z[:, 1] > 0, z[:, 1], float("nan"))
        return height.pow(-2)[:, None, None] * torch.eye(2, dtype=z.dtype)

    lost = repr(frechet_mean(FunctionMetric(half, 2), torch.cat([z, -z[:1]]))).splitlines()
    assert "not converged" in lost[0] and lost[1] == f"  row 2 {Status.NOT_FINITE}"


def test_weights_are_finite():
    with pytest.raises(InvalidArgumentError, match="non-negative, finite"):
        frechet_mean(Sphere(2), torch.randn(3, 2).double(), weights=[float("inf"), 1, 1])


def test_no_point_is_handed_back_that_is_worse_than_where_it_began():
    """The best point lies near the pole that the chart lacks; steps led to variances of thousands."""
    z = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = frechet_mean(Sphere(2), z, max_steps=0)
    found = frechet_mean(Sphere(2), z, max_steps=12)
    assert found.variance <= start.variance
    assert found.variance == pytest.approx(float((found.distances**2).mean()), rel=1e-6)
