"""A Gaussian process over the decoder's outputs, and the posterior of its Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._arrays import check_count, describe
from .._rows import Rows, some_rows
from ..errors import FitError, InvalidArgumentError, NotFittedError
from ..matrix_field import DirectedField
from ..smooth_map import SmoothMap
from ..support import FEWEST, Support
from .base import UncertaintyModel
from .centres import nearest, place_centres, squared_distances
from .gp_evidence import ENTRIES, Hyperparameters, cholesky, largest_length_scale, maximise, outputs, reduce
from .gp_shape import CHUNK, KEPT, LeftOut, PosteriorShape, shape_at, squares
from .pieces import in_pieces

#: up to this many latents nothing is approximated
EXACT_UP_TO = 1000
_EVIDENCE_ROWS = 10_000
#: inducing points are placed among at most about this many latents
_COVERED_ROWS = 50_000
_LONGEST = 2.0
#: one data radius beyond the support, at least this share of the prior must be back in every direction
_FORGOTTEN = 0.8
#: at how many points that is asked: fewer where their matrices have more entries than this, from d = 410 on
_MOST_VOID, _FEWEST_VOID, _VOID_ENTRIES = 200, 24, 2**25


class GaussianProcess(UncertaintyModel):
    """A GP with one squared-exponential kernel ``k`` for all outputs, conditioned on the latents.

    With the posterior's Jacobian ``J_m`` and covariance, the expected metric is
    ``E[JᵀJ] = J_mᵀJ_m + D (σ²/ℓ²) S(z)``, where

        ``S(z) = I - ℓ² ∂k(z, Z) (K + νI)⁻¹ ∂k(Z, z)``

    is the share of the prior covariance of a partial derivative that the latents leave unknown: zero where the
    derivatives are determined, the identity far away.  Neither the outputs nor the noise enter S, only the
    hyperparameters depend on them.  :meth:`shape` is S.  The score is ``sqrt(-log(1 - v))`` of the posterior variance
    ``v(z) = 1 - k(z, Z) (K + νI)⁻¹ k(Z, z)`` of the outputs: a standard deviation where little is unknown, and far
    from the latents the distance to them over ℓ.  (A lone latent determines an output but no derivative, so
    tr S would call held-out latents in sparse places unknown.)

    Length scale and noise maximise the marginal likelihood: exactly up to 1,000 latents, above by Titsias' bound with
    k-means inducing points on at most 10,000 rows (of outputs reduced to 64 principal components, the rest taken as
    white noise); the posterior is then conditioned on all rows.  The length scale is held between the spacing of the
    inducing points and the largest at which the prior is back (S ≥ 0.8 I) one data radius beyond the latents:
    a longer one would claim to know the decoder where there has never been a latent.

    Args:
        inducing: number of inducing points above 1,000 latents.
        targets: "decoder" conditions on the decoder's outputs at the latents, so that what is unknown is the decoder;
            "data" on the data, as in a GP-LVM, whose noise then makes latents known less surely.

    Attributes:
        hyperparameters: length scale (latent units), noise ratio, variance, evidence.
        length_scales: the range the length scale was allowed, in latent units.
        jitter: what had to be added to the inducing points' kernel matrix, relative to its diagonal; 0 if nothing.
        exact: whether no inducing points were used.

    References:
        Tosi, Hauberg, Vellido, Lawrence: Metrics for Probabilistic Geometries, UAI 2014.
        Titsias: Variational Learning of Inducing Variables in Sparse Gaussian Processes, AISTATS 2009.
    """

    def __init__(self, *, inducing: int = 256, targets: str = "decoder"):
        if targets not in ("decoder", "data"):
            raise InvalidArgumentError(f'`targets` must be "decoder" or "data"; got {describe(targets)}.')
        self.inducing = check_count(inducing, "inducing", 2, "the number of inducing points")
        self.targets = targets
        self._factor: Tensor | None = None

    def fit(self, decoder: SmoothMap, latents: Tensor, data: Any = None, *, seed: int = 0) -> GaussianProcess:
        """Condition on latents (N, d) and the decoder's outputs there, or with ``targets="data"`` on ``data`` (N, D).

        Raises:
            FitError: latents or outputs do not vary, or are not finite; or data are wanted and there are none.
        """
        if data is None and self.targets == "data":
            raise FitError('`data` must be given with targets="data". Pass them, or leave `targets` at "decoder".')
        latents = latents.double()
        origin = latents.mean(0)
        radius = (latents - origin).square().sum(1).mean().sqrt()
        if not float(radius) > 1e-12 * float(origin.norm()):
            raise FitError("`latents` must differ from each other; all rows coincide. Check the encoder.")
        self._origin, self._radius = origin, radius
        points = (latents - origin) / radius
        self.exact = len(points) <= EXACT_UP_TO
        most = min(_EVIDENCE_ROWS, max(ENTRIES // decoder.output_dim, EXACT_UP_TO))
        rows = some_rows(len(points), most, seed).to(points.device)
        wanted = data if self.targets == "data" else None
        targets = reduce(outputs(decoder, latents, wanted, rows), exact=self.exact, seed=seed)
        seen = points[rows]
        inducing = None if self.exact else _place_inducing(points, self.inducing, seed)
        sites = seen if inducing is None else inducing
        low = min(_spacing(sites), 0.25)
        found = maximise(seen, targets, inducing, (low, _LONGEST))
        void = _void(points, seed)

        def forgotten(length_scale: float) -> bool:
            factor, _ = _condition(seen, inducing, length_scale, found.noise)
            # shapes of all points at once would fill memory in many dimensions
            parts = void.split(max(1, CHUNK // sites.numel()))
            least = [torch.linalg.eigvalsh(shape_at(part, sites, factor, length_scale))[:, 0] for part in parts]
            return float(torch.quantile(torch.cat(least), 0.05)) >= _FORGOTTEN

        high = found.length_scale
        if not forgotten(high):
            high = max(largest_length_scale(forgotten, low, high), 1.01 * low)
            found = maximise(seen, targets, inducing, (low, high))
        self._set(points, sites, inducing, found)
        self.length_scales = (low * float(radius), high * float(radius))
        return self

    def _set(self, points: Tensor, sites: Tensor, inducing: Tensor | None, found: Hyperparameters) -> None:
        self._factor, self.jitter = _condition(points, inducing, found.length_scale, found.noise)
        self._sites = sites
        self._length_scale = found.length_scale
        self.hyperparameters = Hyperparameters(
            found.length_scale * float(self._radius), found.noise, found.variance, found.evidence
        )
        self.fitted = True

    @property
    def _root(self) -> Tensor:
        """``F`` (r, M) of :func:`_condition`, of a fitted model."""
        if self._factor is None:
            raise NotFittedError("this GaussianProcess is not fitted; call fit(decoder, latents) first.")
        return self._factor

    def score(self, z: Tensor) -> Tensor:
        """``sqrt(-log(1 - v(z)))``, (B, d) -> (B,)."""
        (score,) = self._in_pieces(lambda points: self._score(points)[:1], z)
        return score

    def score_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The score (B,) and its gradient (B, d), both in closed form."""
        score, gradient = self._in_pieces(self._score_and_gradient, z)
        return score, gradient

    def _score_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        score, kernel, known = self._score(points)
        pull = kernel * (known @ self._root)
        slope = pull.sum(1, keepdim=True) * points - pull @ self._sites
        scale = known.square().sum(1) * score * (self._length_scale**2 * self._radius)
        return score, slope / scale[:, None]

    def _score(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The score, and kernel values and what is known in units of the row's largest kernel value."""
        exponent = squares(points, self._sites) * (0.5 / self._length_scale**2)
        least = exponent.amin(1)
        # with the common factor apart nothing underflows, however far the latents are
        kernel = (least[:, None] - exponent).exp()
        known = kernel @ self._root.T
        log_share = ((1 - KEPT) * known.square().sum(1)).log() - 2 * least
        return (-log_share).sqrt(), kernel, known

    def held_out_scores(
        self, decoder: SmoothMap, latents: Tensor, data: Rows | None = None, *, seed: int = 0
    ) -> Tensor | None:
        """Each by all others, without inducing points; with them latents are many, and ``None`` is the answer."""
        if not self.exact:
            return None
        # products that nearly cancel leave no less than rounding
        return (-self._left_out().shares().clamp_min(1e-15).log()).sqrt()

    def held_out_shapes(self, latents: Tensor) -> Tensor | None:
        return self._left_out().shapes(len(latents)) if self.exact else None

    def _left_out(self) -> LeftOut:
        root = self._root
        return LeftOut(self._sites, root, self._length_scale, self.hyperparameters.noise)

    def shape(self) -> DirectedField:
        """``S``: (B, d) -> (B, d, d), eigenvalues in [1e-6, 1]."""
        root = self._root
        return PosteriorShape(self._origin, self._radius, self._sites, root, self._length_scale)

    def _in_pieces(self, ask: Callable[[Tensor], tuple[Tensor, ...]], z: Tensor) -> tuple[Tensor, ...]:
        """``ask`` of the standardised points."""
        sites = self._root.shape[1]
        return in_pieces(ask, (z.double() - self._origin) / self._radius, sites)

    def settings(self) -> dict[str, Any]:
        return {"inducing": self.inducing, "targets": self.targets}

    def state(self) -> dict[str, Tensor]:
        if self._factor is None:
            return {}
        found = self.hyperparameters
        numbers = [self._length_scale, found.noise, found.variance, found.evidence, *self.length_scales, self.jitter]
        return {
            "origin": self._origin,
            "radius": self._radius,
            "sites": self._sites,
            "factor": self._factor,
            "numbers": torch.tensor([*numbers, float(self.exact)], dtype=torch.float64, device="cpu"),
        }

    @classmethod
    def from_state(cls, settings: dict[str, Any], state: dict[str, Tensor]) -> GaussianProcess:
        """The fitted model that :meth:`settings` and :meth:`state` describe, bit for bit."""
        model = cls(**settings)
        model._origin, model._radius = state["origin"], state["radius"]
        model._sites, model._factor = state["sites"], state["factor"]
        model._length_scale, noise, variance, evidence, low, high, model.jitter, exact = state["numbers"].tolist()
        model.length_scales = (low, high)
        model.exact = bool(exact)
        scale = model._length_scale * float(model._radius)
        model.hyperparameters = Hyperparameters(scale, noise, variance, evidence)
        model.fitted = True
        return model


def _condition(points: Tensor, inducing: Tensor | None, length_scale: float, noise: float) -> tuple[Tensor, float]:
    """``F`` (r, M) and the jitter: ``FᵀF = (K + νI)⁻¹``, or ``K_m⁻¹ - (K_m + K_mn K_nm/ν)⁻¹`` with inducing points.

    The difference is formed from eigenvalues, ``L⁻ᵀ (I - B⁻¹) L⁻¹``, so it cannot become negative.
    """

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return squares(left, right).clamp_min_(0).mul_(-0.5 / length_scale**2).exp_()

    if inducing is None:
        values, basis = torch.linalg.eigh(kernel(points, points))
        values = values.clamp_min(0)
        # an eigenvector explains at most λ/(λ + ν) of any variance
        kept = values > 1e-12 * noise
        return (basis[:, kept] / (values[kept] + noise).sqrt()).T.contiguous(), 0.0
    root, jitter = cholesky(kernel(inducing, inducing))
    capacity = torch.zeros_like(root)
    for chunk in points.split(CHUNK // len(inducing)):
        white = torch.linalg.solve_triangular(root, kernel(inducing, chunk), upper=False)
        capacity += white @ white.T
    values, basis = torch.linalg.eigh(capacity / noise)
    values = values.clamp_min(0)
    share = (values / (1 + values)).sqrt()
    kept = share > 1e-6
    white = torch.linalg.solve_triangular(root.T, basis[:, kept], upper=True)
    return (white * share[kept]).T.contiguous(), jitter


def _place_inducing(points: Tensor, count: int, seed: int) -> Tensor:
    """k-means centres, and for a third of ``count`` the latents farthest from all others (Gonzalez 1985).

    Means of clusters avoid sparse places, so that latents there would not be known although they were seen.
    """
    step = math.ceil(len(points) / _COVERED_ROWS)
    seen = points[::step]
    sites = place_centres(seen, count - count // 3, seed=seed).points
    distance, _ = nearest(seen, sites)
    for _ in range(count // 3):
        worst = int(distance.argmax())
        if not float(distance[worst]) > 0:
            break
        sites = torch.cat([sites, seen[worst, None]])
        distance = torch.minimum(distance, (seen - seen[worst]).square().sum(1))
    return sites


def _spacing(sites: Tensor) -> float:
    """Median distance of a site to its nearest other one that is not a duplicate."""
    square = squared_distances(sites, sites)
    distance = square.masked_fill_(square < 1e-18, math.inf).amin(1).sqrt()
    return float(distance[distance.isfinite()].median())


def _void(points: Tensor, seed: int) -> Tensor:
    """Points one data radius beyond the latents."""
    # a repair may leave a model fewer rows than a split needs; copies change no distance
    copies = math.ceil(FEWEST / len(points))
    count = min(_MOST_VOID, max(_FEWEST_VOID, _VOID_ENTRIES // points.shape[1] ** 2))
    return Support(points.repeat(copies, 1), seed=seed).shell(1.0, count, seed=seed)
