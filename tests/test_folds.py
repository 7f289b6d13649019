"""Curves across folds of a decoder, against the rays that are reflected there, and the parts that relax them."""

import numpy as np
import pytest
import torch
from torch import nn

import posthoc_metric as pm
from posthoc_metric.field_derivative import FieldDerivative
from posthoc_metric.geodesic.curves.spline import Spline
from posthoc_metric.geodesic.refinement.folds import leaping
from posthoc_metric.geodesic.relaxation.latent_pace import _across, _lengths, shorten, spaced
from posthoc_metric.metric import MetricParts


class Arm(nn.Module):
    """Where the hand of an arm of two links, one half long each, is for the angles of its joints: (B, 2) -> (B, 2).

    Stretched out it reaches the unit circle, a fold: what is within reach is reached with the elbow on either side.
    """

    def forward(self, q):
        angles = q.cumsum(1)
        return torch.stack([angles.cos().sum(1), angles.sin().sum(1)], dim=1) / 2


@pytest.fixture(scope="module")
def arm():
    """The repaired metric of an arm, pairs of latents with the elbow on either side, and their geodesics."""
    draw = torch.Generator().manual_seed(0)
    q = 0.8 * torch.randn(800, 2, dtype=torch.float64, generator=draw)
    metric = pm.repair(pm.Decoder(Arm(), latent_dim=2), q, Arm()(q))
    a, b = q[:60], q[60:120]
    across = (a[:, 1] * b[:, 1] < 0) & (a - b).norm(dim=1).lt(1.5)
    a, b = a[across][:10], b[across][:10]
    return metric, a, b, metric.geodesic(a, b)


def reflected(a, b):
    """Length of the shortest way from hand to hand (B, 2) that touches the unit circle."""
    turn = np.linspace(-np.pi, np.pi, 20_001)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    ways = (np.linalg.norm(end[:, None] - circle, axis=2) for end in (a.numpy(), b.numpy()))
    return torch.from_numpy(sum(ways).min(axis=1))


def test_an_arm_turns_its_elbow_over_along_reflected_rays(arm):
    metric, a, b, found = arm
    exact = reflected(Arm()(a), Arm()(b))
    assert found.converged.all()
    # the repair adds a little to every length, and most where the decoder says nothing
    assert (found.length >= (1 - 1e-3) * exact).all()
    assert float((found.length <= 1.003 * exact).double().mean()) >= 0.8
    alone = metric.geodesic(a[3:4], b[3:4])
    assert torch.equal(alone.length[0], found.length[3]) and torch.equal(alone.points[0], found.points[3])


def test_lengths_err_by_no_more_than_they_say(arm):
    metric, a, b, found = arm
    spline, parts = found.curve[0], metric.parts()
    points, _ = spline.at(torch.linspace(0, 1, 40_001, dtype=torch.float64).expand(len(a), -1))
    for row, curve in enumerate(points):
        steps, middle = curve.diff(dim=0), (curve[1:] + curve[:-1]) / 2
        squares = Arm()(curve).diff(dim=0).square().sum(1) + parts.weight(middle) * steps.square().sum(1)
        assert abs(float(squares.sqrt().sum() - found.length[row])) <= float(found.length_error[row])


def test_only_what_crosses_a_fold_leaps(arm):
    metric, a, b, _ = arm
    within = metric.geodesic(a[:4], a[:4] + torch.tensor([0.1, 0.0]), spans=128)
    assert not leaping(metric.parts(), within.curve[0], torch.full((4,), 128)).any()
    early = metric.geodesic(a[:4], b[:4], max_spans=64)
    assert not early.converged.all() and set(early.start) <= {"straight", "grid"}


def test_a_curve_of_few_spans_leaps_nowhere_whatever_longer_ones_share_its_batch(arm):
    metric, *_ = arm
    knots = torch.cat([torch.linspace(0, 1, 65), torch.arange(2, 66)]).double()[None]
    knots[:, 33] = knots[:, 32] + 1e-6
    nodes = torch.linspace(0, 1, 65).double().clamp_max(1.0)[:, None] * torch.ones(1, 2).double()
    nodes = torch.cat([nodes, nodes[-1:].expand(64, -1)])[None]
    padded = Spline(knots, nodes, torch.zeros_like(nodes))
    assert leaping(metric.parts(), padded, torch.tensor([128])).all()
    assert not leaping(metric.parts(), padded, torch.tensor([64])).any()


def test_derivatives_of_the_length_are_those_of_differences():
    def weight(z):
        return 0.3 + z.square().sum(1)

    class Weight:
        def __call__(self, z):
            return weight(z)

        def value_and_gradient(self, z):
            return weight(z), 2 * z

    def field(z):
        return torch.diag_embed(1 + z.square()) + 0.1

    draw = torch.Generator().manual_seed(1)
    nodes = torch.randn(9, 3, dtype=torch.float64, generator=draw)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    parts = MetricParts(pm.Decoder(net, latent_dim=3), Weight(), field)
    derivative = FieldDerivative(field, nodes)
    found = _lengths(parts, derivative, nodes)
    steps, middle = nodes.diff(dim=0), (nodes[1:] + nodes[:-1]) / 2
    chords = net(nodes).diff(dim=0).square().sum(1) + weight(middle) * steps.square().sum(1)
    expected = (chords + torch.einsum("ni,nij,nj->n", steps, field(middle), steps)).sqrt()
    torch.testing.assert_close(found.pieces, expected.detach())
    for node in (0, 4, 8):
        for axis in range(3):
            nudge = torch.zeros_like(nodes)
            nudge[node, axis] = 1e-6
            ahead, behind = (_lengths(parts, derivative, nodes + sign * nudge).pieces.sum() for sign in (1, -1))
            left = found.slopes[node, axis] if node < 8 else 0
            right = found.slopes[node - 1, 3 + axis] if node else 0
            assert float((ahead - behind) / 2e-6) == pytest.approx(float(left + right), rel=1e-6, abs=1e-8)
    across = _across(steps)
    torch.testing.assert_close(across.mT @ across, torch.eye(2, dtype=torch.float64).expand(8, 2, 2))
    assert float((across.mT @ steps[..., None]).abs().max()) < 1e-12


def test_in_a_flat_metric_a_detour_is_pulled_straight():
    net = nn.Identity()
    parts = pm.PullbackMetric(pm.Decoder(net, latent_dim=2)).parts()
    bent = torch.tensor([[0.0, 0.0], [0.6, 0.5], [1.0, -0.3], [2.0, 0.0]], dtype=torch.float64)
    found = shorten(parts, None, spaced(bent, 32), tol=1e-6, max_steps=80)
    assert found.length == pytest.approx(2.0, rel=1e-9) and found.residual <= 1e-6
    assert float(found.nodes[:, 1].abs().max()) < 1e-4
    assert found.nodes.diff(dim=0).norm(dim=1).std() < 1e-6


def test_the_residual_tells_what_a_curve_may_still_lose():
    parts = pm.PullbackMetric(pm.Decoder(nn.Identity(), latent_dim=2)).parts()
    t = torch.linspace(0, 1, 65, dtype=torch.float64)
    bent = spaced(torch.stack([2 * t, 1e-2 * (np.pi * t).sin()], dim=1), 64)
    found = shorten(parts, None, bent, tol=np.inf, max_steps=1)
    assert found.steps == 0
    assert found.residual**2 / 2 == pytest.approx((found.length - 2) / found.length, rel=0.05)
