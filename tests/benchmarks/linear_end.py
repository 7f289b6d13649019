"""What the triangular factor of a last linear layer saves: geodesics under it beside those of all outputs.

Run ``python tests/benchmarks/linear_end.py [pairs] [runs]``: repaired decoders with hidden layers of 128, d = 10, start
graphs built before.  Times are processor milliseconds a pair on one thread, medians over runs taken in turn.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import torch
from peers import table, timed
from torch import nn

import posthoc_metric as pm
from posthoc_metric.metric import MetricParts, StructuredMetric


def main(count: int = 20, runs: int = 3) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows = []
    for outputs in (500, 2_000, 20_000):
        repaired = _repaired(outputs)
        parts = repaired.parts()
        plain = StructuredMetric(MetricParts(repaired.decoder, parts.weight, parts.field), 10)
        plain.support = repaired.support
        a, b = torch.randn(2, count, 10, generator=torch.Generator().manual_seed(1)).double()
        found: dict[str, list[tuple[float, Any]]] = {"thin": [], "plain": []}
        for metric in (repaired, plain):
            metric.geodesic(a[:2], b[:2])
        for _ in range(runs):
            for name, metric in (("thin", repaired), ("plain", plain)):
                found[name].append(timed(lambda metric=metric, a=a, b=b: metric.geodesic(a, b)))  # type: ignore[misc]
        thin, all_outputs = ([seconds for seconds, _ in found[name]] for name in ("thin", "plain"))
        first, second = found["thin"][0][1].length, found["plain"][0][1].length
        apart = float(((first - second) / second).abs().max())
        ratio = statistics.median(y / x for x, y in zip(thin, all_outputs, strict=True))
        times = (1e3 * statistics.median(seconds) / count for seconds in (thin, all_outputs))
        rows.append((outputs, *times, ratio, apart))
    print(table(("D", "ms/pair", "ms/pair, all outputs", "ratio", "lengths apart"), rows), flush=True)


def _repaired(outputs: int) -> Any:
    torch.manual_seed(0)
    layers = [nn.Linear(10, 128), nn.LayerNorm(128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, outputs)]
    net = nn.Sequential(*layers)
    latents = torch.randn(2_000, 10)
    with torch.no_grad():
        data = net(latents) + 0.05 * torch.randn(2_000, outputs)
    return pm.repair(pm.Decoder(net, latent_dim=10), latents.double(), data)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
