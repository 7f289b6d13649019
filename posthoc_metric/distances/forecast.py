"""A word to those who would wait for long: about how long, and which option makes it shorter.

Nothing that is computed depends on it: whether the method or the graph should be another is for the caller to say.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .._warn import warn_caller
from ..errors import PosthocMetricWarning
from ..parallel import Progress, progress_bars, worker_count

#: seconds that a stage may take without a word
PATIENCE = 120.0

_EDGES = "are fewer edges, and longer paths"
_SAMPLE = "A smaller `sample` is solved sooner, and 0 leaves the error unknown"
_ALWAYS = "; `n_jobs` spreads it over cores, and `store` keeps what is done"
#: what makes a stage cheaper, of matrices and of nearest neighbours
MATRIX = {
    "pairs": f"`method='graph'` takes shortest paths instead, with an error that is estimated{_ALWAYS}",
    "edges": f"Fewer `neighbours` than the default of 200,000 / nodes {_EDGES}{_ALWAYS}",
    "sample": f"{_SAMPLE}{_ALWAYS}",
    "refined": f"A smaller `refine` leaves more distances as they are on the graph{_ALWAYS}",
}
NEAREST = {
    "edges": f"Fewer `graph_neighbours` {_EDGES}{_ALWAYS}",
    "sample": f"{_SAMPLE}{_ALWAYS}",
    "refined": f"`refine=False` leaves distances as they are on the graph{_ALWAYS}",
}


class Forecast(Progress):
    """Progress that is passed on, and a warning for each stage that takes longer than :data:`PATIENCE`.

    The first block of a stage tells what the others will take.  Where it is itself so long, that alone is said.

    Args:
        shown: what it is passed on to.
        remedies: for each stage, which option makes it cheaper; stages that are not named are never long.
        workers: blocks that are computed at once.
    """

    def __init__(self, shown: Progress, remedies: Mapping[str, str], workers: int):
        super().__init__()
        self.seconds = shown.seconds
        self._shown = shown
        self._remedies = remedies
        self._workers = workers
        self._left = 0
        self._silent = False
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        self.close()
        self._shown.begin(stage, total, done)
        self._stage, self._left = stage, total - done
        self._silent = stage in self._remedies
        if self._silent and self._left:
            self._timer = threading.Timer(PATIENCE, self.overdue)
            self._timer.daemon = True
            self._timer.start()

    def advance(self, seconds: float) -> None:
        self._shown.advance(seconds)
        self.close()
        self._left -= 1
        remaining = seconds * self._left / max(min(self._workers, self._left), 1)
        if remaining > PATIENCE:
            self._say(f"will take about {_spoken(remaining)} more")

    def overdue(self) -> None:
        """The first block of the stage takes long."""
        rounds = -(-self._left // self._workers)
        self._say(f"will take at least {_spoken(rounds * PATIENCE)}: its first block is not done after two minutes")

    def close(self) -> None:
        """No block is waited for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _say(self, how_long: str) -> None:
        with self._lock:
            silent, self._silent = self._silent, False
        if silent:
            warn_caller(
                f"the stage {self._stage!r} {how_long}. {self._remedies[self._stage]}.",
                PosthocMetricWarning,
            )


def _spoken(seconds: float) -> str:
    """A length of time to two digits or so."""
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours"


@contextmanager
def forecasts(show: bool, remedies: Mapping[str, str], n_jobs: int | None) -> Iterator[Forecast]:
    """Progress of one job, shown as bars if ``show``, that warns of long stages whether it is shown or not."""
    with progress_bars(show) as bars:
        forecast = Forecast(bars, remedies, worker_count(n_jobs))
        try:
            yield forecast
        finally:
            forecast.close()
