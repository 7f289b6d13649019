"""A repaired metric from the file that it was saved to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import saving
from ._arrays import as_tensor, check_seed, describe
from .errors import CheckpointError, InvalidArgumentError, PosthocMetricError
from .geodesic.starts.saved_graphs import restore_graphs
from .metric import PullbackMetric
from .repair import PROBES, RepairedMetric, acquainted
from .smooth_map import SmoothMap, check_smooth_map, device_of
from .support import Support
from .surroundings import lasting
from .uncertainty import model_class
from .uncertainty.calibration import Knobs
from .uncertainty.floor import Floor
from .uncertainty.gate import Gate


def load(path: str | Path, decoder: SmoothMap, *, model: type | None = None) -> RepairedMetric:
    """The metric that :meth:`RepairedMetric.save` wrote, equal bit for bit.

    Args:
        path: the file.
        decoder: the decoder it was fitted on; recognised by its outputs at some training latents.
        model: for a metric with an uncertainty model of your own, its class, with ``from_state(settings, state)``.

    Raises:
        CheckpointError: the file cannot be read, or ``decoder`` is not the one it was fitted on.
        InvalidArgumentError: ``path`` is no path, ``decoder`` is not wrapped, or ``model`` no such class.

    A saved metric and its decoder give the metric again::

        repaired.save("repaired.safetensors")
        again = pm.load("repaired.safetensors", decoder)
    """
    with lasting():
        tensors, facts = saving.read(path)
    check_smooth_map(decoder)
    if model is not None and not callable(getattr(model, "from_state", None)):
        raise InvalidArgumentError(
            f"`model` must be the class of your uncertainty model, with `from_state(settings, state)`; got "
            f"{describe(model)}."
        )
    if not {"latents", "probe_outputs"} <= tensors.keys():
        raise CheckpointError(f"{str(path)!r} is not whole: it lacks some of its tensors. Save the metric again.")
    latents = tensors["latents"]
    if latents.ndim != 2 or latents.shape[1] != decoder.latent_dim:
        raise CheckpointError(
            f"{str(path)!r} was fitted on a decoder of latent dimension {latents.shape[-1]}; "
            f"`decoder` has {decoder.latent_dim}. Pass the decoder it was fitted on."
        )
    try:
        with lasting():
            # the starts' graphs are SciPy's, and stay on the CPU
            tensors = {k: v if k.startswith("starts.") else v.to(device_of(decoder)) for k, v in tensors.items()}
            metric = _rebuilt(path, decoder, model, tensors, facts)
            # a damaged number shows at the latest when the metric is asked for
            metric.tensor(metric.geometry.training[:PROBES])
    except PosthocMetricError:
        raise
    except Exception as error:  # tensors and facts may be damaged in any way
        raise CheckpointError(
            f"{str(path)!r} holds a repaired metric that cannot be rebuilt ({type(error).__name__}: {error}). It was "
            "damaged, or its model is of another class: save the metric again, or pass the class as `model`."
        ) from error
    return metric


def _rebuilt(
    path: str | Path, decoder: SmoothMap, model: type | None, tensors: dict[str, Tensor], facts: dict[str, Any]
) -> RepairedMetric:
    decoder = acquainted(decoder, tensors["latents"])
    geometry = Support(tensors["latents"], seed=check_seed(facts["seed"]))
    expected = tensors["probe_outputs"]
    found = as_tensor(decoder(geometry.training[:PROBES])).to(expected)
    # threads and devices change the last bits of an output, another decoder changes the first
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    ):
        raise CheckpointError(
            f"{str(path)!r} was fitted on another decoder: the outputs at its training latents differ. "
            "Pass the decoder it was fitted on, or repair this one anew."
        )
    knobs = Knobs(**facts["knobs"])
    kind: Any = model if model is not None else model_class(facts["uncertainty"])
    fitted = kind.from_state(facts["settings"], _under("model.", tensors))
    gate = None
    if facts["gate"] is not None:
        floor, reach = Floor(**_under("floor.", tensors)), facts.get("reach", math.inf)
        gate = Gate(model=fitted, floor=floor, **facts["gate"], reach=reach)
    metric = RepairedMetric(PullbackMetric(decoder), fitted, gate, geometry, knobs)
    restore_graphs(metric, _under("starts.", tensors), facts["starts"])
    return metric


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
