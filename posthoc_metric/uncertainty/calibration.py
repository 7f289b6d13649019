"""From a score to a metric: three knobs with meanings, set on held-out latents.

``w(z)``, what is added to the decoder's metric, is a :class:`Gate` on the model's score:

- its ceiling, from ``inflation``: the costliest unit step on the data, times the inflation, squared;
- its edge, from ``support_quantile``: at that quantile of held-out scores ``w`` still leaves the decoder's
  volume alone.  From there it rises to the costliest eigenvalue on the data within the data's own spacing, and
  on to what the inflation asks for by half of the data's radius;
- its floor, from ``max_condition_number``: about the least that bounds κ(J) there.

What is chosen is checked by computing the audit's own quantities from matrices measured once, with ``w`` times the
model's shape where it has one: a model may all but know a direction's derivatives where its score is well up already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from .._warn import warn_caller
from ..errors import CalibrationWarning, FitError
from .base import UncertaintyModel
from .gate import Gate
from .measurement import AUDITED, VOID_OFFSETS, Measured
from .sample import MEDIANS, TAILS, Sample, likely, look
from .scales import about_scales
from .volumes import largest_fall

#: where the rise may end, widest first: a wide rise is a smooth metric, a narrow one hugs the data
_RISE_ENDS = (0.5, 0.35, 0.25, 0.15, 0.1)
#: what share of the ceiling is reached at the end of the rise
_SATURATION = 0.8
#: where the knee may lie, in offsets; the data's own spacing decides between these
_KNEE_RANGE = (0.01, 0.05)
#: change of log volume per dimension that still counts as none: at the median, at 90 % and at ``support_quantile``
_UNCHANGED = (0.02, 0.1, 0.2)
_MOST_DEPTH = 45.0
#: supports that are tried where the one asked for reaches into the void
_LESSER_SHARES = (0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.9)
#: how many times higher the ceiling may be for a model that says it knows some directions in the void, before it is
#: told that this is not enough: lengths there come out up to twice as large
_BOOSTS = (1.0, 2.0, 4.0)
#: by how much it may be raised at most so that the inflation comes out as asked for
_MOST_LACK = 4.0
#: how far beyond the largest of a few scores the edge is put, in distances to their 80 % quantile
_TAIL = 0.3


@dataclass(frozen=True)
class Knobs:
    """The user's three dimensionless knobs; see :func:`posthoc_metric.repair`."""

    inflation: float = 10.0
    support_quantile: float = 0.99
    max_condition_number: float = 1e3


def calibrate(model: UncertaintyModel, measured: Measured, knobs: Knobs, held_out: Tensor | None = None) -> Gate:
    """Choose the gate's numbers for a fitted model.

    Args:
        model: fitted.
        measured: the decoder's eigenvalues.
        knobs: what is asked for.
        held_out: scores (n,) of the first training latents, by a model that had not seen them: they join those of the
            calibration latents.

    Raises:
        FitError: the decoder is constant around the latents, or the score is not finite.
    """
    _check_steps(measured)
    if unequal := about_scales(measured.mismatch, measured.scales):
        warn_caller(unequal, CalibrationWarning)
    if measured.beyond:
        warn_caller(
            f"far from the data the decoder overflows or is too steep to repair: {measured.beyond}. The repair holds, "
            f"and an audit looks, out to {measured.offsets[-1]:g} data radii instead of {VOID_OFFSETS[-1]:g}. Curves "
            "between data stay within. To have it hold everywhere, clamp the latents before they are decoded, as in "
            "`lambda z: model(z.clamp(-10, 10))` with bounds beyond your latents.",
            CalibrationWarning,
        )
    sample = look(model, measured, knobs.max_condition_number, held_out)
    _check_steps(sample.measured)  # of more latents
    known, void = sample.known, sample.void
    scores = torch.cat([known, void.flatten(), sample.in_void[0].scores])
    if not bool(torch.isfinite(scores).all()):
        raise FitError("the uncertainty model's score must be finite on and off the data; it is NaN or infinite.")
    chosen = _choose(model, sample, knobs)
    if chosen is None:
        warn_caller(
            "the uncertainty model does not tell the data from the void. Try more centres or more latents.",
            CalibrationWarning,
        )
        edge = _edge(known, knobs.support_quantile)
        beyond = float(torch.quantile(void[measured.offsets.index(1.0)], 0.5))
        top = edge + max(0.1 * abs(beyond - edge), 1e-6 * abs(edge), 1e-12)
        return _risen(model, sample, _ceiling(sample, knobs), edge, top, knobs.support_quantile)
    gate, doubt = chosen
    if doubt:
        warn_caller(doubt, CalibrationWarning)
    delivered = math.sqrt(_least_added(gate, sample) / measured.costliest)
    if delivered < 0.7 * knobs.inflation:
        warn_caller(
            f"a step in the void may cost only {delivered:.2g} times the costliest one on the data, not "
            f"{knobs.inflation:g}: the uncertainty model says that it knows some directions there. Its `shape` must "
            "tend to the identity far from the data.",
            CalibrationWarning,
        )
    return gate


