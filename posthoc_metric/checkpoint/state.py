"""Which tensors of a checkpoint belong to a module: nested keys and prefixes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .as_torch import left_over, places
from .named import State, bare, is_averaged, is_own, is_replaced

#: short words by themselves, which a sequence or a schema holds, too
_OTHER_PARTS = re.compile(
    r"encod|(^|_)enc|enc$|disc|critic|loss|lpips|(^|_)ema(_|$)|teacher|prior|posterior|(?<!post_)quant|class(?!_?emb)|metric|netd|^mu$|logvar"
)
_DEPTH = 3
_OWN_WAY = "they are not named or shaped as the module's own: filled by its own way of loading"


@dataclass(frozen=True)
class _Fit:
    """Weights that fit: the key and prefix they are found under, and the tensors by names that the module loads."""

    key: str
    prefix: str
    tensors: State
    note: str = ""

    def __str__(self) -> str:
        return f"key {self.key!r}, prefix {self.prefix!r}"

    @property
    def averaged(self) -> bool:
        return is_averaged(f"{self.key}.{self.prefix}")


def states_in(content: Any) -> dict[str, State]:
    """Every state dict in ``content``, by the key that leads to it; ``""`` is the content itself."""
    return dict(_states(content, "", _DEPTH))


def _states(content: Any, name: str, depth: int) -> Iterator[tuple[str, State]]:
    if not isinstance(content, Mapping) or depth < 0:
        return
    named = {key: _as_tensor(value) for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor) or is_own(key)}
    if tensors and len(tensors) >= len(content) / 2:
        yield name, State(tensors, getattr(content, "_metadata", None))
        return
    for key, value in content.items():
        yield from _states(value, f"{name}.{key}" if name else str(key), depth - 1)


def _as_tensor(value: Any) -> Any:
    """A NumPy array of numbers as the tensor that a state dict holds in its place; anything else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc" or value.dtype.char in "gG":
        return value
    # torch takes neither the other byte order nor rows that run backwards
    return torch.tensor(value.astype(value.dtype.newbyteorder("="), order="C"))


