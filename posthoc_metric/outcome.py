"""How the work on one item of a batch ended, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum


class Outcome(Enum):
    """A name, whose value is advice: ``str(outcome)`` is both; tuples of them, which can be long, show the names."""

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


def tally(outcomes: Sequence[Outcome]) -> str:
    """How many there are of each, most frequent first: ``"11 CONVERGED, 1 UNRESOLVED"``."""
    return ", ".join(f"{number} {outcome.name}" for outcome, number in Counter(outcomes).most_common())
