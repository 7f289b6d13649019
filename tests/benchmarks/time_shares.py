"""Where the CPU time of a solve goes: the decoder's own forward and JVPs, the repair's weight, everything else.

Run ``python tests/benchmarks/time_shares.py [pairs] [dimensions ...]``; repaired MLP decoders with two hidden layers of
256 and of 512, D = 784, default repair.
The decoder counts from the call of the wrapped map on, the library's own wrapping of it included.  (Not profile.py:
that would hide the standard library's module from everything that is run beside it.)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from models import mlp_vae, pairs
from peers import table, timed

import posthoc_metric as pm
from posthoc_metric.metric import MetricParts, StructuredMetric


class Clocked:
    """Anything whose calls, and those of its methods, are timed; ``clock`` maps names to seconds."""

    def __init__(self, inner: Any, clock: dict[str, float], name: str):
        self._inner, self._clock, self._name = inner, clock, name

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._inner, attribute)
        return self._timed(found) if callable(found) else found

    def __call__(self, *arguments: Any) -> Any:
        return self._timed(self._inner)(*arguments)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*arguments: Any, **named: Any) -> Any:
            before = time.process_time()
            try:
                found = call(*arguments, **named)
                # a value with what is still to be asked about it
                later = isinstance(found, tuple) and callable(found[-1])
                return (*found[:-1], self._timed(found[-1])) if later else found
            finally:
                self._clock[self._name] += time.process_time() - before

        return clocked


def shares(dim: int, hidden: int, count: int, epochs: int) -> tuple[Any, ...]:
    """One row of the table, of a solve whose start graphs are there."""
    module, latents, data = mlp_vae(dim, hidden, epochs)
    repaired = pm.repair(pm.Decoder(module, latent_dim=dim), latents.double(), data)
    clock = {"decoder": 0.0, "weight": 0.0}
    parts = repaired.parts()
    clocked = MetricParts(Clocked(parts.embedding, clock, "decoder"), Clocked(parts.weight, clock, "weight"), None)
    metric = StructuredMetric(clocked, dim)
    metric.support = repaired.support
    a, b = (z.double() for z in pairs(repaired.geometry.latents, count))
    metric.geodesic(a[:3], b[:3])
    clock.update(decoder=0.0, weight=0.0)
    total, solution = timed(lambda: metric.geodesic(a, b))
    rest = total - sum(clock.values())
    found = (clock["decoder"] / total, clock["weight"] / total, rest / total)
    return (dim, hidden, 1e3 * total / count, *found, float(solution.converged.double().mean()))


def main(count: int = 100, dims: tuple[int, ...] = (2, 20, 64), epochs: int = 40) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    header = ("d", "hidden", "ms/pair", "decoder", "weight", "rest", "converged")
    for dim, hidden in product(dims, (256, 512)):
        # each as it comes: many dimensions take long
        print(table(header, [shares(dim, hidden, count, epochs)]), flush=True)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers[:1] or (100,)), *((tuple(numbers[1:]),) if numbers[1:] else ()))
