"""The estimators by scikit-learn's own checks, and on curved metrics."""

import pickle
from functools import partial

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.cluster import DBSCAN, SpectralClustering
from sklearn.manifold import TSNE
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import posthoc_metric as pm
from posthoc_metric.distances.pairs import solve
from posthoc_metric.errors import ConvergenceWarning, InvalidArgumentError
from posthoc_metric.estimators import GeodesicDistance, GeodesicKMeans, GeodesicKMedoids, kmeans
from posthoc_metric.geodesic import frechet_mean
from posthoc_metric.spaces import HalfPlane, Plane, Sphere


class PlaneOf:
    """A metric made at fit, so that scikit-learn's checks, which vary the number of features, reach the solver.

    Its representation holds no address: test names must be the same in every process.
    """

    def __call__(self, X):
        return Plane(dim=X.shape[1])

    def __repr__(self):
        return "plane_of"


plane_of = PlaneOf()


def estimators():
    return [
        GeodesicDistance(),
        GeodesicDistance(n_landmarks=3),
        GeodesicKMedoids(),
        GeodesicKMeans(),
        GeodesicKMeans(3, mean_options={"tol": 1e-2}, mean_points=3),
        GeodesicDistance(plane_of, n_landmarks=2, method="solver"),
        GeodesicKMedoids(3, plane_of, method="graph"),
    ]


@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.ConvergenceWarning")
@parametrize_with_checks(estimators())
def test_scikit_learn_s_own_checks(estimator, check):
    check(estimator)


def blobs(seed=0, count=8):
    random = np.random.default_rng(seed)
    centres = np.array([[0.0, 0.5], [1.0, 0.5], [0.5, 3.0]])
    X = np.concatenate([centre * np.exp(0.05 * random.standard_normal((count, 2))) for centre in centres])
    return X, np.repeat(np.arange(3), count)


def same_partition(a, b):
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize("kind", [GeodesicKMeans, GeodesicKMedoids])
def test_distances_to_centres_have_names(kind):
    X, _ = blobs()
    model = kind(3, random_state=0).fit(X)
    names = [f"{kind.__name__.lower()}{i}" for i in range(3)]
    assert list(model.get_feature_names_out()) == names
    assert model.set_output(transform="default").transform(X).shape == (len(X), 3)
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    labels = model.predict(X)
    table = model.set_output(transform="pandas").transform(X)
    assert isinstance(table, pandas.DataFrame) and list(table.columns) == names
    assert np.array_equal(model.predict(X), labels)


def test_distances_are_the_metric_s():
    X, _ = blobs()
    space = HalfPlane()
    matrix = GeodesicDistance(space).fit_transform(X)
    exact = space.distance(np.repeat(X, len(X), 0), np.tile(X, (len(X), 1))).reshape(len(X), -1)
    np.testing.assert_allclose(matrix, exact, rtol=1e-4, atol=1e-12)
    few = GeodesicDistance(space, n_landmarks=4, random_state=0).fit(X)
    np.testing.assert_allclose(few.transform(X[:5]), exact[:5][:, few.landmark_indices_], rtol=1e-4, atol=1e-12)
    assert len(set(few.landmark_indices_)) == 4
    assert list(few.get_feature_names_out()) == [f"geodesicdistance{i}" for i in range(4)]


@pytest.mark.parametrize("kind", [GeodesicKMedoids, GeodesicKMeans])
def test_clusters_are_found(kind):
    X, y = blobs()
    found = kind(3, HalfPlane(), random_state=0).fit(X)
    assert same_partition(found.labels_, y)
    assert (found.predict(X) == found.labels_).all()
    power = 2 if kind is GeodesicKMeans else 1
    assert (found.transform(X).min(1) ** power).sum() == pytest.approx(found.inertia_, rel=1e-6)
    again = pickle.loads(pickle.dumps(found))
    assert (again.predict(X) == found.labels_).all()


