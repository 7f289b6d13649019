"""What the estimators share: where their metric comes from, and distances under it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn import exceptions
from sklearn.base import BaseEstimator
from sklearn.metrics import euclidean_distances
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ..distances.graph import DistanceGraph, build_distance_graph, default_neighbours
from ..distances.job import make_nodes
from ..distances.matrix import METHODS, MOST_SOLVED, distances
from ..distances.shortest import ROW_BLOCK, rows
from ..errors import InvalidArgumentError, NotFittedError
from ..metric import Metric
from ..parallel import cut, run_blocks
from ..repair import repair


class EstimatorNotFittedError(NotFittedError, exceptions.NotFittedError):
    """An estimator is used before ``fit``; both this library's error and scikit-learn's."""


class GeodesicEstimator(BaseEstimator):
    """Base of the estimators: parameters ``metric``, ``method``, ``n_jobs``, ``random_state``."""

    metric: Any
    method: str
    n_jobs: int | None
    random_state: Any
    metric_: Metric | None
    _graph: DistanceGraph | None
    _rows: np.ndarray

    def _checked(self, X: Any, *, fitted: bool = False) -> np.ndarray:
        """``X`` as scikit-learn validates it, its refusals as this library's errors."""
        try:
            if fitted:
                check_is_fitted(self)
            return validate_data(self, X, dtype=[np.float64, np.float32], reset=not fitted)
        except exceptions.NotFittedError as error:
            raise EstimatorNotFittedError(str(error)) from None
        except ValueError as error:
            # without the array itself and the advice on imputing
            first, *others = str(error).splitlines()
            words = " ".join([first, *(line for line in others if line.startswith("Reshape"))])
            raise InvalidArgumentError(f"`X` must be finite latents (n_samples, n_features): {words}") from None

    def _random(self) -> np.random.RandomState:
        try:
            return check_random_state(self.random_state)
        except ValueError as error:
            raise InvalidArgumentError(f"`random_state` must be an integer, a RandomState or None: {error}.") from None

    def _resolve_metric(self, X: np.ndarray) -> Metric | None:
        """The metric that ``self.metric`` stands for once the training latents are known; ``None`` is Euclidean."""
        if self.metric is None or isinstance(self.metric, Metric):
            found = self.metric
        elif hasattr(self.metric, "value_and_jacobian"):
            found = repair(self.metric, X)
        elif callable(self.metric) and not isinstance(self.metric, torch.nn.Module):
            found = self.metric(X)
        else:
            raise InvalidArgumentError(
                "`metric` must be None (Euclidean), a posthoc_metric.Metric, a Decoder to be repaired on X, or a "
                f"function X -> Metric; got {type(self.metric).__name__}. Wrap a module first: pm.Decoder(module)."
            )
        if found is not None and not isinstance(found, Metric):
            raise InvalidArgumentError(
                f"`metric` must make a posthoc_metric.Metric from X; it made {type(found).__name__}."
            )
        if found is not None and found.dim != X.shape[1]:
            raise InvalidArgumentError(
                f"`X` must have {found.dim} features, the latent dimension of `metric`; got {X.shape[1]}."
            )
        return found

    def _prepare(self, X: np.ndarray, pairs: int) -> None:
        """Settle metric, method and graph, so that what is asked later does not depend on how it is batched."""
        if self.method not in METHODS:
            raise InvalidArgumentError(f"`method` must be one of {', '.join(METHODS)}; got {self.method!r}.")
        self.metric_ = self._resolve_metric(X)
        solve = self.method == "solver" or (self.method == "auto" and pairs <= MOST_SOLVED)
        self._graph = None
        if self.metric_ is not None and not solve:
            latents = _tensor(X)
            nodes = make_nodes(self.metric_, latents, None, None)
            self._rows = nodes.rows
            self._graph = build_distance_graph(
                self.metric_, nodes.points, default_neighbours(len(nodes.points)), n_jobs=self.n_jobs
            )

    def _reach(self, targets: np.ndarray) -> np.ndarray | None:
        """What the graph must know of ``targets`` to answer :meth:`_distances`; ``None`` where there is no graph."""
        if self._graph is None or self.metric_ is None:
            return None
        return self._graph.reach(self.metric_, _tensor(targets), self.n_jobs)

    def _among(self, X: np.ndarray, index: np.ndarray | None = None) -> np.ndarray:
        """Distances of the training latents X to those of them numbered ``index``, or to all."""
        if self._graph is None:
            return self._distances(X, None if index is None else X[index])
        sources = self._rows if index is None else self._rows[index]
        blocks = cut(len(sources), ROW_BLOCK)
        found = dict(run_blocks(rows, (self._graph.lengths, sources, self._rows), blocks, n_jobs=self.n_jobs))
        matrix = np.concatenate([found[number] for number in range(len(blocks))]).T
        return (np.minimum(matrix, matrix.T) if index is None else matrix).astype(X.dtype)

    def _to(self, X: np.ndarray, centres: np.ndarray) -> np.ndarray:
        """Distances of the training latents X to ``centres``, which need not be of them."""
        reached = self._reach(centres)
        return self._distances(X, centres) if reached is None else reached[self._rows].astype(X.dtype)

    def _distances(self, a: np.ndarray, b: np.ndarray | None = None, reached: np.ndarray | None = None) -> np.ndarray:
        """Distances of the rows of ``a`` to those of ``b``, or of ``a`` itself, in the dtype of ``a``."""
        if self.metric_ is None:
            return euclidean_distances(a, b)
        if self._graph is None:
            return np.asarray(distances(self.metric_, a, b, method="solver", n_jobs=self.n_jobs))
        assert reached is not None
        return self._graph.through(self.metric_, _tensor(a), reached).astype(a.dtype)


def _tensor(X: np.ndarray) -> torch.Tensor:
    # a copy: scikit-learn may hand over memory that must not be written to
    return torch.from_numpy(np.array(X, dtype=np.float64))
