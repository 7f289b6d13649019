"""Clusters around Fréchet means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch

from .._arrays import check_count
from .._warn import warn_caller
from ..distances.forecast import forecasts
from ..distances.pairs import SomePairs, solve
from ..errors import ConvergenceWarning, InvalidArgumentError
from ..geodesic import frechet_mean
from ..parallel import run_blocks
from .base import to_latents
from .centred import CentredClusterer, check_clusters, draw_centre

#: share of a distance by which solved ones may be off
_SLACK = 2e-3
#: what makes the means of one iteration cheaper
_REMEDIES = {
    "means": "`mean_points` finds each from that many latents of its cluster; `n_jobs` spreads them over cores"
}


@dataclass(frozen=True)
class _Mean:
    """A centre (d,), whether it was found, the rows it was found from (m,) and their distances to it (m,)."""

    point: np.ndarray
    converged: bool
    members: np.ndarray
    distances: np.ndarray


class GeodesicKMeans(CentredClusterer):
    """k-means with geodesic distances and Fréchet means: Lloyd's algorithm on a manifold.

    Where distances are solved for, the triangle inequality tells which a mean that has moved makes superfluous.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters.
    metric : Metric, Decoder, callable or None, default=None
        As in :class:`GeodesicDistance`.
    max_iter : int, default=20
        Iterations at most.
    tol : float, default=1e-3
        Relative decrease of the inertia at which it ends.
    method : {"auto", "solver", "graph"}, default="auto"
        As in :func:`posthoc_metric.distances.distances`.
    mean_options : dict or None, default=None
        Options of ``frechet_mean`` (``from posthoc_metric.geodesic import frechet_mean``), by which every mean is
        found: ``tol``, ``rough_tol``, ``max_steps`` and those of its geodesics.  A Euclidean mean needs none.
    mean_points : int or None, default=None
        Latents of a cluster, drawn at random once, that its mean is found from; by default all.  Every step to a mean
        takes a geodesic from each, which under ReLU may be half a second; a mean of m of them adds about 1 / m to the
        inertia.
    n_jobs : int or None, default=None
        As in joblib; also over the means.
    random_state : int, RandomState instance or None, default=None
        Of the initialisation by k-means++, and of the latents that ``mean_points`` leaves.

    Attributes
    ----------
    metric_ : Metric or None
        The metric in use.
    cluster_centers_ : ndarray of shape (n_clusters, n_features_in_)
        The means.
    center_status_ : list of bool
        Whether each mean was found to the tolerance of ``frechet_mean``.
    labels_ : ndarray of shape (n_samples,)
        Cluster of each training latent.
    inertia_ : float
        Sum of the squared distances to the nearest mean; infinite where a latent has none, as outside the metric. Such
        latents take part in no mean.
    n_iter_ : int
        Iterations run.
    distance_report_ : DistanceReport or None
        As in :class:`GeodesicDistance`.
    n_features_in_ : int
        Latent dimension.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, where ``X`` has string names.

    References
    ----------
    Pennec, X. (2006). Intrinsic statistics on Riemannian manifolds.
    Arthur, D. & Vassilvitskii, S. (2007). k-means++: the advantages of careful seeding.
    Elkan, C. (2003). Using the triangle inequality to accelerate k-means.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        metric: Any = None,
        *,
        max_iter: int = 20,
        tol: float = 1e-3,
        method: str = "auto",
        mean_options: Mapping[str, Any] | None = None,
        mean_points: int | None = None,
        n_jobs: int | None = None,
        random_state: Any = None,
    ):
        self.n_clusters = n_clusters
        self.metric = metric
        self.max_iter = max_iter
        self.tol = tol
        self.method = method
        self.mean_options = mean_options
        self.mean_points = mean_points
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> GeodesicKMeans:
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
        check_count(self.max_iter, "max_iter", 1, "the most iterations")
        _check_tol(self.tol)
        _check_options(self.mean_options)
        if self.mean_points is not None:
            check_count(self.mean_points, "mean_points", 1, "the latents that a mean is found from")
        self._prepare(X, len(X) * self.n_clusters)
        random = self._random()
        chosen, table = self._initialise(X, random)
        # one order for all iterations, so that a cluster that stays keeps its mean
        order = np.arange(len(X)) if self.mean_points is None else random.permutation(len(X))
        means = [_Mean(centre, True, np.zeros(0, dtype=int), np.zeros(0)) for centre in X[chosen].copy()]
        before: tuple[np.ndarray, float] | None = None
        for step in range(1, self.max_iter + 1):
            self.n_iter_ = step
            labels, nearest = table.argmin(1), table.min(1)
            if before is not None and self._settled(before, (labels, _inertia(nearest))):
                break
            before = labels, _inertia(nearest)
            # a latent that is at no distance of any mean has no say where one lies
            part = order[np.isfinite(nearest[order])]
            members = [np.sort(part[labels[part] == cluster][: self.mean_points]) for cluster in range(len(means))]
            moved = self._means(X, members, means, step)
            table, means = self._follow(X, table, means, moved), moved
        self.cluster_centers_ = np.stack([mean.point for mean in means])
        self.center_status_ = [mean.converged for mean in means]
        self._reached = self._reach(self.cluster_centers_)
        # whole: bounds hold where every distance is that of the shortest curve, and labels are what `predict` says
        table = _table(self._to(X, self.cluster_centers_))
        self.labels_, self.inertia_ = table.argmin(1), _inertia(table.min(1))
        if not all(self.center_status_):
            warn_caller(
                f"{self.center_status_.count(False)} of {self.n_clusters} Fréchet means were not found to the "
                "tolerance; see `center_status_`.",
                ConvergenceWarning,
            )
        return self

    def _initialise(self, X: np.ndarray, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """k-means++, which asks only for the distances to the means chosen so far; these are handed back (N, k)."""
        chosen: list[int] = []
        columns: list[np.ndarray] = []
        nearest, lost = np.full(len(X), np.inf), np.zeros(len(X), dtype=bool)
        drawn = int(random.randint(len(X)))
        while True:
            column = _table(self._among(X, np.array([drawn])))
            reaches = bool(np.isfinite(np.delete(column, drawn)).any())
            # one that is lost comes a second time where nothing else is left
            if reaches or lost[drawn]:
                chosen.append(drawn)
                columns.append(column)
                nearest = np.minimum(nearest, column[:, 0])
            if len(chosen) == self.n_clusters:
                return np.array(chosen), np.concatenate(columns, axis=1)
            lost[drawn] = not reaches
            drawn = draw_centre(nearest, chosen, lost, random)

    def _follow(self, X: np.ndarray, table: np.ndarray, before: list[_Mean], means: list[_Mean]) -> np.ndarray:
        """Distances (N, k) to the means, or what they are at least where that rules one out, given those before."""
        centres = np.stack([mean.point for mean in means])
        if self._graph is not None or self.metric_ is None:
            return _table(self._to(X, centres))
        each = np.arange(len(means))
        shifts = self._between(np.stack([mean.point for mean in before]), each, centres, each)
        # distances that are infinite say nothing of those to come
        reached = np.where(np.isfinite(table), table, 0.0)
        least = ((1 - _SLACK) * reached - (1 + _SLACK) * shifts).clip(0.0)
        known = np.zeros(table.shape, dtype=bool)
        nearest = np.full(len(X), np.inf)
        for cluster, mean in enumerate(means):
            rows = mean.members[np.isfinite(mean.distances)]
            nearest[rows] = mean.distances[np.isfinite(mean.distances)]
            known[rows, cluster] = True
            least[rows, cluster] = nearest[rows]
        rows, clusters = np.nonzero(~known & (least <= nearest[:, None]))
        least[rows, clusters] = self._between(X, rows, centres, clusters)
        return least

    def _between(self, a: np.ndarray, rows: np.ndarray, b: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Distances (n,) of the latents ``a[rows]`` to ``b[others]``: infinite where there are none."""
        assert self.metric_ is not None
        pairs = SomePairs(rows, others)
        return _table(solve(self.metric_, to_latents(a), to_latents(b), pairs, {}, n_jobs=self.n_jobs).lengths)

    def _settled(self, before: tuple[np.ndarray, float], now: tuple[np.ndarray, float]) -> bool:
        """Whether it has converged, given labels and inertia of two assignments."""
        if np.isfinite(now[1]):
            return not before[1] - now[1] > self.tol * now[1]
        # an infinite inertia cannot fall
        return bool((before[0] == now[0]).all())

    def _means(self, X: np.ndarray, members: list[np.ndarray], before: list[_Mean], step: int) -> list[_Mean]:
        """The means of the rows ``members``, one array for each cluster."""
        found, rest = list(before), []
        for cluster, (rows, mean) in enumerate(zip(members, before, strict=True)):
            if not len(rows):
                found[cluster] = _Mean(mean.point, mean.converged, rows, np.zeros(0))
            elif self.metric_ is None:
                found[cluster] = _Mean(X[rows].mean(0), True, rows, np.zeros(0))
            elif not (mean.converged and np.array_equal(rows, mean.members)):
                # an initial mean may lie at the rim of its cluster; a later one is near the next
                rest.append((cluster, rows, mean.point if step > 1 else None))
        # a table serves many distances; a mean needs few, and the metric itself converges faster
        shared = (getattr(self.metric_, "exact", self.metric_), X, dict(self.mean_options or {}))
        with forecasts(False, _REMEDIES if step == 1 else {}, self.n_jobs) as watch:
            for index, mean in run_blocks(_mean, shared, rest, n_jobs=self.n_jobs, progress=watch, stage="means"):
                found[rest[index][0]] = mean
        return found


def _mean(shared: tuple[Any, np.ndarray, dict[str, Any]], block: tuple[int, np.ndarray, np.ndarray | None]) -> _Mean:
    """The mean of some rows, looked for from where the one before lies."""
    metric, X, options = shared
    _, rows, near = block
    start = None if near is None else torch.from_numpy(np.array(near))
    found = frechet_mean(metric, torch.from_numpy(X[rows]), start=start, **options)
    return _Mean(found.point.numpy(), found.converged, rows, found.distances.double().numpy())


def _table(found: np.ndarray) -> np.ndarray:
    """Distances in double precision, infinite where there are none."""
    return np.nan_to_num(found.astype(np.float64), nan=np.inf, posinf=np.inf)


def _inertia(nearest: np.ndarray) -> float:
    return float((nearest**2).sum())


def _check_tol(value: Any) -> None:
    """Raise unless ``value`` is a finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < np.inf:
        raise InvalidArgumentError(f"`tol` must be a finite number of at least 0; got {value!r}. The default is 1e-3.")


def _check_options(options: Any) -> None:
    """Raise unless ``options`` are keywords of a mean's own, and not what the clusters decide."""
    if options is not None and not (isinstance(options, Mapping) and all(isinstance(name, str) for name in options)):
        raise InvalidArgumentError(f"`mean_options` must be a dict of options of `frechet_mean`; got {options!r}.")
    taken = sorted({"metric", "points", "weights", "start"} & set(options or ()))
    if taken:
        raise InvalidArgumentError(f"`mean_options` must leave {', '.join(taken)} to the clusters.")