def _check_steps(measured: Measured) -> None:
    if not measured.costliest > 0:
        raise FitError(
            "the decoder's Jacobian is zero on 95 % of the held-out latents or more: its output does not depend on z "
            "there. Check that `latents` are latents of this decoder, in its own units."
        )


def _choose(model: UncertaintyModel, sample: Sample, knobs: Knobs) -> tuple[Gate, str] | None:
    """The widest rise that passes, of the largest support that has one, and what there is to warn of.

    ``None`` where no score of the void is above those of the data.
    """
    known, void = sample.known, sample.void
    found: list[tuple[float, Gate]] = []
    shares = (knobs.support_quantile, *(less for less in _LESSER_SHARES if less < knobs.support_quantile))
    for boost, share in product((1.0,) if model.shape() is None else _BOOSTS, shares):
        edge = _edge(known, share)
        for top in _tops(edge, void, sample.measured.offsets):
            gate = _gate(model, sample, knobs, edge, top, share, boost)
            shortfall = _shortfall(gate, sample)
            if shortfall <= 0:
                lost = knobs.support_quantile - share > _chance(knobs.support_quantile, len(known))
                return gate, (
                    f"only {share:.0%} of held-out latents could be left alone, not {knobs.support_quantile:.0%}: "
                    "the rest lie as far from the data as the void does. More latents help."
                    if lost
                    else ""
                )
            found.append((shortfall, gate))
    if not found:
        return None
    shortfall, gate = min(found, key=lambda pair: pair[0])
    return gate, (
        f"the repaired volume may fall somewhere between the data and the void by {shortfall:.2f} more per dimension "
        "than the audit allows, as far as chance in its points goes; see repaired.audit()."
    )


def _chance(share: float, count: int) -> float:
    """Two standard deviations of a share of ``count`` latents that is ``share`` in the long run."""
    return 2 * math.sqrt(share * (1 - share) / count)


def _edge(known: Tensor, share: float) -> float:
    """The quantile of held-out scores (n,), beyond the largest of them where they are too few to show it."""
    edge = torch.quantile(known, share, interpolation="higher")
    if len(known) * (1 - share) < 1:
        edge = edge + _TAIL * (edge - torch.quantile(known, 0.8 * share))
    return float(edge)


def _tops(edge: float, void: Tensor, offsets: tuple[float, ...]) -> list[float]:
    """Scores at which the rise may end, widest first: those that 95 % of the points at an offset exceed."""
    low = torch.quantile(void, 0.05, dim=1)
    # nearer than the first shell, the score is taken to grow evenly from the edge
    scores = np.interp(_RISE_ENDS, (0.0, *offsets), (edge, *low.tolist()))
    return [float(score) for score in scores if score > edge + 1e-9 * abs(edge)]


