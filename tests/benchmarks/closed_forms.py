"""Closed-form spaces: the solver at its defaults beside stochman, GEORCE and the fixed-point solver, on the same pairs.

Run ``python tests/benchmarks/closed_forms.py [pairs] [runs]``; needs ``pip install stochman``.  Times are CPU time of
this process, medians over runs.  A metric's first solve also builds the grids that starts come from; it stands in a row
of its own, and the others are compared with the solves that follow.  Every curve is judged by the closed-form distance,
those of stochman and GEORCE by their length at 1,000 points under the same metric, the fixed-point solver's by the
length it reports.  The torus, which has no closed form, is judged by this solver's own curves of 256 spans, relaxed to
1e-8.
"""

from __future__ import annotations

import statistics
import sys

import torch
from georce import georce
from peers import curve_lengths, have_stochman, stochman_curves, table, timed
from torch import Tensor

from posthoc_metric.geodesic import geodesic
from posthoc_metric.metric import Metric
from posthoc_metric.spaces import HalfPlane, Sphere, SwissRoll, Torus

Pairs = tuple[Tensor, Tensor]

FIRST = "ours, first solve"


def spaces(count: int, seed: int) -> dict[str, tuple[Metric, Pairs]]:
    """The spaces with ``count`` pairs of points each."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return 0.5 * torch.randn(count, 2, generator=generator, dtype=torch.float64)

    def upper() -> Tensor:
        z = draw()
        return torch.stack([z[:, 0], z[:, 1].exp()], dim=1)

    return {
        "sphere": (Sphere(), (draw(), draw())),
        "half-plane": (HalfPlane(), (upper(), upper())),
        "Swiss roll": (SwissRoll(), (6 + draw(), 8 + draw())),
        "torus": (Torus(), (draw(), 1 + draw())),
    }


def exact_lengths(metric: Metric, a: Tensor, b: Tensor) -> Tensor:
    """Closed-form distances, or lengths of curves far finer than the default ones."""
    if hasattr(metric, "distance"):
        return metric.distance(a, b)
    return geodesic(metric, a, b, spans=256, max_spans=256, tol=1e-8, rtol=1e-12).length


def one_run(metric: Metric, a: Tensor, b: Tensor, stochman: bool) -> dict[str, tuple[float, float, float]]:
    """For each solver CPU ms a pair, the worst pair's relative error, and the share of pairs it calls converged."""
    results = {
        FIRST: timed(lambda: geodesic(metric, a, b)),
        "ours": timed(lambda: geodesic(metric, a, b)),
        "GEORCE": timed(lambda: georce(metric, a, b)),
        "fixed-point": timed(lambda: geodesic(metric, a, b, solver="fixed-point")),
    }
    if stochman:
        solve = stochman_curves(metric)
        results["stochman"] = timed(lambda: solve(a, b))
    # only now: where there is no closed form this solves under the metric, too, and would build its grids
    exact = exact_lengths(metric, a, b)
    found = {}
    for name, (seconds, result) in results.items():
        if name == "stochman":
            lengths, share = curve_lengths(metric, result), float("nan")
        elif name == "GEORCE":
            lengths, share = curve_lengths(metric, result[0]), float(result[1].double().mean())
        else:
            lengths, share = result.length, float(result.converged.double().mean())
        error = (lengths / exact - 1).abs().nan_to_num(nan=float("inf"))
        found[name] = (1e3 * seconds / len(a), float(error.max()), share)
    return found


def main(count: int = 100, runs: int = 3) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{count} pairs, medians of {runs} runs (other pairs each), CPU time, the worst pair's relative error")
    rows, firsts, stochman = [], [], have_stochman()
    for space in spaces(1, 0):
        found = [
            one_run(metric, *pairs, stochman) for metric, pairs in (spaces(count, run)[space] for run in range(runs))
        ]
        for name in found[0]:
            ms, error, share = (statistics.median(run[name][i] for run in found) for i in range(3))
            ratio = statistics.median(run[name][0] / run["ours"][0] for run in found)
            rows.append((space, name, ms, ratio, error, share))
        if stochman:
            firsts.append((space, statistics.median(run["stochman"][0] / run[FIRST][0] for run in found)))
    print(table(("space", "solver", "ms/pair", "time/ours", "worst error", "converged"), rows), flush=True)
    if firsts:
        shown = ", ".join(f"{space} {ratio:.1f}" for space, ratio in firsts)
        print(f"stochman's time / that of the first solve: {shown}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
