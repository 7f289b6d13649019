"""The published RBF's wall: how many pairs come within 1 % of the reference, and what is said of those that do not.

Run ``python tests/benchmarks/wall.py [pairs]``.  The same decoder as in mlp.py, with ``uncertainty="rbf-published"``.
"""

from __future__ import annotations

import sys
from collections import Counter

import torch
from mlp import decoder_and_metric
from models import pairs
from peers import table, timed
from reference import fine_reference


def main(count: int = 100, side: int = 160, spans: int = 256, fixed_steps: int = 200, epochs: int = 40) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    _, metric = decoder_and_metric("rbf-published", epochs)
    a, b = (z.double() for z in pairs(metric.geometry.latents, count))
    reference, _ = fine_reference(metric, a, b, side=side, spans=spans)
    rows = []
    for name, options in (
        ("relaxation", {}),
        ("relaxation, 512 spans", {"max_spans": 512}),
        ("fixed-point", {"solver": "fixed-point", "max_steps": fixed_steps}),
    ):
        seconds, solution = timed(lambda options=options: metric.geodesic(a, b, **options))  # type: ignore[misc]
        excess = (solution.length / reference - 1).nan_to_num(nan=float("inf"))
        close = excess <= 1e-2
        told = ~close & ~solution.converged
        rows.append(
            (
                name,
                1e3 * seconds / count,
                float(solution.evaluations.double().median()),
                float(excess.median()),
                float(close.double().mean()),
                int((~close).sum()),
                int(told.sum()),
                float(solution.converged.double().mean()),
            )
        )
        print(name, dict(Counter(status.name for status in solution.status)), f"shortest {float(excess.min()):+.1e}")
    header = ("solver", "ms/pair", "evaluations", "median excess", "<= 1 %", "not", "of those said so", "converged")
    print(table(header, rows), flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
