"""Eval mode for the time of a call, and the caller's mode afterwards.

Distributions do not check their parameters meanwhile: far from the data rates round to zero and probabilities to one,
which torch refuses by default, from the inside of a decoder whose mean or logits would do.  Autocast is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributions import Distribution

from ..errors import DecoderError
from ..surroundings import own_precision
from .turns import BOOKS
from .written import Written, modules_of


class _Unchecked:
    """Takes away the default of checking distributions while at least one thread is inside any decoder."""

    def __init__(self) -> None:
        self._inside = 0
        self._before = True

    def __enter__(self) -> None:
        with BOOKS:
            if self._inside == 0:
                self._before = Distribution._validate_args
                Distribution.set_default_validate_args(False)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with BOOKS:
            self._inside -= 1
            if self._inside == 0:
                Distribution.set_default_validate_args(self._before)


_unchecked = _Unchecked()


class _Still:
    """Which modules in training mode are held in eval mode, and by how many calls: they may belong to many decoders."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[nn.Module, int]] = {}

    def hold(self, modules: list[nn.Module]) -> list[nn.Module]:
        """Those of ``modules`` that are held now, for :meth:`release`."""
        found = []
        with BOOKS:
            for module in modules:
                calls = self._held.get(id(module), (module, 0))[1]
                if calls or getattr(module, "training", False):  # frozen TorchScript has no such flag
                    self._held[id(module)] = module, calls + 1
                    module.training = False
                    found.append(module)
        return found

    def release(self, modules: list[nn.Module]) -> None:
        with BOOKS:
            for module in modules:
                calls = self._held[id(module)][1] - 1
                if calls:
                    self._held[id(module)] = module, calls
                else:
                    del self._held[id(module)]
                    module.training = True


_still = _Still()


class EvalMode:
    """Puts modules into eval mode while at least one thread is inside, then restores each one's own mode.

    Args:
        roots: of the modules.
        written: what calls leave behind in them, to be put back as it was.
    """

    def __init__(self, roots: tuple[nn.Module, ...], written: tuple[Written, ...] = ()):
        self._modules = modules_of(roots)
        self._written = written
        self._kinds = self._kinds_now()

    @contextmanager
    def __call__(self, *, plain: bool = False) -> Iterator[None]:
        """Inside, modules are in eval mode; what ``plain`` calls leave behind is of use, and stays."""
        held = _still.hold(self._modules)
        try:
            with _unchecked, own_precision():
                yield
        except RuntimeError as error:
            if self._kinds_now() == self._kinds:
                raise
            raise DecoderError(
                "the decoder's model was given another precision or device after it was wrapped, as by half() or to(). "
                "Wrap it again, or give the wrapper a copy of its own: pm.Decoder(copy.deepcopy(model))."
            ) from error
        finally:
            _still.release(held)
            for one in () if plain else self._written:
                one.put_back()

    def _kinds_now(self) -> set[tuple[torch.dtype, torch.device]]:
        return {(p.dtype, p.device) for module in self._modules for p in module.parameters(recurse=False)}
