"""Eval mode for the time of a call, and the caller's mode afterwards.

Distributions do not check their parameters meanwhile: far from the data rates round to zero and probabilities to one,
which torch refuses by default, from the inside of a decoder whose mean or logits would do.  Autocast is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributions import Distribution

from ..surroundings import own_precision
from .turns import BOOKS


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


class EvalMode:
    """Puts modules into eval mode while at least one thread is inside, then restores each one's own mode."""

    def __init__(self, roots: tuple[nn.Module, ...]):
        self._modules = list({id(module): module for root in roots for module in root.modules()}.values())
        self._inside = 0
        self._trained: list[nn.Module] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with BOOKS:
            self._inside += 1
            for module in self._modules:
                if getattr(module, "training", False):  # frozen TorchScript has no such flag
                    self._trained.append(module)
                    module.training = False
        try:
            with _unchecked, own_precision():
                yield
        finally:
            with BOOKS:
                self._inside -= 1
                if self._inside == 0:
                    for module in self._trained:
                        module.training = True
                    self._trained.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"_modules": self._modules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._modules = state["_modules"]
        self._inside = 0
        self._trained = []
