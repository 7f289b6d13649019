"""From a model and its options to a call that runs: the part, the width, the precision, the shape."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DecoderError, InvalidArgumentError
from .call import Call
from .carried import modules_used_by
from .conditions import advice, otherwise, several_rows, spread
from .doubts import doubt
from .frozen import EvalMode
from .parts import Method, Part, find_parts, other_decoders, refuse_unready
from .promises import small_weights_left_alone
from .widths import Width, candidates, check_width

_HALF = (torch.float16, torch.bfloat16)
#: rows of the first call; not 1, 2 or 3, which models mistake for channels or an absent batch
ROWS = 4


@dataclass(frozen=True)
class Settled:
    """A call that runs, and how it was found.

    Attributes:
        call: runs on latents (B, latent_dim).
        latent_dim: d.
        notes: what was inferred, for :meth:`Decoder.describe`.
        warning: what the caller should know at once.
        source: what the latent dimension was inferred from; empty where it was given.
    """

    call: Call
    latent_dim: int
    notes: tuple[str, ...]
    warning: str = ""
    source: str = ""


def probe_latents(rows: int, dim: int, like: Call, seed: int = 0) -> Tensor:
    """Standard normal latents (rows, d) from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=generator, device="cpu", dtype=torch.float64).to(like.device, like.dtype)


def settle(
    model: Any,
    *,
    latent_dim: int | None,
    method: Method,
    output: Any,
    condition: Any,
    latent_shape: tuple[int, ...] | None,
) -> Settled:
    """The first combination of part, width, precision and shape with which ``model`` runs.

    Raises:
        InvalidArgumentError: an option is malformed, or ``latent_dim`` is in doubt or can be read off nothing.
        DecoderError: the model cannot be called, with the words of its own error.
    """
    latent_dim, latent_shape = check_width(latent_dim, latent_shape)
    parts = find_parts(model, method)
    for part in parts:
        refuse_unready(part)
    widths = list(candidates(model, parts, latent_dim, latent_shape))
    if not widths:
        raise InvalidArgumentError(
            f"`latent_dim` cannot be read off {parts[0].name}: it has no attribute such as latent_dim and no layer "
            "that tells. Pass latent_dim=, the number of columns of its latents, or latent_shape= where they have axes."
        )
    attempts = _Attempts(model, output, condition)
    for part in parts:
        found = attempts.run(part, widths, given=latent_dim is not None)
        if found is not None:
            if len(parts) > 1:
                _refuse_ambiguous(found, part, parts, attempts, widths)
            return found
    if attempts.doubted is not None:
        raise attempts.doubted
    raise attempts.failure(parts[0], widths)


