"""What refinement hands on: a geodesic for each pair, with its facts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..curves.batch import Batch
from ..curves.placement import Clock, pad
from ..curves.spline import Spline
from .candidates import Facts


@dataclass
class Refined(Batch):
    """B geodesics with their facts, and the work done on each pair; ``rough``: whose lengths converge as at kinks."""

    facts: Facts
    kind: Tensor
    spline: Spline
    clock: Clock
    steps: Tensor
    evaluations: Tensor
    rough: Tensor


def joined(blocks: list[Refined]) -> Refined:
    """The geodesics of several blocks of pairs, one after the other."""
    rows, first = [], 0
    for block in blocks:
        rows.append(torch.arange(first, first + len(block.kind), device=block.kind.device))
        first += len(block.kind)
    spline, clock = pad([block.spline for block in blocks], [block.clock for block in blocks], rows, first)
    kind, steps, evaluations, rough = (
        torch.cat([getattr(block, name) for block in blocks]) for name in ("kind", "steps", "evaluations", "rough")
    )
    return Refined(Facts.join([block.facts for block in blocks]), kind, spline, clock, steps, evaluations, rough)


def the_surer(found: Refined, rows: Tensor, again: Refined) -> Refined:
    """``found`` (B) with those of ``again``, for the pairs ``rows``, that are surely shorter; the work is added."""
    found.steps[rows] += again.steps
    found.evaluations[rows] += again.evaluations
    surely, before = (facts.length + facts.length_error for facts in (again.facts, found.facts))
    better = surely < before[rows].nan_to_num(nan=float("inf"))
    if not bool(better.any()):
        return found
    again, rows = again.take(better), rows[better]
    again.steps, again.evaluations = found.steps[rows], found.evaluations[rows]
    kept = torch.ones_like(found.rough).index_fill(0, rows, False)
    order = torch.cat([kept.nonzero().flatten(), rows]).argsort()
    return joined([found.take(kept), again]).take(order)
