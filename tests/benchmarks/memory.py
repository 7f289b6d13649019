"""Peak memory of many pairs in d = 2: a process for each number of pairs, so that each peak is its own.

Run ``python tests/benchmarks/memory.py [pairs] [limit in GiB]``: the largest number of pairs (default 100,000) from
straight lines, and smaller ones with every start, under a small decoder and a closed form.  The slope between the two
largest of a row says what a pair costs beside what the process has anyway.  Ends with status 1 if a peak is above the
limit (default 4).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

from peers import table


def one(space: str, starts: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Solve ``count`` pairs here and say what it took; the peak is of the process, imports included."""
    import torch
    from hard_pairs import random_mlp

    import posthoc_metric as pm
    from posthoc_metric.spaces import Sphere

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    if space == "sphere":
        metric: pm.Metric = Sphere()
    else:
        metric = pm.PullbackMetric(pm.Decoder(random_mlp([2, 16, 8], torch.nn.Tanh), latent_dim=2))
    a, b = (0.5 * torch.randn(count, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = time.process_time()
    solution = metric.geodesic(a, b, **({} if starts == "all" else {"starts": starts}))
    seconds = time.process_time() - clock
    return {
        "before": before / 1024,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "seconds": seconds,
        "converged": float(solution.converged.double().mean()),
    }


def apart(space: str, starts: str, count: int) -> dict[str, Any]:
    """:func:`one` in a process of its own."""
    call = [sys.executable, __file__, "one", space, starts, str(count)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(count: int = 100_000, limit: float = 4.0) -> bool:
    """Print the table; whether every peak is within the limit."""
    rows, within = [], True
    for space, starts, counts in (
        ("sphere", "straight", (count // 100, count // 10, count)),
        ("decoder", "straight", (count // 100, count // 10, count)),
        ("decoder", "all", (count // 100, count // 20)),
    ):
        peaks: list[tuple[int, float]] = []
        for number in counts:
            found = apart(space, starts, max(1, number))
            slope = (found["peak"] - peaks[-1][1]) * 1024 / (number - peaks[-1][0]) if peaks else float("nan")
            peaks.append((number, found["peak"]))
            within &= found["peak"] <= 1024 * limit
            ms = 1e3 * found["seconds"] / max(1, number)
            rows.append((space, starts, number, found["before"], found["peak"], slope, ms, found["converged"]))
            print(
                f"{space}, {starts}: {number} pairs, peak {found['peak']:.0f} MiB, {found['seconds']:.0f} s", flush=True
            )
    header = ("metric", "starts", "pairs", "MiB before", "MiB peak", "KiB/pair", "ms/pair", "converged")
    print(table(header, rows))
    print(f"all within {limit:g} GiB: {'yes' if within else 'no'}")
    return within


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(one(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        kinds = (int, float)
        sys.exit(0 if main(*(kind(argument) for kind, argument in zip(kinds, sys.argv[1:3], strict=False))) else 1)
