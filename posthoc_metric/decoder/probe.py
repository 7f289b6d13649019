"""The probe at wrap time: what a decoder promises is checked once, and a right route for derivatives chosen."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from .._arrays import name_rows
from ..errors import DecoderError
from .call import Call
from .exam import STEPPED, Exam, Found, NotFiniteError
from .fisher_rao import noting
from .jumps import flat_outputs, stepped_outputs
from .memory import bytes_per_row
from .observation import observation
from .place import Place, given, own_unit, smaller_units, standard
from .promises import (
    ModulesLeftAlone,
    check_eval,
    check_precision,
    check_rows_apart,
    check_same_twice,
    check_values,
    in_float64,
)
from .written import kept

#: latents at which single outputs are watched for jumps, beside the first few
_WIDER_ROWS = 12
#: scales at which an output that is flat at standard normal latents is tried, and up to which jumps can be told from
#: steep places, in single and in double precision
_SCALES, _HALVED = (1e2, 1e4, 1e6, 1e8, 1e10, 1e12), (1e2, 1e4)
_FLAT = "the output is flat at all standard normal latents: derivatives are unchecked, pass some latents as probe="


def probe(call: Call, latent_dim: int, latents: Tensor | None = None) -> Found:
    """Check ``call`` on a few latents and choose a route.

    Without latents it is probed at standard normal ones, or at smaller ones where it takes those for far apart.
    The caller of this function has put the model into eval mode and set torch's generator aside.

    Raises:
        DecoderError: the outputs are no finite floating-point numbers, differ from call to call, depend on
            other rows of the batch, are piecewise constant, or have derivatives that are not finite.
    """
    # what modules keep of derivatives in lists that only grow can be neither copied nor pickled
    before = list(kept(call.roots))
    try:
        return _probe(call, latent_dim, latents)
    finally:
        for one in before:
            one.put_back()


def _probe(call: Call, latent_dim: int, latents: Tensor | None) -> Found:
    if latents is not None:
        return _probed(call, latent_dim, given(call, latents))[0]
    place = standard(call, latent_dim)
    with torch.no_grad():
        check_values(call(place.few), drawn=True)
    unit = own_unit(call, latent_dim)
    if unit is None:
        return _probed(call, latent_dim, place, flat_too=True)[0]
    found, exam = _probed(call, latent_dim, standard(call, latent_dim, unit))
    if exam.too_coarse and found.route.forward == "differences":
        # single precision loses the slopes of a saturated unit, but not around zero
        for smaller in smaller_units(unit):
            with suppress(DecoderError):
                nearer = _probed(call, latent_dim, standard(call, latent_dim, smaller))[0]
                if nearer.route.forward != "differences":
                    found = nearer
                    break
    if found.place.unit == 1.0:
        return found
    note = f"probed at latents of scale {found.place.unit:g}: between larger ones it is flat or rough"
    return replace(found, notes=(*found.notes, note))


def _probed(call: Call, latent_dim: int, place: Place, *, flat_too: bool = False) -> tuple[Found, Exam]:
    """What is found at ``place``; flat outputs are refused, unless ``flat_too`` and they :func:`_may_be_flat`."""
    z = place.few
    with torch.no_grad():
        with ModulesLeftAlone(call):
            value, row_bytes = bytes_per_row(call, z)
        with noting() as calls:
            shaped = call.shaped(z[:2])
        output_shape, observer = tuple(shaped.shape[1:]), observation(calls, shaped)
        check_values(value, drawn=place.drawn)
        scale = check_same_twice(call, z, value)
        check_eval(call, z, value, scale)
        check_rows_apart(call, z, value, scale, place.others, place.unit)
        precise = in_float64(call, z, value, place.unit)
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(2 * len(z), latent_dim, generator=generator, device="cpu", dtype=torch.float64).to(call.device)
    v = v / v.norm(dim=1, keepdim=True)
    exam = Exam(call, precise, z.repeat(2, 1), v, place)
    flatness = exam.flatness(value)
    if flatness and not (flat_too and _may_be_flat(exam, value)):
        raise DecoderError(flatness)
    with torch.no_grad():
        check_precision(call, value, exam.z, exam.v, place.unit)
    found = replace(_chosen(exam, output_shape, row_bytes), observer=observer)
    if flatness:
        # its latents live elsewhere: whoever knows where probes again
        return replace(found, notes=(_FLAT,), warning="", saturated=True), exam
    return _with_warning(found, _about_jumps(*_jumping(exam), found.output_dim)), exam


def doubled(found: Found) -> Found | None:
    """``found`` on a copy of the model in float64, where there can be one and it brings digits."""
    if found.call.dtype == torch.float64 or found.smooth is not found.call:
        return None
    z, unit = found.place.few, found.place.unit
    with torch.no_grad():
        precise = in_float64(found.call, z, found.call(z), unit)
    return None if precise is None else replace(found, call=precise, smooth=precise, row_bytes=2 * found.row_bytes)


def _may_be_flat(exam: Exam, value: Tensor) -> bool:
    scale = _saturated(exam.call, exam.place.few, value)
    if scale is None:
        return _steep(exam)
    if _stepped(exam, scale):
        raise DecoderError(STEPPED)
    return True


def _chosen(exam: Exam, output_shape: tuple[int, ...], row_bytes: int) -> Found:
    try:
        return exam.choose(output_shape, row_bytes)
    except NotFiniteError as error:
        return _beside_poles(exam, error, output_shape, row_bytes)


def _beside_poles(exam: Exam, error: NotFiniteError, output_shape: tuple[int, ...], row_bytes: int) -> Found:
    """The exam where the derivative is finite, and a warning of the places where it is not.

    Raises:
        DecoderError: it is finite nowhere.
    """
    z = torch.cat([exam.place.few, exam.place.wider]).to(exam.call.dtype)
    v = exam.v[:1].expand(len(z), -1)
    with torch.no_grad():
        _, pushed = error.route.jvp(exam.call, z, v)
    good = torch.isfinite(pushed).all(dim=1)
    reason = "A function without a slope at 0 sits behind a clamp, as in sqrt(relu(x)): add a small constant inside it."
    rows = len(exam.place.few)
    if int(good.sum()) >= 2:
        chosen = z[good][:rows]
        again = Exam(exam.call, exam.precise, chosen.repeat(2, 1), exam.v[: 2 * len(chosen)], exam.place)
        with suppress(NotFiniteError):
            share = f"{int((~good).sum())} of {len(z)}"
            warning = (
                f"the derivative of this decoder is NaN or infinite at {share} probe latents although its values are "
                f"finite; such latents are refused, row by row. {reason}"
            )
            return _with_warning(again.choose(output_shape, row_bytes), warning)
    bad = error.rows.view(-1, rows).any(0)
    raise DecoderError(
        f"the decoder's derivative must be finite; at the probe latents {name_rows(bad)} NaN or infinite "
        f"although its values are finite. {reason}",
        rows=tuple(torch.nonzero(bad).flatten().tolist()),
    )


def _jumping(exam: Exam) -> tuple[list[int], int]:
    """Outputs that jump among the few latents and some of the wider ones; see :func:`stepped_outputs`."""
    return _jumps_among(exam, torch.cat([exam.place.few, exam.place.wider[:_WIDER_ROWS]]), exam.step)


def _jumps_among(exam: Exam, z: Tensor, step: float) -> tuple[list[int], int]:
    with torch.no_grad():
        return stepped_outputs(exam.reference_call, *_ways(exam, z), step)


def _ways(exam: Exam, z: Tensor) -> tuple[Tensor, Tensor]:
    """Latents (n, d) as the reference takes them, and one direction for all."""
    z = z.to(exam.reference_call.dtype)
    return z, exam.v[:1].to(z.dtype).expand(len(z), -1)


def _about_jumps(jumping: list[int], more: int, outputs: int) -> str:
    if not jumping:
        return ""
    others = f" and perhaps {more} more" if more else ""
    verb = "jump instead of changing" if len(jumping) > 1 or more else "jumps instead of changing"
    return (
        f"of the decoder's {outputs} outputs {', '.join(map(str, jumping))}{others} {verb} smoothly (rounding, a "
        "threshold, argmax): their derivative is zero, and the geometry does not see them. Wrap the layer before that "
        "step, or take the smooth part alone (method=, output=)."
    )


def _with_warning(found: Found, warning: str) -> Found:
    return replace(found, warning=" Also, ".join(text for text in (found.warning, warning) if text))


def _saturated(call: Call, z: Tensor, value: Tensor) -> float | None:
    """A larger scale at which the output differs, if it is the same at all of ``z`` (n, d) and there is any."""
    if bool((value != value[:1]).any()):
        return None
    with torch.no_grad():
        for scale in _SCALES:
            found = call(scale * z)
            if bool(torch.isfinite(found).all() and (found != value[:1]).any()):
                return scale
    return None


def _stepped(exam: Exam, scale: float) -> bool:
    """Whether an output that is the same at the few latents gets to others by jumps, as one that rounds them alike.

    It is looked at among the wider latents, and from the few to the same ``scale`` times as far out, where the halvings
    of so long a way come down to a short one.
    """
    few = exam.place.few
    if _jumps_among(exam, exam.place.wider, exam.step)[0]:
        return True
    short = scale <= _HALVED[exam.reference_call.dtype == torch.float64]
    return short and bool(_jumps_among(exam, torch.cat([few, scale * few]), scale * exam.step)[0])


def _steep(exam: Exam) -> bool:
    """Whether the outputs that are flat around the latents get from one to another without a jump."""
    with torch.no_grad():
        flat = flat_outputs(exam.reference_call, *_ways(exam, exam.place.few), exam.step)
    return len(flat) > 0 and not _jumping(exam)[0]
