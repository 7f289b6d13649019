"""How the work on one item of a batch ended, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum

from ._arrays import listed


class Outcome(Enum):
    """A name, whose value is advice: ``str(outcome)`` is both; tuples of them, which can be long, show the names."""

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


def tally(outcomes: Sequence[Outcome]) -> str:
    """How many there are of each, most frequent first: ``"11 CONVERGED, 1 UNRESOLVED"``."""
    return ", ".join(f"{number} {outcome.name}" for outcome, number in Counter(outcomes).most_common())


def advice(outcomes: Sequence[Outcome], good: Outcome) -> list[str]:
    """A line for each outcome but the ``good`` one: which rows it is that of, and what to do."""
    lines = []
    for outcome in dict.fromkeys(outcomes):
        if outcome is not good:
            rows = [row for row, one in enumerate(outcomes) if one is outcome]
            lines.append(f"  {listed(rows)} {outcome}")
    return lines
