"""Geodesics across the kinks of a decoder: a folded plane, which unfolds, and physics that any crossing obeys."""

import pytest
import torch
from family import relu_net

from posthoc_metric import Decoder, PullbackMetric, repair
from posthoc_metric.errors import ConvergenceWarning
from posthoc_metric.geodesic import Status, exp, logarithm, shoot
from posthoc_metric.geodesic.guard import guard
from posthoc_metric.geodesic.maps import kinks
from posthoc_metric.geodesic.maps.shooting import integrate
from posthoc_metric.metric import FunctionMetric

NORMAL = torch.tensor([0.6, 0.8], dtype=torch.float64)
ALONG = torch.tensor([-0.8, 0.6], dtype=torch.float64)
#: what a unit across the folds is worth before, between and after them
WORTH = torch.tensor([1.0, 5.0**0.5, 7.25**0.5], dtype=torch.float64)


def folded(z):
    across, along = z @ NORMAL.to(z), z @ ALONG.to(z)
    return torch.stack([along, across, 2 * torch.relu(across), 1.5 * torch.relu(across - 1)], dim=1)


def zone(z):
    across = z @ NORMAL
    return (across >= 0).long() + (across >= 1).long()


def unfolded(z):
    """Coordinates in which the folded plane is flat."""
    across = z @ NORMAL
    pieces = torch.stack([across.clamp_max(0), across.clamp(0, 1), (across - 1).clamp_min(0)], dim=1)
    return torch.stack([z @ ALONG, pieces @ WORTH], dim=1)


def straight_in_the_unfolded_plane(z, to):
    """Velocities at ``z`` (B, 2) of the geodesics to ``to``."""
    way = unfolded(to) - unfolded(z)
    return way[:, :1] * ALONG + (way[:, 1:] / WORTH[zone(z)][:, None]) * NORMAL


@pytest.fixture
def plane():
    return PullbackMetric(Decoder(folded, latent_dim=2))


def test_shots_are_straight_in_the_unfolded_plane(plane):
    torch.manual_seed(0)
    z = torch.randn(20, 2).double() - 0.5
    to = 2 * torch.randn(20, 2).double() + NORMAL
    crossing = zone(z) != zone(to)
    assert 5 < int(crossing.sum()) < 20
    v = straight_in_the_unfolded_plane(z, to)
    shot = shoot(plane, z, v)
    assert shot.converged.all()
    torch.testing.assert_close(shot.points, to, rtol=0, atol=1e-6)
    assert (shot.speed_drift < 1e-8).all()
    # the same bits without those that cross no kink, which are integrated otherwise
    torch.testing.assert_close(shoot(plane, z[crossing], v[crossing]).points, shot.points[crossing], rtol=0, atol=0)
    assert kinks.has_kinks(guard(plane.parts()), z, v).tolist() == crossing.tolist()