def at_key(content: Any, key: str, path: Any, before: str = "") -> Any:
    """What ``key`` leads to: a key as it stands, or keys joined by dots; those ``before`` have been followed.

    Raises:
        CheckpointError: nothing of that name.
    """
    if isinstance(content, Mapping):
        if key in content:
            return content[key]
        for head in sorted((k for k in content if isinstance(k, str)), key=len, reverse=True):
            if key.startswith(head + ".") and isinstance(content[head], Mapping):
                return at_key(content[head], key[len(head) + 1 :], path, f"{before}{head}.")
    known = ", ".join(map(repr, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
    there = f"{before[:-1]!r} there" if before else "it"
    raise CheckpointError(f"`key` is {before + key!r}, which is not in {path}; {there} holds {known}.")


def fill(
    module: nn.Module, states: Mapping[str, State], *, prefix: str | None, strict: bool, path: Any
) -> tuple[str, ...]:
    """Load the state dict that fits ``module`` and return notes on what was found.

    Args:
        states: by the key that leads to each.
        prefix: what stands before the module's names in the file; ``None`` to find it.
        strict: refuse weights beside the module's that belong to no encoder, discriminator or the like.

    Raises:
        CheckpointError: none fits, or several do.
    """
    wanted = module.state_dict()
    fits: list[_Fit] = []
    for fit in _by_name(wanted, states, prefix, strict):
        _keep(fits, fit)
    if not fits:
        for fit in _by_loading(module, wanted, states, prefix, strict):
            _keep(fits, fit)
    if not fits:
        for fit in _by_adding(wanted, states, prefix, strict):
            _keep(fits, fit)
        if len(fits) > 1:
            raise CheckpointError(_several(fits, path))
    if not fits:
        raise CheckpointError(_why_not(wanted, states, prefix, strict, path))
    best = _choose(fits, path)
    tensors = best.tensors
    found = [value.dtype for value in tensors.values() if isinstance(value, Tensor)]
    precisions = {dtype for dtype in found if dtype.is_floating_point}
    if precisions == {torch.float64}:
        module.double()
    module.load_state_dict(tensors, strict=False)
    notes = []
    if best.key:
        notes.append(f"weights under the key {best.key!r}")
    if best.prefix:
        notes.append(f"prefix {best.prefix!r} taken off their names")
    if best.note:
        notes.append(best.note)
    else:
        inner, own = states[best.key].bare().behind(bare(best.prefix)), set(map(bare, wanted))
        beside = dict.fromkeys(name.split(".", 1)[0] for name in inner if name not in own)
        if beside:
            notes.append(f"not loaded, as the module has no place for it: {', '.join(beside)}")
    others = [str(fit) for fit in fits if fit is not best]
    if others:
        taken = "a moving average of the weights, as is meant for samples" if best.averaged else "chosen by its name"
        notes.append(f"{taken}; others fit too, by key= or prefix=: {'; '.join(others)}")
    return tuple(notes)


def _by_name(
    wanted: Mapping[str, Tensor], states: Mapping[str, State], prefix: str | None, strict: bool
) -> Iterator[_Fit]:
    """Where every name of the module leads to a tensor of its shape."""
    for name, state in states.items():
        for found in [prefix] if prefix is not None else _prefixes(wanted, state):
            tensors = _fit(wanted, state, found, strict)
            if tensors is not None:
                yield _Fit(name, found, tensors)


def _by_loading(
    module: nn.Module, wanted: Mapping[str, Tensor], states: Mapping[str, State], prefix: str | None, strict: bool
) -> Iterator[_Fit]:
    """Where the names are others, but the module's own way of loading fills it from them."""
    for name, state in states.items():
        likely = [prefix] if prefix is not None else places(wanted, dict.fromkeys([*state, *map(bare, state)]))
        for found in likely:
            for tensors in _namings(state, found):
                if any(_is_coded(tensors[n], wanted[n]) for n in tensors if n in wanted):
                    continue
                beside = left_over(module, tensors)
                if beside is not None and not (strict and any(not _is_other_part(n) for n in beside)):
                    yield _Fit(name, found, tensors, _OWN_WAY)
                    break


def _by_adding(
    wanted: Mapping[str, Tensor], states: Mapping[str, State], prefix: str | None, strict: bool
) -> Iterator[_Fit]:
    """Where all names of the module begin alike, as those of a wrapper do, and the file's lack that beginning."""
    steps = os.path.commonprefix([name.split(".")[:-1] for name in wanted])
    for count in range(1, len(steps) + 1):
        head = "".join(f"{step}." for step in steps[:count])
        inner = {name[len(head) :]: tensor for name, tensor in wanted.items()}
        for fit in _by_name(inner, states, prefix, strict):
            yield replace(fit, tensors=fit.tensors.under(head), note=f"prefix {head!r} put before their names")


def _keep(fits: list[_Fit], fit: _Fit) -> None:
    if not any(_same(fit.tensors, other.tensors) for other in fits):
        fits.append(fit)


def _same(one: State, other: State) -> bool:
    """Whether two ways of naming lead to the same numbers."""
    return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)


def _equal(one: Any, other: Any) -> bool:
    if one is other or not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


def _prefixes(wanted: Mapping[str, Tensor], state: State) -> list[str]:
    """Prefixes with which a name of the module ends a name in the file."""
    # older files have no counts of batches
    names = [name for name in wanted if not name.endswith("num_batches_tracked")]
    if not names:
        return []
    probe = max(names, key=lambda name: (name.count("."), len(name)))
    place = _place(wanted[probe])
    # of tied weights the file may have another name
    probes = [name for name in names if name == probe or (place and _place(wanted[name]) == place)]
    keys = [*state, *map(bare, state)]
    found = [key[: -len(name)] for key in keys for name in probes if key == name or key.endswith("." + name)]
    return list(dict.fromkeys(found))


def _fit(wanted: Mapping[str, Tensor], state: State, prefix: str, strict: bool) -> State | None:
    """The tensors for each name of the module, or ``None``; wrappers inside the names are looked through."""
    for names in _namings(state, prefix):
        missing = _missing(wanted, names)
        extra = [n for n in names if strict and n not in wanted and not _is_other_part(n)]
        unlike = any(_unlike(n, names[n], wanted[n]) for n in wanted if n in names)
        if not missing and not extra and not unlike:
            return State({n: names[n] for n in wanted if n in names}, names._metadata)
    return None


def _missing(wanted: Mapping[str, Tensor], names: State) -> list[str]:
    """What the module cannot go without: older files have no counts of batches, and safetensors tied weights once."""
    filled = {_place(wanted[n]) for n in names if n in wanted} - {None}
    left = [n for n in wanted if n not in names and not n.endswith("num_batches_tracked")]
    return [n for n in left if _place(wanted[n]) not in filled]


def _place(value: Any) -> tuple[int, torch.Size] | None:
    """Where a module's tensor lies, which is the same for tied weights; ``None`` of what lies nowhere."""
    if not isinstance(value, Tensor) or nn.parameter.is_lazy(value) or value.device.type == "meta":
        return None
    return (value.data_ptr(), value.shape) if value.numel() else None


def _namings(state: State, prefix: str) -> Iterator[State]:
    """What stands behind ``prefix``, as it is named and without wrappers in the names."""
    inner = state.behind(prefix)
    yield inner
    plain = state.bare().behind(bare(prefix))
    if plain.keys() != inner.keys():
        yield plain


def _unlike(name: str, found: Any, own: Any) -> str:
    """Why what the file has cannot take the place of the module's own, in words; empty where it can."""
    if is_own(name):
        return ""
    # a lazy layer takes the shape of the first tensor it is given
    if not nn.parameter.is_lazy(own) and found.shape != own.shape:
        return f"{name} is {tuple(found.shape)} and the module's {tuple(own.shape)}"
    return f"{name} is of {found.dtype} and the module's of {own.dtype}" if _is_coded(found, own) else ""


def _is_coded(found: Any, own: Any) -> bool:
    """Whether the file has numbers that stand for others: torch would load codes of 8 bits as if they were weights."""
    if not isinstance(found, Tensor) or not isinstance(own, Tensor):
        return False
    return own.dtype.is_floating_point and (found.dtype in (torch.int8, torch.uint8) or found.is_complex())


def _is_other_part(name: str) -> bool:
    """Whether an extra name belongs to a part that a decoder goes without."""
    return name == "n_averaged" or _OTHER_PARTS.search(name.split(".", 1)[0].lower()) is not None


def _choose(fits: list[_Fit], path: Any) -> _Fit:
    """The likeliest of several: a decoder rather than an encoder, named as the module names it, and its average.

    Averages are kept because samples come out better, and the scripts that draw samples take them.
    """
    left = [fit for fit in fits if "encoder" not in fit.prefix.lower()] or fits
    chosen: list[_Fit] = []
    for averaged in (False, True):
        group = [fit for fit in left if fit.averaged is averaged]
        group = [fit for fit in group if not is_replaced(fit.key)] or group
        group = [fit for fit in group if fit.prefix == ""] or group
        if len(group) > 1:  # of two networks, whose average is meant would be a guess
            raise CheckpointError(_several(left, path))
        chosen = group or chosen
    return chosen[0]


def _several(fits: list[_Fit], path: Any) -> str:
    choices = "; ".join(map(str, fits))
    return f"several sets of weights in {path} fit the module: {choices}. Choose with key= or prefix=."


def _why_not(
    wanted: Mapping[str, Tensor], states: Mapping[str, State], prefix: str | None, strict: bool, path: Any
) -> str:
    """Names and shapes of the nearest candidate, so that the wrong class or size is seen at once."""
    candidates = [
        _Fit(name, found, tensors)
        for name, state in states.items()
        for found in ([prefix] if prefix is not None else [*_prefixes(wanted, state), "", *_heads(state)])
        for tensors in _namings(state, found)
    ]
    if not candidates:
        return f"{path} holds no weights by name. Pass key= where they are nested deeply."
    nearest = max(candidates, key=lambda fit: _likeness(wanted, fit.tensors))
    inner = nearest.tensors
    missing = _missing(wanted, inner)
    extra = [n for n in inner if n not in wanted]
    shapes = [words for n in wanted if n in inner and (words := _unlike(n, inner[n], wanted[n]))]
    sort = "kind" if any(" of torch." in words for words in shapes) else "shape"
    parts = [f"{len(missing)} missing ({', '.join(missing[:3])})" if missing else ""]
    parts.append(f"{len(extra)} unexpected ({', '.join(extra[:3])})" if extra else "")
    parts.append(f"{len(shapes)} of another {sort} ({'; '.join(shapes[:2])})" if shapes else "")
    advice = "Check the class and factory_kwargs=, or name key= and prefix=."
    if extra and not missing and not shapes:
        advice = f"{advice[:-1]}, or pass strict=False to leave unexpected ones out."
    elif missing and not strict:
        advice += " strict=False leaves unexpected ones out, and makes up for none that are missing."
    return (
        f"the weights in {path} do not fit the module that `factory` makes: nearest is {nearest}, with "
        f"{', '.join(part for part in parts if part)}. {advice}"
    )


def _likeness(wanted: Mapping[str, Tensor], inner: State) -> tuple[int, int, int]:
    named = [name for name in wanted if name in inner]
    return sum(not _unlike(name, inner[name], wanted[name]) for name in named), len(named), -len(inner)


def _heads(state: State) -> list[str]:
    heads = dict.fromkeys(key.split(".", 1)[0] + "." for key in state if "." in key)
    return list(heads)[:20]
