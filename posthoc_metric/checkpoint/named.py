"""Tensors by name, as checkpoints hold them, with what comes before the names taken off or put on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_AVERAGED = re.compile(r"(^|[._])(averaged|shadow|g_running)([._]|$)|(?<![a-z])ema(?![a-z])")
#: what the averages are made of, kept beside them by ema_pytorch and by Lightning's callback
_REPLACED = re.compile(r"(^|[._])(online|current_model_state)([._]|$)")


def bare(name: str) -> str:
    """``name`` without the wrappers that DataParallel, torch.compile, activation checkpoints and FSDP put into it."""
    return _WRAPPERS.sub("", name)


def is_own(name: str) -> bool:
    """Whether it is what a class keeps in a state dict beside tensors (``get_extra_state``): data of any kind."""
    return name.rpartition(".")[2] == "_extra_state"


def is_averaged(name: str) -> bool:
    """Whether what stands under ``name`` is a moving average of weights over the steps of training."""
    return _AVERAGED.search(name.lower()) is not None and not is_replaced(name)


def is_replaced(name: str) -> bool:
    """Whether it is weights that their averages have taken the place of."""
    return _REPLACED.search(name.lower()) is not None


class State(dict[str, Any]):
    """Tensors by name, and data that are :func:`is_own`.

    Attributes:
        _metadata: by the name of a module, what version of its class saved it; torch reads it under this name.
    """

    def __init__(self, tensors: Mapping[str, Any], metadata: Any = None):
        super().__init__(tensors)
        told = metadata if isinstance(metadata, Mapping) else {}
        self._metadata = {name: value for name, value in told.items() if isinstance(value, Mapping)}

    def behind(self, prefix: str) -> State:
        """What stands behind ``prefix``, by the rest of its name."""
        versions = {f"{name}." if name else "": value for name, value in self._metadata.items()}
        return State(
            {key[len(prefix) :]: value for key, value in self.items() if key.startswith(prefix)},
            {key[len(prefix) : -1]: value for key, value in versions.items() if key.startswith(prefix)},
        )

    def under(self, prefix: str) -> State:
        """The same with ``prefix`` before the names."""
        versions = {f"{prefix}{name}".removesuffix("."): value for name, value in self._metadata.items()}
        return State({prefix + key: value for key, value in self.items()}, versions)

    def bare(self) -> State:
        """The same without wrappers in the names."""
        versions = {bare(f"{name}.").removesuffix("."): value for name, value in self._metadata.items()}
        return State({bare(key): value for key, value in self.items()}, versions)
