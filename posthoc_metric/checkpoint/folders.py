"""Model folders of pythae, scvi-tools and diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsafeFileError
from .extras import need
from .sniff import Container
from .state import fill, states_in
from .torch_files import read_safetensors, read_torch

Read = tuple[Any, dict[str, Any]]


def weights(container: Container) -> Container:
    """The file of weights inside a folder, for the caller who brings a ``factory``.

    Raises:
        CheckpointError: there is none.
    """
    from .sniff import sniff

    for pattern in ("model.pt", "*.safetensors", "*.bin"):
        for found in sorted(container.path.glob(pattern)):
            return sniff(found)
    raise CheckpointError(f"{container.path} looks like {container.looks_like} but holds no file of weights.")


def _description(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
        raise CheckpointError(f"{folder} names the class {name!r}, which is no autoencoder of the installed diffusers.")
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
    raise CheckpointError(f"{container.path} is a scvi-tools folder; pass factory= to use its weights.")
