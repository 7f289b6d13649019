"""Metrics given as a field of matrices that jumps, as costs of obstacles do: what a curve across a jump may still lose.

Such a curve should be refracted where it crosses, and the metric's derivatives, which are those of both sides, do not
say so.  Its length is sure; that it is a geodesic is not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...metric import MetricParts
from ..curves.halving import narrowed
from ..status import CODES, Status
from .refined import Refined

#: variation of the speed without which there is no jump worth the name
_STEADY = 0.02
#: jumps of a curve that are looked for, and how often the span that holds one is halved
_SUSPECTS, _HALVINGS = 32, 10
#: share of a change that is left after all halvings if it is a jump
_KEPT = 0.25
#: relative change of the metric in a span that is looked at
_SLIGHT = 1e-2

_CONVERGED, _UNRESOLVED = CODES[Status.CONVERGED], CODES[Status.UNRESOLVED]


def admit_jumps(parts: MetricParts, found: Refined, rtol: float, memory_limit: int) -> None:
    """Add to the errors of curves ``found`` under a field what they may lose at its jumps.

    Those of which that makes more than ``rtol`` are ``UNRESOLVED``.

    A straight way across a face where the speed changes by a share ``c``, at an angle ``θ`` to its normal, is longer
    than the refracted one by a share of up to ``c² tan²θ / 8`` (the gain by moving the crossing, to second order); a
    quarter of ``c²`` holds up to 55 degrees.
    """
    facts = found.facts
    told = (facts.status == _CONVERGED) | (facts.status == _UNRESOLVED)
    varied = told & (facts.speed_variation > _STEADY) & (facts.length > 0)
    rows = varied.nonzero().flatten()
    if parts.field is None or len(rows) == 0:
        return
    dim = found.spline.nodes.shape[2]
    block = max(1, memory_limit // (8 * 8 * dim * dim * max(found.spline.nodes.shape[1], 4 * _SUSPECTS)))
    for some in rows.split(block):
        shares, asked = _jumps(parts.field, found.spline.nodes[some])
        found.evaluations[some] += asked
        facts.length_error[some] += shares.square().sum(1) / 4 * facts.length[some]
    sure = facts.length_error[rows] <= rtol * facts.length[rows]
    facts.status[rows[~sure]] = _UNRESOLVED


def _jumps(field: Callable[[Tensor], Tensor], nodes: Tensor) -> tuple[Tensor, int]:
    """By what shares the speed jumps between ``nodes`` (P, n, d), (P, k); and the points of each that it took."""

    def ask(points: Tensor) -> Tensor:
        return field(points.flatten(0, 1)).unflatten(0, points.shape[:2])

    matrices = ask(nodes)
    changes = _changes(matrices[:, :-1], matrices[:, 1:]).nan_to_num(nan=0.0)
    number = min(_SUSPECTS, changes.shape[1], int((changes > _SLIGHT).sum(1).max()))
    if number == 0:
        return changes[:, :0], nodes.shape[1]
    largest, where = changes.topk(number, dim=1)
    row = torch.arange(len(nodes), device=nodes.device)[:, None]
    begin, way = nodes[row, where], nodes[row, where + 1] - nodes[row, where]
    ends = matrices[row, where], matrices[row, where + 1]
    none = torch.zeros_like(largest)
    kept = narrowed(lambda at: ask(begin + at[..., None] * way), _changes, none, none + 1, ends, _HALVINGS)
    jumps = (kept > _KEPT * largest) & (kept > _SLIGHT)
    return torch.where(jumps, 1 - (1 - kept).clamp_min(0).sqrt(), 0.0), nodes.shape[1] + number * _HALVINGS


def _changes(before: Tensor, after: Tensor) -> Tensor:
    """Changes of matrices (..., d, d), relative to the larger (...)."""
    sizes = torch.maximum(before.flatten(-2).norm(dim=-1), after.flatten(-2).norm(dim=-1))
    return (after - before).flatten(-2).norm(dim=-1) / sizes.clamp_min(1e-300)
