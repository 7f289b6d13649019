"""Lengths of edges: exact at kinks, cheap where smooth, and told from rounding errors."""

import json

import pytest
import torch
from test_spaces import points
from torch import nn

from posthoc_metric import Decoder, PullbackMetric, repair
from posthoc_metric.distances import distances
from posthoc_metric.distances.edges import segment_lengths
from posthoc_metric.errors import InvalidArgumentError
from posthoc_metric.metric import FunctionMetric
from posthoc_metric.spaces import Sphere


def folded(dim, layers):
    """A piecewise linear homeomorphism of R^dim: distances under it are those of its images."""
    generator = torch.Generator().manual_seed(10 * dim + layers)
    parts = []
    for _ in range(layers):
        linear = nn.Linear(dim, dim, dtype=torch.float64)
        one, two, scale, shift = (
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in ((dim, dim), (dim, dim), (dim,), (dim,))
        )
        linear.weight.data = torch.linalg.qr(one)[0] @ torch.diag((0.5 * scale).exp()) @ torch.linalg.qr(two)[0]
        linear.bias.data = 0.5 * shift
        parts += [linear, nn.LeakyReLU(0.2)]
    return nn.Sequential(*parts).requires_grad_(False)


def wide(activation, scale=2.0):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64), activation, nn.Linear(64, 64), activation, nn.Linear(64, 20)).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(scale)
    return net.requires_grad_(False)


def fine(metric, a, b, pieces=4096):
    """Lengths of the same segments by thousands of chords each."""
    parts, shares = metric.parts(), torch.linspace(0, 1, pieces + 1, dtype=torch.float64)[:, None]
    lengths = []
    for start, end in zip(a, b, strict=True):
        where = start + shares * (end - start)
        squares = parts.embedding(where).diff(dim=0).square().sum(1)
        if parts.weight is not None:
            weight = parts.weight(where)
            squares = squares + (weight[1:] + weight[:-1]) / 2 * ((end - start) / pieces).square().sum()
        lengths.append(squares.sqrt().sum())
    return torch.stack(lengths)


def errors(metric, a, b, unit, truth=None):
    return (segment_lengths(metric.parts(), a, b, unit) / fine(truth or metric, a, b) - 1).abs()


def test_no_distance_on_a_graph_falls_below_that_across_kinks():
    net, a = folded(2, 3), points(100, 2)
    metric = PullbackMetric(Decoder(net, latent_dim=2))
    found = distances(metric, a, method="graph", neighbours=16, sample=0)
    truth = torch.cdist(net(a), net(a), compute_mode="donot_use_mm_for_euclid_dist")
    assert (found >= (1 - 5e-3) * truth).all()


@pytest.mark.parametrize("dim, layers", [(2, 2), (2, 6), (3, 4), (5, 6)])
def test_edges_across_kinks_are_right_to_some_tenths_of_a_percent(dim, layers):
    decoder = Decoder(folded(dim, layers), latent_dim=dim)
    with decoder.counting() as work:
        found = errors(PullbackMetric(decoder), points(100, dim), points(100, dim, 1), 0.5)
    assert found.median() < 1e-3 and found.max() < 1e-2
    assert work.jvps == 0 and work.values < 100 * (4097 + 150)


@pytest.mark.parametrize("activation, most", [(nn.Tanh(), 1e-4), (nn.SiLU(), 1e-4), (nn.ReLU(), 5e-3)])
def test_edges_of_networks_are_right_and_smooth_ones_cheap(activation, most):
    decoder = Decoder(wide(activation), latent_dim=2)
    metric, a = PullbackMetric(decoder), points(100, 2)
    b = a + 0.3 * points(100, 2, 1)
    assert errors(metric, a, b, 0.3).max() < most
    with decoder.counting() as work:
        segment_lengths(metric.parts(), a, b, 0.3)
    assert most > 1e-4 or work.values < 100 * 15


def test_the_weight_of_a_repair_is_in_the_length():
    latents = points(200, 2)
    metric = repair(Decoder(wide(nn.Tanh()), latent_dim=2), latents)
    assert errors(metric, 3 * points(60, 2, 1), 3 * points(60, 2, 2), 0.3).max() < 5e-3


def test_a_jump_of_a_field_is_found():
    step = FunctionMetric(lambda z: torch.where(z[:, :1, None] > 0.317, 100.0, 1.0) * torch.eye(2).to(z), 2)
    a, b = torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[1.0, 0.0]]).double()
    assert abs(float(segment_lengths(step.parts(), a, b, 1.0)) / (0.317 + 6.83) - 1) < 5e-3


def test_a_fold_that_ends_where_it_began_has_a_length():
    metric = PullbackMetric(Decoder(lambda z: (z[:, :1] - 0.5).abs().expand(-1, 2), latent_dim=2))
    a, b = torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[1.0, 0.0]]).double()
    torch.testing.assert_close(segment_lengths(metric.parts(), a, b, 5.0), torch.tensor([2**0.5]).double())


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6])
def test_close_points_under_single_precision_are_as_far_as_under_double(spread):
    a = 0.3 + spread * points(50, 2)
    b = 0.3 + spread * points(50, 2, 1)
    single = PullbackMetric(Decoder(wide(nn.ReLU()).float(), latent_dim=2))
    double = PullbackMetric(Decoder(wide(nn.ReLU()), latent_dim=2))
    found, truth = (segment_lengths(metric.parts(), a, b, spread) for metric in (single, double))
    torch.testing.assert_close(found, truth, rtol=2e-3, atol=0)


def test_points_that_coincide_are_at_no_distance_and_what_is_unknown_is_nan():
    metric = FunctionMetric(
        lambda z: torch.where(z[:, :1, None] > 5, float("nan"), 1.0) * torch.eye(2).to(z),
        2,
    )
    a = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 0.0]]).double()
    b = torch.tensor([[0.0, 0.0], [7.0, 0.0], [3.0, 4.0]]).double()
    found = segment_lengths(metric.parts(), a, b, 1.0)
    torch.testing.assert_close(found, torch.tensor([0.0, float("nan"), 5.0]).double(), equal_nan=True)
    smooth = PullbackMetric(Decoder(wide(nn.Tanh()), latent_dim=2))
    assert segment_lengths(smooth.parts(), a[:1], b[:1], 1.0).tolist() == [0.0]
    assert segment_lengths(smooth.parts(), a[:0], b[:0], 1.0).shape == (0,)


def test_edges_stored_of_another_graph_are_refused(tmp_path):
    def ask():
        return distances(Sphere(), points(20, 2), method="graph", neighbours=5, sample=0, store=tmp_path)

    first = ask()
    plan = tmp_path / "graph" / "edges" / "plan.json"
    known = json.loads(plan.read_text())
    assert (ask() == first).all()
    plan.write_text(json.dumps(known | {"edges": known["edges"] + 1}))
    with pytest.raises(InvalidArgumentError, match="edges differ"):
        ask()
