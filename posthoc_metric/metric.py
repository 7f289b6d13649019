"""The Metric contract, and the metrics that a decoder or a function gives.

A Riemannian metric on a latent space of dimension d is a field of symmetric positive
definite matrices ``M(z)``.  Arithmetic on metrics is float64 whatever the decoder's dtype:
``κ(M) = κ(J)²``, so single precision would already lose a Jacobian of condition 3,000.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._arrays import ArrayLike, as_tensor, check_count, describe, name_rows, refuse_transformed, to_points
from .errors import InvalidArgumentError, NumericalError
from .gradients import attach, matrices, recorded, recorded_field, wanted
from .matrix_field import CheckedField, check_symmetric, to_matrices
from .metric_parts import MetricParts
from .smooth_map import SmoothMap, check_smooth_map, condition_numbers, isometric, resolved_eigenvalues

if TYPE_CHECKING:
    from .geodesic import Solution


class _NoDimensionError(InvalidArgumentError, AttributeError):
    """A metric without ``dim``; an AttributeError too, so that ``hasattr`` answers as everywhere."""


class _NoDimension:
    """Stands where a subclass, or its ``__init__``, should have set ``dim``, and says so when it is asked for."""

    def __get__(self, metric: Metric | None, kind: type) -> int:
        raise _NoDimensionError(
            f"`dim` must be the latent dimension d of a metric; {kind.__name__} has none. "
            "Write `dim = 2`, say, in the class, or set `self.dim` in its `__init__`."
        )


class Metric(ABC):
    """A Riemannian metric on ``R^d``.  A subclass needs ``dim`` and :meth:`tensor`, nothing more.

    Where latents are tensors that require grad, :meth:`tensor`, :meth:`inner`, :meth:`norm`, :meth:`eigenvalues`,
    :meth:`log_volume`, :meth:`condition_number` and the ``length`` of a geodesic carry gradients by the latents, once
    differentiable; a decoder's weights get none.  Eigenvalues and condition numbers have them where they are simple.
    What ``tensor`` of a subclass returns carries what the subclass records; where that is nothing, as with NumPy, all
    others have differences.  Everything else returns tensors without a graph.

    The conveniences :meth:`geodesic`, :meth:`exp`, :meth:`log`, :meth:`mean` and :meth:`distances`
    are one line each; they reach forward along the pipeline and so import when called.

    Example:
        >>> import torch, posthoc_metric as pm
        >>> class HalfPlane(pm.Metric):
        ...     dim = 2
        ...     def tensor(self, z):
        ...         return torch.eye(2, dtype=z.dtype) / z[:, 1, None, None] ** 2
        >>> HalfPlane().condition_number(torch.tensor([[0.0, 1.0], [3.0, 2.0]]))
        tensor([1., 1.])
    """

    dim: int = _NoDimension()  # type: ignore[assignment]
    #: training latents (N, d) that say where the data lie; the solver starts some curves from their graph
    support: Tensor | None = None

    @abstractmethod
    def tensor(self, z: Any) -> Any:
        """``M(z)``: (B, d) -> (B, d, d), symmetric positive definite.

        Tensors in any dtype, which are differentiated where torch can, or NumPy arrays.
        """

    def parts(self) -> MetricParts:
        """The structure of ``M`` that the solver may use; by default none."""
        return MetricParts(field=self._field())

    def _field(self) -> CheckedField:
        return CheckedField(self.tensor, f"`tensor(z)` of {type(self).__name__}")

    def inner(self, z: ArrayLike, u: ArrayLike, v: ArrayLike) -> Any:
        """Inner product ``uᵀ M(z) v`` of tangent vectors, (B,); ``z``, ``u``, ``v`` are (B, d)."""
        points, restore = to_points(z, "z", self.dim)
        left = _vectors(u, "u", points)
        right = left if v is u else _vectors(v, "v", points)
        found = self.parts().inner(points.double(), left, right)
        if wanted(z, u, v):
            sides = (recorded(vectors, plain).to(found) for vectors, plain in ((u, left), (v, right)))
            tensors = recorded_field(self._field(), recorded(z, points).double(), self.support)
            found = attach(found, torch.einsum("bij,bi,bj->b", tensors, *sides))
        return restore(found.to(points.dtype))

    def norm(self, z: ArrayLike, v: ArrayLike) -> Any:
        """Length ``sqrt(vᵀ M(z) v)`` of tangent vectors, (B,).

        Raises:
            NumericalError: ``vᵀ M(z) v`` is negative by more than rounding.
        """
        points, restore = to_points(z, "z", self.dim)
        vectors = _vectors(v, "v", points)
        where, vectors = recorded(z, points).double(), recorded(v, vectors).to(points.device).double()
        squares = as_tensor(self.inner(where, vectors, vectors))
        # semi-definite matrices and those in single precision round to either side of zero
        below = (squares < 0).nonzero().flatten()
        if len(below):
            size = self.parts().tensor(points[below].double()).flatten(1).norm(dim=1) * vectors[below].square().sum(1)
            bad = below[squares[below] < -1e-6 * size].tolist()
            if bad:
                raise NumericalError(
                    f"the metric must be positive definite; at row {bad[0]} of `z` the vector in `v` has the squared "
                    f"length {float(squares[bad[0]]):.3g}. Check the sign of what `tensor(z)` returns."
                )
        # the root has no slope at zero, and of a NaN there every row before it would learn
        none = squares <= 0
        return restore(squares.masked_fill(none, 1.0).sqrt().masked_fill(none, 0.0).to(points.dtype))

    def eigenvalues(self, z: ArrayLike) -> Any:
        """Eigenvalues of ``M(z)`` in ascending order, (B, d), never below zero.

        Raises:
            NumericalError: the metric is not finite at a point, or has a negative eigenvalue.
        """
        points, restore = to_points(z, "z", self.dim)
        where = points.double()
        if not wanted(z):
            return restore(self._spectrum(where, self._field()(where)).to(points.dtype))
        tensors = recorded_field(self._field(), recorded(z, points).double(), self.support)
        found = self._spectrum(where, tensors.detach())
        ways = torch.linalg.eigh(tensors.detach()).eigenvectors
        return restore(attach(found, torch.einsum("bia,bij,bja->ba", ways, tensors, ways)).to(points.dtype))

    def _spectrum(self, z: Tensor, tensors: Tensor) -> Tensor:
        """What :meth:`eigenvalues` returns and raises of ``M(z)`` (B, d, d) at z (B, d), both float64."""
        if not bool(torch.isfinite(tensors).all()):
            raise NumericalError(
                "the metric must be finite; it is NaN or infinite at some of the points in `z`. Check the decoder's "
                "Jacobian there, or whether they lie outside of where the metric is defined."
            )
        values = torch.linalg.eigvalsh(tensors)
        negative = values[:, 0] < -1e-6 * values.abs().amax(1)
        if bool(negative.any()):
            raise NumericalError(
                f"the metric must be positive semi-definite; at the points in `z` {name_rows(negative)} not, by more "
                "than rounding. Check the function or the class that it comes from."
            )
        return values.clamp_min(0.0)

    def log_volume(self, z: ArrayLike) -> Any:
        """Magnification factor ``½ log det M(z)``, (B,); ``-inf`` where singular; raises as :meth:`eigenvalues`."""
        points, restore = to_points(z, "z", self.dim)
        return restore((0.5 * self.eigenvalues(recorded(z, points).double()).log().sum(-1)).to(points.dtype))

    def condition_number(self, z: ArrayLike) -> Any:
        """``κ(J) = sqrt(λ_max / λ_min)`` of ``M(z) = JᵀJ``, (B,); ``inf`` where singular; raises likewise."""
        points, restore = to_points(z, "z", self.dim)
        return restore(condition_numbers(self.eigenvalues(recorded(z, points).double())).to(points.dtype))

    def __sklearn_clone__(self) -> Metric:
        """scikit-learn's ``clone`` keeps the metric itself: metrics are never changed, and decoders are large."""
        return self

    def geodesic(self, start: ArrayLike, end: ArrayLike, **options: Any) -> Solution:
        """Geodesics between the rows of ``start`` and ``end``; see :func:`posthoc_metric.geodesic`."""
        from .geodesic import geodesic

        return geodesic(self, start, end, **options)

    def exp(self, z: ArrayLike, v: ArrayLike, **options: Any) -> Any:
        """Exponential map; see ``exp`` (``from posthoc_metric.geodesic import exp``)."""
        from .geodesic import exp

        return exp(self, z, v, **options)

    def log(self, z0: ArrayLike, z1: ArrayLike, **options: Any) -> Any:
        """Logarithmic map; see ``log`` (``from posthoc_metric.geodesic import log``)."""
        from .geodesic import log

        return log(self, z0, z1, **options)

    def mean(self, points: ArrayLike, **options: Any) -> Any:
        """Fréchet mean; see ``mean`` (``from posthoc_metric.geodesic import mean``)."""
        from .geodesic import mean

        return mean(self, points, **options)

    def distances(self, a: ArrayLike, b: ArrayLike | None = None, **options: Any) -> Any:
        """Matrix of geodesic distances; see :func:`posthoc_metric.distances.distances`."""
        from .distances import distances

        return distances(self, a, b, **options)


