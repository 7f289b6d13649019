"""What a matrix of distances is worth: how it was made, how far off it is, how long its blocks took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ErrorEstimate:
    """Approximate distances against the solver's on a random sample of pairs; relative errors.

    Attributes:
        pairs: solved pairs that the figures rest on, those of points that coincide too.
        median, p90, largest: of the size of the relative error, whichever way it errs.
        bias: median of the signed relative error, in which errors either way cancel; a value near zero says nothing of
            their size.  Paths on a graph are too long, but for the errors of edges, some tenths of a percent.
        scale: median ratio of the solver's distances to the approximate ones; multiply by it to remove the bias.
        unsolved: sampled pairs left out because the solver does not vouch for its own length to 1 %.
    """

    pairs: int
    median: float
    p90: float
    largest: float
    bias: float
    scale: float
    unsolved: int


def compare(approximate: np.ndarray, lengths: np.ndarray, errors: np.ndarray) -> ErrorEstimate:
    """Estimate from ``approximate`` (n,) and the solver's ``lengths`` (n,) with their own absolute ``errors`` (n,)."""
    sound = np.isfinite(lengths) & np.isfinite(approximate) & (lengths > 0)
    # false where the error itself is NaN
    sound &= errors <= 1e-2 * lengths
    # of points that coincide both are right, and tell nothing of the scale
    same = (lengths == 0) & (approximate == 0)
    if not (sound | same).any():
        nan = float("nan")
        return ErrorEstimate(0, nan, nan, nan, nan, nan, len(lengths))
    ratio = approximate[sound] / lengths[sound]
    relative = np.concatenate([ratio - 1, np.zeros(int(same.sum()))])
    size = np.abs(relative)
    return ErrorEstimate(
        pairs=len(relative),
        median=float(np.median(size)),
        p90=float(np.quantile(size, 0.9)),
        largest=float(size.max()),
        bias=float(np.median(relative)),
        scale=float(np.median(1 / ratio)) if sound.any() else 1.0,
        unsolved=len(lengths) - len(relative),
    )


@dataclass(frozen=True)
class Stage:
    """One stage of the work: how many blocks were computed here and now, and their seconds on their workers."""

    name: str
    blocks: int
    seconds: float
    median_block: float


@dataclass(frozen=True)
class DistanceReport:
    """How a matrix of distances came about.

    Attributes:
        method: "solver" or "graph".
        pairs: distinct pairs whose distance was asked for.
        failed: pairs without a distance: NaN, or ``inf`` where the graph does not join them.
        unconverged: pairs solved that have a length but are not CONVERGED; the length is that of the curve found.
        largest_error: the largest relative ``length_error`` that the solver states of the pairs it solved.
        error: of the graph's distances, before any were refined; ``None`` for the solver, or where ``sample`` is 0.
        neighbours: of a node of the graph; 0 for the solver.
        refined: pairs whose graph distance was replaced by the solver's.
        calibrated: the factor that graph distances were multiplied by; 1 where they were not.
        stages: what was computed, in order.
    """

    method: str
    pairs: int
    failed: int
    unconverged: int = 0
    largest_error: float = 0.0
    error: ErrorEstimate | None = None
    neighbours: int = 0
    refined: int = 0
    calibrated: float = 1.0
    stages: tuple[Stage, ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds of all blocks together, on however many workers."""
        return sum(stage.seconds for stage in self.stages)


def largest_error(lengths: np.ndarray, errors: np.ndarray) -> float:
    """The largest finite relative error that the solver states of lengths (n,) with absolute errors (n,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = errors / lengths
    relative = relative[np.isfinite(relative)]
    return float(relative.max()) if len(relative) else 0.0


def stages_of(seconds: dict[str, list[float]]) -> tuple[Stage, ...]:
    """Stages from the times of their blocks."""
    return tuple(
        Stage(name, len(times), float(np.sum(times)), float(np.median(times)))
        for name, times in seconds.items()
        if times
    )
