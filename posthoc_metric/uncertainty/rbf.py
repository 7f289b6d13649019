"""The calibrated RBF network: evidence around centres, read as a smooth distance to the data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from .._arrays import check_count
from .._rows import Rows
from ..errors import NotFittedError
from ..smooth_map import SmoothMap
from ..support import without_strays
from .base import UncertaintyModel
from .centres import place_centres
from .moments import Moments
from .pieces import in_pieces

_MOST_DIRECT_DIM = 8
#: evidence of a cluster may move the edge of the support, but by no more than this factor either way
_EVIDENCE_RANGE = 4.0
_RESIDUAL_ROWS = 20_000
_FOLDS = 10
#: exponents below this add nothing to a sum with 1 in double precision, not even a million times
_NOTHING = -80.0


class RBF(UncertaintyModel):
    """Evidence ``β(z) = Σ_k a_k exp(-‖z - c_k‖² / 2h²)`` around k-means centres, shared by all outputs.

    The score is the smooth distance ``sqrt(2h² (1 + log(Σ_k a_k / β(z))))``: near zero on a centre, and far
    from all of them the Euclidean distance to the nearest (the log-sum-exp softens a minimum).  It is
    the precision network of Arvanitidis et al. (2018) with the weights of a Bayesian linear model, in
    which a cluster's precision is the number of its points over their mean squared residual; one profile serves
    all outputs, since only the sum over outputs enters the metric.  Its absolute size is
    left to the calibration, so ``a_k`` keeps only the clusters' evidence relative to one another.

    Args:
        centres: K; by default a third of the latents, between 32 and 256, or 512 beyond d = 8, where cells are wide
            and the decoder's Jacobian costs more anyway.
    """

    def __init__(self, *, centres: int | None = None):
        self.centres = None if centres is None else check_count(centres, "centres", 1, "the number of centres")
        self._points: Tensor | None = None

    def fit(self, decoder: SmoothMap, latents: Tensor, data: Rows | None = None, *, seed: int = 0) -> RBF:
        latents = latents.double()
        most = 256 if latents.shape[1] <= _MOST_DIRECT_DIM else 512
        count = self.centres or min(max(len(latents) // 3, 32), most)
        found = place_centres(latents, count, seed=seed, outliers=max(count // 4, 4))
        # one that has gone astray says nothing of where the others lie, or how far apart
        ordinary = without_strays(latents)
        self._origin = ordinary.mean(0)
        self._points = found.points - self._origin
        dim = latents.shape[1]
        # a cluster's centre is the mean of its own latents, which costs it one of them
        spare = (found.counts.sum() - len(found.counts)).clamp_min(1)
        pooled = (found.mean_square_radius * found.counts).sum() / spare
        scale = ordinary.var(0, correction=0).sum()
        # centres on every distinct latent leave no radius within the clusters
        self._width = torch.maximum(pooled / dim, 1e-6 * scale).sqrt()
        evidence = found.counts.double()
        if data is not None:
            evidence = evidence / _cluster_residuals(decoder, latents, data, found.labels, len(found.points))
        evidence = evidence / evidence.median()
        self._log_evidence = evidence.clamp(1 / _EVIDENCE_RANGE, _EVIDENCE_RANGE).log()
        self._settle()
        return self

    def held_out_scores(
        self, decoder: SmoothMap, latents: Tensor, data: Rows | None = None, *, seed: int = 0
    ) -> Tensor | None:
        """By ten-fold cross-validation; copies that lie side by side, as a split leaves them, in one fold."""
        new = (latents[1:] != latents[:-1]).any(1)
        fold = torch.cat([new.new_zeros(1), new]).cumsum(0) % _FOLDS
        scores = latents.new_empty(len(latents), dtype=torch.float64)
        for index in range(_FOLDS):
            left_out = fold == index
            rows = torch.nonzero(~left_out).flatten()
            kept = None if data is None else data.subset(rows)
            model = RBF(centres=self.centres).fit(decoder, latents[rows], kept, seed=seed)
            scores[left_out] = model.score(latents[left_out].double())
        return scores

    def score(self, z: Tensor) -> Tensor:
        points, centred = self._about(z)
        (log_sum,) = in_pieces(lambda some: self._evidence(some)[:1], centred, len(points))
        return self._score(log_sum, centred)

    def score_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        points, centred = self._about(z)

        def ask(some: Tensor) -> tuple[Tensor, Tensor]:
            log_sum, evidence, total = self._evidence(some)
            return log_sum, linear(evidence, self._columns) / total

        # ∇ score² / 2 = Σ_k p_k (z - c_k), with p_k the centres' shares of the evidence
        log_sum, mean = in_pieces(ask, centred, len(points))
        score = self._score(log_sum, centred)
        return score, (centred - mean) / score[:, None]

    def score_gradient_hessian(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        points, centred = self._about(z)
        moments = Moments(points)

        def ask(some: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            log_sum, evidence, total = self._evidence(some)
            return log_sum, total, *moments(evidence)

        log_sum, total, mean, second = in_pieces(ask, centred, len(points))
        score = self._score(log_sum, centred)
        mean = mean / total
        gradient = (centred - mean) / score[:, None]
        # ∇∇ score² / 2 = I - Cov(c) / h², the covariance that of the centres under their shares; in place, as in many
        # dimensions this is most of the work
        square = self._width.square()
        hessian = second.mul_(-1 / (square * score[:, None] * total)[:, :, None])
        hessian.baddbmm_(
            torch.stack([mean / square, -gradient], dim=2) / score[:, None, None], torch.stack([mean, gradient], dim=1)
        )
        hessian.diagonal(dim1=1, dim2=2).add_(1 / score[:, None])
        return score, gradient, hessian

    def _about(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The centres (K, d) and ``z`` (B, d), both from the origin."""
        if self._points is None:
            raise NotFittedError("this RBF model is not fitted; call fit(decoder, latents) first.")
        return self._points, z - self._origin

    def _evidence(self, centred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``log(β(z) e^{‖z‖² / 2h²})`` (B,), the centres' evidence over that of the one that has most (B, K), and the
        sum of it (B, 1)."""
        logits = torch.addmm(self._offset, centred, self._directions)
        top = logits.amax(dim=1, keepdim=True)
        # exp of what underflows takes five times as long, and products with what nearly does even longer
        evidence = logits.sub_(top).clamp_min_(_NOTHING).exp_()
        total = evidence.sum(1, keepdim=True)
        return (top + total.log())[:, 0], evidence, total

    def _score(self, log_sum: Tensor, centred: Tensor) -> Tensor:
        two = 2 * self._width.square()
        square = two * (1 + self._total - log_sum) + centred.square().sum(1)
        # no less, as β is at most its total; beside a latent that went 1e8 astray rounding makes it anything
        return square.maximum(two).sqrt()

    def _settle(self) -> None:
        """What every evaluation needs of ``log a_k - ‖z - c_k‖² / 2h²``: the part that is each centre's own."""
        assert self._points is not None
        two = 2 * self._width.square()
        self._offset = self._log_evidence - self._points.square().sum(1) / two
        # a table of few rows is read quicker than one of few columns
        self._columns = self._points.T.contiguous()
        self._directions = self._columns * (2 / two)
        self._total = torch.logsumexp(self._log_evidence, dim=0)
        self.fitted = True

    def settings(self) -> dict[str, Any]:
        return {"centres": self.centres}

    def state(self) -> dict[str, Tensor]:
        if self._points is None:
            return {}
        return {
            "points": self._points,
            "origin": self._origin,
            "width": self._width,
            "log_evidence": self._log_evidence,
        }

    @classmethod
    def from_state(cls, settings: dict[str, Any], state: dict[str, Tensor]) -> RBF:
        """The fitted model that :meth:`settings` and :meth:`state` describe, bit for bit."""
        model = cls(**settings)
        model._points = state["points"]
        model._origin = state["origin"]
        model._width = state["width"]
        model._log_evidence = state["log_evidence"]
        model._settle()
        return model


def _cluster_residuals(decoder: SmoothMap, latents: Tensor, data: Rows, labels: Tensor, count: int) -> Tensor:
    """Mean squared residual ``‖x - f(z)‖²`` of each cluster (count,), from at most 20,000 rows."""
    step = math.ceil(len(latents) / _RESIDUAL_ROWS)
    rows = torch.arange(0, len(latents), step, device=latents.device)
    total = latents.new_zeros(count)
    seen = latents.new_zeros(count)
    for chunk in rows.split(2048):
        residual = (data[chunk].to(latents) - decoder(latents[chunk])).square().sum(1)
        total.index_add_(0, labels[chunk], residual)
        seen.index_add_(0, labels[chunk], torch.ones_like(residual))
    pooled = total.sum() / seen.sum()
    mean = torch.where(seen > 0, total / seen.clamp_min(1), pooled)
    return mean.clamp_min(1e-3 * pooled).clamp_min(1e-300)