class StructuredMetric(Metric):
    """A metric given by its :class:`MetricParts`; takes NumPy arrays as well as tensors."""

    def __init__(self, parts: MetricParts, dim: int):
        self._parts = parts
        self.dim = dim

    def parts(self) -> MetricParts:
        return self._parts

    def tensor(self, z: ArrayLike) -> Any:
        refuse_transformed(z, "z")
        points, restore = to_points(z, "z", self.dim)
        if wanted(z):
            return matrices(self._parts, recorded(z, points).double(), self.support).to(points.dtype)
        return restore(self._parts.tensor(points.double()).to(points.dtype))


class PullbackMetric(StructuredMetric):
    """The decoder's own metric ``J_f(z)ᵀ J_f(z)``, unrepaired (Tosi et al. 2014; Arvanitidis et al. 2018).

    Args:
        decoder: a :class:`~posthoc_metric.Decoder`, or anything with its methods.

    Raises:
        InvalidArgumentError: ``decoder`` is not wrapped.

    Example:
        >>> import torch, posthoc_metric as pm
        >>> metric = pm.PullbackMetric(pm.Decoder(torch.nn.Linear(2, 3)))
        >>> metric.tensor(torch.zeros(4, 2)).shape
        torch.Size([4, 2, 2])
    """

    def __init__(self, decoder: SmoothMap):
        check_smooth_map(decoder)
        #: what ``J`` is taken of: as far apart as the decoder's outputs, and fewer where it ends in a wide linear layer
        self.embedding = isometric(decoder)
        super().__init__(MetricParts(embedding=self.embedding), decoder.latent_dim)
        self.decoder = decoder

    def _spectrum(self, z: Tensor, tensors: Tensor) -> Tensor:
        """Squares of the Jacobian's singular values; zero where rounding hides them."""
        return resolved_eigenvalues(super()._spectrum(z, tensors), self.embedding, z)


