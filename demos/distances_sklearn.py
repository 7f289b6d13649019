"""Geodesic distances in scikit-learn: neighbours, clusters and maps of the digits in the shipped VAE's latents.

    python demos/distances_sklearn.py            # 600 digits
    python demos/distances_sklearn.py --quick    # 80 digits, to see that it runs

Prints how well each method separates the digits with Euclidean and with geodesic distances.  UMAP joins in where
umap-learn is installed.  For a cluster, wrap the call: ``with joblib.parallel_config(backend="dask"): main()``.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.cluster import DBSCAN, SpectralClustering
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

import posthoc_metric as pm
from posthoc_metric.distances import MetricTable, distances, neighbours
from posthoc_metric.estimators import GeodesicDistance, GeodesicKMeans, GeodesicKMedoids
from posthoc_metric.examples import digits, digits_vae


def trustworthiness(matrix: np.ndarray, flat: np.ndarray, count: int = 5) -> float:
    """Share of the nearest neighbours of a map that are among the nearest by ``matrix``."""
    near = matrix.argsort(1)[:, 1 : count + 1]
    shown = np.linalg.norm(flat[:, None] - flat[None], axis=2).argsort(1)[:, 1 : count + 1]
    return float(np.mean([len(set(a) & set(b)) / count for a, b in zip(near, shown, strict=True)]))


def main(quick: bool = False, n_jobs: int = 2) -> dict[str, float]:
    """Run every method on both distances; returns the scores that are printed."""
    decoder, encoder = digits_vae()
    data = digits()
    latents = encoder(data.data).double()
    repaired = pm.repair(pm.Decoder(decoder, latent_dim=2), latents, data.data)
    # every graph measures a hundred thousand edges; from a table that takes a tenth of the time
    table = MetricTable(repaired, latents, rtol=1e-2)
    count = 80 if quick else 600
    rows = np.random.default_rng(0).permutation(len(latents))[:count]
    X, y = latents.numpy()[rows], data.labels.numpy()[rows]
    geodesic, report = distances(table, X, method="graph", sample=8 if quick else 64, n_jobs=n_jobs, return_report=True)
    print(
        f"{report.pairs} geodesic distances on a graph of {report.neighbours} neighbours: "
        f"median error {100 * report.error.median:.1f} % on {report.error.pairs} solved pairs"
    )
    euclidean = np.linalg.norm(X[:, None] - X[None], axis=2)
    scores: dict[str, float] = {}

    def note(name: str, value: float) -> None:
        scores[name] = value
        print(f"{name:45s} {value:.3f}")

    for name, matrix in (("Euclidean", euclidean), ("geodesic", geodesic)):
        classify = KNeighborsClassifier(5, metric="precomputed")
        note(f"{name} 5 nearest neighbours, accuracy", float(cross_val_score(classify, matrix, y, cv=5).mean()))
        affinity = np.exp(-((matrix / np.median(np.sort(matrix, 1)[:, 7])) ** 2) / 2)
        found = SpectralClustering(10, affinity="precomputed", random_state=0).fit_predict(affinity)
        note(f"{name} spectral clusters, adjusted Rand", adjusted_rand_score(y, found))
        radius = float(np.quantile(np.sort(matrix, 1)[:, 4], 0.5))
        found = DBSCAN(eps=radius, min_samples=4, metric="precomputed").fit_predict(matrix)
        note(f"{name} DBSCAN, adjusted Rand", adjusted_rand_score(y, found))
        flat = TSNE(metric="precomputed", init="random", perplexity=min(30, count // 4), random_state=0).fit_transform(
            matrix
        )
        note(f"{name} t-SNE, neighbours kept", trustworthiness(matrix, flat))
        umap = _umap(matrix)
        if umap is not None:
            note(f"{name} UMAP, neighbours kept", trustworthiness(matrix, umap))
    sparse = neighbours(table, X, 10, sample=0, n_jobs=n_jobs)
    classify = KNeighborsClassifier(5, metric="precomputed").fit(sparse, y)
    note("sparse geodesic neighbours, training accuracy", classify.score(sparse, y))
    medoids = GeodesicKMedoids(10, table, method="graph", n_jobs=n_jobs, random_state=0).fit(X)
    note("geodesic k-medoids, adjusted Rand", adjusted_rand_score(y, medoids.labels_))
    # a Fréchet mean asks for a geodesic from every point of its cluster at every step: fewer digits
    few = 12 if quick else 120
    means = GeodesicKMeans(
        2 if quick else 10, table, method="graph", max_iter=1 if quick else 3, n_jobs=n_jobs, random_state=0
    ).fit(X[:few])
    note("geodesic k-means of some digits, adjusted Rand", adjusted_rand_score(y[:few], means.labels_))
    pipe = make_pipeline(
        GeodesicDistance(table, method="graph", n_jobs=n_jobs), KNeighborsClassifier(metric="precomputed")
    )
    search = GridSearchCV(pipe, {"kneighborsclassifier__n_neighbors": [1, 5, 9]}, cv=2 if quick else 3).fit(X, y)
    note("grid search over a pipeline, best accuracy", search.best_score_)
    return scores


def _umap(matrix: np.ndarray) -> np.ndarray | None:
    try:
        import umap
    except ImportError:
        return None
    return umap.UMAP(metric="precomputed", random_state=0).fit_transform(matrix)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="80 digits, to see that it runs")
    parser.add_argument("--n-jobs", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.quick, arguments.n_jobs)
