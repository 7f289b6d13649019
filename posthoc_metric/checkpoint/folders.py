"""Model folders of pythae, scvi-tools and diffusers."""

from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, UnsafeFileError
from .extras import need
from .sniff import Container, sniff
from .state import fill, states_in
from .torch_files import read_safetensors, read_torch

Read = tuple[Any, dict[str, Any]]


def weights(container: Container) -> Container:
    """The file of weights inside a folder; the plain one where there are variants, named as model.fp16.safetensors.

    Raises:
        CheckpointError: there is none, or the weights are split over several.
    """
    found = [file for name in ("model.pt", "*.safetensors", "*.bin") for file in sorted(container.path.glob(name))]
    if not found:
        raise CheckpointError(f"{container.path} looks like {container.looks_like} but holds no file of weights.")
    stem = found[0].name.partition(".")[0]
    same = (file for file in found if file.name.partition(".")[0] == stem)
    file = min(same, key=lambda file: file.name.count("."))
    if re.search(r"-\d+-of-\d+\.", file.name):
        raise CheckpointError(
            f"{container.path} looks like {container.looks_like} whose weights are split over several files, such as "
            f"{file.name}. Put all their tensors into one file, and pass that with factory=."
        )
    return sniff(file)


def _description(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} must be a JSON description of the model; it cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must be a JSON object that describes the model; it is a {type(found).__name__}.")
    return found


def read_pythae(container: Container, trust: bool) -> Read:
    """A pythae model with its package's own encoder and decoder; pickled ones of the user's only with ``trust``.

    Raises:
        UnsafeFileError: the folder carries pickled classes, and not ``trust``.
        CheckpointError: the folder is incomplete or of an unknown model.
        MissingExtraError: pythae is not installed.
    """
    folder = container.path
    pickled = sorted(entry.name for entry in folder.glob("*.pkl"))
    if pickled and not trust:
        raise UnsafeFileError(
            f"{folder} is a pythae folder with classes pickled beside the weights ({', '.join(pickled)}), and reading "
            "them runs code in them. Pass factory=, the decoder's class, to use the weights alone; or trust=True if "
            "you trust where the folder comes from."
        )
    models = need("pythae.models", "pythae", "reading a pythae model folder")
    if pickled:
        try:
            return models.AutoModel.load_from_folder(str(folder)), {"method": "decoder"}
        except Exception as error:  # the user's own classes are unpickled, which may raise anything
            raise CheckpointError(f"{folder} is a pythae folder that cannot be read ({error}).") from error
    described = _description(folder / "model_config.json")
    name = str(described.get("name", ""))
    make = getattr(models, name.removesuffix("Config"), None)
    if not name.endswith("Config") or make is None or not hasattr(models, name):
        raise CheckpointError(f"{folder} is a pythae folder of a model {name!r}, which the installed pythae has not.")
    try:
        model = make(getattr(models, name).from_dict(described))
    except Exception as error:  # a description may be incomplete in any way
        raise CheckpointError(f"{folder}/model_config.json makes no pythae model ({error}).") from error
    content = read_torch(Container(folder / "model.pt", "torch", "pythae weights"), trust)
    fill(model, states_in(content), prefix=None, strict=True, path=folder)
    return model, {"method": "decoder", "latent_dim": described.get("latent_dim")}


def read_diffusers(container: Container, trust: bool) -> Read:
    """A diffusers autoencoder, or that of a pipeline (its folder ``vae``).

    Raises:
        CheckpointError: the folder is incomplete, or its class is not one of diffusers.
        MissingExtraError: diffusers is not installed.
    """
    folder = container.path
    if (folder / "model_index.json").exists():
        folder = folder / "vae"
    described = _description(folder / "config.json")
    diffusers = need("diffusers", "diffusers", "reading a diffusers folder")
    name = str(described.get("_class_name", ""))
    make: Any = getattr(diffusers, name, None) if name.isidentifier() else None
    if not hasattr(make, "decode") or not issubclass(make, diffusers.ModelMixin):
        raise CheckpointError(
            f"{folder} names the class {name!r}, which is no autoencoder of the installed diffusers. Pass "
            "factory=, the class whose weights it holds."
        )
    try:
        model = make.from_config({key: value for key, value in described.items() if key != "_name_or_path"})
    except Exception as error:  # a description may be incomplete in any way
        raise CheckpointError(f"{folder}/config.json makes no diffusers model ({error}).") from error
    found = weights(Container(folder, "diffusers", container.looks_like))
    content = read_safetensors(found) if found.kind == "safetensors" else read_torch(found, trust)
    fill(model, states_in(content), prefix=None, strict=True, path=found.path)
    return model, {"method": "decode", "latent_shape": _latent_shape(described, model)}


