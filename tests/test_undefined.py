"""Decoders and metrics that have no value at some latents: those rows say so, and leave their neighbours alone."""

import numpy as np
import pytest
import torch
from torch import nn

from posthoc_metric import Decoder, FunctionMetric, PullbackMetric, repair
from posthoc_metric.errors import ConvergenceWarning
from posthoc_metric.estimators import GeodesicKMeans
from posthoc_metric.geodesic import Status, frechet_mean, logarithm
from posthoc_metric.spaces import HalfPlane, LinearDecoder

pytestmark = pytest.mark.filterwarnings("ignore::posthoc_metric.errors.PosthocMetricWarning")

LOST = torch.tensor([9000.0, 0.0], dtype=torch.float64)


class Nearby(nn.Module):
    """Defined near the origin only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 5)).double()

    def forward(self, z):
        return self.net(z) * torch.where(z.abs().sum(1, keepdim=True) > 4000, torch.nan, 1.0)


def latents(count, seed=0):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def metrics():
    decoder = Decoder(Nearby(), latent_dim=2)
    return [PullbackMetric(decoder), repair(decoder, latents(300))]


@pytest.mark.parametrize("metric", metrics(), ids=["pullback", "repaired"])
def test_a_pair_without_a_curve_is_nan_in_all_that_is_asked_of_it(metric):
    start, end = torch.stack([latents(1)[0], LOST, latents(1, 1)[0]]), latents(3, 2)
    found = metric.geodesic(start, end)
    assert found.status == (Status.CONVERGED, Status.NOT_FINITE, Status.CONVERGED)
    good = [0, 2]
    alone = metric.geodesic(start[good], end[good])
    for ask in (lambda s: s(0.3), lambda s: s.velocity(0.3), lambda s: s.points):
        assert bool(ask(found)[1].isnan().all()) and torch.equal(ask(found)[good], ask(alone))
    assert bool(found.decode(3)[1].isnan().all()) and bool(found.decode(3)[good].isfinite().all())
    logs, few = (logarithm(metric, *pair) for pair in ((start, end), (start[good], end[good])))
    assert logs.status[1] is Status.NOT_FINITE and bool(logs.velocities[1].isnan().all())
    torch.testing.assert_close(logs.velocities[good], few.velocities)


def test_a_curve_that_is_lost_at_the_edge_of_a_hole_has_no_length():
    """The last start was finite where its length was integrated; what the relaxation made of it was not."""

    def holed(z):
        inside = (z.norm(dim=1) < 1)[:, None, None]
        return torch.eye(2, dtype=z.dtype).expand(len(z), -1, -1).masked_fill(inside, torch.nan)

    metric, start, end = FunctionMetric(holed, 2), [[1.378, -1.946], [0.429, -1.069]], [[-0.298, 1.778], [0.176, 1.715]]
    start, end = torch.tensor(start, dtype=torch.float64), torch.tensor(end, dtype=torch.float64)
    found = metric.geodesic(start, end)
    lost = torch.tensor([status is Status.NOT_FINITE for status in found.status])
    assert bool(lost.any())
    for values in (found.length, found.energy, found.speed_variation, found.points[:, 1, 0]):
        assert torch.equal(values.isnan(), lost)
    # a mean is that of the points that are reached, instead of where one of the lost left it
    mean = frechet_mean(metric, torch.cat([start, end]))
    reached = mean.distances.isfinite()
    assert mean.gradient_norm < 1e-3 and reached.tolist() == [one is not Status.NOT_FINITE for one in mean.status]
    assert reached.tolist() == [True, True, False, False]
    torch.testing.assert_close(mean.point, start.mean(0), atol=1e-3, rtol=0)


def test_a_failed_pair_under_a_function_is_no_straight_line():
    space = HalfPlane()
    found = space.geodesic([[0.0, 1.0], [0.0, -1.0]], [[1.0, 1.0], [1.0, 2.0]])
    for values in (found(0.5), found.velocity(0.5), space.log([[0.0, 1.0], [0.0, -1.0]], [[1.0, 1.0], [1.0, 2.0]])):
        assert np.isfinite(values[0]).all() and np.isnan(values[1]).all()


@pytest.mark.parametrize("method", ["solver", "graph"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("metric", metrics(), ids=["pullback", "repaired"])
def test_distances_to_a_latent_without_a_value(metric, method, first):
    z = latents(5)
    known = metric.distances(z, method=method)
    rows = torch.cat([LOST[None], z] if first else [z, LOST[None]])
    with pytest.warns(ConvergenceWarning, match="no distance"):
        found = metric.distances(rows, method=method)
    some = slice(1, None) if first else slice(None, 5)
    torch.testing.assert_close(found[some, some], known, rtol=2e-2, atol=0)
    others = found[0, 1:] if first else found[5, :5]
    assert not bool(others.isfinite().any())


def test_clusters_on_a_graph_that_does_not_reach_a_latent():
    z = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 2.0], [2.0, 1.0], [0.0, -1.0]])
    for clusters in (1, 2, 3):
        found = GeodesicKMeans(clusters, HalfPlane(), method="graph", random_state=0).fit(z)
        assert found.inertia_ == np.inf and np.isfinite(found.cluster_centers_).all()


@pytest.mark.parametrize("lost", [0.0, 1e-9])
def test_what_rounding_hides_of_a_nearly_singular_metric_is_told_by_the_jacobian(lost):
    """The Gram matrix alone puts condition numbers from 1e8 on anywhere between 5e7 and infinity."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    weight[:, 2] = weight[:, 0] - 2 * weight[:, 1] + lost * weight[:, 2]
    decoder = Decoder(lambda z: torch.sin(z @ weight.T.to(z)), latent_dim=3)
    z = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    metric, jacobian = PullbackMetric(decoder), decoder.jacobian(z)
    if lost:
        torch.testing.assert_close(metric.condition_number(z), torch.linalg.cond(jacobian), rtol=1e-4, atol=0)
        volume = torch.linalg.svdvals(jacobian).log().sum(1)
        torch.testing.assert_close(metric.log_volume(z), volume, rtol=0, atol=1e-4)
    else:
        assert (metric.condition_number(z) == torch.inf).all() and (metric.log_volume(z) == -torch.inf).all()
        assert (metric.eigenvalues(z)[:, 0] == 0).all() and (metric.eigenvalues(z)[:, 1] > 0).all()
        found = repair(decoder, z).audit(pairs=0)
        assert all(row.metrics["decoder"].condition_number_q50 == torch.inf for row in found.shells)
    wide = PullbackMetric(Decoder(lambda z: torch.sin(z @ weight[:2].T.to(z)), latent_dim=3))
    assert (wide.condition_number(z) == torch.inf).all()


def test_a_singular_metric_has_an_infinite_condition_number():
    flat = LinearDecoder([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert flat.condition_number(torch.zeros(1, 2, dtype=torch.float64)) == torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latents_that_are_one_in_memory(dtype):
    metric, z = metrics()[1], latents(6).to(dtype)
    same = z[1:2].expand(3, -1)
    for ask in (metric.tensor, metric.log_volume, metric.decoder.jacobian):
        assert torch.equal(ask(same), ask(same.clone()))
    assert torch.equal(metric.exp(same, z[3:] / 9), metric.exp(same.clone(), z[3:] / 9))
    assert torch.equal(metric.distances(same, z[3:]), metric.distances(same.clone(), z[3:]))


def test_no_pairs_decode_to_no_frames():
    none = torch.zeros(0, 2, dtype=torch.float64)
    for metric in metrics():
        assert metric.geodesic(none, none).decode(8).shape == (0, 8, 5)
