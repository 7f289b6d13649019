"""How CPU time and peak memory grow with the pairs B, the spans T and the latent dimension d.

Run ``python tests/benchmarks/scaling.py``.  Every row is a process of its own on a repaired MLP decoder with D = 784
(default repair), in which a few pairs have been solved before the clock starts, so that start graphs are there.  T is
held at one number of spans (``spans = max_spans = T``), B and d run at the defaults.  Memory is the growth of the
process's high-water mark while solving; ratios are against the first row of a block, slopes of their logarithms.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from models import mlp_vae, pairs
from peers import table, timed

import posthoc_metric as pm

PAIRS = (25, 50, 100, 200, 400)
SPANS = (16, 32, 64, 128)
DIMS = (2, 4, 8, 16, 32, 64)


def one(count: int, spans: int | None, dim: int, epochs: int) -> dict[str, float]:
    """Time, memory and evaluations of one solve in this process."""
    torch.set_num_threads(1)
    module, latents, data = mlp_vae(dim, epochs=epochs)
    metric = pm.repair(pm.Decoder(module, latent_dim=dim), latents.double(), data)
    a, b = (z.double() for z in pairs(metric.geometry.latents, count))
    options = {} if spans is None else {"spans": spans, "max_spans": spans}
    metric.geodesic(a[:3], b[:3], **options)
    before = _now_and_reset()
    seconds, solution = timed(lambda: metric.geodesic(a, b, **options))
    return {
        "seconds": seconds,
        "memory": max(0.0, _high_water() - before),
        "evaluations": float(solution.evaluations.double().mean()),
        "each": seconds / float(solution.evaluations.sum()),
        "converged": float(solution.converged.double().mean()),
    }


def _now_and_reset() -> float:
    """Resident MiB now; the high-water mark is set back to it where the system lets."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _high_water()
    return _status("VmRSS")


def _high_water() -> float:
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10


def apart(count: int, spans: int | None, dim: int, epochs: int) -> dict[str, float]:
    """:func:`one` in a process of its own."""
    arguments = json.dumps([count, spans, dim, epochs])
    done = subprocess.run([sys.executable, __file__, "--one", arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def block(name: str, values: tuple[int, ...], found: list[dict[str, float]]) -> str:
    """A table over ``values``, with the slope over all of it in the last line."""
    rows: list[tuple[Any, ...]] = []
    for value, facts in zip(values, found, strict=True):
        # below a megabyte the high-water mark is noise
        ratios = [facts[key] / max(found[0][key], least) for key, least in (("seconds", 1e-9), ("memory", 1.0))]
        rows.append(
            (
                value,
                facts["seconds"],
                ratios[0],
                facts["memory"],
                ratios[1],
                facts["evaluations"],
                facts["each"] / found[0]["each"],
                facts["converged"],
            )
        )
    header = (name, "CPU s", "ratio", "MiB", "ratio", "evaluations", "s/evaluation ratio", "converged")
    text = table(header, rows)
    if len(values) > 1:
        span = math.log(values[-1] / values[0])
        slopes = [math.log(max(rows[-1][i], 1e-9)) / span for i in (2, 6)]
        text += f"\ntime grows as {name}^{slopes[0]:.2f}, for each evaluation as {name}^{slopes[1]:.2f}"
    return text


def main(
    pairs_: tuple[int, ...] = PAIRS,
    spans: tuple[int, ...] = SPANS,
    dims: tuple[int, ...] = DIMS,
    count: int = 100,
    epochs: int = 40,
) -> None:
    """Print the three tables; ``count`` pairs where B does not vary."""
    print(block("B", pairs_, [apart(number, None, 2, epochs) for number in pairs_]), flush=True)
    print(block("T", spans, [apart(count, number, 2, epochs) for number in spans]), flush=True)
    print(block("d", dims, [apart(count, None, number, epochs) for number in dims]), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(*chosen.one)))
    else:
        main()
