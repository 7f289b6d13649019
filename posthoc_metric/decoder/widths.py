"""How wide a model's latents may be: what the caller says, what its attributes tell, and what its first layers take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Union

import torch
from torch import nn

from .._arrays import describe, is_integer
from ..errors import InvalidArgumentError
from .parts import ENCODERS, Part, unwrapped

#: (d, the shape of one latent, from what)
Width = tuple[int, Union[tuple[int, ...], None], str]
#: attributes by which models of this field name their latent dimension
_WIDTH_NAMES = (
    *("latent_dim", "latent_size", "latent_dims", "n_latent", "latent_features", "d_latent", "dim_latent"),
    *("z_dim", "dim_z", "zdim", "z_size", "n_z", "nz", "hidden_dim_z", "code_dim", "encoding_dims"),
)
_LINEAR = (nn.Linear, nn.Bilinear)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def check_width(dim: Any, shape: Any) -> tuple[int | None, tuple[int, ...] | None]:
    if dim is not None:
        if not is_integer(dim) or dim < 1:
            raise InvalidArgumentError(f"`latent_dim` must be a positive integer; got {describe(dim)}.")
        dim = int(dim)
    if shape is None:
        return dim, None
    shape = tuple(shape) if isinstance(shape, (list, tuple)) else (shape,)
    if not shape or not all(is_integer(n) and n > 0 for n in shape):
        raise InvalidArgumentError(
            f"`latent_shape` must be the shape of one latent without the batch axis, such as (100, 1, 1); "
            f"got {shape!r}."
        )
    shape = tuple(int(n) for n in shape)
    if dim is not None and math.prod(shape) != dim:
        raise InvalidArgumentError(
            f"`latent_shape` {shape} holds {math.prod(shape)} numbers, but `latent_dim` is {dim}. Drop one of the two."
        )
    return math.prod(shape), shape


def candidates(model: Any, parts: list[Part], dim: int | None, shape: tuple[int, ...] | None) -> Iterator[Width]:
    if shape is not None:
        yield math.prod(shape), shape, "`latent_shape`"
        return
    suggested: list[Width] = []
    for found in (found for part in parts for found in _candidates(model, part)):
        if all(found[:2] != other[:2] for other in suggested):
            suggested.append(found)
    if dim is not None:
        yield dim, None, "`latent_dim`"
        yield from (width for width in suggested if width[0] == dim and width[1] is not None)
        return
    for width, shaped, source in suggested:
        yield width, None, source
        if shaped is not None:
            yield width, shaped, source


def _candidates(model: Any, part: Part) -> Iterator[Width]:
    """Latent dimensions that the model's own attributes and first layers suggest: (d, latent shape, from what)."""
    owners = list(part.roots)
    if isinstance(model, nn.Module) and model not in owners:
        owners.append(unwrapped(model))
    features = getattr(getattr(part.target, "__self__", None), "n_features_in_", None)
    if is_integer(features):
        yield int(features), None, "attribute `n_features_in_`"  # scikit-learn's
    for owner in owners:
        for holder in (owner, *(_attribute(owner, name) for name in ("config", "model_config", "hparams", "cfg"))):
            for name in _WIDTH_NAMES:
                value = holder.get(name) if isinstance(holder, dict) else _attribute(holder, name)
                if is_integer(value) and value > 0:
                    yield int(value), None, f"attribute `{name}`"
    for root in part.roots:
        if isinstance(root, torch.fx.GraphModule):
            yield from _traced_widths(root)
        wholes = [unwrapped(root)]
        if root is part.target or not part.name.endswith((".decode", ".sample", ".generate")):
            yield from _first_layer(root)
            # it may wrap one
            wholes = [m for m in root.modules() if any(_attribute(m, name) is not None for name in ENCODERS)]
            if not wholes:
                continue
        # the first layer of a whole autoencoder is its encoder's; only the decoder's runs on latents
        for inner in (_attribute(whole, "decoder") for whole in wholes):
            if isinstance(inner, nn.Module):
                yield from _first_layer(inner)
        for module in root.modules():
            if isinstance(module, nn.Linear):
                yield _linear(module), None, "first linear layer that takes as many"


def _first_layer(root: nn.Module) -> Iterator[Width]:
    for module in root.modules():
        if getattr(module, "original_name", "") == "Linear":  # a scripted one
            yield dict(module.named_parameters())["weight"].shape[1], None, "first linear layer"
            return
        if isinstance(module, _LINEAR):
            yield _linear(module), None, "first linear layer"
            return
        if isinstance(module, TRANSPOSED):
            ones = (1,) * len(module.kernel_size)
            channels = module.in_channels or module.weight.shape[0]
            yield channels, (channels, *ones), "first transposed convolution"
            return
        if isinstance(module, nn.RNNBase):
            yield module.input_size, None, "first recurrent layer"
            return


def _linear(module: nn.Linear | nn.Bilinear) -> int:
    """The width that it takes; a lazy layer that was filled and not called yet says 0 of it."""
    return (module.in1_features if isinstance(module, nn.Bilinear) else module.in_features) or module.weight.shape[1]


def _attribute(holder: Any, name: str) -> Any:
    try:
        return getattr(holder, name, None)
    except Exception:  # a property may do anything when it is read
        return None


def _traced_widths(root: torch.fx.GraphModule) -> Iterator[Width]:
    """The shape of the first input that a traced or exported graph remembers."""
    for node in root.graph.nodes:
        shape = getattr(node.meta.get("val"), "shape", None)
        if node.op == "placeholder" and shape is not None and len(shape) > 1:
            sizes = shape[1:]
            if all(isinstance(n, int) for n in sizes):
                yield math.prod(sizes), tuple(sizes) if len(sizes) > 1 else None, "the exported input"
            return
