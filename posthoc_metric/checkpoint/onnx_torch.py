"""ONNX graphs rebuilt in torch by onnx2torch, where it is installed and gives what ONNX Runtime gives.

It is in no extra: it imports torchvision, whose wheels load only beside the very build of torch that they were made
for, so that an extra would break installations that work.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .._arrays import as_tensor

if TYPE_CHECKING:
    from .onnx_file import OnnxModel

#: latents at which both must agree, and how closely, relative to the largest output
_POINTS = 8
_TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-9}


def rebuilt(model: OnnxModel) -> tuple[nn.Module | None, str]:
    """The same function as a torch module, or ``None``; and a note on which of the two and why."""
    try:
        # torchvision of another build of torch breaks with a RuntimeError
        converter: Any = importlib.import_module("onnx2torch")
    except (ImportError, RuntimeError) as error:
        return None, f"run by ONNX Runtime: onnx2torch, which rebuilds graphs in torch, is not there ({error})"
    reason = _unfit(model)
    if reason:
        return None, f"run by ONNX Runtime: {reason}"
    try:
        import onnx

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: nn.Module = converter.convert(onnx.load_model_from_string(model.graph)).eval()
        gap = _gap(model, module)
    except Exception as error:  # a converter without a rule for an operator says so in its own words
        words = " ".join(str(error).split())[:140]
        return None, f"run by ONNX Runtime: onnx2torch cannot rebuild it ({type(error).__name__}: {words})"
    if not gap <= _TOLERANCE[np.dtype(model.dtype)]:
        return None, f"run by ONNX Runtime: what onnx2torch makes of it differs by {gap:.1g} of the largest output"
    return module.requires_grad_(False), f"rebuilt in torch by onnx2torch; equals ONNX Runtime at {_POINTS} latents"


def _unfit(model: OnnxModel) -> str:
    if np.dtype(model.dtype) not in _TOLERANCE:
        return f"it computes in {np.dtype(model.dtype)}"
    if model.latent_shape is None:
        return "it does not tell the shape of a latent"
    if model.batch is not None:
        return "its batch size is fixed"
    if model.inputs != 1 or model.outputs != 1:
        return f"it has {model.inputs} inputs and {model.outputs} outputs"
    return ""


def _gap(model: OnnxModel, module: nn.Module) -> float:
    """The largest difference between the two over the largest output; not finite if either is not."""
    assert model.latent_shape is not None
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(_POINTS, *model.latent_shape, generator=generator, device="cpu", dtype=torch.float64)
    z[_POINTS // 2 :] *= 3  # beyond where most activations bend
    latents = z.numpy().astype(model.dtype)
    expected = as_tensor(model(latents)).double()
    with torch.no_grad():
        found = module(torch.from_numpy(latents)).double()
    if found.shape != expected.shape:
        return float("nan")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))
