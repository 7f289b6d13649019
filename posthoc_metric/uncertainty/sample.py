"""What every choice of a gate is judged by: scores and volumes on the data and in the void, asked for once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import UncertaintyModel
from .floor import Floor, fit_floor
from .measurement import Measured
from .volumes import Volumes, joined, plain_volumes, shaped_volumes

#: training latents whose shapes are asked for, where few are held out
_MOST_SHAPES = 100
#: points of a shell at which a shape that is the identity to this accuracy is taken for that at all others
_TRIED, _ALIKE = 8, 1e-3


@dataclass(frozen=True)
class Sample:
    """Scores of a model, and the volumes that weights would make, at the points of a :class:`Measured`.

    Attributes:
        measured: the decoder's eigenvalues, with those of training latents that a model without them has scored.
        floor: what these eigenvalues need.
        known, void: scores on the data (n,) and in the void (shells, n).
        on_data, in_void: the volumes at those data and at each shell's points whose scores ``data_scores`` (m,) and
            ``void_scores`` (m,) are; fewer than all where matrices are large.
        caution: by how many standard errors medians are taken too high or too low.
    """

    measured: Measured
    floor: Floor
    known: Tensor
    void: Tensor
    on_data: Volumes
    in_void: tuple[Volumes, ...]
    data_scores: Tensor
    void_scores: tuple[Tensor, ...]
    caution: float


def look(model: UncertaintyModel, measured: Measured, bound: float, held_out: Tensor | None) -> Sample:
    """Score what was measured and set the floor.

    Args:
        model: fitted.
        measured: on its latents.
        bound: on κ(J).
        held_out: see :func:`~posthoc_metric.uncertainty.calibration.calibrate`.
    """
    known = model.score(measured.data_points)
    void = torch.stack([model.score(points) for points in measured.void_points])
    both = measured if held_out is None else _with_training(measured, held_out)
    floor, scale, shape = fit_floor(both, bound), both.costliest, model.shape()
    in_void = tuple(
        _volumes(_unless_plain(shape, there[0]), floor, scale, *there)
        for there in zip(measured.void_points, measured.void, measured.void_grams, strict=True)
    )
    on_data = _volumes(shape, floor, scale, measured.data_points, measured.data, measured.data_grams)
    scores = known[: len(on_data.level)]
    if held_out is not None:
        count = min(len(held_out), measured.training_count)
        points, values = measured.support_points[:count], measured.support[:count]
        kept = min(count, len(measured.training_grams), _MOST_SHAPES)
        shapes = None if shape is None else model.held_out_shapes(points[:kept])
        if shapes is None:
            # ignorance alike in all directions is the most that there can be
            more = plain_volumes(values, floor(points))
        else:
            more = shaped_volumes(measured.training_grams[:kept], floor(points[:kept]), shapes[:kept], scale)
        on_data, scores = joined(on_data, more), torch.cat([scores, held_out[: len(more.level)]])
        known = torch.cat([known, held_out[:count]])
    return Sample(
        measured=both,
        floor=floor,
        known=known,
        void=void,
        on_data=on_data,
        in_void=in_void,
        data_scores=scores,
        void_scores=tuple(scores[: len(there.level)] for scores, there in zip(void, in_void, strict=True)),
        # few latents say little of those to come
        caution=0.0 if held_out is None else 0.5,
    )


def _with_training(measured: Measured, held_out: Tensor) -> Measured:
    """Eigenvalues on the data, those of the training latents that have scores included as far as they were measured."""
    count = min(len(held_out), measured.training_count)
    return replace(
        measured,
        data=torch.cat([measured.data, measured.support[:count]]),
        data_points=torch.cat([measured.data_points, measured.support_points[:count]]),
    )


def _unless_plain(shape: Callable[[Tensor], Tensor] | None, points: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The shape, or none where nothing is known: far away, where asking at all points costs as much as anywhere."""
    if shape is None:
        return None
    found = shape(points[:_TRIED])
    return (
        None
        if bool((found - torch.eye(found.shape[1], dtype=found.dtype, device=found.device)).abs().max() < _ALIKE)
        else shape
    )


def _volumes(
    shape: Callable[[Tensor], Tensor] | None,
    floor: Floor,
    scale: float,
    points: Tensor,
    eigenvalues: Tensor,
    grams: Tensor,
) -> Volumes:
    if shape is None:
        return plain_volumes(eigenvalues, floor(points))
    few = points[: len(grams)]
    return shaped_volumes(grams, floor(few), shape(few), scale)
