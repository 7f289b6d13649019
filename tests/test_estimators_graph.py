"""Estimators whose distances come from a graph: its error, new latents, and memory."""

import tracemalloc
import warnings

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from posthoc_metric.distances import distances
from posthoc_metric.errors import ConvergenceWarning
from posthoc_metric.estimators import GeodesicDistance, GeodesicKMedoids
from posthoc_metric.spaces import Plane


def latents(count, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim))


@pytest.fixture(scope="module")
def rough():
    """Latents, their distances on a graph that is far off, and what its report says."""
    X = latents(800, 10)
    with pytest.warns(ConvergenceWarning):
        return X, *distances(Plane(dim=10), X, method="graph", return_report=True)


@pytest.mark.parametrize("kind", [GeodesicDistance, GeodesicKMedoids])
def test_a_fit_warns_of_its_graph_s_error_as_distances_does(kind, rough):
    X, matrix, report = rough
    options = {} if kind is GeodesicDistance else {"n_clusters": 2}
    found = kind(metric=Plane(dim=10), method="graph", **options)
    with pytest.warns(ConvergenceWarning, match="distances on the graph differ.*method='solver'") as caught:
        found.fit(X)
    assert caught[0].filename == __file__
    assert found.distance_report_.error == pytest.approx(report.error)
    if kind is GeodesicDistance:
        # what `fit_transform` makes of the fit, without fitting anew
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(kind, "fit", lambda self, X, y=None: self)
            np.testing.assert_allclose(found.fit_transform(X), matrix, rtol=1e-12)


def test_a_sound_graph_and_the_solver_say_nothing():
    X = latents(150, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GeodesicDistance(Plane(dim=2)).fit(X).distance_report_.error.p90 < 1e-6
        assert GeodesicDistance(Plane(dim=2)).fit(X[:20]).distance_report_ is None
        assert GeodesicDistance().fit(X).distance_report_ is None
        assert GeodesicKMedoids(1, Plane(dim=2), method="graph").fit(X[:1]).distance_report_ is None


def test_auto_counts_each_pair_once_as_distances_does():
    """Of 80 latents there are 3,160 distinct pairs, which are solved, and 6,400 ordered ones, which are not."""
    with pytest.MonkeyPatch.context() as patched:
        # a fit that makes no graph asks for no distance
        patched.setattr("posthoc_metric.estimators.base.build_distance_graph", None)
        assert GeodesicDistance(Plane(dim=2)).fit(latents(80, 2)).distance_report_ is None


def test_populations_are_told_apart_and_not_by_how_the_graph_joins_them():
    random = np.random.default_rng(0)
    counts, centres = (400, 400, 400, 20), ((0, 0), (6, 0), (3, 9), (3, 6))
    X = np.concatenate([c + 0.6 * random.normal(size=(n, 2)) for c, n in zip(np.array(centres), counts, strict=True)])
    found = GeodesicKMedoids(2, Plane(dim=2), random_state=0).fit(X)
    assert adjusted_rand_score(np.repeat([0, 0, 1, 1], counts), found.labels_) == 1.0


def test_new_latents_are_measured_as_the_training_latents_are():
    X, new = latents(300, 10), latents(40, 10, seed=1)
    found = GeodesicDistance(Plane(dim=10)).fit(X)
    euclidean = np.linalg.norm(new[:, None] - X[None], axis=-1)
    np.testing.assert_allclose(found.transform(new), euclidean, rtol=1e-6)
    np.testing.assert_allclose(found.transform(X[:40]), found.fit_transform(X)[:40], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind, options", [(GeodesicDistance, {}), (GeodesicKMedoids, {"n_clusters": 1, "n_init": 1})])
def test_a_fit_holds_its_matrix_twice_at_most(monkeypatch, kind, options):
    X = latents(1000, 2)
    estimator = kind(metric=Plane(dim=2), method="graph", **options)
    estimator._prepare(X, len(X) ** 2)
    # the graph is made beforehand, as it would take its own share
    monkeypatch.setattr(kind, "_prepare", lambda *_: None)
    tracemalloc.start()
    try:
        estimator.fit_transform(X) if kind is GeodesicDistance else estimator.fit(X)
        assert tracemalloc.get_traced_memory()[1] < 2.6 * len(X) ** 2 * 8
    finally:
        tracemalloc.stop()
