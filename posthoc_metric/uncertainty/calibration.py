"""From a score to a metric: three knobs with meanings, set on held-out latents.

``w(z)``, what is added to the decoder's metric, is a :class:`Gate` on the model's score:

- its ceiling, from ``inflation``: the costliest unit step on the data, times the inflation, squared;
- its edge, from ``support_quantile``: at that quantile of held-out scores ``w`` still leaves the decoder's
  volume alone.  From there it rises to the costliest eigenvalue on the data within the data's own spacing, and
  on to the ceiling by a third of the data's radius;
- its floor, from ``max_condition_number``: the smallest constant that bounds κ(J) on the data.

What is chosen is checked by computing the audit's own quantities from eigenvalues measured once.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..errors import CalibrationWarning, FitError
from ..smooth_map import SmoothMap, gram
from ..support import Support
from .base import UncertaintyModel

#: offsets at which the void is sampled
VOID_OFFSETS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1000.0)
#: where the rise may end, widest first: a wide rise is a smooth metric, a narrow one hugs the data
_RISE_ENDS = (0.35, 0.25, 0.15, 0.1)
#: what share of the ceiling is reached at the end of the rise
_SATURATION = 0.95
#: where the knee may lie, in offsets; the data's own spacing decides between these
_KNEE_RANGE = (0.01, 0.05)
#: change of log volume per dimension that still counts as none: at the median, at 90 % and at ``support_quantile``
_UNCHANGED = (0.02, 0.1, 0.2)
_MOST_DEPTH = 45.0
#: a bound found on a sample is met a little more tightly, to hold on others
_MARGIN = 0.93
#: how far beyond the largest of a few scores the edge is put, in distances to their 80 % quantile
_TAIL = 0.3
_JACOBIAN_BUDGET = 5e8


@dataclass(frozen=True)
class Knobs:
    """The user's three dimensionless knobs; see :func:`posthoc_metric.repair`."""

    inflation: float = 10.0
    support_quantile: float = 0.99
    max_condition_number: float = 1e3


@dataclass(frozen=True)
class Measured:
    """Eigenvalues of the decoder's own metric on held-out latents and in the void.

    Attributes:
        data, void: ascending eigenvalues, (n, d) and (shells, n, d).
        data_points, void_points: where, (n, d) and (shells, n, d).
        support_points: training latents and gaps (n, d) whose eigenvalues ``support`` also set the floor.
        spacing: the 95th percentile of held-out distances to the nearest training latent, in data radii.
    """

    data: Tensor
    data_points: Tensor
    support: Tensor
    support_points: Tensor
    void: Tensor
    void_points: Tensor
    spacing: float

    @property
    def costliest(self) -> float:
        """95th percentile of the largest eigenvalue on held-out data."""
        return float(torch.quantile(self.data[:, -1], 0.95))