class FunctionMetric(Metric):
    """A metric from a user's own function.

    Args:
        fn: z (B, d) -> M (B, d, d), symmetric positive definite; in torch operations, so that it can be
            differentiated, or in NumPy, in which case its derivatives are finite differences.
        dim: d.

    Raises:
        InvalidArgumentError: ``fn`` is no function, or ``dim`` no positive integer; once it is called, ``fn`` returns
            something else than symmetric matrices (B, d, d).

    Example:
        >>> import torch, posthoc_metric as pm
        >>> half_plane = pm.FunctionMetric(lambda z: torch.eye(2, dtype=z.dtype) / z[:, 1, None, None] ** 2, 2)
        >>> half_plane.norm(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([2.5000])
    """

    def __init__(self, fn: Callable[[Any], Any], dim: int):
        if not callable(fn):
            raise InvalidArgumentError(f"`fn` must be a function z -> (B, d, d); got {describe(fn)}.")
        self.fn = fn
        self.dim = check_count(dim, "dim", 1, "the latent dimension")

    def tensor(self, z: ArrayLike) -> Any:
        # to_points detaches; a solver that differentiates through `fn` passes a tensor that requires grad
        if isinstance(z, Tensor) and z.requires_grad:
            return to_matrices(self.fn(z.clone()), z, "`fn`")
        points, restore = to_points(z, "z", self.dim)
        found = to_matrices(self.fn(points.clone()), points, "`fn`")
        check_symmetric(found, "`fn`")
        return restore(found)

    def _field(self) -> CheckedField:
        if type(self).tensor is not FunctionMetric.tensor:
            return super()._field()
        # which `tensor` looks through at every call
        return CheckedField(self.fn, "`fn`")


def check_metric(metric: Any) -> Metric:
    """``metric``, if it is one.

    Raises:
        InvalidArgumentError: it is not.
    """
    if not isinstance(metric, Metric):
        raise InvalidArgumentError(
            f"`metric` must be a posthoc_metric.Metric; got {describe(metric)}. "
            "Wrap a function with FunctionMetric(fn, dim), or a decoder with PullbackMetric(decoder)."
        )
    return metric


def _vectors(value: ArrayLike, name: str, points: Tensor) -> Tensor:
    """Tangent vectors (B, d) float64, one at each of the points (B, d) and on their device."""
    vectors, _ = to_points(value, name, points.shape[1])
    if len(vectors) != len(points):
        raise InvalidArgumentError(
            f"`{name}` must hold one vector for each of the {len(points)} rows of `z`; got {describe(value)}."
        )
    return vectors.to(points.device).double()