def _latent_shape(described: dict[str, Any], model: Any) -> tuple[int, ...] | None:
    """(channels, h, w) of a latent of an image of the size the description names."""
    size, channels = described.get("sample_size"), described.get("latent_channels")
    scale = 2 ** (len(described.get("block_out_channels") or ()) - 1)
    if not isinstance(size, int) or not isinstance(channels, int) or size % scale:
        return None
    return channels, size // scale, size // scale


def read_scvi(container: Container, trust: bool) -> Read:
    """A scvi-tools model, rebuilt from what it registered of its data; the data themselves are not needed.

    The decoder is the mean of the likelihood for a cell of the first batch with 10,000 counts; other cells by
    ``condition={"library": ..., "batch_index": ...}``, each with shape (1, 1).

    Raises:
        UnsafeFileError: the file holds objects beside tensors and plain data, and not ``trust``.
        CheckpointError: the model is unknown to the installed scvi-tools, or cannot be rebuilt without data.
        MissingExtraError: scvi-tools is not installed.
    """
    folder = container.path
    content = read_torch(Container(folder / "model.pt", "torch", container.looks_like), trust, _tables())
    described = content.get("attr_dict", {}) if isinstance(content, dict) else {}
    registry = described.get("registry_", {})
    name = str(registry.get("model_name", ""))
    models = need("scvi.model", "scvi", "reading a scvi-tools model folder")
    make = getattr(models, name, None) if name.isidentifier() else None
    if not isinstance(make, type) or "registry" not in inspect.signature(make).parameters:
        raise CheckpointError(
            f"{folder} is a scvi-tools folder of a model {name!r} that cannot be rebuilt without its data. Load it "
            "with scvi-tools and wrap its module: Decoder(module, method='generative', output='px', condition={...})."
        )
    given = described.get("init_params_", {})
    arguments = dict(given.get("non_kwargs", {}))
    for more in given.get("kwargs", {}).values():
        arguments.update(more)
    try:
        module = make(adata=None, registry=registry, **arguments).module
        state = {key: value for key, value in content["model_state_dict"].items() if isinstance(value, torch.Tensor)}
        module.load_state_dict(state)
    except Exception as error:  # a description may be incomplete or of another version in any way
        raise CheckpointError(
            f"{folder} is a scvi-tools folder whose {name} cannot be rebuilt ({type(error).__name__}: {error})."
        ) from error
    library = torch.full((1, 1), math.log(1e4), dtype=torch.float32, device="cpu")
    condition = {"library": library, "batch_index": torch.zeros(1, 1, dtype=torch.long, device="cpu")}
    told = {"method": "generative", "output": "px", "condition": condition, "latent_dim": arguments.get("n_latent")}
    return module, told


def _tables() -> list[Any]:
    """pandas's types for tables of numbers, in which scvi-tools keeps its training history."""
    try:
        import pandas
        from pandas._libs.internals import _unpickle_block
        from pandas.core.indexes.base import _new_Index
        from pandas.core.internals.managers import BlockManager
    except ImportError:  # without pandas there is no scvi-tools either, which the caller finds out next
        return []
    rebuild = (_unpickle_block, "pandas._libs.internals._unpickle_block")
    return [pandas.DataFrame, pandas.Index, pandas.RangeIndex, BlockManager, _new_Index, rebuild, slice, bytes]
