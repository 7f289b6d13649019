"""Tables that are printed and published as they are: Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


def mean_spread(values: Sequence[float], digits: int = 3) -> str:
    """``0.912 ± 0.004``: mean and standard deviation over seeds."""
    array = np.asarray([float(value) for value in values])
    spread = f" ± {array.std(ddof=1):.{digits}f}" if len(array) > 1 else ""
    return f"{array.mean():.{digits}f}{spread}"


@dataclass
class Table:
    """One table of a study.

    Attributes:
        title: what it shows.
        columns: headings, the first of the rows' names.
        rows: of text, as long as the columns.
        notes: sentences under it: what was run, and what follows.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"a row of {self.title!r} must have {len(self.columns)} cells; got {len(cells)}")
        self.rows.append([str(cell) for cell in cells])

    def __str__(self) -> str:
        widths = [max(len(row[i]) for row in [self.columns, *self.rows]) for i in range(len(self.columns))]
        lines = [self._line(self.columns, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
        lines += [self._line(row, widths) for row in self.rows]
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"## {self.title}\n\n" + "\n".join(lines) + ("\n" + notes if notes else "")

    @staticmethod
    def _line(cells: Sequence[str], widths: list[int]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
