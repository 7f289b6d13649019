"""What a decoder evaluates: rows in its own dtype and on its own device, in chunks that fit its memory, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import DecoderError
from .derivatives import reverse_later
from .frozen import EvalMode
from .probe import Found
from .promises import finite
from .work import Counters
from .written import weights_alike, written

#: what a row takes that reverse mode is to go back through, in rows of a plain call
_GRAPH = 8


@dataclass(frozen=True)
class Engine:
    """Values and derivatives at one or more rows, which come in and go out as the decoder has them.

    All methods raise DecoderError where the model gives NaN or infinity.

    Attributes:
        found: what the probe found of the model, and how its derivatives are taken.
        eval_mode: of its modules.
        latent_dim: d.
        max_bytes: of one chunk, approximately.
        counters: what counts the rows.
    """

    found: Found
    eval_mode: EvalMode
    latent_dim: int
    max_bytes: int
    counters: Counters

    def value(self, z: Tensor) -> Tensor:
        """``f(z)``, (B, d) -> (B, D)."""
        z = self._for_values(z)
        with self.eval_mode(plain=True):
            value = _gather([self.found.route.value(self.found.call, rows) for rows in self.chunks(z)])
        self.counters.add(values=len(z))
        return finite(value, "output")

    def push(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``f(z)`` and ``J(z) v``, each (B, D)."""
        route, smooth = self.found.route, self.found.smooth
        z, v = self._for_derivatives(z), self._for_derivatives(v)
        with self.eval_mode():
            chunks = zip(self.chunks(z, 3), self.chunks(v, 3), strict=True)
            values, pushed = zip(*(route.jvp(smooth, rows, along) for rows, along in chunks), strict=True)
        self.counters.add(jvps=len(z), values=route.evaluations * len(z))
        return finite(_gather(values), "output"), finite(_gather(pushed), "derivative")

    def pull(self, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """``f(z)`` (B, D) and ``J(z)ᵀ u`` (B, d)."""
        route, smooth = self.found.route, self.found.smooth
        z, u = self._for_derivatives(z), self._for_derivatives(u)
        values, pulls = [], []
        with self.eval_mode():
            if route.reverse == "reverse":
                for rows, weights in zip(self.chunks(z, _GRAPH), self.chunks(u, _GRAPH), strict=True):
                    value, pulled = route.vjp(smooth, rows, weights)
                    values.append(value)
                    pulls.append(pulled)
                self.counters.add(vjps=len(z))
            else:
                for start, rows in self._column_chunks(z):
                    value, columns = self._columns(rows)
                    values.append(value)
                    pulls.append(torch.einsum("kbo,bo->bk", columns, u[start : start + len(rows)]))
        return finite(_gather(values), "output"), finite(_gather(pulls), "derivative")

    @property
    def pull_rows(self) -> int:
        """The most rows for which :meth:`value_and_pull` works; 0 where it does not."""
        return self._chunk(_GRAPH) if self.found.route.one_pass else 0

    def value_and_pull(self, z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """``f(z)`` (B, D) as :meth:`value` gives it, and what gives ``J(z)ᵀ u`` (B, d) once by the same evaluation."""
        z = self._for_values(z)
        with self.eval_mode():
            value, pull = reverse_later(self.found.smooth, z)
        self.counters.add(vjps=len(z))

        def pulled(u: Tensor) -> Tensor:
            u = u.to(z)
            with self.eval_mode():
                return finite(pull(u), "derivative")

        return finite(value, "output"), pulled

    def value_and_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``f(z)`` (B, D) and ``J(z)`` (B, D, d)."""
        z = self._for_derivatives(z)
        chunks = list(self._column_chunks(z))
        with self.eval_mode():
            if len(chunks) == 1:
                value, columns = self._columns(z)
            else:
                width = self.found.output_dim
                value, columns = z.new_empty(len(z), width), z.new_empty(self.latent_dim, len(z), width)
                for start, rows in chunks:
                    value[start : start + len(rows)], columns[:, start : start + len(rows)] = self._columns(rows)
        return finite(value, "output"), finite(columns.permute(1, 2, 0), "derivative")

    def chunks(self, rows: Tensor, weight: int = 1) -> tuple[Tensor, ...]:
        """Rows in chunks, each of which takes as much as ``weight`` times as many of a plain call."""
        return rows.split(self._chunk(weight))

    def _for_values(self, z: Tensor) -> Tensor:
        call = self.found.call
        self._check_weights(call.stands_for, call.roots, "a float32 copy of the half-precision model is what is called")
        return z.to(call.device, call.dtype)

    def _for_derivatives(self, z: Tensor) -> Tensor:
        call, smooth = self.found.call, self.found.smooth
        if smooth is call:
            return self._for_values(z)
        self._check_weights(
            call.stands_for or call.roots, smooth.roots, "its derivatives are finite differences of a float64 copy"
        )
        return z.to(smooth.device, smooth.dtype)

    def _check_weights(self, now: tuple[nn.Module, ...], copied: tuple[nn.Module, ...], why: str) -> None:
        if now and not weights_alike(now, copied):
            raise DecoderError(
                f"the decoder's weights changed after it was wrapped; {why}, which has the old ones. "
                "Wrap the model again."
            )

    def _chunk(self, weight: int) -> int:
        return max(1, self.max_bytes // (weight * self.found.row_bytes))

    def _column_chunks(self, z: Tensor) -> Iterator[tuple[int, Tensor]]:
        width = min(self.latent_dim, self._columns_at_once()) + 1 + self.found.route.evaluations
        start = 0
        for rows in self.chunks(z, 2 * width):
            yield start, rows
            start += len(rows)

    def _columns_at_once(self) -> int:
        return max(1, self.max_bytes // (4 * self.found.row_bytes))

    def _columns(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` (B, D) and all columns (d, B, D) of a chunk of rows."""
        route, smooth, step = self.found.route, self.found.smooth, self._columns_at_once()
        jvps = len(rows) * self.latent_dim
        self.counters.add(values=len(rows) + route.evaluations * jvps, jvps=jvps)
        if self.latent_dim <= step:
            return route.columns(smooth, rows, 0, self.latent_dim)
        columns = rows.new_empty(self.latent_dim, len(rows), self.found.output_dim)
        for first in range(0, self.latent_dim, step):
            last = min(first + step, self.latent_dim)
            value, columns[first:last] = route.columns(smooth, rows, first, last)
        return value, columns


def eval_mode_of(found: Found) -> EvalMode:
    """Of the modules that are called for values and derivatives, in which derivatives leave nothing behind."""
    route, z = found.route, found.place.few[:2]
    calls = [found.call] if found.smooth is found.call else [found.call, found.smooth]
    roots = tuple(root for call in calls for root in call.roots)

    def plain() -> None:
        for call in calls:
            route.value(call, z.to(call.device, call.dtype))

    def derivatives() -> None:
        rows = z.to(found.smooth.device, found.smooth.dtype)
        value, _ = route.jvp(found.smooth, rows, torch.ones_like(rows))
        if route.reverse == "reverse":
            route.vjp(found.smooth, rows, torch.ones_like(value))

    with EvalMode(roots)(), torch.random.fork_rng(devices=[]):
        return EvalMode(roots, written(roots, plain, derivatives))


def _gather(pieces: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
