"""Curves shortened with their nodes at even latent distances, where times would say nothing of where they belong.

At a fold of the embedding a direction loses its image, as that in which an arm is stretched out.  The image of a curve
across it turns back there, and run at constant speed the curve leaps as ``sqrt(|t|)`` does: nodes at given times leap
over the fold, and chords between them see nothing of the way to it and back.  In latent space the curve is smooth.
What is minimised is the length, which needs no times,

    ``L = Σ_k l_k,  l_k² = ‖F_{k+1} - F_k‖² + w ‖z_{k+1} - z_k‖² + (z_{k+1} - z_k)ᵀ U (z_{k+1} - z_k)``,

by Gauss-Newton steps across the curve, since along it no length changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...field_derivative import FieldDerivative
from ...metric import MetricParts
from ..curves.elements import Model
from ..curves.linear import solve_model
from ..curves.placement import even
from ..curves.polygons import met, run_along

#: damping over what keeps a straight curve straight: at first, where a step did half of what it promised, where it did
#: nothing, at most, and up to which a residual is told
_FIRST, _LESS, _MORE, _MOST, _SURE = 1e-2, 0.2, 8.0, 1e6, 1e-2


@dataclass(frozen=True)
class Shortened:
    """A curve whose nodes are evenly spaced in latent space.

    Attributes:
        nodes: (n+1, d).
        pieces: the length of every span by its chord (n,).
        residual: the root of twice what the length may still lose, as a share of it, which is the root of the share of
            its energy; ``inf`` where nothing tells.
        steps: that were tried; each asked for values and Jacobians at all nodes, and one more time did the start.
    """

    nodes: Tensor
    pieces: Tensor
    residual: float
    steps: int

    @property
    def length(self) -> float:
        """By chords."""
        return float(self.pieces.sum())


@dataclass(frozen=True)
class _Lengths:
    """Lengths of the n spans (n,), with first (n, 2d) and second derivatives (n, 2d, 2d) by their two ends."""

    pieces: Tensor
    slopes: Tensor
    bends: Tensor


def spaced(nodes: Tensor, spans: int) -> Tensor:
    """The polygon through ``nodes`` (m+1, d), at ``spans + 1`` even latent distances."""
    pieces = nodes.diff(dim=0).norm(dim=1)
    found = met(run_along(pieces[None]), nodes[None], even(nodes[None], spans))[0]
    found[0], found[-1] = nodes[0], nodes[-1]
    return found


def shorten(
    parts: MetricParts, field: FieldDerivative | None, nodes: Tensor, *, tol: float, max_steps: int
) -> Shortened:
    """The shortest curve near ``nodes`` (n+1, d), n even, which are evenly spaced; ``field`` is that of ``parts``."""
    spans, damping, residual, steps = len(nodes) - 1, _FIRST, float("inf"), 0
    here = _lengths(parts, field, nodes)
    while steps < max_steps and damping <= _MOST and bool(torch.isfinite(here.pieces).all()):
        move, promised, residual = _step(here, nodes, damping)
        if damping > _SURE:
            residual = float("inf")
        if residual <= tol:
            break
        steps += 1
        moved = nodes.clone()
        moved[1:-1] += move
        moved = spaced(moved, spans)
        there = _lengths(parts, field, moved)
        gain = float(here.pieces.sum() - there.pieces.sum())
        if gain > 0:
            nodes, here = moved, there
            damping = damping * _LESS if gain > promised / 2 else damping
        else:
            damping *= _MORE
    return Shortened(nodes, here.pieces, residual, steps)


def _step(here: _Lengths, nodes: Tensor, damping: float) -> tuple[Tensor, float, float]:
    """A move of the inner nodes (n-1, d), by how much it should shorten the curve, and the residual."""
    spans, dim = len(nodes) - 1, nodes.shape[1]
    across = _across(nodes[2:] - nodes[:-2])
    left, right = here.slopes[:, :dim], here.slopes[:, dim:]
    slope = (across.mT @ (right[:-1] + left[1:])[..., None])[..., 0]
    diagonal = across.mT @ (here.bends[:-1, dim:, dim:] + here.bends[1:, :dim, :dim]) @ across
    near = across[:-1].mT @ here.bends[1:-1, :dim, dim:] @ across[1:]
    # what bends a straight curve in a metric that is the same everywhere, times the damping
    length, way = float(here.pieces.sum()), float(nodes.diff(dim=0).norm(dim=1).sum())
    brake = damping * spans * length / max(way, 1e-300) ** 2
    eye = torch.eye(dim - 1, dtype=nodes.dtype, device=nodes.device)
    held = Model(
        (diagonal + 2 * brake * eye)[None],
        (near - brake * across[:-1].mT @ across[1:])[None],
        nodes.new_zeros(1, spans // 2 - 2, dim - 1, dim - 1),
    )
    found, good = solve_model(held, -slope[None])
    if not bool(good):
        return torch.zeros_like(nodes[1:-1]), 0.0, float("inf")
    move = (across @ found[0][..., None])[..., 0]
    falls = -float((slope * found[0]).sum())
    padded = torch.nn.functional.pad(move, (0, 0, 1, 1))
    braked = brake * float(padded.diff(dim=0).square().sum())
    return move, (falls + braked) / 2, (max(falls, 0.0) / max(length, 1e-300)) ** 0.5


def _across(ways: Tensor) -> Tensor:
    """Orthonormal vectors (m, d, d-1) across ``ways`` (m, d), by Householder's reflections."""
    mirror = ways / ways.norm(dim=1, keepdim=True).clamp_min(1e-300)
    mirror[:, 0] += torch.where(mirror[:, 0] < 0, -1.0, 1.0)
    eye = torch.eye(ways.shape[1], dtype=ways.dtype, device=ways.device)
    twice = 2 / mirror.square().sum(1)[:, None, None]
    return (eye - twice * mirror[:, :, None] * mirror[:, None, :])[:, :, 1:]


