"""The RBF precision network as published: the baseline whose wall and collapse the audit shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, as_tensor, check_count, check_range, to_points
from .._rows import some_rows
from ..errors import FitError, NotFittedError
from ..smooth_map import SmoothMap
from .centres import place_centres, squared_distances

#: beyond this exponent exp(-x) is taken as exactly zero: what follows it would be denormal numbers, which are slow
_LARGEST_EXPONENT = 600.0
#: rows times outputs the weights are fitted on
_ENTRIES = 2**23
_MOST_ROWS = 20_000
_BLOCK = 2**22
#: squared residuals are held above this share of the data's variance
_LEAST = 1e-8
#: rounding of outputs in single precision
_SINGLE = 2.0**-22
#: steps of the fit of the weights, and the improvement of the mean objective by four of them at which it ends
_MOST_STEPS, _TOLERANCE = 60, 3e-5


class RBFNoise:
    """``σ(z) = β(z)^(-1/2)``, ``β(z) = W v(z) + ζ``, ``v_k(z) = exp(-λ_k ‖z - c_k‖²)``, with closed-form derivatives.

    ``∂σ_j/∂z = β_j^(-3/2) Σ_k W_jk λ_k v_k (z - c_k)``.

    Args:
        centres: ``c`` (K, d).
        bandwidths: ``λ`` (K,), one over squared latent units.
        weights: ``W`` (D, K), positive.
        floor: ``ζ``.
    """

    def __init__(self, centres: Tensor, bandwidths: Tensor, weights: Tensor, floor: float):
        self.centres, self.bandwidths, self.weights, self.floor = centres, bandwidths, weights, floor
        self.latent_dim = centres.shape[1]
        self.output_dim = weights.shape[0]

    def features(self, z: Tensor) -> Tensor:
        """``v(z)``, (B, d) -> (B, K)."""
        exponent = squared_distances(z, self.centres).mul_(self.bandwidths)
        return exponent.masked_fill_(exponent > _LARGEST_EXPONENT, float("inf")).neg_().exp_()

    def _precision(self, z: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(z)
        return features, torch.addmm(features.new_tensor(self.floor), features, self.weights.T)

    def __call__(self, z: ArrayLike) -> Any:
        points, restore = to_points(z, "z", self.latent_dim)
        _, precision = self._precision(points.to(self.centres.device).double())
        return restore(precision.rsqrt_().to(points.dtype))

    def jvp(self, z: ArrayLike, v: ArrayLike) -> tuple[Any, Any]:
        points, restore = to_points(z, "z", self.latent_dim)
        tangents, _ = to_points(v, "v", self.latent_dim)
        inner, steps = points.to(self.centres.device).double(), tangents.to(self.centres.device).double()
        features, precision = self._precision(inner)
        along = (inner * steps).sum(1, keepdim=True) - steps @ self.centres.T
        pushed = precision.pow(-1.5) * ((features * self.bandwidths * along) @ self.weights.T)
        return restore(precision.rsqrt_().to(points.dtype)), restore(pushed.to(points.dtype))

    def vjp(self, z: ArrayLike, u: ArrayLike) -> tuple[Any, Any]:
        points, restore = to_points(z, "z", self.latent_dim)
        cotangents, _ = to_points(u, "u", self.output_dim)
        inner = points.to(self.centres.device).double()
        features, precision = self._precision(inner)
        weighted = cotangents.to(self.centres.device).double() * precision.pow(-1.5)
        pull = (weighted @ self.weights) * features * self.bandwidths
        pulled = pull.sum(1, keepdim=True) * inner - pull @ self.centres
        return restore(precision.rsqrt_().to(points.dtype)), restore(pulled.to(points.dtype))

    def value_and_jacobian(self, z: ArrayLike) -> tuple[Any, Any]:
        points, restore = to_points(z, "z", self.latent_dim)
        inner = points.to(self.centres.device).double()
        features, precision = self._precision(inner)
        scale = precision.pow(-1.5)
        pull = features * self.bandwidths
        columns = [
            scale * ((pull * (inner[:, j, None] - self.centres[None, :, j])) @ self.weights.T)
            for j in range(self.latent_dim)
        ]
        jacobian = torch.stack(columns, dim=-1)
        return restore(precision.rsqrt_().to(points.dtype)), restore(jacobian.to(points.dtype))


class PublishedRBF:
    """The independent observation noise of Arvanitidis, Hansen & Hauberg (2018), fitted to the residuals.

    ``x = f(z) + σ(z) ⊙ ε`` with ``σ = (W v(z) + ζ)^(-1/2)``, k-means centres ``c_k`` and
    ``λ_k = ½ ( a/|C_k| Σ_{z in C_k} ‖z - c_k‖ )^(-2)``; the metric becomes ``J_fᵀJ_f + J_σᵀJ_σ``.
    A cluster of zero radius, for which the formula is undefined, takes the mean radius of the others.

    The weights maximise the likelihood of the residuals.  In ``W`` that problem is convex and the data enter it
    only through ``VᵀR`` (R: squared residuals), so it is solved by a monotone multiplicative update
    (majorise-minimise, as in EM) with squared extrapolation (SQUAREM, Varadhan & Roland 2008) instead of by a
    stochastic gradient with a learning rate.  Squared residuals are held above 1e-8 of the data's variance: outputs
    reconstructed exactly would have infinite weights.

    Args:
        count: ``K``, the number of centres.
        width: ``a``.
        floor: ``ζ``, the precision that remains far from the data.

    Attributes:
        noise: ``σ`` as a :class:`SmoothMap`, after :meth:`fit`.
        steps: updates made by the last fit.
        likelihood: mean negative log likelihood of the residuals an entry, after each of them.
        exact: whether the residuals are rounding, or below what they are held to: the weights then say nothing.

    References:
        Arvanitidis, Hansen, Hauberg: Latent Space Oddity, ICLR 2018, section 4.
    """

    def __init__(self, *, count: int = 64, width: float = 2.0, floor: float = 1e-6):
        self.count = check_count(count, "count", 1, "the number of centres")
        self.width = check_range(width, "width", 0.0, float("inf"), "the multiple of a cluster's mean radius")
        self.floor = check_range(floor, "floor", 0.0, float("inf"), "the precision far from the data")
        self._noise: RBFNoise | None = None
        self.fitted = False
        self.exact = False
        self.steps = 0
        self.likelihood: list[float] = []

    @property
    def noise(self) -> RBFNoise:
        if self._noise is None:
            raise NotFittedError("this PublishedRBF is not fitted; call `fit(decoder, latents, data)` first.")
        return self._noise

    def fit(self, decoder: SmoothMap, latents: Tensor, data: Any = None, *, seed: int = 0) -> PublishedRBF:
        """Fit centres, bandwidths and weights; return ``self``.

        Args:
            decoder: ``f``.
            latents: (N, d).
            data: (N, D), what the latents encode, in the coordinates of the decoder's output; anything that can be
                indexed by rows, a memory map included.
            seed: of k-means, and of the rows drawn where N·D exceeds what the weights are fitted on.

        Raises:
            FitError: no data, or latents or data that are all the same.
        """
        if data is None:
            raise FitError(
                "`data` must be given: the published RBF network models the residuals x - f(z), and without data "
                'there are none. Pass the (N, D) data of these latents, or use uncertainty="rbf".'
            )
        most = min(_MOST_ROWS, max(_ENTRIES // decoder.output_dim, 16 * self.count))
        rows = some_rows(len(latents), most, seed)
        points = latents[rows].double()
        placed = place_centres(points, self.count, seed=seed)
        bandwidths = self._bandwidths(points, placed.points, placed.labels)
        noise = RBFNoise(placed.points, bandwidths, points.new_ones(decoder.output_dim, len(bandwidths)), self.floor)
        features = noise.features(points)
        moments, total, self.exact = _moments(decoder, points, data, rows, features)
        weights, self.likelihood = _fit_weights(features, moments, total, self.floor)
        self.steps = len(self.likelihood) - 1
        self._noise = RBFNoise(placed.points, bandwidths, weights.T.contiguous(), self.floor)
        self.fitted = True
        return self

    def _bandwidths(self, points: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
        distance = (points - centres[labels]).norm(dim=1)
        counts = torch.bincount(labels, minlength=len(centres))
        radius = torch.zeros_like(centres[:, 0]).index_add_(0, labels, distance) / counts
        # k-means leaves rounding behind where a cluster's points coincide
        spread = radius > 1e-9 * (points - points.mean(0)).square().sum(1).mean().sqrt()
        if not bool(spread.any()):
            if len(centres) == 1:
                raise FitError("`latents` must differ from each other; all rows coincide. Check the encoder.")
            # every cluster is one repeated point: the spacing of the centres is the only scale there is
            square = squared_distances(centres, centres).fill_diagonal_(float("inf"))
            radius, spread = square.min(dim=1).values.sqrt(), torch.ones_like(spread)
        radius = torch.where(spread, radius, radius[spread].mean())
        return 0.5 / (self.width * radius).square()

    def state(self) -> dict[str, Tensor]:
        """The fitted tensors."""
        noise = self.noise
        return {"centres": noise.centres, "bandwidths": noise.bandwidths, "weights": noise.weights}

    def settings(self) -> dict[str, Any]:
        """The options this model was made with."""
        return {"count": self.count, "width": self.width, "floor": self.floor}

    @classmethod
    def from_state(cls, settings: dict[str, Any], state: dict[str, Tensor]) -> PublishedRBF:
        """The model that :meth:`settings` and :meth:`state` describe."""
        model = cls(**settings)
        model._noise = RBFNoise(state["centres"], state["bandwidths"], state["weights"], model.floor)
        model.fitted = True
        return model


def _moments(
    decoder: SmoothMap, points: Tensor, data: Any, rows: Tensor, features: Tensor
) -> tuple[Tensor, Tensor, bool]:
    """``VᵀR`` (K, D) and ``Σ_n R`` (D,) of the squared residuals R, in chunks of rows, and whether R is rounding."""
    step = max(1, _BLOCK // decoder.output_dim)
    sample = as_tensor(data[rows[:: len(rows) // step + 1].numpy()]).to(points).flatten(1)
    variance = sample.var(0, correction=0).mean()
    if bool(variance == 0):
        raise FitError("`data` must differ from row to row; all rows are the same. Check what was passed as `data`.")
    least = _LEAST * float(variance)
    moments: Any = 0
    total: Any = 0
    plain = 0.0
    for block in torch.arange(len(rows), device="cpu").split(step):
        target = as_tensor(data[rows[block].numpy()]).to(points).flatten(1)
        square = (target - decoder(points[block]).to(points)).square_()
        plain += float(square.sum())
        square.clamp_min_(least)
        moments = moments + features[block].T @ square
        total = total + square.sum(0)
    if not bool(torch.isfinite(total).all()):
        raise FitError("`data` minus the decoder's outputs must be finite; some are not. Remove those rows.")
    # the mean, not a share of the entries: many outputs may be constant beside a few that are really missed
    rounding = max(least, _SINGLE**2 * float(sample.square().mean()))
    return moments, total, plain <= rounding * len(rows) * decoder.output_dim


def _fit_weights(features: Tensor, moments: Tensor, total: Tensor, floor: float) -> tuple[Tensor, list[float]]:
    """Weights (K, D) that minimise ``½ Σ_n (β_n s_n - log β_n)`` for each output, and the objective's course.

    Stops when four extrapolated steps improve the mean objective an entry by less than 3e-5, and after 60 of them.
    """
    entries = features.shape[0] * total.shape[0]
    step = max(1, _BLOCK // features.shape[0])

    def update(logs: Tensor) -> tuple[Tensor, Tensor]:
        """One multiplicative update in log W, and the objective of each output where it started."""
        following, objective = [], []
        for block in torch.arange(logs.shape[1], device=logs.device).split(step):
            weights = logs[:, block].exp()
            precision = torch.addmm(features.new_tensor(floor), features, weights)
            objective.append(
                0.5 * ((weights * moments[:, block]).sum(0) + floor * total[block] - precision.log().sum(0))
            )
            following.append(logs[:, block] + ((features.T @ precision.reciprocal_()) / moments[:, block]).log())
        return torch.cat(following, dim=1).clamp_min_(-80), torch.cat(objective)

    share = features / features.sum(1, keepdim=True).clamp_min(1e-200)
    logs = (share.sum(0)[:, None] / moments).log()
    following, objective = update(logs)
    course = [float(objective.sum()) / entries]
    longest = torch.full_like(objective, 4.0)
    for _ in range(_MOST_STEPS):
        second, _ = update(following)
        change = following - logs
        curvature = second - following - change
        stretch = (change.norm(dim=0) / curvature.norm(dim=0).clamp_min(1e-300)).clamp_min(1).minimum(longest)
        trial = logs + 2 * stretch * change + stretch.square() * curvature
        after, reached = update(trial)
        plain, kept = update(second)
        worse = ~(reached <= kept)
        longest = torch.where(worse, (longest / 4).clamp_min(1), torch.where(stretch < longest, longest, longest * 4))
        logs = torch.where(worse, second, trial)
        following = torch.where(worse, plain, after)
        objective = torch.where(worse, kept, reached)
        course.append(float(objective.sum()) / entries)
        if len(course) > 4 and course[-5] - course[-1] < _TOLERANCE:
            break
    return logs.exp(), course
