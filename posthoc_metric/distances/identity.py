"""What tells a computation from another, so that a store is gone on with by its own alone."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._arrays import to_points
from ..geodesic.guard import guard
from ..metric import Metric
from ..repair import RepairedMetric

#: which values of the metric a plan holds; raised where they become others
_RULE = 2
#: points on straight lines between those asked for, ways out of them, and how far out
_LINES, _WAYS, _OUT = 48, 6, (1.25, 2.0, 4.0)
#: sums of the entries of a matrix that tell it from another beside its diagonal
_SUMS = 4


def fingerprint(
    metric: Metric, a: Tensor, b: Tensor | None, solver: dict[str, Any], store: Any, **facts: Any
) -> dict[str, Any]:
    """Digests of the points, values of the metric, and options; nothing where there is no ``store`` to compare with."""
    # where curves start from; what is given was not checked yet
    support = solver.get("support")
    known = None if support is None else to_points(support, "support", metric.dim)[0]
    if store is None:
        return {}
    return {
        "rule": _RULE,
        "a": digest(a),
        "b": None if b is None else digest(b),
        "metric": _values(metric, a, a if b is None else b),
        "repair": _repair(metric),
        "solver": {name: repr(value) for name, value in sorted(solver.items()) if name != "support"},
        "support": None if known is None else digest(known),
        **facts,
    }


def digest(points: Tensor) -> str:
    """What tells an array of points from any other."""
    array = np.ascontiguousarray(points.cpu().numpy())
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


def _repair(metric: Metric) -> dict[str, Any] | None:
    """What a repair was asked for and what it settled on; the tensors of its model differ from machine to machine."""
    known = getattr(metric, "exact", metric)
    if not isinstance(known, RepairedMetric):
        return None
    return {"knobs": asdict(known.knobs), "gate": None if known.gate is None else known.gate.numbers()}


def _values(metric: Metric, a: Tensor, others: Tensor) -> list[list[float | None]]:
    """Values of the metric at some of the points, and off them, where curves lead and repairs differ."""
    parts, away = guard(metric.parts()), _away(a, others)
    with torch.no_grad(), np.errstate(all="ignore"):
        found = _numbers(parts.tensor(a[:: max(len(a) // 4, 1)][:4]))
        try:
            found += _numbers(parts.tensor(away))
        except Exception:  # a function may refuse to answer where nobody has asked yet
            found += [_answer(parts, point) for point in away.split(1)]
    return found


def _answer(parts: Any, point: Tensor) -> list[float | None]:
    """Values at one point (1, d); none where it is refused."""
    try:
        return _numbers(parts.tensor(point))[0]
    except Exception:
        return []


def _away(a: Tensor, others: Tensor) -> Tensor:
    """Points (m, d) between the rows of ``a`` and ``others``, and beyond them all: the same whenever it is asked."""
    # multiples of the powers of an irrational number, less their whole parts, fill the cube evenly (Roberts 2018); the
    # stream of a random generator may change from version to version
    powers = 1.2207440846057596 ** -torch.arange(1.0, 4.0, dtype=torch.float64, device="cpu")
    shares = (torch.arange(1.0, _LINES + 1, dtype=torch.float64, device="cpu")[:, None] * powers) % 1.0
    first, second = ((shares[:, i] * len(rows)).long().to(a.device) for i, rows in enumerate((a, others)))
    between = torch.lerp(a[first], others[second], shares[:, 2:].to(a))
    low, high = torch.minimum(a.amin(0), others.amin(0)), torch.maximum(a.amax(0), others.amax(0))
    reach = (high - low) / 2
    widest = reach.amax()
    reach = torch.where(reach > 0, reach, torch.where(widest > 0, widest, 1.0))
    ways = _cosines(a.shape[1], _WAYS)
    ways = reach * (ways / ways.abs().amax(1, keepdim=True)).to(a)
    return torch.cat([between, *((low + high) / 2 + out * ways for out in _OUT)])


def _numbers(matrices: Tensor) -> list[list[float | None]]:
    """What tells each of matrices (B, d, d) from others, d + 4 positive numbers; NaN, never equal to itself, is None.

    The diagonal, and of what is left when that is made one some sums that do not cancel: each is compared by itself.
    """
    matrices = matrices.double().cpu()
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    diagonal = diagonal.clamp_min(1e-12 * diagonal.amax(1, keepdim=True))
    unit = matrices / diagonal.sqrt()[:, :, None] / diagonal.sqrt()[:, None]
    ways = _cosines(matrices.shape[1], _SUMS)
    sums = torch.einsum("ki,bij,kj->bk", ways, unit, ways) + ways.square().sum(1)
    rows = torch.cat([diagonal, sums], dim=1).tolist()
    return [[value if math.isfinite(value) else None for value in row] for row in rows]


def _cosines(dim: int, count: int) -> Tensor:
    """Directions (count, d) that no random generator is asked for: cosines of frequencies without a common measure."""
    frequencies = (5.0 * torch.arange(1.0, count + 1, dtype=torch.float64, device="cpu")).sqrt()
    return torch.cos(frequencies[:, None] * torch.arange(1.0, dim + 1, dtype=torch.float64, device="cpu"))
