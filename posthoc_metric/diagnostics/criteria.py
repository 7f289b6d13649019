"""What a good repair is, as numbers with bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..smooth_map import condition_numbers
from ..uncertainty.volumes import largest_fall
from .faithfulness import FAR, Faithfulness
from .shells import ShellRow, log_volumes, quantile

#: the value of a criterion for each metric measured: "decoder", "repaired" and perhaps "rbf-published"
Values = dict[str, float]

FIDELITY_MEDIAN = 0.1
FIDELITY_Q90 = 0.5
#: where the decoder's own condition number is beyond the bound at most latents, fewer others say nothing
FIDELITY_FEWEST = 20
#: the inflation asked for, less a factor of two, squared: eigenvalues go with the square of lengths
INFLATION_SLACK = 4.0
PERSISTENCE = 0.05
CONDITION_ON_DATA = 1e3
CONDITION_IN_VOID = 10.0
#: share of a geodesic's length that counts as near zero, and by how much it may exceed the unrepaired decoder's
FAITHFULNESS_NEAR_ZERO = 0.05
FAITHFULNESS_SLACK = 1.05
#: and by how many standard errors: with few pairs a good repair would fail by the draw of one
FAITHFULNESS_ERRORS = 2.0


@dataclass(frozen=True)
class Criterion:
    """One line of the audit.

    Attributes:
        name: as in the audit's table.
        description: what is measured.
        before: for the unrepaired decoder.
        published: for the published RBF repair, its ζ over the data's mean variance; NaN where it was not measured.
        after: for the repaired metric.
        bound: the number ``after`` is held to.
        relation: ``"at most"`` or ``"at least"``.
        passed: ``None`` where it could not be judged; ``reason`` then says why.
        reason: why it was not judged, otherwise empty.
    """

    name: str
    description: str
    before: float
    published: float
    after: float
    bound: float
    relation: str
    passed: bool | None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def at_most(name: str, description: str, values: Values, bound: float) -> Criterion:
    """A criterion that NaN does not pass."""
    return Criterion(name, description, *_three(values), bound, "at most", bool(values["repaired"] <= bound))


def at_least(name: str, description: str, values: Values, bound: float) -> Criterion:
    """A criterion that NaN does not pass."""
    return Criterion(name, description, *_three(values), bound, "at least", bool(values["repaired"] >= bound))


def not_judged(name: str, description: str, values: Values, reason: str) -> Criterion:
    """A criterion that could not be held to its bound here."""
    return Criterion(name, description, *_three(values), math.nan, "at most", None, reason)


def _three(values: Values) -> tuple[float, float, float]:
    return tuple(values.get(name, math.nan) for name in ("decoder", "rbf-published", "repaired"))  # type: ignore


def fidelity(eigenvalues: dict[str, Tensor], bound: float) -> tuple[Criterion, ...]:
    """How little the log volume changes on held-out data, from each metric's eigenvalues (n, d) there.

    Points where the decoder's own condition number exceeds ``bound`` are to be changed, and do not count.
    """
    sound = condition_numbers(eigenvalues["decoder"]) <= bound
    count, within = len(sound), int(sound.sum())
    of = "" if within == count else f" {within} of"
    what = f"|log volume - the decoder's| per dimension on{of} {count} held-out latents"
    what += "" if within == count else ", those with κ(J) within the bound before"
    own = log_volumes(eigenvalues["decoder"])[sound]
    change = {name: (log_volumes(values)[sound] - own).abs() for name, values in eigenvalues.items()}
    asked = {"fidelity, median": (0.5, FIDELITY_MEDIAN), "fidelity, 90th percentile": (0.9, FIDELITY_Q90)}
    found = (
        (name, {key: quantile(values, q) for key, values in change.items()}, most) for name, (q, most) in asked.items()
    )
    if within < min(FIDELITY_FEWEST, count / 2):
        reason = f"the decoder's own condition number is within the bound at {within or 'none'} of {count} latents"
        return tuple(not_judged(name, what, values, reason) for name, values, _ in found)
    return tuple(at_most(name, what, values, most) for name, values, most in found)


def shell_criteria(
    rows: Sequence[ShellRow], *, inflation: float, condition: float, no_baseline: str, walls: Sequence[float]
) -> tuple[Criterion, ...]:
    """Inflation, persistence, conditioning and smoothness, from the statistics on the shells.

    Args:
        rows: held-out data first, then growing offsets, then perhaps the gaps.
        inflation: what the repair was asked for.
        condition: the largest condition number near the data that it was asked for.
        no_baseline: why the published repair was not measured; empty where it was.
        walls: smoothness of the published repair between the shells, where they may miss its peak.
    """
    metrics = list(rows[0].metrics)
    near = [row.metrics for row in rows if not row.shell.is_void]
    void = [row.metrics for row in rows if row.shell.is_void]
    outward = [row.metrics for row in rows if row.name != "gaps"]
    costliest = rows[0].metrics["decoder"].largest_eigenvalue_q95
    least = {name: _least([found[name].smallest_eigenvalue_q05 for found in void]) / costliest for name in metrics}
    fall = {name: largest_fall([found[name].log_volume_q50 for found in outward]) for name in metrics}
    peak = {name: roughest(rows, name) for name in metrics}
    if walls:
        peak["rbf-published"] = _most([peak["rbf-published"], *walls])
    worst = [
        {name: _most([found[name].condition_number_q95 for found in chosen]) for name in metrics}
        for chosen in (near, void)
    ]
    rough = (
        "relative change of the metric over a data radius (95th percentile), worst shell; bound: the published RBF's"
    )
    nearest = min(condition, CONDITION_ON_DATA)
    kappa = "95th percentile of κ(J), worst of "
    return (
        at_least(
            "inflation",
            "smallest eigenvalue on shells from offset 1 on (5th percentile) over the largest on held-out data (95th)",
            least,
            inflation**2 / INFLATION_SLACK,
        ),
        at_most(
            "persistence",
            "largest fall of the median log volume per dimension over the shells, from the data out to offset "
            f"{max(row.offset for row in rows if row.shell.is_void):g}",
            fall,
            PERSISTENCE,
        ),
        at_most("conditioning near the data", kappa + "data, gaps and offsets below 1", worst[0], nearest),
        at_most("conditioning in the void", kappa + "the offsets from 1", worst[1], CONDITION_IN_VOID),
        not_judged("smoothness", rough, peak, no_baseline)
        if no_baseline
        else at_most("smoothness", rough, peak, peak["rbf-published"]),
    )


def faithfulness_criteria(found: Faithfulness | None, *, asked: int) -> tuple[Criterion, ...]:
    """Whether geodesics between data stay on them, of as many as were ``asked`` for."""
    what = "share of the latent length of geodesics at offset > {}, mean over pairs that the data connect"
    beside = "; bound: as for the decoder alone, and twice the standard error of the difference"
    far, edge = ("faithfulness", what.format(f"{FAR:g}")), ("faithfulness, edge", what.format("0") + beside)
    if found is None:
        reason = "the data connect no two held-out latents" if asked else "no pairs were to be followed"
        return tuple(not_judged(*line, {}, reason) for line in (far, edge))
    before, after = found.before, found.after
    # at offset > 0 lie 5 % of the data themselves, most of which the repair promises to leave as they are: curves
    # may go there as they did, not more
    bound = max(FAITHFULNESS_SLACK * before.off_data, FAITHFULNESS_NEAR_ZERO) + FAITHFULNESS_ERRORS * found.error
    return (
        at_most(*far, {"decoder": before.far, "repaired": after.far}, FAITHFULNESS_NEAR_ZERO),
        at_most(*edge, {"decoder": before.off_data, "repaired": after.off_data}, bound),
    )


def roughest(rows: Sequence[ShellRow], name: str) -> float:
    """The peak of a metric's smoothness over the shells."""
    return _most([row.metrics[name].smoothness_q95 for row in rows])


def _least(values: Sequence[float]) -> float:
    """NaN where one of them is: Python's own ``min`` would pass over it."""
    return float(np.min(values))


def _most(values: Sequence[float]) -> float:
    """NaN where one of them is."""
    return float(np.max(values))
