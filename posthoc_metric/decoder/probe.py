"""The probe at wrap time: what a decoder promises is checked once, and a right route for derivatives chosen."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from .._arrays import name_rows
from ..errors import DecoderError
from .call import Call
from .exam import Exam, Found, NotFiniteError
from .jumps import stepped_outputs
from .memory import bytes_per_row
from .promises import check_rows_apart, check_same_twice, check_values, in_float64
from .settle import ROWS, probe_latents

#: latents at which a derivative that is not finite somewhere is tried, and single outputs are watched for jumps
_MORE_ROWS, _WIDER_ROWS = 64, 12


def probe(call: Call, latent_dim: int, latents: Tensor | None = None) -> Found:
    """Check ``call`` on a few latents and choose a route.

    The caller of this function has put the model into eval mode and set torch's generator aside.

    Raises:
        DecoderError: the outputs are no finite floating-point numbers, differ from call to call, depend on
            other rows of the batch, are piecewise constant, or have derivatives that are not finite.
    """
    z = probe_latents(ROWS, latent_dim, call) if latents is None else latents[:ROWS].to(call.device, call.dtype)
    with torch.no_grad():
        value, row_bytes = bytes_per_row(call, z)
        output_shape = tuple(call.shaped(z[:2]).shape[1:])
        check_values(value)
        scale = check_same_twice(call, z, value)
        check_rows_apart(call, z, value, scale, latent_dim)
        precise = in_float64(call, z, value)
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(2 * len(z), latent_dim, generator=generator, dtype=torch.float64).to(call.device)
    v = v / v.norm(dim=1, keepdim=True)
    exam = Exam(call, precise, z.repeat(2, 1), v)
    wider = _wider(call, latent_dim, latents)
    if latents is None and _saturated(call, z, value):
        # its latents live elsewhere: whoever knows where probes again
        note = "the output is the same at all standard normal latents: derivatives are unchecked, pass some as probe="
        return replace(_chosen(exam, wider, output_shape, row_bytes), notes=(note,), saturated=True)
    exam.check_smooth(value)
    found = _chosen(exam, wider, output_shape, row_bytes)
    return _with_warning(found, _about_jumps(exam, wider, found.output_dim))


def _chosen(exam: Exam, wider: Tensor, output_shape: tuple[int, ...], row_bytes: int) -> Found:
    try:
        return exam.choose(output_shape, row_bytes)
    except NotFiniteError as error:
        return _beside_poles(exam, error, wider, output_shape, row_bytes)


def _wider(call: Call, latent_dim: int, latents: Tensor | None) -> Tensor:
    """More latents (n, d) than the first few, and further out."""
    if latents is not None:
        return latents[:_MORE_ROWS].to(call.device, call.dtype)
    scale = torch.linspace(1.0, 3.0, _MORE_ROWS, dtype=torch.float64).to(call.device, call.dtype)
    return scale[:, None] * probe_latents(_MORE_ROWS, latent_dim, call, seed=5)


def _beside_poles(
    exam: Exam, error: NotFiniteError, wider: Tensor, output_shape: tuple[int, ...], row_bytes: int
) -> Found:
    """The exam where the derivative is finite, and a warning of the places where it is not.

    Raises:
        DecoderError: it is finite nowhere.
    """
    z = torch.cat([exam.z[:ROWS], wider]).to(exam.call.dtype)
    v = exam.v[:1].expand(len(z), -1)
    with torch.no_grad():
        _, pushed = error.route.jvp(exam.call, z, v)
    good = torch.isfinite(pushed).all(dim=1)
    reason = "A function without a slope at 0 sits behind a clamp, as in sqrt(relu(x)): add a small constant inside it."
    if int(good.sum()) >= 2:
        chosen = z[good][:ROWS]
        again = Exam(exam.call, exam.precise, chosen.repeat(2, 1), exam.v[: 2 * len(chosen)])
        with suppress(NotFiniteError):
            share = f"{int((~good).sum())} of {len(z)}"
            warning = (
                f"the derivative of this decoder is NaN or infinite at {share} probe latents although its values are "
                f"finite; such latents are refused, row by row. {reason}"
            )
            return _with_warning(again.choose(output_shape, row_bytes), warning)
    bad = error.rows[:ROWS] | error.rows[ROWS:][:ROWS] if len(error.rows) > ROWS else error.rows
    raise DecoderError(
        f"the decoder's derivative must be finite; at the probe latents {name_rows(bad)} NaN or infinite "
        f"although its values are finite. {reason}",
        rows=tuple(torch.nonzero(bad).flatten().tolist()),
    )


def _about_jumps(exam: Exam, wider: Tensor, outputs: int) -> str:
    call = exam.reference_call
    z = torch.cat([exam.z[:ROWS], wider[:_WIDER_ROWS]]).to(call.dtype)
    v = exam.v[:1].to(call.dtype).expand(len(z), -1)
    with torch.no_grad():
        jumping, more = stepped_outputs(call, z, v, exam.step)
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


def _saturated(call: Call, z: Tensor, value: Tensor) -> bool:
    """Whether the output is the same at all of ``z`` (n, d), but not at latents of every larger scale."""
    if bool((value != value[:1]).any()):
        return False
    with torch.no_grad():
        wide = (call(scale * z) for scale in (1e2, 1e4, 1e6))
        return any(bool(torch.isfinite(found).all() and (found != value[:1]).any()) for found in wide)
