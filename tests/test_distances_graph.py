"""Graphs between populations of unequal size, where distances are Euclidean, and warnings of their error."""

import tracemalloc
import warnings

import numpy as np
import pytest
import torch

from posthoc_metric.distances import distances
from posthoc_metric.distances.graph import build_distance_graph
from posthoc_metric.distances.job import warn
from posthoc_metric.distances.report import DistanceReport, ErrorEstimate
from posthoc_metric.errors import ConvergenceWarning
from posthoc_metric.spaces import Plane

COUNTS = (700, 250, 20)


def populations(dim, seed=0):
    """Latents of one large, one smaller and one rare population, and which each is of."""
    centres = torch.zeros(3, dim, dtype=torch.float64)
    centres[:, :2] = torch.tensor([(0.0, 0.0), (12.0, 0.0), (6.0, 14.0)])
    generator = torch.Generator().manual_seed(seed)
    label = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    return centres[label] + 0.6 * torch.randn(len(label), dim, dtype=torch.float64, generator=generator), label


@pytest.mark.parametrize("dim, median, p90", [(2, 1.001, 1.02), (10, 1.1, 1.2), (30, 1.3, 1.45)])
def test_distances_between_populations_are_the_straight_lines(dim, median, p90):
    z, label = populations(dim)
    ratio = distances(Plane(dim=dim), z, sample=0) / torch.cdist(z, z)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        between = ratio[label == one][:, label == other]
        assert between.median() < median and between.quantile(0.9) < p90


@pytest.mark.parametrize("dim", [2, 10])
def test_far_edges_are_few_and_the_same_whatever_the_order_of_the_points(dim):
    z, _ = populations(dim)
    graph = build_distance_graph(Plane(dim=dim), z, 48)
    near = build_distance_graph(Plane(dim=dim), z, 48).search.kneighbors_graph(z.numpy(), 49)
    assert graph.lengths.nnz <= 1.3 * ((near + near.T) > 0).nnz
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
    shuffled = build_distance_graph(Plane(dim=dim), z[order], 48)
    np.testing.assert_allclose(shuffled.lengths.toarray(), graph.lengths.toarray()[order][:, order], rtol=1e-12)


def test_outliers_do_not_take_all_far_edges():
    z, label = populations(2)
    far = 200 * torch.nn.functional.normalize(torch.randn(40, 2, generator=torch.Generator().manual_seed(2)).double())
    whole = torch.cat([z, far])
    ratio = distances(Plane(dim=2), whole, sample=0, neighbours=48) / torch.cdist(whole, whole)
    assert ratio[: len(z), : len(z)][label == 0][:, label == 1].quantile(0.9) < 1.02


def test_a_point_that_joins_is_measured_as_the_nodes_are():
    z, label = populations(10)
    space, others = Plane(dim=10), populations(10, seed=1)[0][::7]
    # every node of a complete graph is joined to every other
    complete = build_distance_graph(space, z[::4], len(z))
    found = complete.through(space, others, complete.reach(space, z[::4]))
    np.testing.assert_allclose(found, torch.cdist(others, z[::4]), rtol=1e-6, atol=1e-9)
    graph = build_distance_graph(space, z, 48)
    reached = graph.reach(space, z[:50])
    ratio = graph.through(space, others, reached) / torch.cdist(others, z[:50]).numpy()
    kind = populations(10, seed=1)[1][::7].numpy()
    for one in (1, 2):
        assert np.median(ratio[kind == one]) < 1.12
    # and by itself as in a batch
    np.testing.assert_array_equal(
        graph.through(space, others[3:4], reached)[0], graph.through(space, others, reached)[3]
    )


def test_a_matrix_is_held_once():
    z = np.random.default_rng(0).standard_normal((1500, 2))
    tracemalloc.start()
    try:
        found = distances(Plane(dim=2), z, method="graph", neighbours=5, sample=0)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * found.nbytes
    finally:
        tracemalloc.stop()


def report(median, p90, calibrated=1.0):
    error = ErrorEstimate(64, median, p90, p90, median, 1.0, 0)
    return DistanceReport("graph", 64, 0, 0, 0.0, error, 48, 0, calibrated, ())


@pytest.mark.parametrize("found", [report(0.03, 0.03), report(0.001, 0.5), report(0.03, 0.05, 0.9)])
def test_errors_of_the_graph_are_warned_of_in_the_median_beyond_it_and_after_calibration(found):
    with pytest.warns(ConvergenceWarning, match="differ from the solver's") as caught:
        warn(found)
    assert ("calibrate=True" in str(caught[0].message)) == (found.calibrated == 1.0)


def test_small_errors_of_the_graph_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn(report(0.01, 0.05))
