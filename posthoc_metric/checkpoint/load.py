"""``load_decoder``: the front door for files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .._arrays import describe
from ..decoder import Decoder
from ..errors import CheckpointError, InvalidArgumentError
from ..surroundings import lasting
from . import folders
from .factory import build
from .keras_file import read_keras
from .named import is_averaged
from .onnx_file import read_onnx
from .sklearn_file import read_skops, rebuilt
from .sniff import Container, sniff
from .state import at_key, fill, states_in
from .torch_files import read_exported, read_pickle, read_safetensors, read_torch, read_torchscript

#: containers that hold a model themselves: the reader gives (model, options of the decoder that the file
#: tells, and notes)
READERS: dict[str, Callable[[Container, bool], tuple[Any, dict[str, Any]]]] = {
    "torchscript": lambda container, trust: (read_torchscript(container, trust), {}),
    "exported": lambda container, trust: (read_exported(container, trust), {}),
    "onnx": read_onnx,
    "skops": lambda container, trust: (read_skops(container, trust), {}),
    "keras": read_keras,
    "pythae": folders.read_pythae,
    "scvi": folders.read_scvi,
    "diffusers": folders.read_diffusers,
}


def load_decoder(
    path: str | os.PathLike[str],
    *,
    factory: Any = None,
    factory_kwargs: Mapping[str, Any] | None = None,
    key: str | None = None,
    prefix: str | None = None,
    strict: bool = True,
    trust: bool = False,
    latent_dim: int | None = None,
    method: str | Callable[..., Any] | None = None,
    output: int | str | Callable[[Any], Any] | None = None,
    condition: Any = None,
    latent_shape: tuple[int, ...] | None = None,
    observe: Callable[[Any], Any] | None = None,
) -> Decoder:
    """A decoder from a file or folder, whose content says what it is.

    Reads state dicts (``.pt``, ``.pth``, ``.ckpt``, ``.bin``, safetensors, Lightning checkpoints) into the module that
    ``factory`` makes, and containers that hold a whole model: TorchScript, ``torch.export`` programs, ONNX,
    Keras 3, a scikit-learn model in skops format, and the model folders of pythae, scvi-tools and diffusers.
    ``decoder.describe()`` says what was found.

    Nothing in the file is executed unless ``trust``: no pickled object is restored but tensors and plain data, and
    programs are read first and refused when they hold more than arithmetic on tensors.

    Args:
        path: the file or folder.
        factory: makes the module that a state dict, or that of a whole module, is loaded into: a class or function,
            ``"package.module:Class"``, ``"path/to/file.py:Class"`` (imported because you name it), or a module to be
            copied.
        factory_kwargs: its keyword arguments.
        key: where in the file the state dict is, such as ``"netG_state_dict"``; by default it is looked for, and of
            weights and their moving average (``"g"`` and ``"g_ema"``) the average, as samplers do.
        prefix: what stands before the module's names in the file, such as ``"model.decoder."``; by default looked for.
            What stands before all names of the module and not in the file, as a wrapper's does, is put before these.
        strict: refuse weights that the module has no place for, other than those of an encoder and the like.
        trust: the file comes from someone you trust: code in it may run.
        latent_dim, method, output, condition, latent_shape, observe: as for :class:`~posthoc_metric.Decoder`.

    Raises:
        CheckpointError: the path holds nothing this library reads, is damaged, or does not fit the module.
        UnsafeFileError: reading it would run code, and not ``trust``.
        MissingExtraError: reading it needs a package that is not installed.
        InvalidArgumentError: ``factory`` cannot be imported, or an option of the decoder is malformed.
        DecoderError: what was loaded is no smooth decoder.

    The weights of a decoder into its class, and the decoder of a whole VAE out of a training checkpoint::

        pm.load_decoder("decoder.pt", factory="mymodels:Decoder", factory_kwargs={"width": 64})
        pm.load_decoder("last.ckpt", factory=mymodels.Decoder, prefix="model.decoder.")
    """
    _check_kinds(str, "a string", key=key, prefix=prefix)
    # a string is true whatever it says
    _check_kinds(bool, "True or False", strict=strict, trust=trust)
    container = sniff(path)
    options = {
        "latent_dim": latent_dim,
        "method": method,
        "output": output,
        "condition": condition,
        "latent_shape": latent_shape,
    }
    if container.kind in READERS and factory is None:
        with lasting(), torch.random.fork_rng(devices=[]):
            model, told = READERS[container.kind](container, trust)
        notes: tuple[str, ...] = told.pop("notes", ())
        # what the caller says about the part and its latents overrides all that the file tells of them
        if latent_dim is not None or latent_shape is not None or method is not None:
            told = {name: value for name, value in told.items() if name not in ("latent_dim", "latent_shape")}
        if isinstance(condition, Mapping) and isinstance(told.get("condition"), Mapping):
            options["condition"] = {**told["condition"], **condition}
        options = {name: told.get(name) if value is None else value for name, value in options.items()}
    else:
        with lasting(), torch.random.fork_rng(devices=[]):
            model, notes = _from_weights(container, factory, factory_kwargs, key, prefix, strict, trust)
    decoder = Decoder(model, **options, observe=observe)
    return decoder.remember(f"read from {container.path.name}, {container.looks_like}", *notes)


def _check_kinds(kind: type, words: str, **given: Any) -> None:
    for name, value in given.items():
        if value is not None and not isinstance(value, kind):
            raise InvalidArgumentError(f"`{name}` must be {words}; got {describe(value)}.")


def _from_weights(
    container: Container,
    factory: Any,
    factory_kwargs: Mapping[str, Any] | None,
    key: str | None,
    prefix: str | None,
    strict: bool,
    trust: bool,
) -> tuple[Any, tuple[str, ...]]:
    content = _content(container, trust)
    if factory is not None:
        content = _without_modules(content)
    if not isinstance(content, Mapping):
        whole = rebuilt(content)
        if not callable(whole) and not hasattr(whole, "predict"):
            raise CheckpointError(
                f"{container.path} looks like {container.looks_like} and holds {describe(content)}, no model and no "
                "weights by name. Save the model's state dict."
            )
        return whole, ()
    content_at_key: Any = content
    if key is not None:
        content_at_key = at_key(content, key, container.path)
        if isinstance(content_at_key, nn.Module):
            return content_at_key, (f"the module under the key {key!r}",)
        states = states_in(content_at_key)
    else:
        modules = {name: value for name, value in content.items() if isinstance(value, nn.Module)}
        chosen = _one_of(modules)
        if chosen is not None:
            others = ", ".join(repr(name) for name in modules if name != chosen)
            note = f"the module under the key {chosen!r}{f'; others by key=: {others}' if others else ''}"
            return modules[chosen], (note,)
        states = states_in(content)
    if not states:
        raise CheckpointError(_no_weights(container, content_at_key, key))
    if factory is None:
        raise CheckpointError(
            f"{container.path} looks like {container.looks_like} that holds weights and no model: {_sample(states)}. "
            "Pass factory=, the class they were saved from (and factory_kwargs= for its arguments)."
        )
    stored = content.get("hyper_parameters")
    model, notes = build(factory, factory_kwargs, stored if isinstance(stored, Mapping) else {})
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"`factory` must make a torch module to fill; it made {describe(model)}.")
    left = (f"not loaded: {nameless}" for nameless in _nameless(content))
    return model, (*notes, *fill(model, states, prefix=prefix, strict=strict, path=container.path), *left)


def _one_of(modules: Mapping[str, nn.Module]) -> str | None:
    """The name of the only one, or of a moving average beside at most the one that it was made of."""
    if len(modules) == 1:
        return next(iter(modules))
    averaged = [name for name in modules if is_averaged(str(name))]
    if len(averaged) != 1:
        return None
    alike = sum(type(module) is type(modules[averaged[0]]) for module in modules.values())
    return averaged[0] if alike <= 2 else None


def _without_modules(content: Any) -> Any:
    """``content`` with the weights of whole modules in their place: what ``factory`` makes may decode otherwise."""
    if isinstance(content, nn.Module):
        return content.state_dict()
    if not isinstance(content, Mapping) or not any(isinstance(value, nn.Module) for value in content.values()):
        return content
    return {name: _without_modules(value) for name, value in content.items()}


def _no_weights(container: Container, content: Any, key: str | None) -> str:
    """What to do about ``content``, at ``key`` of the file, in which no state dict was found."""
    there = "" if key is None else f" under the key {key!r}"
    start = f"{container.path} looks like {container.looks_like} but holds no weights by name{there}; "
    for nameless in _nameless(content if isinstance(content, Mapping) else {key: content}):
        return (
            f"{start}{nameless}, as moving averages are kept in the order of model.parameters(). Copy them into the "
            "model by the class that saved them (its load_state_dict and copy_to, say) and save model.state_dict() "
            "instead."
        )
    if not isinstance(content, Mapping):
        return f"{start}it holds {describe(content)}. Choose another key=, or leave it out."
    held = ", ".join(map(repr, list(content)[:8])) or "nothing"
    return f"{start}it holds {held}. Name where they are with {'' if key is None else 'another '}key=."


def _nameless(content: Mapping[Any, Any]) -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, (list, tuple)) and value and all(isinstance(one, torch.Tensor) for one in value):
            yield f"{name!r} is a list of {len(value)} tensors without names"


def _content(container: Container, trust: bool) -> Any:
    if container.kind == "safetensors":
        return read_safetensors(container)
    if container.kind == "torch":
        return read_torch(container, trust)
    if container.kind == "pickle":
        return read_pickle(container, trust)
    if container.kind in ("pythae", "scvi", "diffusers"):
        return _content(folders.weights(container), trust)
    raise InvalidArgumentError(
        f"`factory` is for weights, but {container.path} looks like {container.looks_like}, which holds its own model. "
        "Leave factory= out."
    )


def _sample(states: Mapping[str, Mapping[str, Any]]) -> str:
    name, state = max(states.items(), key=lambda item: len(item[1]))
    shown = ", ".join(f"{entry} {tuple(getattr(value, 'shape', ()))}" for entry, value in list(state.items())[:3])
    where = f" under {name!r}" if name else ""
    return f"{len(state)} tensors{where} ({shown}{', ...' if len(state) > 3 else ''})"
