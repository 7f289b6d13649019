"""What the front doors share: arguments checked once, points made ready, warnings given."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._arrays import ArrayLike, Restore, describe, to_points
from .._warn import warn_caller
from ..errors import ConvergenceWarning, InvalidArgumentError
from ..geodesic.options import solver_options
from ..geodesic.starts.graph import subsample
from ..metric import Metric
from .report import DistanceReport

#: support latents that join a graph beside the caller's own points
_MOST_SUPPORT = 5_000
#: relative error of graph distances, in the median and at the 90th percentile, beyond which the caller is warned
TOLERATED = 0.02
_TOLERATED_P90 = 0.1


@dataclass(frozen=True)
class Nodes:
    """The distinct points of a graph, and which of them the caller's are.

    Attributes:
        points: (n, d).
        rows, columns: node of each row of ``a`` and of ``b``; ``columns`` is ``rows`` where there is no ``b``.
    """

    points: Tensor
    rows: np.ndarray
    columns: np.ndarray


def check_solver(solver: dict[str, Any], taker: Callable[..., Any]) -> None:
    """See that the solver will take these options of the function ``taker``, before hours of work.

    Raises:
        InvalidArgumentError: no such solver, an unknown option or a bad value.
    """
    options = {key: value for key, value in solver.items() if key != "solver"}
    solver_options(solver.get("solver", "relaxation"), options, taker)


def as_points(metric: Metric, value: ArrayLike, name: str) -> tuple[Tensor, Tensor, Restore]:
    """``value`` as it came, in float64, and the way back; at least one row.

    Raises:
        InvalidArgumentError: a wrong shape, rows that are not finite, or no rows.
    """
    raw, restore = to_points(value, name, metric.dim)
    if not len(raw):
        raise InvalidArgumentError(f"`{name}` must hold at least one point; it has no rows.")
    return raw, raw.double(), restore


def make_nodes(metric: Metric, a: Tensor, b: Tensor | None, support: ArrayLike | None) -> Nodes:
    """Distinct rows of ``a``, ``b`` and the support, in an order that does not depend on theirs."""
    known = metric.support if support is None else to_points(support, "support", metric.dim)[0]
    parts = [a] if b is None else [a, b]
    asked = sum(len(part) for part in parts)
    if known is not None:
        parts.append(subsample(known.to(a.device).double(), _MOST_SUPPORT))
    distinct, which = np.unique(torch.cat(parts).cpu().numpy(), axis=0, return_inverse=True)
    which = which.reshape(-1)
    rows = which[: len(a)]
    return Nodes(torch.from_numpy(distinct).to(a.device), rows, rows if b is None else which[len(a) : asked])


def below(store: str | Path | None, name: str) -> Path | None:
    """The folder ``name`` in the store, if there is a store.

    Raises:
        InvalidArgumentError: ``store`` is no path.
    """
    # an empty name, as of a variable that is not set, would be the current folder
    if store is not None and (not isinstance(store, (str, os.PathLike)) or store == ""):
        raise InvalidArgumentError(
            f"`store` must be a folder; got {describe(store)}. Name one, or '.' for the one you are in."
        )
    return None if store is None else Path(store) / name


def warn(report: DistanceReport, advice: str | None = None) -> None:
    """Say in a warning what of the report nobody may overlook, and what to do where graph distances are far off."""
    if report.failed:
        warn_caller(
            f"{report.failed} of {report.pairs} pairs have no distance (NaN, or inf where no path joins them): the "
            "metric is not finite there. Check the decoder at these latents, or give `support`.",
            ConvergenceWarning,
        )
    if report.unconverged:
        warn_caller(
            f"{report.unconverged} of the pairs solved did not converge; their distance is the length of the curve "
            f"that was found, with a relative error of up to {report.largest_error:.1g} by the solver's own estimate. "
            "metric.geodesic(a, b).status says why, pair by pair.",
            ConvergenceWarning,
        )
    if report.error is not None and report.error.pairs == 0:
        warn_caller(
            "the error of the graph's distances is not known: the solver vouches for none of the sampled pairs.",
            ConvergenceWarning,
        )
    elif report.error is not None and (report.error.median > TOLERATED or report.error.p90 > _TOLERATED_P90):
        # one factor that has been taken out already leaves what differs from pair to pair
        factor = ", take the bias out with calibrate=True," if report.calibrated == 1.0 else ""
        advice = advice or f"Raise `neighbours` (now {report.neighbours}){factor} or use method='solver'."
        warn_caller(
            f"distances on the graph{'' if factor else ', calibrated,'} differ from the solver's by "
            f"{100 * report.error.median:.1f} % in the median "
            f"({100 * report.error.p90:.1f} % at the 90th percentile). {advice}",
            ConvergenceWarning,
        )
