"""What an uncertainty model costs: fitting on 10,000 latents with D = 784, and evaluating the repaired metric.

Run ``python tests/benchmarks/uncertainty_costs.py [latents] [runs]``.  Fitting is the whole repair, calibration
included, in processor seconds.  Evaluating is the repaired metric tensor at 10,000 points in d = 2, in processor
seconds, and as the median over runs of its ratio to the decoder's own pullback metric at the same points, timed in
turn.
"""

from __future__ import annotations

import statistics
import sys
import warnings

import torch
from million_latents import decoder
from peers import table, timed

import posthoc_metric as pm
from posthoc_metric.errors import CalibrationWarning
from posthoc_metric.uncertainty import RBF

#: what each is asked for: seconds to fit, seconds to evaluate, evaluation over the decoder's own; NaN where nothing is
MODELS = {
    "rbf, K = 64": (lambda: RBF(centres=64), (10.0, float("nan"), 1.5)),
    "rbf": (lambda: "rbf", (10.0, float("nan"), float("nan"))),
    "gp": (lambda: "gp", (60.0, 5.0, float("nan"))),
    "rbf-published": (lambda: "rbf-published", (float("nan"),) * 3),
}


def main(count: int = 10_000, runs: int = 7, points: int = 10_000) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    # a Gaussian's tail is no support, which is not what is measured here
    warnings.simplefilter("ignore", CalibrationWarning)
    net = decoder()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(count, 2, generator=generator)
    data = net(latents) + 0.05 * torch.randn(count, net.output_dim, generator=generator)
    z = torch.randn(points, 2, generator=generator)
    own = pm.PullbackMetric(net)
    own.tensor(z)
    rows = []
    for name, (make, asked) in MODELS.items():
        fit, metric = timed(lambda make=make: pm.repair(net, latents, data, uncertainty=make()))  # type: ignore[misc]
        metric.tensor(z)
        times = [(timed(lambda m=metric: m.tensor(z))[0], timed(lambda: own.tensor(z))[0]) for _ in range(runs)]
        seconds = statistics.median(ours for ours, _ in times)
        ratio = statistics.median(ours / theirs for ours, theirs in times)
        rows.append((name, fit, asked[0], seconds, asked[1], ratio, asked[2]))
    header = ("model", "fit, s", "asked", f"{points} points, s", "asked", "over the decoder's", "asked")
    print(f"{count} latents, d = 2, D = {net.output_dim}; medians of {runs} runs, one thread")
    print(table(header, rows), flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
