"""What every choice of a gate is judged by: scores and volumes on the data and in the void, asked for once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import UncertaintyModel
from .evened import Evened, evened
from .floor import Floor, fit_floor
from .measurement import Measured
from .volumes import Volumes, joined, plain_volumes, shaped_volumes

#: training latents whose shapes are asked for, where few are held out
_MOST_SHAPES = 100
#: points of a shell at which a shape that is the identity to this accuracy is taken for that at all others
_TRIED, _ALIKE = 8, 1e-3
#: standard errors by which an audit's medians may be worse than those found here, and its inflation, of which it asks
#: for half only
MEDIANS, TAILS = 2.0, 1.0


@dataclass(frozen=True)
class Seen:
    """Points of one kind; fewer than all where matrices are large.

    Attributes:
        scores: of the model, (n,).
        volumes: that weights would make.
        least: the least eigenvalue of the model's shape, (n,); 1 without one.
    """

    scores: Tensor
    volumes: Volumes
    least: Tensor

    def and_also(self, others: Seen) -> Seen:
        """With the points of both."""
        scores, least = torch.cat([self.scores, others.scores]), torch.cat([self.least, others.least])
        return Seen(scores, joined(self.volumes, others.volumes), least)


@dataclass(frozen=True)
class Sample:
    """Scores of a model, and the volumes that weights would make, at the points of a :class:`Measured`.

    Attributes:
        measured: the decoder's eigenvalues, with those of training latents that a model without them has scored.
        floor: what these eigenvalues need.
        even: see :class:`~posthoc_metric.uncertainty.gate.Gate`.
        costliest: the 95th percentile of the largest eigenvalue on the data, no less than it may be.
        known, void: scores on the data (n,) and in the void (shells, n).
        on_data, in_void: those points and those of each shell, with what weights would make of them.
    """

    measured: Measured
    floor: Floor
    even: float
    costliest: float
    known: Tensor
    void: Tensor
    on_data: Seen
    in_void: tuple[Seen, ...]


def look(model: UncertaintyModel, measured: Measured, bound: float, held_out: Tensor | None) -> Sample:
    """Score what was measured and set the floor.

    Args:
        model: fitted.
        measured: on its latents.
        bound: on κ(J).
        held_out: see :func:`~posthoc_metric.uncertainty.calibration.calibrate`.
    """
    known = model.score(measured.scored_points)
    void = torch.stack([model.score(points) for points in measured.void_points])
    both = measured if held_out is None else _with_training(measured, held_out)
    floor, scale, shape = fit_floor(both, bound), both.costliest, model.shape()
    # the floor bounds what the decoder needs, this what the shape needs, and then their sum keeps to the bound
    even = 0.0 if shape is None else bound**-2
    shape = None if shape is None else Evened(shape, even)

    def seen(scores: Tensor, points: Tensor, values: Tensor, grams: Tensor, shapes: Tensor | None) -> Seen:
        if shapes is None:
            return Seen(scores, plain_volumes(values, floor(points)), torch.ones_like(scores))
        some = slice(len(shapes))
        volumes = shaped_volumes(grams[some], floor(points[some]), shapes, scale)
        return Seen(scores[some], volumes, torch.linalg.eigvalsh(shapes)[:, 0].clamp_min(0))

    shells = zip(void, measured.void_points, measured.void, measured.void_grams, strict=True)
    nearest, *beyond = (seen(*there, _unless_plain(shape, there[1][: len(there[3])])) for there in shells)
    points, grams = measured.more_points, measured.more_grams
    more = seen(model.score(points), points, measured.more, grams, _unless_plain(shape, points[: len(grams)]))
    points, grams = measured.data_points, measured.data_grams
    shapes = None if shape is None else shape(points[: len(grams)])
    on_data = seen(known[: len(points)], points, measured.data, grams, shapes)
    if held_out is not None:
        count = min(len(held_out), measured.training_count)
        points, grams = measured.support_points[:count], measured.training_grams[: min(count, _MOST_SHAPES)]
        # ignorance alike in all directions is the most that there can be
        found = None if shape is None else model.held_out_shapes(points[: len(grams)])
        found = None if found is None else evened(found[: len(grams)], even)
        on_data = on_data.and_also(seen(held_out[:count], points, measured.support[:count], grams, found))
        known = torch.cat([known, held_out[: measured.scored_count]])
    return Sample(
        measured=both,
        floor=floor,
        even=even,
        costliest=float(both.data[:, -1].quantile(likely(0.95, len(both.data), math.inf, TAILS))),
        known=known,
        void=void,
        on_data=on_data,
        in_void=(nearest.and_also(more), *beyond),
    )


def likely(share: float, seen: float, others: float, errors: float) -> float:
    """The share of ``seen`` values below what the quantile of ``others`` may be that is so many standard errors off."""
    off = math.sqrt(share * (1 - share) * (1 / seen + 1 / others))
    return min(max(share + errors * off, 0.0), 1.0)


def _with_training(measured: Measured, held_out: Tensor) -> Measured:
    """Eigenvalues on the data, those of the training latents that have scores included as far as they were measured."""
    count = min(len(held_out), measured.training_count)
    return replace(
        measured,
        data=torch.cat([measured.data, measured.support[:count]]),
        data_points=torch.cat([measured.data_points, measured.support_points[:count]]),
    )


def _unless_plain(shape: Callable[[Tensor], Tensor] | None, points: Tensor) -> Tensor | None:
    """Shapes (n, d, d), or none where nothing is known: far away, where asking at all costs as much as anywhere."""
    if shape is None:
        return None
    found = shape(points[:_TRIED])
    eye = torch.eye(found.shape[1], dtype=found.dtype, device=found.device)
    return None if bool((found - eye).abs().max() < _ALIKE) else shape(points)
