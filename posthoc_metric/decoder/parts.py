"""Which part of a model is its decoder."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import nn

from .._arrays import describe
from ..errors import DecoderError, InvalidArgumentError
from .carried import modules_used_by

Method = Union[str, Callable[..., Any], None]
#: attributes by which an autoencoder is known
ENCODERS = ("encoder", "encode")


@dataclass(frozen=True)
class Part:
    """Something that may be the decoder.

    Attributes:
        name: how it is called in messages.
        target: what is called.
        roots: the modules it belongs to.
    """

    name: str
    target: Callable[..., Any]
    roots: tuple[nn.Module, ...]

    @property
    def most(self) -> int | None:
        """The largest batch that an exported program says it takes, ``None`` where it sets no bound."""
        ranges = getattr(self.target, "range_constraints", None)
        bounds = [one.upper for one in ranges.values()] if isinstance(ranges, dict) else []
        finite = [int(bound) for bound in bounds if getattr(bound, "is_Integer", False)]
        return min(finite, default=None)


def find_parts(model: Any, method: Method) -> list[Part]:
    """What may be the decoder in ``model``, the likeliest first.

    A model that has an encoder is an autoencoder: its ``.decode`` or ``.decoder`` is meant.  Any other
    model is its own decoder, or else one of the two when a call of it fails.

    Raises:
        InvalidArgumentError: ``method`` names nothing that can be called, or ``model`` cannot be called.
    """
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if method is not None:
        return [_named(model, method)]
    if not isinstance(model, nn.Module):
        return [_function(model)]
    inner = unwrapped(model)
    halves = [_named(inner, name) for name in ("decode", "decoder") if callable(getattr(inner, name, None))]
    whole = [Part(f"{type(model).__name__}.forward", model, (model,))] if _has_forward(model) else []
    if any(hasattr(inner, name) for name in ENCODERS) and halves:
        return halves
    if not whole + halves:
        raise InvalidArgumentError(
            f"`model` ({type(model).__name__}) has no forward, decode or decoder to call. Name the part that decodes "
            f"with `method=`; it has: {', '.join(_callables(model)) or 'nothing that can be called'}."
        )
    return whole + halves


def unwrapped(model: nn.Module) -> nn.Module:
    """Inside DataParallel and torch.compile wrappers."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and len(list(model.children())) == 1:
            return unwrapped(inner)
    return model


def _has_forward(model: nn.Module) -> bool:
    return getattr(getattr(model, "forward", None), "__name__", "") != "_forward_unimplemented"


def _named(model: Any, method: Any) -> Part:
    roots = (model,) if isinstance(model, nn.Module) else ()
    if not isinstance(method, str):
        if not callable(method):
            raise InvalidArgumentError(
                f"`method` must be the name of a part of the model, such as 'decode', or a function of the model and "
                f"z; got {describe(method)}."
            )
        target = functools.partial(method, model)
        return Part(f"{_name(method)}({type(model).__name__}, z)", target, modules_used_by(*roots, target))
    part = model
    for step in method.split("."):
        try:
            part = part[int(step)] if step.lstrip("-").isdigit() else getattr(part, step)
        except (AttributeError, IndexError, KeyError, TypeError):
            raise InvalidArgumentError(
                f"`method` is {method!r}, but {type(part).__name__} has no {step!r}. "
                f"It has: {', '.join(_callables(part)) or 'nothing that can be called'}."
            ) from None
    if not callable(part) or (isinstance(part, nn.Module) and not _has_forward(part)):
        raise InvalidArgumentError(
            f"`method` is {method!r}, which is no function or module but {describe(part)}. "
            "For one of a list name its index too, such as 'decoders.0'."
        )
    owners = () if isinstance(part, nn.Module) else roots
    return Part(f"{type(model).__name__}.{method}", part, modules_used_by(*owners, part))


def _function(model: Any) -> Part:
    if isinstance(model, type):
        raise InvalidArgumentError(
            f"`model` must be a module or a function z -> output; got the class {model.__name__}. Make an instance of "
            "it first, with its trained weights."
        )
    owner = getattr(model, "__self__", None)
    if isinstance(owner, nn.Module):
        return Part(f"{type(owner).__name__}.{model.__name__}", model, modules_used_by(model))
    if callable(model):
        return Part(_name(model), model, modules_used_by(model))
    if callable(getattr(model, "predict", None)):
        return Part(f"{type(model).__name__}.predict", model.predict, modules_used_by(model.predict))
    raise InvalidArgumentError(
        f"`model` must be a module or a function z -> output; got {describe(model)}. "
        "Name the part to call with `method=`, or load a checkpoint with load_decoder."
    )


def other_decoders(model: Any, part: Part) -> list[str]:
    """Names of what else in ``model`` may decode, by the look of them."""
    if not isinstance(model, nn.Module):
        return []
    names = [name for name in _callables(model) if name != part.name.rpartition(".")[2]]
    return [name for name in names if re.search("dec|gen|sampl", name, re.IGNORECASE)]


def _callables(part: Any) -> list[str]:
    if isinstance(part, nn.Module):
        names = [name for name, _ in part.named_children()]
        # of its class: a property may do anything when it is read
        own = [name for name, value in vars(type(part)).items() if not name.startswith("_") and callable(value)]
        return names + own
    if isinstance(part, (list, tuple)):
        return [str(index) for index in range(len(part))]
    return [name for name in dir(part) if not name.startswith("_") and callable(getattr(part, name, None))][:20]


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or type(function).__name__


def refuse_unready(part: Part) -> None:
    """Refuse what crashes or is wrong however it is called.

    Raises:
        DecoderError: a layer was never initialised, lives on the meta device, or couples the rows of a batch.
    """
    for root in part.roots:
        for name, tensor in (*root.named_parameters(), *root.named_buffers()):
            if nn.parameter.is_lazy(tensor):
                raise DecoderError(
                    f"the decoder's parameter `{name}` is not initialised: a lazy layer has never seen data. "
                    "Call the module once on a latent of the right width before wrapping it."
                )
            # a function may call it with weights that it has elsewhere
            if tensor.device.type == "meta" and isinstance(part.target, nn.Module):
                raise DecoderError(
                    f"the decoder's parameter `{name}` is on the meta device and so has no values. "
                    "Load its weights before wrapping it."
                )
        for name, module in root.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
                raise DecoderError(
                    f"the decoder's layer `{name}` ({type(module).__name__} with track_running_stats=False) normalises "
                    "by the batch it is given even in eval mode, so that row i of the output depends on row j of the "
                    "latents. Train it with running statistics, or replace the layer by one with fixed statistics."
                )
