"""Decoder: any trained callable as a frozen, eval-mode, flat smooth map."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, Restore, describe, is_integer, refuse_transformed, to_points
from .._warn import warn_caller
from ..errors import BatchWarning, DerivativeWarning, InvalidArgumentError
from ..machine import working_memory
from ..surroundings import lasting
from .call import Call
from .cuts import about_cuts
from .engine import Engine, eval_mode_of
from .frozen import EvalMode
from .isometry import thinner
from .observation import Given, Observer
from .probe import Found, doubled
from .probe import probe as run_probe
from .routes import FORWARD_WAYS, REVERSE_WAYS
from .settle import settle
from .work import Counters, Work


class Decoder:
    """A trained decoder ``f: R^d -> R^D`` as a smooth map, used as it is.

    The model is called in eval mode and left in the mode it was in; neither its flags nor the caller's tensors
    change, but what its hooks keep elsewhere may be left with the graph of a derivative.  A probe of a few calls at
    wrap time checks that ``f`` is a smooth function of each row alone and chooses the quickest right way to
    differentiate it; :meth:`describe` says what was found.  Latents may be tensors or NumPy arrays of any dtype: they
    are cast to the decoder's own dtype and device, and results cast back to theirs.

    Args:
        model: a module, a function z -> output, a bound method, or an exported program.  Modules that a function uses
            are found in its variables and arguments, and in objects, lists and dictionaries there, five steps deep.
        latent_dim: d; inferred from the model's attributes or first layer where that leaves no doubt.
        method: the part to call: a dotted name such as ``"decode"`` or ``"decoders.0"``, or a function of
            (model, z).  By default the model itself, or for a model with an encoder its ``.decode`` or ``.decoder``.
        output: the part of the result to take: a tuple index, a key, an attribute, or a function of the result.
            A distribution stands for its mean.
        condition: what the model needs beside z: one value, a tuple, a dictionary of keyword arguments, or
            a function of the batch z that returns one of those.  Arrays stand for one row and are repeated for all;
            where a model does not take single numbers as (B,) it is tried with (B, 1), and whole ones as they are.
        latent_shape: the shape of one latent as the model wants it, such as ``(100, 1, 1)``; its numbers
            multiply to ``latent_dim``.
        observe: what brings rows of raw data (B, ...) into the output's coordinates (B, D), where data are given with
            this decoder; a function of tensors.  By default data are compared with the output as they are, and with
            that of :func:`~posthoc_metric.fisher_rao` as observations of its distributions.
        probe: latents (B, d) to probe at, where standard normal ones are not typical.
        max_bytes: the memory that one chunk of rows may take inside the decoder, approximately; by default 1/32 of
            the machine's, and no more than 256 MiB.

    Attributes:
        latent_dim, output_dim: d and D.
        latent_dim_source: what d was inferred from; empty where it was given.
        output_shape: the shape of one output before it was flattened.
        dtype, device: what the model computes in.
        observer: what brings data into the output's coordinates; ``None`` where they are compared as they are.

    Raises:
        InvalidArgumentError: an option is malformed, or ``latent_dim`` cannot be inferred.
        DecoderError: the model cannot be called, or is no smooth function of each row alone; the message
            says why and what to do.

    Warns:
        BatchWarning: the model runs on one latent at a time only.
        DerivativeWarning: only finite differences are left to differentiate with, single outputs jump, or the
            derivative is not finite at some of the latents probed.

    Example:
        >>> import torch, posthoc_metric as pm
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5))
        >>> decoder = pm.Decoder(model)  # the latent dimension is read off the first layer
        >>> z = torch.zeros(3, 2)
        >>> decoder(z).shape, decoder.jacobian(z).shape
        (torch.Size([3, 5]), torch.Size([3, 5, 2]))
    """

    def __init__(
        self,
        model: Any,
        *,
        latent_dim: int | None = None,
        method: str | Callable[..., Any] | None = None,
        output: int | str | Callable[[Any], Any] | None = None,
        condition: Any = None,
        latent_shape: tuple[int, ...] | None = None,
        observe: Callable[[Tensor], Tensor] | None = None,
        probe: ArrayLike | None = None,
        max_bytes: int | None = None,
    ):
        if isinstance(model, Decoder):
            raise InvalidArgumentError("`model` is a Decoder already; use it as it is, or pass the model behind it.")
        if max_bytes is None:
            max_bytes = working_memory() // 2
        if not is_integer(max_bytes) or max_bytes < 1:
            raise InvalidArgumentError(f"`max_bytes` must be a positive number of bytes; got {max_bytes!r}.")
        if observe is not None and not callable(observe):
            raise InvalidArgumentError(f"`observe` must be a function of rows of data; got {describe(observe)}.")
        with lasting():
            settled = settle(
                model,
                latent_dim=latent_dim,
                method=method,
                output=output,
                condition=condition,
                latent_shape=latent_shape,
            )
        self.latent_dim, self.latent_dim_source = settled.latent_dim, settled.source
        latents = None if probe is None else self._points(probe, "probe")[0]
        if latents is not None and not len(latents):
            raise InvalidArgumentError("`probe` must hold at least one latent; got none. Leave it out to draw some.")
        found = _probed(settled.call, self.latent_dim, latents)
        self._engine = Engine(found, eval_mode_of(found), self.latent_dim, int(max_bytes), Counters())
        self._notes = settled.notes
        self.output_shape, self.output_dim = found.output_shape, found.output_dim
        self.dtype, self.device = found.call.dtype, found.call.device
        self.observer: Observer | None = found.observer
        if observe is not None:
            self.observer = Given(observe, self.output_dim, found.observer)
        if settled.warning:
            warn_caller(settled.warning, BatchWarning)
        if found.warning:
            warn_caller(found.warning, DerivativeWarning)

    def __call__(self, z: ArrayLike) -> Any:
        """``f(z)``, (B, d) -> (B, D), without a graph: derivatives are :meth:`jacobian`, :meth:`jvp` and :meth:`vjp`.

        Raises:
            InvalidArgumentError: ``z`` is no batch of finite latents of width d.
            DecoderError: the decoder returned NaN or infinity; ``rows`` says where.
        """
        points, restore = self._points(z)
        if not len(points):
            return restore(points.new_empty(0, self.output_dim))
        return restore(self._engine.value(points).to(points))

    def jvp(self, z: ArrayLike, v: ArrayLike) -> tuple[Any, Any]:
        """``f(z)`` and ``J(z) v``, each (B, D), for ``z`` and ``v`` of shape (B, d)."""
        points, restore = self._points(z)
        tangents = self._beside(points, v, "v", self.latent_dim)
        if not len(points):
            return restore(points.new_empty(0, self.output_dim)), restore(points.new_empty(0, self.output_dim))
        value, pushed = self._engine.push(points, tangents)
        return restore(value.to(points)), restore(pushed.to(points))

    def vjp(self, z: ArrayLike, u: ArrayLike) -> tuple[Any, Any]:
        """``f(z)`` (B, D) and ``J(z)ᵀ u`` (B, d), for ``u`` of shape (B, D)."""
        points, restore = self._points(z)
        cotangents = self._beside(points, u, "u", self.output_dim)
        if not len(points):
            return restore(points.new_empty(0, self.output_dim)), restore(points.new_empty(0, self.latent_dim))
        value, pulled = self._engine.pull(points, cotangents)
        return restore(value.to(points)), restore(pulled.to(points))

    @property
    def max_bytes(self) -> int:
        """The memory that one chunk of rows may take inside the decoder, approximately."""
        return self._engine.max_bytes

    @property
    def pull_rows(self) -> int:
        """The most rows for which :meth:`value_and_pull` is one evaluation; 0 where it is two whatever they are."""
        return self._engine.pull_rows

    def value_and_pull(self, z: ArrayLike) -> tuple[Any, Callable[[ArrayLike], Any]]:
        """``f(z)`` (B, D), as a call gives it, and a function of ``u`` (B, D) that gives ``J(z)ᵀ u`` (B, d) once.

        Up to :attr:`pull_rows` rows it goes back through the evaluation of ``f(z)``, which it keeps until then and
        which counts as :meth:`vjp` does; beyond that it is :meth:`vjp`.
        """
        points, restore = self._points(z)
        if not 0 < len(points) <= self.pull_rows:
            return self(z), lambda u: self.vjp(z, u)[1]
        value, pull = self._engine.value_and_pull(points)

        def pulled(u: ArrayLike) -> Any:
            return restore(pull(self._beside(points, u, "u", self.output_dim)).to(points))

        return restore(value.to(points)), pulled

    def value_and_jacobian(self, z: ArrayLike) -> tuple[Any, Any]:
        """``f(z)`` (B, D) and ``J(z)`` (B, D, d), by forward-mode columns in chunks of ``max_bytes``."""
        points, restore = self._points(z)
        if not len(points):
            empty = points.new_empty(0, self.output_dim, self.latent_dim)
            return restore(empty[..., 0]), restore(empty)
        value, jacobian = self._engine.value_and_jacobian(points)
        return restore(value.to(points)), restore(jacobian.to(points))

    def jacobian(self, z: ArrayLike) -> Any:
        """``J(z)``, (B, d) -> (B, D, d)."""
        return self.value_and_jacobian(z)[1]

    def acquainted(self, latents: ArrayLike) -> Decoder:
        """This decoder, or where what was probed so far says little of latents (n, d), a copy that was probed at them.

        It says little where the output was flat, and where the latents are of another size or lie elsewhere.  The copy
        calls the same model and counts with this decoder, which stays as it is: others may be using it.

        Raises:
            DecoderError: as at wrap time.

        Warns:
            DerivativeWarning: as at wrap time, where there was no such warning then.
        """
        points, _ = self._points(latents, "latents")
        before = self._engine.found
        if not len(points) or (before.place.holds(points) and not before.saturated):
            return self
        found = _probed(before.call, self.latent_dim, points)
        if found.warning and not before.warning:
            warn_caller(found.warning, DerivativeWarning)
        return self._calling(found)

    def describe(self) -> str:
        """What the probe found and chose, for a person to read."""
        route = self._engine.found.route
        kernels = f", with {', '.join(route.kernels)}" if route.kernels else ""
        plainly = (f"  f(z) by a plain call, with {', '.join(route.plain_kernels)}",) if route.plain_kernels else ()
        columns = "sharing one evaluation (vmap)" if route.mapped else "on a batch repeated for each"
        lines = [
            f"Decoder R^{self.latent_dim} -> R^{self.output_dim}, one output of shape {self.output_shape}",
            *(f"  {note}" for note in self._notes),
            f"  computes in {str(self.dtype).removeprefix('torch.')} on {self.device}",
            *plainly,
            f"  J v by {FORWARD_WAYS[route.forward]}{kernels}",
            f"  J by columns of that, {columns}",
            f"  Jᵀu by {REVERSE_WAYS[route.reverse]}",
            *(() if self.observer is None else (f"  {self.observer}",)),
            *(f"  note: {note}" for note in self._engine.found.notes),
        ]
        return "\n".join(lines)

    def remember(self, *notes: str) -> Decoder:
        """Put ``notes`` first in :meth:`describe`: where the model came from; returns the decoder itself."""
        self._notes = (*notes, *self._notes)
        return self

    def in_float64(self) -> Decoder | None:
        """The same decoder in float64, on a copy of the model; ``None`` where there is none, or it is in float64."""
        with lasting(), self._engine.eval_mode(), torch.random.fork_rng(devices=[]):
            found = doubled(self._engine.found)
        if found is None:
            return None
        other = self._calling(found)
        other.dtype = found.call.dtype
        return other

    def isometric(self) -> Decoder:
        """A decoder of the same metric with fewer outputs, where this one ends in a wide linear layer; else itself.

        The outputs are others, as far from each other.  It calls the same model and counts with this decoder.
        """
        with lasting(), self._engine.eval_mode(), torch.random.fork_rng(devices=[]):
            found = thinner(self._engine.found)
        if found is None:
            return self
        other = self._calling(found)
        other.output_shape, other.output_dim, other.observer = found.output_shape, found.output_dim, None
        return other

    def _calling(self, found: Found) -> Decoder:
        """A copy that calls what was ``found`` and counts with this decoder."""
        other = copy.copy(self)
        other._engine = replace(self._engine, found=found, eval_mode=eval_mode_of(found))
        return other

    def counting(self) -> AbstractContextManager[Work]:
        """Count the rows this decoder evaluates inside the ``with`` block, from any thread."""
        return self._engine.counters.counting()

    def cuts(self, latents: ArrayLike) -> str:
        """A warning of outputs that jump between latents (N, d) in random order, as an angle does that wraps around.

        Empty where none does, or where a warning of jumps was given at wrap time.
        """
        return about_cuts(self._engine, self._points(latents, "latents")[0])

    def _points(self, value: ArrayLike, name: str = "z") -> tuple[Tensor, Restore]:
        refuse_transformed(value, name)
        return to_points(value, name, self.latent_dim, source=self.latent_dim_source)

    def _beside(self, points: Tensor, vectors: ArrayLike, name: str, width: int) -> Tensor:
        refuse_transformed(vectors, name)
        tensor, _ = to_points(vectors, name, width, "latent dimension" if width == self.latent_dim else "output width")
        if len(tensor) != len(points):
            raise InvalidArgumentError(
                f"`{name}` must hold one vector for each of the {len(points)} rows of `z`; got {len(tensor)}."
            )
        return tensor

    def __repr__(self) -> str:
        return f"Decoder(latent_dim={self.latent_dim}, output_shape={self.output_shape}, dtype={self.dtype})"


def _probed(call: Call, latent_dim: int, latents: Tensor | None) -> Found:
    with lasting(), EvalMode(call.roots)(), torch.random.fork_rng(devices=[]):
        return run_probe(call, latent_dim, latents)
