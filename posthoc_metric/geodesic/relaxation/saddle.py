"""Ways down from curves that are stationary but not shortest, as past a conjugate point.

There the gradient vanishes and no Newton step helps; the model of the Hessian, where it is indefinite, says which way
the energy falls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..curves.batch import Batch
from ..curves.elements import Model
from ..curves.linear import solve_model

#: first step off a saddle, relative to the curve's own length
_STRIDE = 0.1
_ITERATIONS = 6


@dataclass
class Escape(Batch):
    """Steps for those of P curves that stand on a saddle.

    Attributes:
        rows: which curves (S,).
        move: of their inner nodes (S, n-1, d).
        gain: what the model promises of it (S,).
        size: of the step in the metric's L² norm, relative to the length (S,).
    """

    rows: Tensor
    move: Tensor
    gain: Tensor
    size: Tensor


def escapes(model: Model, inertia: Tensor, gradient: Tensor, radius: Tensor, worth: Tensor, rows: Tensor) -> Escape:
    """Steps along the lowest curvature of the model, for those of ``rows`` where it is below zero.

    Args:
        model: of P curves, indefinite where it will.
        inertia: blocks of the metric's L² norm (P, n-1, d, d).
        gradient: (P, n-1, d).
        radius: longest steps allowed (P,).
        worth: least gain for which a step is offered (P,).
        rows: which curves to look at.
    """
    _, convex = solve_model(model.take(rows), -gradient[rows])
    rows = rows[~convex]
    found, norm, force = model.take(rows), inertia[rows], gradient[rows]
    move = _lowest(found, norm, force)
    slope = -(force * move).sum((1, 2))
    move, slope = torch.where((slope < 0)[:, None, None], -move, move), slope.abs()
    curvature = (move * found.times(move)).sum((1, 2))
    size = radius[rows].clamp_max(_STRIDE)
    gain = slope * size - 0.5 * curvature * size.square()
    good = (curvature < 0) & (gain > worth[rows])
    return Escape(rows, move * size[:, None, None], gain, size).take(good)


def _lowest(model: Model, inertia: Tensor, like: Tensor) -> Tensor:
    """The direction of lowest curvature relative to ``inertia``, of unit length, by inverse iteration."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(like.shape[1:], generator=generator, device="cpu", dtype=like.dtype).to(like.device)
    v = start.expand_as(like).clone()
    scale = model.diagonal.diagonal(dim1=2, dim2=3).abs().amax((1, 2)) / inertia.diagonal(dim1=2, dim2=3).amax((1, 2))
    shift = 1e-4 * scale
    for _ in range(_ITERATIONS):
        weighted = (inertia @ v[..., None])[..., 0]
        todo = torch.arange(len(v), device=v.device)
        # the smallest shift of a few that makes the matrix definite is kept from then on
        while len(todo):
            shifted = model.take(todo)
            shifted.diagonal += shift[todo, None, None, None] * inertia[todo]
            solved, convex = solve_model(shifted, weighted[todo])
            v[todo[convex]] = solved[convex]
            todo = todo[~convex]
            shift[todo] *= 4.0
            todo = todo[torch.isfinite(shift[todo])]
        length = ((inertia @ v[..., None])[..., 0] * v).sum((1, 2)).clamp_min(1e-300).sqrt()
        v = v / length[:, None, None]
    return v
