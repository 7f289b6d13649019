"""What torch itself would load: modules may take names, and complete what is missing, of files older than they are."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from ..decoder.written import without_graphs

#: places in a state dict that are tried with a module whose names lead to none
_TRIES = 6


def places(wanted: Collection[str], keys: Iterable[str]) -> list[str]:
    """Beginnings of ``keys`` behind which a module with the names ``wanted`` may lie, likeliest first.

    Likely is where many of its names are whole, then where many of its parts are, then where there is as much as in it.
    """
    parts = {name.split(".", 1)[0] for name in wanted}
    named: dict[str, int] = {"": 0}
    seen: dict[str, set[str]] = {"": set()}
    count: dict[str, int] = {"": 0}
    for key in keys:
        steps = key.split(".")
        for depth in range(len(steps)):
            start = "".join(f"{step}." for step in steps[:depth])
            named[start] = named.get(start, 0) + (key[len(start) :] in wanted)
            seen.setdefault(start, set()).add(steps[depth])
            count[start] = count.get(start, 0) + 1
    size = len(wanted)
    likely = sorted(named, key=lambda start: (-named[start], -len(parts & seen[start]), abs(count[start] - size)))
    return list(dict.fromkeys([*likely[:_TRIES], ""]))


def left_over(module: nn.Module, tensors: dict[str, Tensor]) -> list[str] | None:
    """Names of ``tensors`` for which ``module`` has no place; ``None`` where torch would not load them all the same.

    A copy is filled, so that ``module`` stays as it is.  All its numbers must come from ``tensors``: a class may load
    in a way of its own that is content with less.
    """
    try:
        trial = copied(module)
        with torch.no_grad():
            for value in _numbers(trial):
                value.fill_(torch.nan)
        # a class may work on the tensors themselves, which are to be loaded once more
        found = trial.load_state_dict(copy.deepcopy(tensors), strict=False)
    except Exception:  # hooks and methods of the caller's class run, and torch reports shapes by raising
        return None
    missing = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or any(nn.parameter.is_lazy(value) for value in trial.state_dict().values()):
        return None
    if any(value.numel() and bool(value.isnan().all()) for value in _numbers(trial)):
        return None
    return list(found.unexpected_keys)


def copied(module: nn.Module) -> nn.Module:
    """A deep copy."""
    return copy.deepcopy(module, without_graphs((module,)))


def _numbers(module: nn.Module) -> list[Tensor]:
    values = [value for value in module.state_dict().values() if isinstance(value, Tensor)]
    return [value for value in values if not nn.parameter.is_lazy(value) and value.is_floating_point()]