def _lengths(parts: MetricParts, field: FieldDerivative | None, nodes: Tensor) -> _Lengths:
    step, middle = nodes.diff(dim=0), (nodes[1:] + nodes[:-1]) / 2
    count, dim = step.shape
    eye = torch.eye(dim, dtype=nodes.dtype, device=nodes.device)
    square = step.new_zeros(count)
    slopes, bends = step.new_zeros(count, 2 * dim), step.new_zeros(count, 2 * dim, 2 * dim)

    def add(vector: Tensor, left: Tensor, right: Tensor) -> None:
        """The square of a vector (n, k) with derivatives (n, k, d) by the ends of the spans."""
        nonlocal square, slopes, bends
        both = torch.cat([left, right], dim=2)
        square = square + vector.square().sum(1)
        slopes = slopes + 2 * (both.mT @ vector[..., None])[..., 0]
        bends = bends + 2 * both.mT @ both

    if parts.embedding is not None:
        values, jacobians = parts.embedding.value_and_jacobian(nodes)
        add(values.diff(dim=0).double(), -jacobians[:-1].double(), jacobians[1:].double())
    if parts.weight is not None:
        weight, tilt = parts.weight.value_and_gradient(middle)
        root = weight.clamp_min(1e-300).sqrt()[:, None]
        turn = step[:, :, None] * (tilt / (4 * root))[:, None]
        add(root * step, turn - root[..., None] * eye, turn + root[..., None] * eye)
    if field is not None:
        tensors, pushed = field(middle, step)
        along, by_place = (tensors @ step[..., None])[..., 0], (pushed.mT @ step[..., None])[..., 0]
        square = square + (along * step).sum(1)
        slopes = slopes + torch.cat([by_place / 2 - 2 * along, by_place / 2 + 2 * along], dim=1)
        row = torch.cat([tensors, -tensors], dim=2)
        bends = bends + 2 * torch.cat([row, -row], dim=1)
    pieces = square.clamp_min(1e-300).sqrt()
    slopes = slopes / (2 * pieces)[:, None]
    bends = bends / (2 * pieces)[:, None, None] - slopes[:, :, None] * slopes[:, None] / pieces[:, None, None]
    return _Lengths(pieces, slopes, bends)