@dataclass(frozen=True)
class Gate:
    """``w(z) = ε + 1 / (1/W + (e^{-u/δ₁} + e^{-u/δ₂}) / V)`` with ``u = score(z) - k``, and its gradient.

    A precision network read from the score: below the knee ``w`` falls off steeply, above it ``w`` climbs gently
    to its ceiling.  One slope for both would either let curves stray beside the data or make the metric stiff.

    Attributes:
        model: the fitted uncertainty model.
        knee: k, the score at which ``w`` is V / 2.
        level: V, at most the costliest eigenvalue on the data.
        steep, gentle: δ₁ and δ₂, in units of the score.
        ceiling: W, what ``w`` tends to in the void.
        floor: ε.
    """

    model: UncertaintyModel
    knee: float
    level: float
    steep: float
    gentle: float
    ceiling: float
    floor: float

    def weight(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """``w - ε`` and its derivative by the score, each (B,), from scores (B,)."""
        u = score - self.knee
        terms = torch.stack(
            [
                torch.full_like(u, -math.log(self.ceiling)),
                -u / self.steep - math.log(self.level),
                -u / self.gentle - math.log(self.level),
            ]
        )
        total = torch.logsumexp(terms, dim=0)
        weight = (-total).exp()
        slope = (terms[1] - total).exp() / self.steep + (terms[2] - total).exp() / self.gentle
        return weight, weight * slope

    def share(self, z: Tensor) -> Tensor:
        """What share of the ceiling applies at z (B, d): (B,) in (0, 1)."""
        return self.weight(self.model.score(z))[0] / self.ceiling

    def __call__(self, z: Tensor) -> Tensor:
        """``w(z)`` (B,)."""
        return self.floor + self.weight(self.model.score(z))[0]

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``w(z)`` (B,) and ``∇w(z)`` (B, d), closed-form where the model's score is."""
        found = self.model.score_and_gradient(z)
        if found is None:
            with torch.enable_grad():
                point = z.detach().requires_grad_(True)
                score = self.model.score(point)
                (gradient,) = torch.autograd.grad(score.sum(), point)
            found = score.detach(), gradient
        weight, slope = self.weight(found[0])
        return self.floor + weight, slope[:, None] * found[1]

    def shaped(self, z: Tensor) -> Tensor:
        """``ε I + (w - ε) S(z)`` (B, d, d), for a model whose ignorance has a shape S."""
        shape = self.model.shape()
        assert shape is not None
        identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        return self.floor * identity + self.weight(self.model.score(z))[0][:, None, None] * shape(z)

    def numbers(self) -> dict[str, float]:
        """The numbers that calibration chose."""
        return {field.name: float(getattr(self, field.name)) for field in fields(self) if field.name != "model"}


def measure(decoder: SmoothMap, support: Support, *, seed: int = 0) -> Measured:
    """Eigenvalues of ``JᵀJ`` at points whose number a budget of Jacobian entries bounds."""
    dim = support.dim
    most = int(min(max(_JACOBIAN_BUDGET / (dim * decoder.output_dim), 64), 1000))
    each = max(most // len(VOID_OFFSETS), 24)
    data = support.calibration[:most]
    # the floor must also hold in the gaps between clusters, where the gate may still be shut
    training = torch.cat([support.training[:most], support.gaps(most // 4, seed=seed)])
    void = torch.stack(
        [support.shell(offset, each, seed=seed + 1 + index) for index, offset in enumerate(VOID_OFFSETS)]
    )
    void_values = decoder_eigenvalues(decoder, void.flatten(0, 1)).reshape(len(VOID_OFFSETS), each, dim)
    return Measured(
        data=decoder_eigenvalues(decoder, data),
        data_points=data,
        support=decoder_eigenvalues(decoder, training),
        support_points=training,
        void=void_values,
        void_points=void,
        spacing=support.spread / support.radius,
    )


def decoder_eigenvalues(decoder: SmoothMap, points: Tensor) -> Tensor:
    """Ascending eigenvalues (B, d) of ``J(z)ᵀ J(z)``.

    Raises:
        FitError: the Jacobian is not finite at a point.
    """
    found = gram(decoder, points)
    bad = ~torch.isfinite(found).flatten(1).all(1)
    if bool(bad.any()):
        raise FitError(
            "the decoder's Jacobian must be finite on and around the latents; it is NaN or infinite at "
            f"{int(bad.sum())} of {len(points)} points tried. Look for sqrt, log or division in the decoder, "
            "or wrap it in float64."
        )
    return torch.linalg.eigvalsh(found).clamp_min(0)


def calibrate(model: UncertaintyModel, measured: Measured, knobs: Knobs) -> Gate:
    """Choose the gate's four numbers for a fitted model.

    Raises:
        FitError: the decoder is constant around the latents, or the score is not finite.
    """
    if not measured.costliest > 0:
        raise FitError(
            "the decoder's Jacobian is zero on the held-out latents: its output does not depend on z there. "
            "Check that `latents` are latents of this decoder, in its own units."
        )
    known = model.score(measured.data_points)
    void = torch.stack([model.score(points) for points in measured.void_points])
    if not bool(torch.isfinite(known).all() and torch.isfinite(void).all()):
        raise FitError("the uncertainty model's score must be finite on and off the data; it is NaN or infinite.")
    edge = _edge(known, knobs.support_quantile)
    floor = _floor(measured, knobs)
    candidates = [_gate(model, measured, knobs, known, edge, floor, top) for top in _tops(edge, void)]
    # the widest rise that passes; failing that, the one that falls least
    shortfalls = [_shortfall(gate, measured, void) for gate in candidates]
    best = min(range(len(candidates)), key=lambda i: (max(shortfalls[i], 0.0), i))
    if shortfalls[best] > 0:
        warnings.warn(
            "the repaired volume falls somewhere between the data and the void by "
            f"{shortfalls[best]:.2f} more per dimension than the audit allows; see repaired.audit().",
            CalibrationWarning,
            stacklevel=3,
        )
    return candidates[best]


def _edge(known: Tensor, share: float) -> float:
    """The quantile of held-out scores (n,), beyond the largest of them where they are too few to show it."""
    edge = torch.quantile(known, share, interpolation="higher")
    if len(known) * (1 - share) < 1:
        edge = edge + _TAIL * (edge - torch.quantile(known, 0.8 * share))
    return float(edge)


def _tops(edge: float, void: Tensor) -> list[float]:
    """Scores at which the rise may end, widest first: those that 95 % of the points at an offset exceed."""
    low = torch.quantile(void, 0.05, dim=1)
    # nearer than the first shell, the score is taken to grow evenly from the edge
    scores = np.interp(_RISE_ENDS, (0.0, *VOID_OFFSETS), (edge, *low.tolist()))
    tops = [float(score) for score in scores if score > edge + 1e-9 * abs(edge)]
    if tops:
        return tops
    warnings.warn(
        f"the uncertainty model scarcely tells the data from the void: its score at offset {_RISE_ENDS[0]} "
        f"({scores[0]:.3g}) is no higher than on held-out latents ({edge:.3g}). Try more centres or more latents.",
        CalibrationWarning,
        stacklevel=4,
    )
    beyond = float(torch.quantile(void[VOID_OFFSETS.index(1.0)], 0.5))
    return [edge + max(0.1 * abs(beyond - edge), 1e-6 * abs(edge), 1e-12)]


def _floor(measured: Measured, knobs: Knobs) -> float:
    """The smallest constant ε with κ(JᵀJ + εI) ≤ κ_max² at every point sampled on the data and just off them."""
    near = [values for values, offset in zip(measured.void, VOID_OFFSETS, strict=True) if offset < 0.5]
    values = torch.cat([measured.data, measured.support, *near])
    bound = (_MARGIN * knobs.max_condition_number) ** 2
    return float(((values[:, -1] - bound * values[:, 0]) / (bound - 1)).max().clamp_min(0))


def _gate(
    model: UncertaintyModel, measured: Measured, knobs: Knobs, known: Tensor, edge: float, floor: float, top: float
) -> Gate:
    """The gate that rises from score ``edge`` to ``top``, with the least depth that leaves the data alone."""
    ceiling = knobs.inflation**2 * measured.costliest / _SATURATION
    ceiling *= _raise(ceiling, measured)
    level = min(measured.costliest, ceiling / 4)
    knee_offset = min(max(measured.spacing, _KNEE_RANGE[0]), _KNEE_RANGE[1])
    knee = edge + knee_offset / _RISE_ENDS[0] * (top - edge)
    gentle = (top - knee) / math.log(ceiling / level / (1 / _SATURATION - 1))
    # never less steep than the climb above the knee, or the ceiling would not be reached by ``top``
    low, high = (knee - edge) / gentle, _MOST_DEPTH
    for _ in range(40):
        depth = 0.5 * (low + high)
        gate = Gate(model, knee, level, (knee - edge) / depth, gentle, ceiling, floor)
        if _fidelity_met(measured.data, gate.weight(known)[0], floor, knobs):
            high = depth
        else:
            low = depth
    return Gate(model, knee, level, (knee - edge) / high, gentle, ceiling, floor)


def _fidelity_met(eigenvalues: Tensor, weight: Tensor, floor: float, knobs: Knobs) -> bool:
    change = _log_volume_change(eigenvalues + floor, weight)
    shares = torch.tensor([0.5, 0.9, knobs.support_quantile], dtype=change.dtype, device=change.device)
    # a support smaller than 90 % of the data is what was asked for
    shares = shares.clamp_max(knobs.support_quantile)
    return bool((torch.quantile(change, shares) <= change.new_tensor(_UNCHANGED)).all())


def _log_volume_change(eigenvalues: Tensor, weight: Tensor) -> Tensor:
    """``½ log det(M + wI) / det M`` per dimension, (n,)."""
    tiny = 1e-300
    return 0.5 * torch.log1p(weight[:, None] / eigenvalues.clamp_min(tiny)).mean(1)


def _raise(ceiling: float, measured: Measured) -> float:
    """By how much the ceiling must exceed the inflation's own so that the void stays well conditioned.

    A decoder can be far steeper off the data than on them; κ(J) ≤ 10 there needs ``λ_max ≤ 99 w``.
    """
    beyond = [index for index, offset in enumerate(VOID_OFFSETS) if offset >= 1]
    largest = torch.stack([torch.quantile(measured.void[index, :, -1], 0.95) for index in beyond]).max()
    return max(1.0, float(largest) / (50.0 * ceiling))


def _shortfall(gate: Gate, measured: Measured, void: Tensor) -> float:
    """The largest fall of the median log volume from any shell, data included, to a farther one, less 0.04."""
    weights = gate.floor + gate.weight(void)[0]
    on_data = gate(measured.data_points)
    medians = [_median_log_volume(measured.data, on_data)]
    medians += [_median_log_volume(values, weight) for values, weight in zip(measured.void, weights, strict=True)]
    fall, peak = 0.0, -math.inf
    for value in medians:
        peak = max(peak, value)
        fall = max(fall, peak - value)
    return fall - 0.04


def _median_log_volume(eigenvalues: Tensor, weight: Tensor) -> float:
    return float((0.5 * (eigenvalues + weight[:, None]).clamp_min(1e-300).log().mean(1)).median())