def test_the_mean_of_a_cluster_is_its_frechet_mean_and_not_the_average():
    X = np.array([[0.0, 1.0], [0.0, np.e**2]])
    found = GeodesicKMeans(1, HalfPlane(), random_state=0).fit(X)
    np.testing.assert_allclose(found.cluster_centers_, [[0.0, np.e]], rtol=1e-2, atol=1e-2)
    assert found.inertia_ == pytest.approx(2.0, rel=1e-3) and found.center_status_ == [True]


def test_alternation_with_bounds_is_lloyd_s_and_solves_for_fewer_distances(monkeypatch):
    random, space, count = np.random.default_rng(1), HalfPlane(), 60
    X = np.stack([random.normal(size=count), np.exp(random.normal(size=count))], axis=1)
    asked = []

    def counting(metric, a, b, pairs, *rest, **options):
        asked.append(pairs.count)
        return solve(metric, a, b, pairs, *rest, **options)

    monkeypatch.setattr(kmeans, "solve", counting)
    found = GeodesicKMeans(5, space, tol=0, random_state=0).fit(X)
    assert found.n_iter_ >= 5
    # a first round would ask for all that are not a latent's own: 240
    assert sum(asked) < (found.n_iter_ - 1) * 4 * count / 2
    centres = found.cluster_centers_
    for _ in range(2):
        table = space.distance(np.repeat(X, 5, 0), np.tile(centres, (count, 1))).reshape(count, 5)
        labels = table.argmin(1)
        centres = np.stack([frechet_mean(space, torch.from_numpy(X[labels == c])).point.numpy() for c in range(5)])
    # it has ended where the plain alternation stays
    assert (labels == found.labels_).all()
    np.testing.assert_allclose(centres, found.cluster_centers_, rtol=0, atol=1e-2)


def test_a_cluster_that_loses_its_last_latent_keeps_its_mean():
    X, space = np.array([[0.0, 1.0], [0.5, 1.0], [0.0, 4.0]]), HalfPlane()
    found = GeodesicKMeans(2, space, random_state=0).fit(X)
    one, both = kmeans._Mean(X[2], True, np.array([2]), np.zeros(1)), kmeans._Mean(X[0], True, np.arange(2), np.ones(2))
    _, empty = found._means(X, [both.members, np.zeros(0, dtype=int)], [both, one], 2)
    assert (empty.point == X[2]).all()
    # its former distances are not taken for those of latents it no longer has
    table = found._follow(X, np.array([[0.0, 1.4], [0.5, 1.4], [1.4, 0.0]]), [both, one], [both, empty])
    assert table[2, 1] == pytest.approx(0, abs=1e-6) and table[:, 0].argmin() == 0


def test_a_cluster_s_mean_is_found_with_the_options_it_is_given():
    X, _ = blobs()
    # no step is taken, so the first guess, the average or the nearest of the points to it, is all there is
    with pytest.warns(ConvergenceWarning, match="Fréchet means"):
        found = GeodesicKMeans(1, HalfPlane(), mean_options={"max_steps": 0, "tol": 1e-8}, max_iter=1).fit(X)
    assert found.center_status_ == [False]
    assert np.isclose(found.cluster_centers_[0], [*X, X.mean(0)]).all(1).any()
    for options, words in [(3, "dict"), ({"weights": X[:, 0]}, "weights"), ({"tol": -1}, "tol"), ({"tl": 1}, "tl")]:
        with pytest.raises(InvalidArgumentError, match=words):
            GeodesicKMeans(2, HalfPlane(), mean_options=options).fit(X)


