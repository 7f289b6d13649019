"""What a good repair is, as numbers with bounds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

FIDELITY_MEDIAN = 0.1
FIDELITY_Q90 = 0.5
#: the inflation asked for, less a factor of two, squared: eigenvalues go with the square of lengths
INFLATION_SLACK = 4.0
PERSISTENCE = 0.05
CONDITION_ON_DATA = 1e3
CONDITION_IN_VOID = 10.0
#: share of a geodesic's length that counts as near zero, and by how much it may exceed the unrepaired decoder's
FAITHFULNESS_NEAR_ZERO = 0.05
FAITHFULNESS_SLACK = 1.05


@dataclass(frozen=True)
class Criterion:
    """One line of the audit.

    Attributes:
        name: as in the audit's table.
        description: what is measured.
        before: for the unrepaired decoder, NaN where it has no meaning.
        after: for the repaired metric.
        bound: the number ``after`` is held to.
        relation: ``"at most"`` or ``"at least"``.
        passed: ``None`` where it could not be judged; ``reason`` then says why.
        reason: why it was not judged, otherwise empty.
    """

    name: str
    description: str
    before: float
    after: float
    bound: float
    relation: str
    passed: bool | None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def at_most(name: str, description: str, before: float, after: float, bound: float) -> Criterion:
    """A criterion that NaN does not pass."""
    return Criterion(name, description, before, after, bound, "at most", bool(after <= bound))


def at_least(name: str, description: str, before: float, after: float, bound: float) -> Criterion:
    """A criterion that NaN does not pass."""
    return Criterion(name, description, before, after, bound, "at least", bool(after >= bound))


def not_judged(name: str, description: str, relation: str, reason: str, after: float = math.nan) -> Criterion:
    """A criterion that could not be measured here."""
    return Criterion(name, description, math.nan, after, math.nan, relation, None, reason)


def largest_fall(medians: list[float]) -> float:
    """How far a sequence ever falls below an earlier value of its own."""
    peak, fall = -math.inf, 0.0
    for value in medians:
        peak = max(peak, value)
        fall = max(fall, peak - value if math.isfinite(peak) else 0.0)
    return fall
