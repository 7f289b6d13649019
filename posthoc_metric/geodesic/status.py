"""Why a curve is as it is, in words that say what to do about it."""

from __future__ import annotations

from .._arrays import listed
from .._warn import warn_caller
from ..errors import ConvergenceWarning
from ..outcome import Outcome


class Status(Outcome):
    """How the work on one pair ended.  ``str(status)`` is the advice."""

    CONVERGED = (
        "The curve is stationary and its length confirmed by a finer quadrature: to `rtol`, or to `rough_rtol` where "
        "the metric has kinks, as under ReLU. `length_error` says to how much."
    )
    STEP_LIMIT = (
        "The step limit was reached before the curve became stationary. "
        "Its length is its own to `length_error` but may not be the shortest: raise `max_steps`."
    )
    STALLED = (
        "No further step shortened the curve although it is not stationary: the metric is rougher than the nodes "
        "are close, or the decoder's precision is exhausted. Raise `max_spans`, or use a float64 decoder."
    )
    UNRESOLVED = (
        "A finer quadrature does not confirm the length: the metric changes faster than the nodes are close. "
        "Trust `length` to `length_error` only; raise `max_spans` (of the fixed-point solver `mesh`) or loosen `rtol`."
    )
    NOT_FINITE = (
        "The metric is NaN or infinite at an end or along every curve that was tried, or fades to nothing there; there "
        "is no curve. Check the decoder at these latents, or give `support`, so that a start around the hole is found."
    )
    DIVERGED = (
        "The fixed-point iteration no longer comes nearer to a geodesic, or each of its steps leads where the metric "
        'has no value. The curve is the last that had one and is no geodesic: use solver="relaxation".'
    )


#: how tensors hold a status, and back
STATUSES = tuple(Status)
CODES = {status: code for code, status in enumerate(STATUSES)}


def warn(name: str, status: tuple[Status, ...], what: str) -> None:
    """Warn the caller of ``name`` of the rows that did not converge, and of what that makes of them."""
    rows = [row for row, one in enumerate(status) if one is not Status.CONVERGED]
    if rows:
        warn_caller(f"`{name}` did not converge in {listed(rows)}: they {what}.", ConvergenceWarning)
