"""ONNX graphs: rebuilt in torch where that can be had, else through ONNX Runtime."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import CheckpointError, UnsafeFileError
from . import onnx_torch
from .extras import need
from .sniff import Container

_DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


class OnnxModel:
    """An ONNX graph as a function of a NumPy batch; pickles by the bytes of the graph.

    Args:
        graph: the file's bytes.
        path: for messages.

    Attributes:
        dtype: of the latents it wants.
        latent_shape: of one latent, where the graph tells.
        batch: the only number of rows it takes, if there is one.
        inputs, outputs: how many it has.
    """

    def __init__(self, graph: bytes, path: str):
        self.graph = graph
        self.path = path
        self._start()

    def _start(self) -> None:
        runtime = need("onnxruntime", "onnx", "reading an ONNX graph")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        try:
            self._session = runtime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors share no base class
            raise CheckpointError(
                f"{self.path} looks like an ONNX graph, but ONNX Runtime cannot load it "
                f"({' '.join(str(error).split())[:200]}). If it was cut short, save or download it again; weights in "
                "files beside it must be saved into the graph."
            ) from error
        inputs = [entry for entry in self._session.get_inputs() if entry.type in _DTYPES]
        if not inputs:
            raise CheckpointError(f"{self.path} is an ONNX graph without a floating-point input. Export the decoder.")
        self._input = inputs[0].name
        self.dtype = _DTYPES[inputs[0].type]
        sizes = inputs[0].shape[1:]
        self.latent_shape = tuple(sizes) if sizes and all(isinstance(n, int) and n > 0 for n in sizes) else None
        self.batch = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None
        self.inputs, self.outputs = len(self._session.get_inputs()), len(self._session.get_outputs())

    def __call__(self, z: Any, **others: Any) -> Any:
        """(B, ...) -> the outputs by name, or the only one; ``others`` are the graph's other inputs by name."""
        feed = {name: np.asarray(value) for name, value in others.items()}
        feed[self._input] = np.ascontiguousarray(z, dtype=self.dtype)
        names = [entry.name for entry in self._session.get_outputs()]
        results = self._session.run(names, feed)
        return results[0] if len(results) == 1 else dict(zip(names, results, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {"graph": self.graph, "path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.graph, self.path = state["graph"], state["path"]
        self._start()


def read_onnx(container: Container, trust: bool) -> tuple[OnnxModel | nn.Module, dict[str, Any]]:
    """The graph as a function or a module, and what of the decoder's options it tells.

    Raises:
        UnsafeFileError: its weights lie in files outside its own folder.
        CheckpointError: it is no ONNX graph, or a damaged one.
        MissingExtraError: onnx or ONNX Runtime is not installed.
    """
    graph = _with_weights(container, trust)
    model = OnnxModel(graph, str(container.path))
    told: dict[str, Any] = {}
    if model.latent_shape is not None:
        told["latent_dim"] = int(np.prod(model.latent_shape))
        if len(model.latent_shape) > 1:
            told["latent_shape"] = model.latent_shape
    module, note = onnx_torch.rebuilt(model)
    told["notes"] = (note,)
    return (model if module is None else module), told


def _with_weights(container: Container, trust: bool) -> bytes:
    """The graph with weights from files beside it taken in; files elsewhere are not read unless ``trust``."""
    onnx = need("onnx", "onnx", "reading an ONNX graph")
    data = container.path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's errors differ between its implementations
        raise CheckpointError(
            f"{container.path} looks like {container.looks_like} but is none, or was cut short ({error}). "
            "Save or download it again."
        ) from error
    if not model.graph.node:
        raise CheckpointError(
            f"{container.path} looks like {container.looks_like} but holds no operation. Save or download it again."
        )
    external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in external:
        where = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        outside = pathlib.PurePath(where).is_absolute() or ".." in pathlib.PurePath(where).parts
        if outside and not trust:
            raise UnsafeFileError(
                f"{container.path} is an ONNX graph that reads weights from {where!r}, outside its own folder. "
                "Pass trust=True if you trust where it comes from."
            )
    if not external:
        return data
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(container.path.parent))
    except Exception as error:  # missing or short files are reported in several ways
        raise CheckpointError(
            f"{container.path} is an ONNX graph whose weights lie in files beside it, which cannot be read ({error})."
        ) from error
    return model.SerializeToString()
