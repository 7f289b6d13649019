"""The exam that each way of differentiating a decoder sits: finite differences in float64 are the answers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import DecoderError
from . import kernels
from .call import Call
from .finite import best_difference
from .observation import Observer
from .place import Place
from .routes import Route
from .settle import ROWS

#: relative accuracy that a route must show against finite differences in float64, by the precision it runs in
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-5}
#: differences of two steps that are as close as this have about four digits
_FOUR_DIGITS = 1e-3
#: rows of which some are left over wherever several are worked on at once, and may be rounded in another way
_ODD_ROWS = 5
#: why a decoder that is constant between jumps is refused
STEPPED = (
    "the decoder is piecewise constant: its output jumps instead of changing smoothly (rounding, argmax, "
    "quantisation, or a precision reduced inside, as by torch.autocast), so that its derivative is zero or "
    "meaningless. Wrap the layer before that step instead (method=, output=), or a float32 version of the model; if "
    "its latents are of another scale than one, or far from zero, pass some of them as probe=."
)


@dataclass(frozen=True)
class Found:
    """What the probe found and chose.

    Attributes:
        call: what is called for values.
        smooth: what is called for derivatives: ``call``, or a float64 copy for finite differences.
        route: how derivatives are taken.
        output_shape: of one output.
        row_bytes: an estimate of the memory one row takes.
        notes: for :meth:`Decoder.describe`.
        warning: what a :class:`DerivativeWarning` says, if anything.
        place: where it was probed.
        saturated: the output is flat there, so that derivatives are unchecked.
        observer: what brings data to the output, where they are not compared as they are.
    """

    call: Call
    smooth: Call
    route: Route
    output_shape: tuple[int, ...]
    row_bytes: int
    notes: tuple[str, ...]
    place: Place
    warning: str = ""
    saturated: bool = False
    observer: Observer | None = None

    @property
    def output_dim(self) -> int:
        return int(torch.Size(self.output_shape).numel())


class NotFiniteError(Exception):
    """A route gives NaN or infinity at latents where the values and finite differences are finite."""

    def __init__(self, route: Route, rows: Tensor):
        super().__init__()
        self.route = route
        self.rows = rows


class Exam:
    """Holds one decoder's finite-difference derivatives and examines routes against them.

    :meth:`choose` raises :class:`NotFiniteError` where automatic differentiation breaks at some of the latents.
    """

    def __init__(self, call: Call, precise: Call | None, z: Tensor, v: Tensor, place: Place):
        self.call = call
        self.precise = precise
        self.z = z
        self.v = v.to(z.dtype)
        self.place = place
        self.reference_call = precise or call
        dtype = self.reference_call.dtype
        with torch.no_grad():
            self.shrink, self.reference = best_difference(
                self.reference_call, self.z.to(dtype), self.v.to(dtype), place.unit
            )
        eps = torch.finfo(dtype).eps
        share = eps**0.5 * (64.0 if dtype == torch.float64 else 1.0)
        #: so short that a smooth output changes by many roundings and hardly anything else, and so do the latents
        self.step = share * place.unit + 256 * eps * float(z.abs().amax())
        #: a way is right in float64 and wrong only in the model's own precision
        self.too_coarse = False
        self.reasons: list[str] = []
        self.error: Exception | None = None

    def flatness(self, value: Tensor) -> str:
        """Why a decoder that is constant, or constant between jumps, cannot be used; empty where it is neither.

        Over a step so short that a smooth output must change by many roundings, a stepped one mostly does not.
        """
        call = self.reference_call
        z, v = self.z.to(call.dtype), self.v.to(call.dtype)
        eps = torch.finfo(call.dtype).eps
        step = self.step
        with torch.no_grad():
            here, there = call(z), call(z + step * v)
        ought = step * self.reference.value.abs() > 16 * eps * here.abs().amax(dim=1, keepdim=True)
        moved = (here != there) & ought
        varies = bool(((value - value[:1]).abs().amax()) > 0)
        if bool(ought.any()) and 2 * int(moved.sum()) >= int(ought.sum()):
            return ""
        if not bool(ought.any()) and bool((here != there).any()):
            return ""
        if not varies:
            tried = len(self.place.few if self.place.drawn else self.place.wider)
            return (
                f"the decoder ignores its latents, as far as tried: its output is the same at {tried} of them, so "
                "that it has no geometry there. Check latent_dim=, method= and condition=; where it changes elsewhere, "
                "pass latents from there as probe= of pm.Decoder."
            )
        return STEPPED

    def choose(self, output_shape: tuple[int, ...], row_bytes: int) -> Found:
        notes = []
        if self.precise is None:
            notes.append("checked against finite differences in float32: no float64 copy can be made of it")
        for way in ("forward", "per row", "double backward"):
            for direct in (True, False) if way == "forward" else (False,):
                found = self._with_kernels(Route(forward=way, kernels=("direct tangents",) if direct else ()))
                if found is not None:
                    route = self._with_columns(found[0])
                    route = self._with_reverse(route, found[1])
                    return Found(
                        self.call, self.call, route, output_shape, row_bytes, (*notes, *self._reasons()), self.place
                    )
        return self._last_resort(output_shape, row_bytes, notes)

    def _with_kernels(self, route: Route) -> tuple[Route, Tensor] | None:
        """``route`` with as many kernels replaced as its errors ask for, if it is then right."""
        while True:
            self.error = None
            pushed = self._forward(route)
            if pushed is not None:
                return route, pushed
            more = [name for name in kernels.remedies(self.error or Exception()) if name not in route.kernels]
            if not more:
                return None
            route = replace(route, kernels=(*route.kernels, *more))

    def _forward(self, route: Route) -> Tensor | None:
        """``J v`` of the model in its own precision where the route is right there and in float64."""
        pushed = self._attempt(route, self.call)
        if pushed is None:
            return None
        right = self._agrees(route, pushed)
        if self.precise is not None and self.precise is not self.call:
            again = self._attempt(route, self.precise, quiet=True)
            if again is not None:
                precisely = self._agrees(route, again)
                self.too_coarse |= precisely and not right
                right &= precisely
        return pushed if right else None

    def _attempt(self, route: Route, call: Call, quiet: bool = False) -> Tensor | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _, pushed = route.jvp(call, self.z.to(call.dtype), self.v.to(call.dtype))
        except Exception as error:  # each route fails in its own words; they are reported, and the next is tried
            if not quiet:
                self.error = error
                self._say(route, _words(error))
            return None
        bad = ~torch.isfinite(pushed).all(dim=1)
        if bool(bad.any()) and bool(torch.isfinite(self.reference.value).all()):
            raise NotFiniteError(route, bad)
        return pushed

    def _agrees(self, route: Route, pushed: Tensor) -> bool:
        reference = self.reference.value
        # two steps may agree by chance in single outputs
        error = torch.maximum(self.reference.error, self.reference.error.median(dim=1, keepdim=True).values)
        tolerance = _TOLERANCE[pushed.dtype]
        largest = reference.abs().amax(dim=1, keepdim=True)
        floor = (1e-1 if pushed.dtype == torch.float32 else 1e-3) * largest
        if self.precise is None:
            tolerance = 3e-2
        gap = (pushed.to(reference.dtype) - reference).abs()
        close = gap <= tolerance * (reference.abs() + floor) + 4 * error
        within = gap.norm(dim=1) <= 0.3 * reference.norm(dim=1) + 4 * error.median(dim=1).values * gap.shape[1] ** 0.5
        if bool(close.all()) and bool(within.all()):
            return True
        zero = bool((pushed == 0).all())
        self._say(route, "gives zero without a word" if zero else "disagrees with finite differences")
        return False

    def _with_columns(self, route: Route) -> Route:
        """Share one evaluation among the columns, where ``vmap`` can and gives the same."""
        if route.forward != "forward":
            return route
        z, count = self.z[:ROWS], min(4, self.z.shape[1])
        mapped = replace(route, mapped=True)
        plain = route.columns(self.call, z, 0, count)[1]
        try:
            with warnings.catch_warnings():
                # where vmap has no rule it may go row by row and say so, each time; tiling has no such needs
                warnings.simplefilter("ignore")
                warnings.filterwarnings("error", message=".*batching rule")
                shared = mapped.columns(self.call, z, 0, count)[1]
        except Exception:
            return route
        tolerance = 1e-4 if z.dtype == torch.float32 else 1e-9
        same = (shared - plain).abs().amax() <= tolerance * plain.abs().amax()
        return mapped if bool(same) else route

    def _with_reverse(self, route: Route, pushed: Tensor, call: Call | None = None) -> Route:
        """Reverse mode where ``uᵀ(Jv) = (Jᵀu)·v``; otherwise forward columns."""
        call = call or self.call
        z, v = self.z.to(call.dtype), self.v.to(call.dtype)
        generator = torch.Generator().manual_seed(3)
        u = torch.randn(pushed.shape, generator=generator, device="cpu", dtype=torch.float64).to(pushed)
        expected = (u * pushed).sum(dim=1)
        size = u.norm(dim=1) * pushed.norm(dim=1)
        tolerance = 1e-4 if u.dtype == torch.float32 else 1e-8
        if route.forward == "differences":
            tolerance = 1e-5 if u.dtype == torch.float64 else 1e-2
        for names in dict.fromkeys([(), route.kernels, ("math attention",), ("no mkldnn",)]):
            candidate = replace(route, reverse="reverse", reverse_kernels=names)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    value, pulled = candidate.vjp(call, z, u)
            except Exception as error:
                reason = _words(error)
                continue
            gap = ((pulled * v).sum(dim=1) - expected).abs()
            if bool((gap <= tolerance * size).all()):
                return candidate if names else self._with_one_pass(candidate, u, value)
            reason = "gives zero without a word" if bool((pulled == 0).all()) else "disagrees with forward mode"
        self.reasons.append(f"reverse mode {reason}: Jᵀu is taken by forward columns")
        return replace(route, reverse="columns")

    def _with_one_pass(self, route: Route, u: Tensor, value: Tensor) -> Route:
        """One evaluation for both where ``value``, of which a graph is kept, is what a plain call gives, bit for bit.

        Attention layers have a way of their own for each; values then go the way that derivatives must go.
        """
        z = self.z.to(self.call.dtype)
        few = slice(_ODD_ROWS)
        for names in ((), ("no fast path",)):
            candidate = replace(route, plain_kernels=names, one_pass=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if not _equal(candidate.value(self.call, z), value):
                    continue
                if _equal(candidate.value(self.call, z[few]), route.vjp(self.call, z[few], u[few])[0]):
                    return candidate
        return route

    def _last_resort(self, output_shape: tuple[int, ...], row_bytes: int, notes: list[str]) -> Found:
        roughness = self.reference.relative_error
        if roughness > 0.3:
            raise DecoderError(
                "the decoder has no derivative that can be trusted: automatic differentiation fails "
                f"({self._reasons()[0]}) and finite differences of two steps differ by {roughness:.0%}. "
                "Rebuild it in torch operations, or let it compute in float64."
            )
        smooth, failures = self.reference_call, self._reasons()
        route = Route(forward="differences", shrink=self.shrink, unit=self.place.unit)
        route = self._with_reverse(route, self.reference.value.to(smooth.dtype), smooth)
        seen = f"where those of two steps differ by {roughness:.1%}"
        single = "about four digits and fewer near kinks" if roughness < _FOUR_DIGITS else seen
        digits = "float64" if smooth.dtype == torch.float64 else f"float32, {single}"
        warning = (
            f"derivatives of this decoder come from finite differences in {digits}, because automatic "
            f"differentiation fails ({failures[0]}). Rebuild it in torch operations for speed and accuracy."
        )
        return Found(self.call, smooth, route, output_shape, row_bytes, (*notes, *self._reasons()), self.place, warning)

    def _say(self, route: Route, reason: str) -> None:
        kernels = f" with {', '.join(route.kernels)}" if route.kernels else ""
        self.reasons.append(f"{route.forward}{kernels}: {reason}")

    def _reasons(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.reasons))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text[:140]}..." if len(text) > 140 else text
