"""Pairs spread over processes: the same geodesics in the same order, one bad pair, and what cannot be sent."""

import joblib
import numpy as np
import pytest
import torch

import posthoc_metric as pm
from posthoc_metric.errors import InvalidArgumentError
from posthoc_metric.metric import FunctionMetric
from posthoc_metric.parallel import worker_count
from posthoc_metric.spaces import HalfPlane, Sphere

from test_spaces import points  # isort: skip


def pairs(count=9):
    return points(count, 2, scale=0.5), points(count, 2, seed=1, scale=0.5)


@pytest.mark.parametrize("options", [{}, {"solver": "fixed-point"}, {"starts": "straight", "num_points": 5}])
def test_geodesics_of_two_processes_are_those_of_one(options):
    a, b = pairs()
    one, two = (pm.geodesic(Sphere(), a, b, n_jobs=n_jobs, **options) for n_jobs in (1, 2))
    assert one.status == two.status and one.start == two.start
    for name in ("points", "length", "length_error", "residual"):
        torch.testing.assert_close(getattr(two, name), getattr(one, name), rtol=1e-7, atol=1e-9)
    for name in ("steps", "evaluations", "spans"):
        assert torch.equal(getattr(two, name), getattr(one, name))
    torch.testing.assert_close(two(0.3), one(0.3), rtol=1e-7, atol=1e-9)


def test_a_bad_pair_does_not_touch_the_others():
    a = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 2.0], [0.5, 0.5]], dtype=torch.float64)
    b = a.flip(0) + torch.tensor([0.3, 0.0])
    space = HalfPlane()
    solution = space.geodesic(a, b, n_jobs=2)
    good = (a[:, 1] > 0) & (b[:, 1] > 0)
    assert good.tolist() == solution.converged.tolist() == [True, False, False, True]
    torch.testing.assert_close(solution.length[good], space.distance(a[good], b[good]), rtol=1e-4, atol=0)


def test_a_repaired_decoder_is_sent_with_its_graphs(repaired):
    metric, latents = repaired
    a, b = latents[:5].numpy(), latents[5:10].numpy()
    one = metric.geodesic(a, b)
    two = metric.geodesic(a, b, n_jobs=3)
    assert isinstance(two.points, np.ndarray) and two.points.dtype == a.dtype
    np.testing.assert_allclose(two.length, one.length, rtol=1e-6)
    # latents that are not the metric's own say where the data lie, too
    near = metric.geodesic(a, b, support=latents[:50], n_jobs=2)
    np.testing.assert_allclose(near.length, metric.geodesic(a, b, support=latents[:50]).length, rtol=1e-6)


@pytest.fixture(scope="module")
def repaired():
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)).double()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    latents = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    return pm.repair(pm.Decoder(net, latent_dim=2), latents), latents


def test_joblibs_own_configuration_counts_where_it_is_asked_for():
    assert worker_count(1) == worker_count(None) == 1
    with joblib.parallel_config(n_jobs=2):
        assert worker_count(None) == 2
        a, b = pairs(3)
        torch.testing.assert_close(
            pm.geodesic(Sphere(), a, b, n_jobs=None).length, pm.geodesic(Sphere(), a, b).length, rtol=1e-9, atol=0
        )


def test_what_cannot_be_sent_is_named():
    lines = (line for line in range(3))
    metric = FunctionMetric(lambda z: (lines is not None) * torch.eye(2).expand(len(z), -1, -1), 2)
    with pytest.raises(InvalidArgumentError, match="picklable"):
        pm.geodesic(metric, *pairs(2), n_jobs=2)
    with pytest.raises(InvalidArgumentError, match="n_jobs"):
        pm.geodesic(Sphere(), *pairs(2), n_jobs=0)