def _gate(
    model: UncertaintyModel, sample: Sample, knobs: Knobs, edge: float, top: float, share: float, boost: float
) -> Gate:
    """The gate that rises from score ``edge`` to ``top``, and as high as the inflation needs."""
    ceiling = _ceiling(sample, knobs, boost)
    gate = _risen(model, sample, ceiling, edge, top, share)
    wanted = knobs.inflation**2 * sample.costliest
    lack = wanted / max(_least_added(gate, sample), wanted / _MOST_LACK)
    return gate if lack <= 1 else _risen(model, sample, lack * ceiling, edge, top, share)


def _ceiling(sample: Sample, knobs: Knobs, boost: float = 1.0) -> float:
    ceiling = boost * knobs.inflation**2 * sample.measured.costliest / _SATURATION
    return ceiling * _raise(ceiling, sample.measured)


def _risen(model: UncertaintyModel, sample: Sample, ceiling: float, edge: float, top: float, share: float) -> Gate:
    """The gate below a ceiling, with the least depth that leaves the data alone."""
    measured = sample.measured
    level = min(measured.costliest, ceiling / 4)
    knee_offset = min(max(measured.spacing, _KNEE_RANGE[0]), _KNEE_RANGE[1])
    knee = edge + knee_offset / _RISE_ENDS[0] * (top - edge)
    gentle = (top - knee) / math.log(ceiling / level / (1 / _SATURATION - 1))

    def of(depth: float) -> Gate:
        steep, reach = (knee - edge) / depth, measured.offsets[-1]
        return Gate(model, knee, level, steep, gentle, ceiling, sample.floor, sample.even, reach)

    # never less steep than the climb above the knee, or the ceiling would not be reached by ``top``
    low, high = (knee - edge) / gentle, _MOST_DEPTH
    for _ in range(40):
        depth = 0.5 * (low + high)
        if _fidelity_met(sample.on_data.volumes.change(of(depth).weight(sample.on_data.scores)[0]), share):
            high = depth
        else:
            low = depth
    return of(high)


def _least_added(gate: Gate, sample: Sample) -> float:
    """What is added in the cheapest direction at offset 1 and beyond: its 5 % quantile, no more than it may be."""
    beyond = (there for offset, there in zip(sample.measured.offsets, sample.in_void, strict=True) if offset >= 1)
    added = [gate.weight(there.scores)[0] * there.least for there in beyond]
    return min(float(there.quantile(likely(0.05, len(there), math.inf, -TAILS))) for there in added)


def _fidelity_met(change: Tensor, share: float) -> bool:
    """Whether volumes on the data changed by (n,) still count as left alone."""
    shares = torch.tensor([0.5, 0.9, share], dtype=change.dtype, device=change.device)
    # a support smaller than 90 % of the data is what was asked for
    shares = shares.clamp_max(share)
    return bool((torch.quantile(change, shares) <= change.new_tensor(_UNCHANGED)).all())


def _raise(ceiling: float, measured: Measured) -> float:
    """By how much the ceiling must exceed the inflation's own so that the void stays well conditioned.

    A decoder can be far steeper off the data than on them; κ(J) ≤ 10 there needs ``λ_max ≤ 99 w``.
    """
    beyond = [index for index, offset in enumerate(measured.offsets) if offset >= 1]
    largest = torch.stack([torch.quantile(measured.void[index, :, -1], 0.95) for index in beyond]).max()
    return max(1.0, float(largest) / (50.0 * ceiling))


def _shortfall(gate: Gate, sample: Sample) -> float:
    """The largest fall of the median log volume from any shell, data included, to a farther one, less 0.04.

    Medians are taken too high on the data and too low on the shells, by as much as an audit's may be so by chance.
    """
    on_data, audited = sample.on_data, sample.measured.audited
    wanted = [(on_data, likely(0.5, len(on_data.scores), audited, MEDIANS))]
    wanted += [(there, likely(0.5, len(there.scores), AUDITED, -MEDIANS)) for there in sample.in_void]
    medians = [there.volumes(gate.weight(there.scores)[0]).quantile(share) for there, share in wanted]
    return largest_fall([float(median) for median in medians]) - 0.04