class _Attempts:
    """Tries combinations and keeps the first failure, which is that of the likeliest one."""

    def __init__(self, model: Any, output: Any, condition: Any):
        self.model = model
        self.output = output
        self.condition = condition
        self.first: Exception | None = None
        self.informative: DecoderError | None = None
        self.doubted: InvalidArgumentError | None = None
        self.copied_from: torch.dtype | None = None

    def run(self, part: Part, widths: list[Width], given: bool) -> Settled | None:
        for dim, shape, source in widths:
            for call, note in self._calls(part, shape):
                tried = self._try(call, dim)
                if tried is None:
                    continue
                call, value, columns, failed = tried
                if not call.roots and call.dtype == torch.float64 and value.dtype == torch.float32:
                    call = replace(call, dtype=torch.float32)  # it computes in single precision whatever comes
                notes = [f"calls {part.name}"]
                if not given:
                    notes.append(f"latent dimension {dim} from {source}")
                if shape is not None and source != "`latent_shape`":
                    notes.append(f"latents are handed over as (B, {', '.join(map(str, shape))})")
                notes += [words for words in (note, columns) if words]
                if call.batch is not None:
                    notes.append(f"takes batches of {call.batch} rows only; others are padded or cut up")
                if call.most is not None:
                    notes.append(f"takes batches of up to {call.most} rows; larger ones are cut up")
                if not call.alone:
                    notes.append("a single row is handed over twice: alone it fails, as with a squeeze()")
                doubts = doubt(part, (dim, shape, source), value.shape[1], widths, partial(self._runs_on, call))
                if doubts:
                    self.doubted = self.doubted or InvalidArgumentError(doubts + self._others(part))
                    break
                refusal = spread(call.condition, partial(self._with_condition, call, dim))
                if refusal:
                    raise InvalidArgumentError(refusal)
                warning = _one_by_one(failed) if call.batch == 1 else ""
                return Settled(call, dim, tuple(notes), warning, "" if given else source)
        return None

    def _runs_on(self, call: Call, dim: int) -> bool:
        return isinstance(self._once(call, dim), Tensor)

    def _with_condition(self, call: Call, dim: int, condition: Any) -> Tensor | None:
        value = self._once(replace(call, condition=condition), dim)
        return value if isinstance(value, Tensor) else None

    def _others(self, part: Part) -> str:
        others = other_decoders(self.model, part)
        return f" Beside it the model has {', '.join(others)}." if others else ""

    def _calls(self, part: Part, shape: tuple[int, ...] | None) -> Iterator[tuple[Call, str]]:
        roots = tuple(dict.fromkeys((*part.roots, *modules_used_by(self.output, self.condition))))
        held = [t for root in roots for t in (*root.parameters(), *root.buffers()) if t.is_floating_point()]
        tensors = [t for t in held if t.device.type != "meta"]  # of what is called with the weights of others
        device = tensors[0].device if tensors else torch.device("cpu")
        plain = Call(part.target, roots, self.output, self.condition, shape, device=device, most=part.most)
        dtypes = list(dict.fromkeys(t.dtype for t in tensors)) or [torch.float64, torch.float32]
        if dtypes[0] in _HALF:
            try:
                copied = plain.copied(torch.float32)
            except Exception as error:
                raise DecoderError(
                    f"the decoder computes in {dtypes[0]}, too coarse for derivatives, and cannot be copied to float32 "
                    f"({_words(error)}). Convert it with .float() before wrapping it."
                ) from error
            self.copied_from = dtypes[0]
            yield replace(copied, stands_for=roots), f"a float32 copy stands in for {dtypes[0]}"
            return
        for dtype in dtypes:
            yield replace(plain, dtype=dtype), ""
        if not isinstance(part.target, nn.Module):
            for dtype in dtypes:
                yield replace(plain, dtype=dtype, as_numpy=True), "is handed NumPy arrays"

    def _try(self, call: Call, dim: int) -> tuple[Call, Tensor, str, Exception | None] | None:
        """``call``, its value, a note, and what it said when it was called plainly.

        Where it fails its condition is reshaped, or it is called in the batch size that its own error names.
        """
        failed: Exception | None = None
        few = refused = None
        for condition, note in ((call.condition, ""), *otherwise(call.condition)):
            changed = replace(call, condition=condition)
            value = self._once(changed, dim)
            if isinstance(value, Exception):
                failed = failed or value
                continue
            more, lone = self._once(changed, dim, ROWS + 1), self._once(changed, dim, 1)
            if isinstance(more, Exception):
                # it may run on just so many rows, as an exported program or one that holds a table of so many
                few = few or (replace(changed, batch=ROWS), value, note, None)
                continue
            if value.shape[1] != more.shape[1]:
                # a number for each row was set beside every other row, which as a column it is not
                refused = refused or _width_changes(value, more, condition)
                continue
            if isinstance(lone, Tensor) and lone.shape[1] == value.shape[1]:
                return changed, value, note, failed
            few = few or (replace(changed, alone=False), value, note, None)
        if refused is not None:
            raise refused
        if few is not None or failed is None:
            return few
        for batch in [] if isinstance(failed, DecoderError) else _batches(failed):
            padded = replace(call, batch=batch)
            value = self._once(padded, dim)
            if isinstance(value, Tensor):
                return padded, value, "", failed
        return None

    def _once(self, call: Call, dim: int, rows: int = ROWS) -> Tensor | Exception:
        with small_weights_left_alone(call.roots), torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                with EvalMode(call.roots)(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return call(probe_latents(rows, dim, call))
            except Exception as error:  # a caller's model may raise anything; what it said is reported
                self.first = self.first or error
                if isinstance(error, DecoderError):
                    self.informative = self.informative or error
                return error

    def _one_without_axis(self, part: Part, widths: list[Width]) -> str:
        """What to do with a function of one latent (d,), as those are written that are to be mapped over a batch."""
        for dim, shape, _ in widths:
            for call, _ in self._calls(part, None) if shape is None else ():
                single = replace(call, target=lambda z, *given, to=call.target, **named: to(z[0], *given, **named))
                if isinstance(self._once(single, dim, 1), Tensor):
                    return f" It runs on one latent of shape ({dim},): wrap torch.vmap of it, which takes a batch."
        return ""

    def _cast(self) -> str:
        """What to do where a copy in single precision was called, and something is still cast to the old one."""
        if self.copied_from is None or "dtype" not in str(self.first):
            return ""
        return (
            f"It was called as a float32 copy, {self.copied_from} being too coarse for derivatives; where it casts to "
            "that itself, let it cast to the dtype of its weights: z.to(weight.dtype). "
        )

    def failure(self, part: Part, widths: list[Width]) -> DecoderError:
        if self.informative is not None:
            return self.informative
        tried = ", ".join(dict.fromkeys(f"{dim} ({source})" for dim, _, source in widths))
        error = DecoderError(
            f"{part.name} cannot be called on {ROWS} latents; latent dimension tried: {tried}. "
            f"It says: {_words(self.first)}. {self._cast()}{_signature(part)}Check latent_dim=; say with method= "
            "which part decodes (its name, or a function of the model and z), with condition= what it needs beside z"
            f"{_lacking(self.first)}, with latent_shape= which axes a latent has. "
            f"{advice(self.condition)}".rstrip()
            + self._others(part)
            + self._one_without_axis(part, widths)
        )
        error.__cause__ = self.first
        return error


def _width_changes(value: Tensor, more: Tensor, condition: Any) -> DecoderError:
    return DecoderError(
        f"the decoder must give each latent as many outputs, whatever their number; {len(value)} latents gave "
        f"{value.shape[1]} outputs each and {len(more)} gave {more.shape[1]}: it sets latents beside something "
        f"of every other. {several_rows(condition)}".rstrip()
    )


def _one_by_one(failed: Exception | None) -> str:
    return (
        f"the decoder takes one latent at a time; called on {ROWS} it says: {_words(failed)}. All that follows takes "
        "many times as long. If what it fails on is its condition=, give that the axes it wants behind a first axis of "
        "one, (1, k); if it was exported for one row, export it with a dynamic first axis."
    )


def _signature(part: Part) -> str:
    """What ``part`` takes, where that is more than latents; latents are handed over as the first of it."""
    try:
        taken = list(signature(getattr(part.target, "forward", part.target)).parameters.values())
    except (TypeError, ValueError):  # built-in functions tell nothing of that
        return ""
    if len(taken) < 2 or taken[0].kind is Parameter.VAR_POSITIONAL:
        return ""
    shown = [str(one.replace(annotation=Parameter.empty)) for one in taken]
    listed = ", ".join(re.sub("=.{30,}", "=...", one, flags=re.DOTALL) for one in shown)  # a default may be a tensor
    return (
        f"It takes ({listed[:200]}{'...' if len(listed) > 200 else ''}), of which latents are the first; where they "
        "are another one, pass method=, a function of the model and z. "
    )


def _batches(error: Exception) -> list[int]:
    """Batch sizes that the words of an error suggest: exported programs name the only one they take."""
    numbers = dict.fromkeys(int(number) for number in re.findall(r"(?<![\w.])\d{1,4}(?![\w.]?\d)", str(error)))
    return [n for n in numbers if 0 < n <= 1024 and n != ROWS][:8]


def _lacking(error: Exception | None) -> str:
    """How to give what the model was called without, which generators of classes need even where they have none."""
    lacks = re.search(r"missing \d+ required positional arguments?: (.*)", str(error))
    if not isinstance(error, TypeError) or lacks is None:
        return ""
    named = ", ".join(f"{name}: ..." for name in re.findall(r"'\w+'", lacks[1]))
    return f", as {{{named}}} (None for what it can go without)"


def _words(error: Exception | None) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"


def _refuse_ambiguous(found: Settled, part: Part, parts: list[Part], attempts: _Attempts, widths: list[Width]) -> None:
    """Refuse where ``.decode`` and ``.decoder`` both run and do not give the same numbers."""
    halves = [p for p in parts if p.name.endswith((".decode", ".decoder"))]
    if part not in halves:
        return
    z = probe_latents(ROWS, found.latent_dim, found.call)
    for other in halves:
        if other is part:
            continue
        rival = attempts.run(other, [w for w in widths if w[0] == found.latent_dim], given=True)
        if rival is None:
            continue
        with EvalMode(found.call.roots)(), torch.no_grad():
            ours, theirs = found.call(z), rival.call(z)
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise DecoderError(
                f"{part.name} and {other.name} both run and give different outputs (shapes {tuple(ours.shape)} and "
                f"{tuple(theirs.shape)}). Say which one is meant with method='{part.name.rsplit('.', 1)[1]}' or "
                f"method='{other.name.rsplit('.', 1)[1]}'."
            )
