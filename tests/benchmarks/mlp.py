"""A repaired MLP decoder, d = 2, D = 784, default repair: accuracy, evaluations and time, beside three peers.

Run ``python tests/benchmarks/mlp.py [pairs] [runs] [side] [most]``; needs ``pip install stochman``.  The reference is
the shortest path on a grid of side² points, minimised with many nodes (reference.py).  stochman is run at its defaults
and then with ever more segments and steps, at most so many settings, until 99 % of its pairs are within 1 % of the
reference; the last settings take long.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from georce import georce
from models import mlp_vae, pairs
from peers import curve_lengths, have_stochman, stochman_curves, timed
from reference import fine_reference
from torch import Tensor, nn

import posthoc_metric as pm

#: nodes of stochman's spline, steps and points of its energy: its defaults first, the cap last
STOCHMAN = ((5, 150, 20), (10, 300, 40), (20, 1000, 80), (20, 3000, 160))
GEORCE_STEPS = 200


def decoder_and_metric(uncertainty: str = "rbf", epochs: int = 40) -> tuple[nn.Module, pm.RepairedMetric]:
    """The decoder, and its metric repaired at the defaults."""
    module, latents, data = mlp_vae(2, epochs=epochs)
    return module, pm.repair(pm.Decoder(module, latent_dim=2), latents.double(), data, uncertainty=uncertainty)


def shares(lengths: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Of the excess over the reference: the median, and the shares of pairs within 0.1 % and 1 %."""
    excess = (lengths / reference - 1).nan_to_num(nan=float("inf"))
    return float(excess.median()), float((excess <= 1e-3).double().mean()), float((excess <= 1e-2).double().mean())


def row(name: str, *entries: float | str) -> str:
    """One line, printed as soon as it is known: the last ones take long."""
    texts = (entry if isinstance(entry, str) else f"{entry:.3g}" for entry in entries)
    return name.rjust(30) + "".join(text.rjust(15) for text in texts)


def wall_times(metric: pm.RepairedMetric, a: Tensor, b: Tensor, runs: int) -> dict[str, float]:
    """Median seconds of wall time with one thread of PyTorch's, with two, and with two processes of one thread each."""
    ways = {"one thread": (1, 1), "two threads": (2, 1), "n_jobs=2": (1, 2)}
    found: dict[str, list[float]] = {name: [] for name in ways}
    metric.geodesic(a[:2], b[:2], n_jobs=2)
    for _ in range(1 + runs):
        for name, (threads, n_jobs) in ways.items():
            torch.set_num_threads(threads)
            before = time.perf_counter()
            metric.geodesic(a, b, n_jobs=n_jobs)
            found[name].append(time.perf_counter() - before)
    torch.set_num_threads(1)
    # workers build the grid in their first run
    return {name: statistics.median(took[1:]) for name, took in found.items()}


def main(count: int = 100, runs: int = 3, side: int = 160, most: int = len(STOCHMAN), epochs: int = 40) -> None:
    """Print the tables; ``most`` bounds how many of stochman's settings are tried."""
    torch.set_num_threads(1)
    module, metric = decoder_and_metric(epochs=epochs)
    a, b = (z.double() for z in pairs(metric.geometry.latents, count))
    reference, _ = fine_reference(metric, a, b, side=side)
    seconds = []
    for _ in range(runs):
        # the graph that starts come from belongs to the metric, and is paid for in the first run only
        took, solution = timed(lambda: metric.geodesic(a, b))
        seconds.append(took)
    ours = statistics.median(seconds[1:] or seconds)
    excess, close, near = shares(solution.length, reference)
    print(f"{count} pairs, CPU time, medians of {runs} runs; the first, which builds the grid, took {seconds[0]:.2f} s")
    print(
        f"converged {float(solution.converged.double().mean()):.0%}, within 0.1 % of the reference {close:.0%}, within "
        f"1 % {near:.0%}, shorter than it by up to {float((1 - solution.length / reference).max()):.1e}"
    )
    evaluations = solution.evaluations.double()
    jacobians = []
    for start, end in zip(a.split(1), b.split(1), strict=True):
        with metric.decoder.counting() as work:
            metric.geodesic(start, end)
        # one product at a point to measure a length counts as an evaluation too, but has no value beside it
        jacobians.append(work.values)
    print(
        f"evaluations a pair: median {float(evaluations.median()):.0f}, 90th percentile "
        f"{float(evaluations.quantile(0.9)):.0f}; of value and Jacobian: median {statistics.median(jacobians):.0f}, "
        f"the rest single products; {1e3 * ours / count:.2f} ms a pair"
    )
    walls = ", ".join(f"{name} {1e3 * took / count:.1f}" for name, took in wall_times(metric, a, b, runs).items())
    print(f"ms of wall time a pair: {walls}")
    print(row("solver", "ms/pair", "time/ours", "median excess", "<= 0.1 %", "<= 1 %"))
    print(row("ours", 1e3 * ours / count, 1.0, excess, close, near), flush=True)

    def add(name: str, took: float, lengths: Tensor) -> tuple[float, float, float]:
        found = shares(lengths, reference)
        print(row(name, 1e3 * took / count, took / ours, *found), flush=True)
        return found

    took, fixed = timed(lambda: metric.geodesic(a, b, solver="fixed-point"))
    add(f"fixed-point ({float(fixed.converged.double().mean()):.0%} converged)", took, fixed.length)
    took, (nodes, done, _) = timed(lambda: georce(metric, a, b, max_steps=GEORCE_STEPS))
    add(f"GEORCE ({float(done.double().mean()):.0%} converged)", took, curve_lengths(metric, nodes))
    stochman = have_stochman()
    waiting = {
        "median pair comes": lambda found: found[0] <= 1e-2,
        "pairs, 99 % of them, come": lambda found: found[2] >= 0.99,
    }
    for nodes_number, steps, grid in STOCHMAN[:most] if stochman else ():
        solve = stochman_curves(metric, module, nodes=nodes_number, steps=steps, grid=grid)
        took, points = timed(lambda solve=solve: solve(a, b))  # type: ignore[misc]
        found = add(f"stochman {nodes_number} nodes, {steps} steps", took, curve_lengths(metric, points))
        for who in [who for who, reached in waiting.items() if reached(found)]:
            print(f"stochman's {who} within 1 % of the reference in {took / ours:.0f} times our time")
            del waiting[who]
        if not waiting:
            break
    for who in waiting if stochman else ():
        print(f"stochman's {who} within 1 % of the reference at none of the settings tried")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:5]))
