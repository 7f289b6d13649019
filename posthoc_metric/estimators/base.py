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
from ..distances.job import make_nodes, warn
from ..distances.matrix import METHODS, MOST_SOLVED, distances
from ..distances.pairs import AllPairs, draw, sampled, solve
from ..distances.report import DistanceReport, compare
from ..distances.shortest import ROW_BLOCK, rows, symmetric
from ..errors import InvalidArgumentError, NotFittedError
from ..metric import Metric
from ..parallel import cut, run_blocks
from ..repair import repair

#: pairs that are solved to tell the error of a graph
_SAMPLE = 64
_ADVICE = "Use method='solver', or a precomputed matrix of metric.distances(...), where `neighbours` can be raised."


class EstimatorNotFittedError(NotFittedError, exceptions.NotFittedError):
    """An estimator is used before ``fit``; both this library's error and scikit-learn's."""


class EstimatorTypeError(InvalidArgumentError, TypeError):
    """``X`` holds what is no number; both this library's error and what scikit-learn raises."""


class GeodesicEstimator(BaseEstimator):
    """Base of the estimators: parameters ``metric``, ``method``, ``n_jobs``, ``random_state``."""

    metric: Any
    method: str
    n_jobs: int | None
    random_state: Any
    metric_: Metric | None
    distance_report_: DistanceReport | None
    _graph: DistanceGraph | None
    _rows: np.ndarray

    def _checked(self, X: Any, *, fitted: bool = False) -> np.ndarray:
        """``X`` as scikit-learn validates it, its refusals as this library's errors."""
        # latents of an encoder may still carry its graph, which NumPy refuses
        X = X.detach() if isinstance(X, torch.Tensor) else X
        try:
            if fitted:
                check_is_fitted(self)
            if hasattr(X, "obsm"):
                # what NumPy says of one depends on what else it has
                raise TypeError("an annotated table holds several arrays. Give one of them, such as X.obsm[name]")
            return validate_data(self, X, dtype=[np.float64, np.float32], reset=not fitted)
        except exceptions.NotFittedError as error:
            raise EstimatorNotFittedError(str(error)) from None
        except TypeError as error:
            raise EstimatorTypeError(
                f"`X` must be finite latents (n_samples, n_features); got {type(X).__name__}: {str(error).rstrip('.')}."
            ) from None
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
        self._graph, self.distance_report_ = None, None
        if self.metric_ is not None and not solve:
            latents = to_latents(X)
            nodes = make_nodes(self.metric_, latents, None, None)
            self._rows = nodes.rows
            self._graph = build_distance_graph(
                self.metric_, nodes.points, default_neighbours(len(nodes.points)), n_jobs=self.n_jobs
            )
            if len(X) > 1:
                self._check_graph(latents)

    def _check_graph(self, latents: torch.Tensor) -> None:
        """Compare the graph's distances with the solver's on a sample of pairs, as ``distances`` does, and warn."""
        assert self._graph is not None and self.metric_ is not None
        chosen = draw(AllPairs(len(latents), None), _SAMPLE, 0)
        first, owner = np.unique(chosen.first, return_inverse=True)
        found = self._paths(first, self._rows[chosen.second], np.empty((len(first), chosen.count)))
        found = found[owner.reshape(-1), np.arange(chosen.count)]
        exact = getattr(self.metric_, "exact", self.metric_)
        solved = solve(exact, latents, latents, chosen, sampled({}), n_jobs=self.n_jobs)
        self.distance_report_ = DistanceReport(
            method="graph",
            pairs=chosen.count,
            failed=int((~np.isfinite(found)).sum()),
            error=compare(found, solved.lengths, solved.errors),
            neighbours=self._graph.k,
        )
        warn(self.distance_report_, advice=_ADVICE)

    def _reach(self, targets: np.ndarray) -> np.ndarray | None:
        """What the graph must know of ``targets`` to answer :meth:`_distances`; ``None`` where there is no graph."""
        if self._graph is None or self.metric_ is None:
            return None
        return self._graph.reach(self.metric_, to_latents(targets), self.n_jobs)

    def _reach_training(self, index: np.ndarray) -> np.ndarray | None:
        """The same of the training latents numbered ``index``, which are nodes already."""
        if self._graph is None:
            return None
        size = len(self._graph.points)
        return self._paths(index, np.arange(size), np.empty((len(index), size))).T

    def _paths(self, index: np.ndarray, nodes: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Fill ``out`` (m, k) with the graph's distances of the training latents ``index`` (m,) from ``nodes`` (k,)."""
        assert self._graph is not None
        blocks = cut(len(index), ROW_BLOCK)
        shared = (self._graph.lengths, self._rows[index], nodes)
        for number, found in run_blocks(rows, shared, blocks, n_jobs=self.n_jobs):
            out[slice(*blocks[number])] = found
        return out

    def _among(self, X: np.ndarray, index: np.ndarray | None = None) -> np.ndarray:
        """Distances of the training latents X to those of them numbered ``index``, or to all."""
        if self._graph is None:
            return self._distances(X, None if index is None else X[index])
        asked = np.arange(len(X)) if index is None else index
        matrix = self._paths(asked, self._rows, np.empty((len(asked), len(X)), dtype=X.dtype))
        return symmetric(matrix) if index is None else matrix.T

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
        return self._graph.through(self.metric_, to_latents(a), reached).astype(a.dtype)


def to_latents(X: np.ndarray) -> torch.Tensor:
    """A double-precision tensor of latents."""
    # a copy: scikit-learn may hand over memory that must not be written to
    return torch.from_numpy(np.array(X, dtype=np.float64))
