"""What clusterers with centres share: distances to the centres, and the nearest of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin

from .._arrays import check_count
from ..errors import InvalidArgumentError
from .base import GeodesicEstimator


class CentredClusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, GeodesicEstimator):
    """Base of clusterers that fit ``cluster_centers_`` and what a graph must know of them, ``_reached``."""

    cluster_centers_: np.ndarray
    _reached: np.ndarray | None

    def transform(self, X: Any) -> np.ndarray:
        """Distances to the centres.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Latents.

        Returns
        -------
        X_new : ndarray of shape (n_samples, n_clusters)
            Distances.
        """
        return self._to_centres(X)

    def predict(self, X: Any) -> np.ndarray:
        """The nearest centre's cluster.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Latents.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Cluster of each latent.
        """
        return np.nan_to_num(self._to_centres(X), nan=np.inf).argmin(1)

    def _to_centres(self, X: Any) -> np.ndarray:
        """What ``transform`` gives, before ``set_output`` makes a table of it."""
        X = self._checked(X, fitted=True)
        return self._distances(X, self.cluster_centers_.astype(X.dtype, copy=False), self._reached)

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def check_clusters(value: Any, count: int) -> None:
    """Raise unless ``value`` is a number of clusters that ``count`` points can fill."""
    if check_count(value, "n_clusters", 1, "the number of clusters") > count:
        raise InvalidArgumentError(
            f"`n_clusters` must be at most n_samples={count}; got {value}. Ask for fewer clusters."
        )
