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


def draw_centre(nearest: np.ndarray, chosen: list[int], lost: np.ndarray, random: np.random.RandomState) -> int:
    """The next of centres as in k-means++, in proportion to the squared distances (n,) to the nearest of those chosen.

    While some are infinite it is one of these: in a part that no centre is in, nothing is at any distance of one.
    Those that are ``lost`` (n,), at no distance of any other, are drawn last: a centre there serves nobody else.
    """
    rest = np.setdiff1d(np.arange(len(nearest)), chosen)
    rest = rest[~lost[rest]] if not lost[rest].all() else rest
    unreached = np.isinf(nearest[rest])
    weight = unreached.astype(float) if unreached.any() else nearest[rest] ** 2
    return int(random.choice(rest, p=weight / weight.sum() if weight.sum() > 0 else None))