def test_a_shot_that_enters_the_dearer_side_slows_down_across_and_not_along():
    plane = PullbackMetric(Decoder(lambda z: torch.stack([z[:, 0], z[:, 1], 2 * torch.relu(z[:, 0])], 1), latent_dim=2))
    z, v = torch.tensor([[-0.5, 0.0]]).double(), torch.tensor([[1.0, 0.2]]).double()
    slow = torch.tensor([[1 / 5**0.5, 0.2]]).double()
    torch.testing.assert_close(shoot(plane, z, v).velocities, slow, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shots_through_a_repaired_relu_decoder_keep_their_speed(dtype):
    torch.manual_seed(0)
    decoder = Decoder(relu_net(2).to(dtype), latent_dim=2)
    latents = torch.randn(400, 2).double()
    repaired = repair(decoder, latents, decoder(latents))
    a, b = latents[:12], latents[12:24]
    velocity = repaired.geodesic(a, b).velocity(0.0)
    shot = shoot(repaired, a, velocity, rtol=1e-3)
    # which rays part at a kink, so that their ends are not known to rtol, is chance
    good = shot.converged
    assert int(good.sum()) >= 6 and (shot.speed_drift[good] < 1e-4).all()
    miss = (shot.points - b).norm(dim=1) / (b - a).norm(dim=1)
    # a relaxed velocity is good to a per cent
    assert (miss[good] < 0.2).all() and float(miss[good].median()) < 0.1
    back = shoot(repaired, shot.points, -shot.velocities, rtol=1e-3)
    both = good & back.converged
    assert int(both.sum()) >= 6
    torch.testing.assert_close(back.points[both], a[both], rtol=0, atol=5e-3)


@pytest.mark.parametrize("uncertainty", ["rbf", "gp"])
def test_lengths_under_a_repaired_relu_decoder_are_those_of_a_far_finer_sum(uncertainty):
    torch.manual_seed(0)
    latents = torch.randn(400, 2).double()
    repaired = repair(Decoder(relu_net(2).double(), latent_dim=2), latents, uncertainty=uncertainty)
    solution = repaired.geodesic(latents[:8], latents[8:16])
    assert bool(solution.converged.all())
    nodes = solution(torch.linspace(0, 1, 20_001, dtype=torch.float64))
    middle, step = (nodes[:, 1:] + nodes[:, :-1]) / 2, nodes.diff(dim=1)
    finer = torch.stack([repaired.norm(*pair).sum() for pair in zip(middle, step, strict=True)])
    assert ((solution.length - finer).abs() <= solution.length_error).all()


def test_without_kinks_the_rule_is_of_second_order():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 20)).double()
    decoder = Decoder(module, latent_dim=2)
    latents = torch.randn(300, 2).double()
    repaired = repair(decoder, latents, decoder(latents))
    z, v = latents[:4], latents[4:8] - latents[:4]
    exact = integrate(repaired, z, v, 1e-10, 5000)[0]
    errors = []
    for number in (128, 256, 512):
        state = kinks._begun(guard(repaired.parts()), z, v)
        for _ in range(number):
            state = kinks._stepped(guard(repaired.parts()), state, 1 / number)
        errors.append((state.z - exact).norm(dim=1))
    assert (errors[2] < 1e-4).all()
    assert (errors[0] > 3.5 * errors[1]).all() and (errors[1] > 3.5 * errors[2]).all()


def test_a_speed_that_is_not_kept_is_admitted():
    """A metric that jumps has no Jacobian that would tell how to cross."""
    metric = FunctionMetric(lambda z: (1 + 3 * (z[:, 0] > 0.1))[:, None, None] * torch.eye(2).to(z), 2)
    z, v = torch.tensor([[-1.0, 0.0], [0.5, 0.0]]).double(), torch.tensor([[2.0, 0.5], [1.0, 0.5]]).double()
    shot = shoot(metric, z, v)
    assert shot.status == (Status.UNRESOLVED, Status.CONVERGED)
    with pytest.warns(ConvergenceWarning, match="row 0"):
        exp(metric, z, v)


def test_a_shot_across_kinks_into_a_hole_is_not_finite_and_leaves_the_others():
    def with_a_hole(z):
        return torch.where(z.norm(dim=1, keepdim=True) > 1.5, torch.nan, folded(z))

    plane = PullbackMetric(Decoder(with_a_hole, latent_dim=2, probe=0.1 * torch.randn(8, 2)))
    z = torch.tensor([[-0.5, -0.5], [-0.5, -0.5], [0.5, 0.0]]).double()
    v = torch.tensor([[4.0, 4.0], [0.6, 0.8], [-1.0, 0.0]]).double()
    shot = shoot(plane, z, v)
    assert [status.name for status in shot.status] == ["NOT_FINITE", "CONVERGED", "CONVERGED"]
    assert torch.isnan(shot.points[0]).all()
    torch.testing.assert_close(shoot(plane, z[1:], v[1:]).points, shot.points[1:], rtol=0, atol=1e-12)
    end, _, error, _ = kinks.shoot_across(guard(plane.parts()), z, v, 1e-4)
    assert torch.isnan(end[0]).all() and torch.isnan(error[0])
    torch.testing.assert_close(end[1:], shot.points[1:], rtol=0, atol=1e-12)


def test_the_logarithm_across_a_fold_is_that_of_the_unfolded_plane(plane):
    z = torch.tensor([[-1.0, 0.2], [-0.5, -1.0], [1.5, 1.0]]).double()
    to = torch.tensor([[1.0, 1.0], [1.0, 0.3], [-1.0, -0.5]]).double()
    found = logarithm(plane, z, to)
    v = straight_in_the_unfolded_plane(z, to)
    wrong = (found.velocities - v).norm(dim=1) / v.norm(dim=1)
    torch.testing.assert_close(found.length, (unfolded(to) - unfolded(z)).norm(dim=1), rtol=1e-3, atol=0)
    assert (wrong < 1e-2).all()
    assert ((wrong <= 1e-2) | ~found.converged).all()
