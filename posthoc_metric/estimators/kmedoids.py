"""Clusters around training points."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import check_count
from ..parallel import cut
from .centred import CentredClusterer, check_clusters, draw_centre

#: rows of a table that are copied at once
_ROWS = 256


class GeodesicKMedoids(CentredClusterer):
    """k-medoids on geodesic distances: the centres are training latents, and a distance matrix is all it takes.

    Medoids are initialised as in k-means++ and then moved by the iteration of Park & Jun: every point to its nearest
    medoid, every medoid to the point of its cluster with the least sum of distances, until nothing changes.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters.
    metric : Metric, Decoder, callable or None, default=None
        As in :class:`GeodesicDistance`.
    n_init : int, default=10
        Initialisations, of which the one with the best result is kept; they share one distance matrix.
    max_iter : int, default=100
        Iterations after one initialisation at most.
    method : {"auto", "solver", "graph"}, default="auto"
        As in :func:`posthoc_metric.distances.distances`.
    n_jobs : int or None, default=None
        As in joblib.
    random_state : int, RandomState instance or None, default=None
        Of the initialisation.

    Attributes
    ----------
    metric_ : Metric or None
        The metric in use.
    cluster_centers_ : ndarray of shape (n_clusters, n_features_in_)
        The medoids.
    medoid_indices_ : ndarray of shape (n_clusters,)
        Their rows in the training latents.
    labels_ : ndarray of shape (n_samples,)
        Cluster of each training latent.
    inertia_ : float
        Sum of the distances to the nearest medoid.
    n_iter_ : int
        Iterations after the best initialisation.
    distance_report_ : DistanceReport or None
        As in :class:`GeodesicDistance`.
    n_features_in_ : int
        Latent dimension.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, where ``X`` has string names.

    References
    ----------
    Park, H.-S. & Jun, C.-H. (2009). A simple and fast algorithm for K-medoids clustering.
    Arthur, D. & Vassilvitskii, S. (2007). k-means++: the advantages of careful seeding.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        metric: Any = None,
        *,
        n_init: int = 10,
        max_iter: int = 100,
        method: str = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
    ):
        self.n_clusters = n_clusters
        self.metric = metric
        self.n_init = n_init
        self.max_iter = max_iter
        self.method = method
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> GeodesicKMedoids:
        """Cluster the training latents.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training latents.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            Fitted estimator.
        """
        X = self._checked(X)
        check_clusters(self.n_clusters, len(X))
        check_count(self.n_init, "n_init", 1, "the number of initialisations")
        check_count(self.max_iter, "max_iter", 1, "the most iterations")
        random = self._random()
        self._prepare(X, len(X) * (len(X) - 1) // 2)
        table = self._among(X).astype(np.float64, copy=False)
        table[np.isnan(table)] = np.inf
        best: tuple[float, np.ndarray, int] | None = None
        for _ in range(self.n_init):
            medoids, steps = _alternate(table, initialise(table, self.n_clusters, random), self.max_iter)
            cost = float(table[:, medoids].min(1).sum())
            if best is None or cost < best[0]:
                best = cost, medoids, steps
        assert best is not None
        self.inertia_, self.medoid_indices_, self.n_iter_ = best
        self.cluster_centers_ = X[self.medoid_indices_]
        self._reached = self._reach_training(self.medoid_indices_)
        self.labels_ = table[:, self.medoid_indices_].argmin(1)
        return self


def initialise(table: np.ndarray, count: int, random: np.random.RandomState) -> np.ndarray:
    """k-means++ on a distance matrix."""
    # each is at no distance of itself
    lost = np.isfinite(table).sum(1) <= 1
    chosen = [int(random.randint(len(table)))]
    if lost[chosen[0]]:
        chosen = [draw_centre(np.ones(len(table)), [], lost, random)]
    while len(chosen) < count:
        chosen.append(draw_centre(table[:, chosen].min(1), chosen, lost, random))
    return np.array(chosen)


def _alternate(table: np.ndarray, medoids: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    for step in range(1, most + 1):
        near = table[:, medoids]
        # what no medoid reaches would make every sum of a cluster infinite
        labels = np.where(np.isinf(near.min(1)), -1, near.argmin(1))
        # a medoid stays its own even where another coincides with it
        labels[medoids] = np.arange(len(medoids))
        moved = medoids.copy()
        for cluster in range(len(medoids)):
            members = np.flatnonzero(labels == cluster)
            # a few rows at once: the whole may be as large as the table
            blocks = (table[np.ix_(members[low:high], members)] for low, high in cut(len(members), _ROWS))
            sums = np.concatenate([block.sum(1) for block in blocks])
            here = int(np.flatnonzero(members == medoids[cluster])[0])
            if sums.min() < sums[here]:
                moved[cluster] = members[sums.argmin()]
        if (moved == medoids).all():
            return medoids, step
        medoids = moved
    return medoids, most
