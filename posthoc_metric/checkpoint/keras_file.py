"""Keras 3 models on the torch backend."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

from ..errors import MissingExtraError, UnsafeFileError
from .extras import need
from .sniff import Container

_RUNS_CODE = {"Lambda", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer"}


def read_keras(container: Container, trust: bool) -> tuple[Any, dict[str, Any]]:
    """The model, which on this backend is a torch module, and what of the decoder's options it tells.

    Raises:
        UnsafeFileError: its description names classes outside Keras or layers that carry code, and not ``trust``.
        CheckpointError: it is damaged.
        MissingExtraError: Keras is not installed, or runs on another backend.
    """
    if not trust:
        for reason in _reasons(_description(container)):
            raise UnsafeFileError(
                f"{container.path} looks like {container.looks_like}, and loading it would run code in the file: "
                f"{reason}. Pass trust=True if you trust where it comes from."
            )
    keras = _keras()
    try:
        model = keras.saving.load_model(container.path, compile=False, safe_mode=not trust)
    except Exception as error:  # Keras reports damage in many ways
        raise container.damaged(error) from error
    shape = getattr(model, "input_shape", None)
    if isinstance(shape, tuple) and len(shape) > 1 and all(isinstance(n, int) for n in shape[1:]):
        told = {"latent_dim": shape[1]} if len(shape) == 2 else {"latent_shape": shape[1:]}
        return model, told
    return model, {}


def _keras() -> Any:
    if sys.modules.get("keras") is None:
        before = os.environ.get("KERAS_BACKEND")
        os.environ["KERAS_BACKEND"] = before or "torch"
        try:
            keras = need("keras", "keras", "reading a Keras model")
        finally:
            if before is None:
                del os.environ["KERAS_BACKEND"]
    else:
        keras = sys.modules["keras"]
    if keras.backend.backend() != "torch":
        raise MissingExtraError(
            f"reading a Keras model needs Keras on the torch backend; it runs on {keras.backend.backend()}. "
            "Set the environment variable KERAS_BACKEND=torch before Python starts."
        )
    return keras


def _description(container: Container) -> Any:
    try:
        with zipfile.ZipFile(container.path) as archive:
            return json.loads(archive.read("config.json"))
    except Exception as error:  # zipfile and its decompressors report damage in many ways
        raise container.damaged(error) from None


def _reasons(description: Any) -> Iterator[str]:
    """Whatever in the description is not a class of Keras itself, or is a class that carries code."""
    nodes = [description]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes += node
        if not isinstance(node, dict):
            continue
        nodes += node.values()
        module, name = node.get("module"), node.get("class_name")
        if isinstance(module, str) and not (module == "keras" or module.startswith("keras.") or module == "builtins"):
            yield f"it names {module}.{name}"
        if module == "builtins" and name not in ("dict", "list", "tuple", "slice", "ellipsis", "NoneType", "function"):
            yield f"it names builtins.{name}"
        if module == "builtins" and name == "function" or name == "function":
            yield "it names a Python function"
        if name in _RUNS_CODE or name == "__lambda__":
            yield f"it holds a {name} layer, which carries code"
