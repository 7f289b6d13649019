"""Progress bars on standard error, for those who ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Stages of a long job, each with a known number of blocks.  This one shows nothing.

    Attributes:
        seconds: for every stage begun, the time that each block took where it was computed.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._stage = ""

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """A stage of ``total`` blocks begins, ``done`` of which are there already."""
        self._stage = stage
        self.seconds.setdefault(stage, [])

    def advance(self, seconds: float) -> None:
        """One more block of the present stage is finished, and took ``seconds``."""
        self.seconds[self._stage].append(seconds)


@contextmanager
def progress_bars(show: bool) -> Iterator[Progress]:
    """Bars for the stages of one job if ``show``; they leave standard output alone."""
    if not show:
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        yield _Bars(bars)


class _Bars(Progress):
    def __init__(self, bars: object):
        super().__init__()
        self._bars = bars
        self._task: object = None

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        super().begin(stage, total, done)
        self._task = self._bars.add_task(stage, total=total, completed=done)  # type: ignore[attr-defined]

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self._bars.advance(self._task)  # type: ignore[attr-defined]
