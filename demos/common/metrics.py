"""The metrics that the studies compare, by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

import posthoc_metric as pm

from .study import Study

LABELS = {
    "straight": "straight line",
    "decoder": "decoder alone",
    "rbf-published": "RBF as published",
    "rbf": "repaired, RBF (default)",
    "gp": "repaired, GP",
}
METRICS = ("decoder", "rbf-published", "rbf", "gp")


def metrics_of(
    study: Study,
    decoder: pm.Decoder,
    latents: Tensor,
    data: Tensor,
    names: Iterable[str] = METRICS,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """One metric a name, all from the same latents; every repair is the library's default, untouched."""
    found: dict[str, Any] = {}
    for name in names:
        if name == "decoder":
            found[name] = pm.PullbackMetric(decoder)
            found[name].support = latents.double()
        else:
            found[name] = study.repair(decoder, latents, data, uncertainty=name, seed=seed)
    return found