def test_a_mean_of_some_latents_is_that_of_those_and_the_same_for_any_workers():
    X, _ = blobs()
    means = GeodesicKMeans(2, HalfPlane(), mean_points=5, n_jobs=1, random_state=0).fit(X)
    again = GeodesicKMeans(2, HalfPlane(), mean_points=5, n_jobs=2, random_state=0).fit(X)
    assert (again.cluster_centers_ == means.cluster_centers_).all() and all(means.center_status_)
    one = GeodesicKMeans(1, HalfPlane(), mean_points=1, random_state=0).fit(X)
    assert np.isclose(X, one.cluster_centers_, atol=1e-5).all(1).any(), "not one of the latents"
    # five latents add about a fifth of the inertia within their clusters
    every = GeodesicKMeans(2, HalfPlane(), random_state=0).fit(X)
    assert every.inertia_ <= means.inertia_ * (1 + 1e-3) and means.inertia_ <= 1.5 * every.inertia_
    all_of_them = GeodesicKMeans(2, HalfPlane(), mean_points=len(X), random_state=0).fit(X)
    assert (all_of_them.cluster_centers_ == every.cluster_centers_).all()


def test_medoids_are_the_best_of_all():
    X, _ = blobs(count=4)
    space = HalfPlane()
    found = GeodesicKMedoids(1, space, random_state=0).fit(X)
    matrix = GeodesicDistance(space).fit_transform(X)
    assert found.medoid_indices_[0] == matrix.sum(1).argmin()
    assert found.inertia_ == pytest.approx(matrix.sum(1).min())


def test_pipelines_grid_searches_and_precomputed_estimators():
    X, y = blobs()
    pipe = make_pipeline(GeodesicDistance(HalfPlane()), KNeighborsClassifier(metric="precomputed"))
    search = GridSearchCV(pipe, {"kneighborsclassifier__n_neighbors": [1, 3]}, cv=3).fit(X, y)
    assert search.best_score_ == 1.0
    matrix = GeodesicDistance(HalfPlane()).fit_transform(X)
    assert same_partition(DBSCAN(eps=0.4, min_samples=2, metric="precomputed").fit_predict(matrix), y)
    affinity = np.exp(-(matrix**2))
    spectral = SpectralClustering(3, affinity="precomputed", random_state=0).fit_predict(affinity)
    assert same_partition(spectral, y)
    flat = TSNE(metric="precomputed", init="random", perplexity=5, max_iter=250, random_state=0).fit_transform(matrix)
    assert flat.shape == (len(X), 2)
    near = pm.distances.neighbours(HalfPlane(), X, 5, sample=0) if hasattr(pm.distances, "neighbours") else None
    if near is not None:
        knn = KNeighborsClassifier(5, metric="precomputed").fit(near, y)
        assert knn.score(near, y) == 1.0


def test_a_clone_shares_the_metric_and_forgets_the_fit():
    space = Sphere()
    copy = clone(GeodesicKMedoids(3, space).fit(blobs()[0]))
    assert copy.metric is space and not hasattr(copy, "labels_")


def test_a_decoder_is_repaired_on_the_training_latents():
    torch.manual_seed(0)
    decoder = pm.Decoder(
        torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)), latent_dim=2
    )
    X = np.random.default_rng(0).standard_normal((60, 2))
    found = GeodesicDistance(decoder, n_landmarks=1, random_state=0).fit(X)
    assert isinstance(found.metric_, pm.RepairedMetric)
    made = GeodesicDistance(partial(pm.repair, decoder), n_landmarks=1, random_state=0).fit(X)
    np.testing.assert_array_equal(found.transform(X[:4]), made.transform(X[:4]))


def test_bad_input_is_named():
    X, _ = blobs()
    for estimator, words in [
        (GeodesicDistance("cosine"), "Metric"),
        (GeodesicDistance(lambda X: 3), "made int"),
        (GeodesicDistance(Sphere(5)), "5 features"),
        (GeodesicDistance(n_landmarks=0), "n_landmarks"),
        (GeodesicKMedoids(0), "n_clusters"),
        (GeodesicKMeans(1000), "at most"),
        (GeodesicKMedoids(3, n_init=0), "n_init"),
        (GeodesicKMeans(3, mean_points=0), "`mean_points`"),
        *((GeodesicKMeans(3, tol=tol), "`tol`") for tol in (np.inf, np.nan, "a", -1.0, None, True)),
        (GeodesicDistance(Sphere(), method="magic"), "method"),
    ]:
        with pytest.raises(InvalidArgumentError, match=words):
            estimator.fit(X).transform(X)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.ConvergenceWarning")
