"""Pairs too close for a single-precision decoder are solved in double precision."""

import copy

import pytest
import torch
from torch import nn

import posthoc_metric as pm
from posthoc_metric.geodesic.guard import guard
from posthoc_metric.geodesic.refinement.precision import finer, too_close
from posthoc_metric.metric import MetricParts
from posthoc_metric.smooth_map import StackedMap


def relu_decoder(dim):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(dim, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 100), nn.Sigmoid()
        return nn.Sequential(*layers)


def close_by(dim, count=6):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return start, start + 0.3 * torch.randn(count, dim, generator=generator, dtype=torch.float64)


def test_neighbours_under_a_float32_decoder_with_kinks():
    module = relu_decoder(5)
    start, end = close_by(5)
    single, double = (
        pm.PullbackMetric(pm.Decoder(model, latent_dim=5)) for model in (module, copy.deepcopy(module).double())
    )
    found, expected = single.geodesic(start, end), double.geodesic(start, end)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.length, expected.length, rtol=2e-3, atol=0)
    assert next(module.parameters()).dtype == torch.float32


def test_a_pair_is_judged_alone():
    metric = pm.PullbackMetric(pm.Decoder(relu_decoder(5), latent_dim=5))
    start, end = close_by(5)
    end[0] = -20 * start[0]
    end[1] = start[1]
    close = too_close(guard(metric.parts()), start, end)
    assert close.tolist() == [False, False, True, True, True, True]
    together = metric.geodesic(start, end)
    assert float(together.length[1]) == 0
    for row in (0, 2):
        alone = metric.geodesic(start[row : row + 1], end[row : row + 1])
        torch.testing.assert_close(alone.length[0], together.length[row], rtol=1e-6, atol=0)


def test_pairs_without_a_value_do_not_decide_for_the_others():
    module = relu_decoder(5)
    holes = pm.Decoder(lambda z: module(z) / (z[:, :1] < 50), latent_dim=5)
    start, end = close_by(5)
    bad = torch.full((5, 5), 99.0, dtype=torch.float64)
    parts = guard(MetricParts(embedding=holes))
    alone = too_close(parts, start, end)
    assert bool(alone.any())
    assert torch.equal(too_close(parts, torch.cat([bad, start]), torch.cat([bad + 1, end]))[5:], alone)


def test_a_decoder_in_float64_is_the_same_and_counts_with_it():
    decoder = pm.Decoder(relu_decoder(3), latent_dim=3)
    fine = decoder.in_float64()
    assert fine is not None
    assert (fine.dtype, decoder.dtype) == (torch.float64, torch.float32)
    assert fine.in_float64() is None
    z = close_by(3)[0]
    values, jacobians = fine.value_and_jacobian(z)
    assert bool((values.float().double() != values).any())
    torch.testing.assert_close(values, decoder(z), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(jacobians, decoder.jacobian(z), rtol=1e-3, atol=1e-5)
    with decoder.counting() as work:
        fine(z)
    assert work.values == len(z)


def test_what_has_no_copy_in_float64_is_used_as_it_is():
    weight = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    stubborn = pm.Decoder(lambda z: torch.tanh(z.float() @ weight), latent_dim=2)
    assert stubborn.in_float64() is None
    assert finer(MetricParts(embedding=stubborn)) is None
    start, end = close_by(2)
    assert bool(torch.isfinite(pm.PullbackMetric(stubborn).geodesic(start, end).length).all())


@pytest.mark.parametrize("both", [True, False])
def test_stacked_maps(both):
    first = pm.Decoder(relu_decoder(2), latent_dim=2)
    second = pm.Decoder(relu_decoder(2).double(), latent_dim=2)
    stacked = StackedMap([first, first if both else second]).in_float64()
    assert stacked is not None
    assert {part.dtype for part in stacked.maps} == {torch.float64}
    assert StackedMap([second]).in_float64() is None
