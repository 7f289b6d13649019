"""How long matrices of distances take, and how far off they are: the figures of the README.

    python tests/benchmarks/distances_scale.py all-pairs     # N = 2,000, two workers
    python tests/benchmarks/distances_scale.py nearest       # N = 20,000, two workers
    python tests/benchmarks/distances_scale.py table         # the metric on a grid
    python tests/benchmarks/distances_scale.py million       # from measured block times, N = 1,000,000

On the shipped example.  Wall seconds mean little on a machine that does other work, so seconds of processor time of all
processes are printed beside them.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import posthoc_metric as pm
from posthoc_metric.distances import MetricTable, distances, neighbours
from posthoc_metric.errors import ConvergenceWarning
from posthoc_metric.examples import digits, digits_vae

WORKERS = 2


def example() -> pm.RepairedMetric:
    decoder, encoder = digits_vae()
    data = digits().data
    return pm.repair(pm.Decoder(decoder, latent_dim=2), encoder(data).double(), data)


def latents(metric: pm.RepairedMetric, count: int) -> torch.Tensor:
    """The example's latents, and as many more as needed from a kernel density estimate of them."""
    generator = torch.Generator().manual_seed(0)
    known = metric.geometry.latents
    extra = known[torch.randint(len(known), (max(count - len(known), 0),), generator=generator)]
    noise = torch.randn(extra.shape, generator=generator, dtype=torch.float64)
    return torch.cat([known, extra + 0.5 * metric.geometry.spread * noise])[:count]


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, wall seconds, and processor seconds of this process and of its workers that ended."""
    from joblib.externals.loky import get_reusable_executor

    before, begun = os.times(), time.perf_counter()
    result = call()
    wall = time.perf_counter() - begun
    get_reusable_executor().shutdown(wait=True)
    after = os.times()
    return result, wall, sum(after[:4]) - sum(before[:4])


def peak() -> str:
    import resource

    own, workers = (
        resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return f"largest process {max(own, workers):.2f} GiB, at most {own + WORKERS * workers:.2f} GiB together"


def show(report: Any, wall: float, processor: float) -> None:
    print(
        f"  {wall:.0f} s wall, {processor:.0f} s of processor time = "
        f"{processor / WORKERS:.0f} s on {WORKERS} free cores"
    )
    for stage in report.stages:
        print(f"  {stage.name}: {stage.blocks} blocks, median {stage.median_block:.2f} s")
    error = report.error
    print(
        f"  against the solver on {error.pairs} pairs ({error.unsolved} unsolved): "
        f"median error {100 * error.median:.2f} %, "
        f"90th percentile {100 * error.p90:.2f} %, bias {100 * error.bias:+.2f} %; {report.neighbours} neighbours"
    )


def all_pairs(count: int) -> None:
    metric = example()
    z = latents(metric, count)
    for name, chosen in (("metric", metric), ("table", None)):
        if chosen is None:
            made, wall, processor = timed(lambda: MetricTable(metric, z))
            print(f"table built in {processor:.1f} s of processor time; error {made.error}")
            chosen = made
        (_, report), wall, processor = timed(
            lambda chosen=chosen: distances(chosen, z, method="graph", sample=300, n_jobs=WORKERS, return_report=True)
        )
        print(f"all pairs of {count} by the {name}")
        show(report, wall, processor)
    print(" ", peak())


def nearest(count: int) -> None:
    metric = example()
    z = latents(metric, count)
    (_, report), wall, processor = timed(
        lambda: neighbours(metric, z, 10, sample=100, n_jobs=WORKERS, return_report=True)
    )
    print(f"10 nearest of {count}")
    show(report, wall, processor)
    print(" ", peak())


def table() -> None:
    metric = example()
    z = latents(metric, 100_000)
    torch.set_num_threads(1)
    for rtol in (1e-2, 1e-3):
        made, _, processor = timed(lambda rtol=rtol: MetricTable(metric, z, rtol=rtol))
        times = {"metric": [], "table": []}
        for part in z.split(20_000):
            for name, chosen in (("metric", metric), ("table", made)):
                begun = time.process_time()
                chosen.tensor(part)
                times[name].append((time.process_time() - begun) / len(part) * 1e6)
        own, read = (float(np.median(times[name])) for name in ("metric", "table"))
        print(
            f"rtol {rtol:g}: built in {processor:.1f} s from {made.evaluations} evaluations; {read:.2f} µs a point "
            f"against {own:.2f} µs, ratio {own / read:.1f}; {made.error}"
        )


def million(count: int = 1_000_000, tried: int = 50_000) -> None:
    metric = example()
    (_, report), wall, processor = timed(
        lambda: neighbours(metric, latents(metric, tried), 10, sample=0, n_jobs=WORKERS, return_report=True)
    )
    scale = count / tried
    print(f"10 nearest of {tried}: {processor:.0f} s of processor time; {peak()}")
    for stage in report.stages:
        print(
            f"  {stage.name}: {stage.blocks} blocks, median {stage.median_block:.2f} s, {stage.seconds:.0f} s; "
            f"for {count}: {stage.blocks * scale:.0f} blocks, {stage.seconds * scale / 3600:.2f} core hours"
        )
    print(f"  all stages for {count}: {report.seconds * scale / 3600:.1f} core hours")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["all-pairs", "nearest", "table", "million"])
    parser.add_argument("--count", type=int)
    chosen = parser.parse_args()
    warnings.simplefilter("always", ConvergenceWarning)
    if chosen.what == "all-pairs":
        all_pairs(chosen.count or 2_000)
    elif chosen.what == "nearest":
        nearest(chosen.count or 20_000)
    elif chosen.what == "table":
        table()
    else:
        million(tried=chosen.count or 50_000)