def test_a_latent_without_a_metric_leaves_the_clusters_of_the_others_alone(seed):
    # the last lies below the half-plane; seed 5 sows it first
    X = np.array([[0.0, 1.0], [0.1, 1.0], [9.0, 1.0], [0.0, -1.0]])
    medoids = GeodesicKMedoids(3, HalfPlane(), random_state=seed).fit(X)
    means = GeodesicKMeans(3, HalfPlane(), random_state=seed).fit(X)
    for found in (medoids, means):
        assert found.labels_[2] not in found.labels_[:2] and found.cluster_centers_.shape == (3, 2)
        assert (found.predict(X)[:3] == found.labels_[:3]).all()
    assert means.inertia_ == np.inf and all(means.center_status_) and 1 <= means.n_iter_ <= 20


@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.ConvergenceWarning")
def test_a_latent_without_a_metric_takes_part_in_no_mean():
    X = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [0.0, -1.0]])
    found, alone = (GeodesicKMeans(2, HalfPlane(), random_state=0).fit(rows) for rows in (X, X[:3]))
    np.testing.assert_allclose(found.cluster_centers_, alone.cluster_centers_, atol=1e-6)
    assert (found.labels_[:3] == alone.labels_).all() and found.inertia_ == np.inf


def test_a_tolerance_of_zero_is_one():
    assert GeodesicKMeans(3, tol=0, random_state=0).fit(blobs()[0]).n_iter_ >= 2
    assert GeodesicKMeans(3, tol=np.float32(0.5), n_jobs=1).fit(blobs()[0]).n_iter_ >= 1


def test_an_annotated_table_is_refused_with_what_to_give_instead():
    class Annotated:
        obsm = {"X_vae": np.zeros((3, 2))}

    class Sliced(Annotated):
        """As anndata's own: it has a length and parts of its own kind, of which NumPy makes ever deeper arrays."""

        shape = (3, 2)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return Sliced()

    for table in (Annotated(), Sliced()):
        with pytest.raises(
            TypeError, match=rf"got {type(table).__name__}.*Give one of them, such as X\.obsm\[name\]\."
        ):
            GeodesicDistance().fit(table)
    with pytest.raises(TypeError, match=r"got csr_matrix.*toarray.*[a-z]\.$"):
        GeodesicDistance().fit(scipy.sparse.csr_matrix(np.eye(3)))


def split(z):
    """Flat, but for a strip where there is no metric: two parts without a path between them."""
    out = torch.eye(2, dtype=z.dtype).repeat(len(z), 1, 1)
    out[z[:, 0].abs() < 1] = float("nan")
    return out


@pytest.mark.parametrize("kind", [GeodesicKMedoids, GeodesicKMeans])
@pytest.mark.parametrize("strays", [0, 3])
@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.ConvergenceWarning")
def test_every_part_gets_a_centre_and_what_lies_in_none_does_not(kind, strays):
    random = np.random.default_rng(0)
    middle = np.repeat([[-3.0, 0.0], [3.0, 0.0], [0.0, 0.0]], (5, 5, strays), axis=0)
    X = middle + 0.3 * random.normal(size=middle.shape)
    options = {"n_init": 1} if kind is GeodesicKMedoids else {}
    for seed in range(2):
        found = kind(2, pm.FunctionMetric(split, 2), method="solver", random_state=seed, **options).fit(X)
        assert same_partition(found.labels_[:10], np.repeat([0, 1], 5))
        assert np.isfinite(found.inertia_) == (strays == 0)


def test_latents_that_carry_a_graph_are_clustered_as_the_same_without():
    X = torch.rand(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    with_graph, without = (
        GeodesicKMeans(2, HalfPlane(), random_state=0).fit(rows) for rows in (X.clone().requires_grad_(), X)
    )
    assert np.array_equal(with_graph.cluster_centers_, without.cluster_centers_)
    assert np.array_equal(with_graph.predict(X.clone().requires_grad_()), without.labels_)
