"""Distances to landmarks as features, or to all training points as a precomputed matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin

from .._arrays import check_count
from ..distances.shortest import symmetric
from .base import GeodesicEstimator


class GeodesicDistance(ClassNamePrefixFeaturesOutMixin, TransformerMixin, GeodesicEstimator):
    """Geodesic distances to landmarks.

    With ``n_landmarks=None`` the landmarks are all training points: ``fit_transform`` then gives the square matrix and
    ``transform`` the rectangular one that estimators with ``metric="precomputed"`` take, so that
    ``make_pipeline(GeodesicDistance(metric), KNeighborsClassifier(metric="precomputed"))`` works as it is.

    Parameters
    ----------
    metric : Metric, Decoder, callable or None, default=None
        A metric; a decoder, which is repaired on the training latents; a function of the training latents that
        gives a metric, such as ``functools.partial(pm.repair, decoder)``; or None for the Euclidean metric.
    n_landmarks : int or None, default=None
        How many training points distances are measured to: chosen one after another, each the farthest from those
        before in Euclidean distance, from a random first one. None takes all, in their order.
    method : {"auto", "solver", "graph"}, default="auto"
        As in :func:`posthoc_metric.distances.distances`.
    n_jobs : int or None, default=None
        As in joblib.
    random_state : int, RandomState instance or None, default=None
        Of the first landmark.

    Attributes
    ----------
    metric_ : Metric or None
        The metric in use.
    landmarks_ : ndarray of shape (n_landmarks_, n_features_in_)
        The landmarks.
    landmark_indices_ : ndarray of shape (n_landmarks_,)
        Their rows in the training latents.
    distance_report_ : DistanceReport or None
        The error of the graph's distances on a sample of pairs that were solved; None where there is no graph.
    n_features_in_ : int
        Latent dimension.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, where ``X`` has string names.

    References
    ----------
    Gonzalez, T. (1985). Clustering to minimize the maximum intercluster distance. (Farthest-first landmarks.)

    Examples
    --------
    >>> import numpy as np
    >>> from posthoc_metric.estimators import GeodesicDistance
    >>> from posthoc_metric.spaces import HalfPlane
    >>> X = np.array([[0.0, 1.0], [0.0, np.e], [0.0, np.e**3]])
    >>> GeodesicDistance(HalfPlane()).fit_transform(X).round(2)
    array([[0., 1., 3.],
           [1., 0., 2.],
           [3., 2., 0.]])
    """

    def __init__(
        self,
        metric: Any = None,
        *,
        n_landmarks: int | None = None,
        method: str = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
    ):
        self.metric = metric
        self.n_landmarks = n_landmarks
        self.method = method
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> GeodesicDistance:
        """Choose the landmarks.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training latents.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            Fitted transformer.
        """
        X = self._checked(X)
        count = self.n_landmarks
        if count is not None:
            check_count(count, "n_landmarks", 1, "the number of landmarks (None for all points)")
        self._prepare(X, len(X) * (len(X) - 1) // 2 if count is None else len(X) * min(count, len(X)))
        if count is None:
            self.landmark_indices_ = np.arange(len(X))
        else:
            first = self._random().randint(len(X))
            self.landmark_indices_ = _farthest_first(X, min(count, len(X)), first)
        self.landmarks_ = X[self.landmark_indices_]
        self._reached = self._reach_training(self.landmark_indices_)
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray:
        """Fit, and give the distances of the training latents; each pair is computed once.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training latents.
        y : Ignored
            Not used, present for API consistency by convention.
        **fit_params : dict
            Not used, present for API consistency by convention.

        Returns
        -------
        X_new : ndarray of shape (n_samples, n_landmarks_)
            Distances.
        """
        self.fit(X, y)
        if self.n_landmarks is not None:
            return self.transform(X)
        if self._reached is None:
            return self._distances(self.landmarks_)
        return symmetric(self._reached[self._rows].astype(self.landmarks_.dtype, copy=False))

    def transform(self, X: Any) -> np.ndarray:
        """Distances to the landmarks.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Latents.

        Returns
        -------
        X_new : ndarray of shape (n_samples, n_landmarks_)
            Distances.
        """
        X = self._checked(X, fitted=True)
        return self._distances(X, self.landmarks_.astype(X.dtype, copy=False), self._reached)

    @property
    def _n_features_out(self) -> int:
        return len(self.landmarks_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _farthest_first(X: np.ndarray, count: int, first: int) -> np.ndarray:
    chosen = [first]
    nearest = np.linalg.norm(X - X[first], axis=1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(X - X[chosen[-1]], axis=1))
    return np.array(chosen)
