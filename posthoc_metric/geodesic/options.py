"""Options of the geodesic solvers: small, typed, and closed to unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import Any

from .._arrays import describe
from ..errors import InvalidArgumentError
from ..machine import working_memory

#: starts that the relaxation knows, in the order in which ties are settled
START_NAMES = ("straight", "grid", "graph", "given")
#: the one of them that is the caller's own
GIVEN = START_NAMES[-1]


@dataclass(frozen=True)
class RelaxationOptions:
    """How :func:`posthoc_metric.geodesic` relaxes curves.

    Attributes:
        rtol: relative error of the length that is asked for.
        rough_rtol: relative error that will do from 64 spans on, where the metric has kinks or the decoder's
            precision ends and more nodes gain ever less; ``length_error`` is then estimated as for a first-order
            method.  Give ``rtol`` to forbid it.
        tol: residual of the discrete geodesic equation at which a curve counts as stationary; the energy is
            then within ``tol²/2`` of its minimum.  It is ``sqrt(rtol)`` where that is less, and for curves that
            gradients alone relax (see :func:`~posthoc_metric.geodesic`) where that is more.
        spans: spans of the curve at the first refinement, rounded up to a power of two between 8 and 256.
        max_spans: spans to which a curve may be refined where its length is not confirmed.
        max_steps: Gauss-Newton steps for one curve at one number of spans, or six times as many quasi-Newton steps.
        num_points: T, points on the curve that is returned.
        starts: which start curves to try: "straight", "grid" (d <= 3), "graph" (needs a support; where there is a grid,
            in three dimensions only, and for pairs along whose curve it has not resolved the metric), "given" (needs
            ``initial``).
        memory_limit: bytes that the arrays of one block of pairs may take; blocks are made to fit.  By default
            1/16 of the machine's memory, and no more than 512 MiB.
    """

    rtol: float = 3e-4
    rough_rtol: float = 1e-3
    tol: float = 5e-3
    spans: int = 16
    max_spans: int = 512
    max_steps: int = 100
    num_points: int = 33
    starts: tuple[str, ...] = START_NAMES
    memory_limit: int = field(default_factory=working_memory)

    def __post_init__(self) -> None:
        for name in ("rtol", "rough_rtol", "tol"):
            check_positive(getattr(self, name), name)
        for name, low in (("spans", 4), ("max_spans", 4), ("max_steps", 1), ("num_points", 2), ("memory_limit", 1)):
            check_integer(getattr(self, name), name, low)
        starts = (self.starts,) if isinstance(self.starts, str) else self.starts
        named = isinstance(starts, (tuple, list)) and bool(starts) and all(name in START_NAMES for name in starts)
        if not named:
            raise InvalidArgumentError(
                f"`starts` must name some of {', '.join(START_NAMES)}; got {describe(self.starts)}."
            )
        object.__setattr__(self, "starts", tuple(starts))
        if self.max_spans < self.spans:
            raise InvalidArgumentError(
                f"`max_spans` must be at least `spans`, {self.spans}; got {self.max_spans}. Raise it or lower `spans`."
            )


@dataclass(frozen=True)
class FixedPointOptions:
    """How the fixed-point solver of 2019 iterates, at the values it was published with.

    Attributes:
        mesh: N, equally spaced times at which the geodesic equation is asked to hold.
        tol: squared residual of the geodesic equation, in latent units and in any coordinate at any mesh point, below
            which the iteration ends.
        max_steps: steps for each pair.
        rtol: relative error of the length up to which a curve that meets ``tol`` is called converged.
        spans: spans in which the curve is handed back and its length integrated; an even number.
        num_points: T, points on the curve that is returned.
        memory_limit: bytes that the arrays of one block of pairs may take; blocks are made to fit.  By default
            1/16 of the machine's memory, and no more than 512 MiB.
    """

    mesh: int = 10
    tol: float = 0.1
    max_steps: int = 1000
    rtol: float = 1e-3
    spans: int = 64
    num_points: int = 33
    memory_limit: int = field(default_factory=working_memory)

    def __post_init__(self) -> None:
        for name in ("tol", "rtol"):
            check_positive(getattr(self, name), name)
        for name, low in (("mesh", 3), ("max_steps", 1), ("spans", 4), ("num_points", 2), ("memory_limit", 1)):
            check_integer(getattr(self, name), name, low)
        if self.spans % 2:
            raise InvalidArgumentError(f"`spans` must be even, two to an element; got {self.spans}.")


SOLVERS: dict[str, type[RelaxationOptions] | type[FixedPointOptions]] = {
    "relaxation": RelaxationOptions,
    "fixed-point": FixedPointOptions,
}


def solver_options(
    solver: Any, options: dict[str, Any], taker: Callable[..., Any] | None = None
) -> RelaxationOptions | FixedPointOptions:
    """The options of the solver of that name, from the keywords that ``taker``, a function, has none of its own for.

    Raises:
        InvalidArgumentError: no such solver, an unknown option, with the nearest known one, or a bad value.
    """
    if not isinstance(solver, str) or solver not in SOLVERS:
        raise InvalidArgumentError(f"`solver` must be one of {', '.join(map(repr, SOLVERS))}; got {describe(solver)}.")
    kind = SOLVERS[solver]
    known = [field.name for field in fields(kind)]
    for name in options:
        if name not in known:
            arguments = signature(taker).parameters.values() if taker else ()
            known = [one.name for one in arguments if one.kind is Parameter.KEYWORD_ONLY] + known
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise InvalidArgumentError(f"`{name}` is no option here; known are {', '.join(known)}.{hint}")
    return kind(**options)


def beneath(options: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Options of the caller's, and ours where they leave room and are those of the same solver."""
    if options.get("solver", "relaxation") != "relaxation":
        return options
    room = {name: value for name, value in ours.items() if name != "spans" or "max_spans" not in options}
    return room | options


def check_positive(value: Any, name: str) -> None:
    """Raise unless ``value`` is a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < float("inf"):
        raise InvalidArgumentError(f"`{name}` must be a positive number; got {describe(value)}.")


def check_integer(value: Any, name: str, low: int) -> None:
    """Raise unless ``value`` is an integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise InvalidArgumentError(f"`{name}` must be an integer of at least {low}; got {describe(value)}.")
