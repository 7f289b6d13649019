"""Jacobians of decoders: this library's route against plain torch ways, medians of repeated calls.

Run as ``python tests/benchmarks/decoder_jacobian.py``; nothing is asserted.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from posthoc_metric import Decoder


def median(call: Callable[[], object], repeats: int = 9) -> float:
    """Milliseconds."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2] * 1e3


def by_loop(module: nn.Module, z: Tensor) -> Tensor:
    """One batched ``torch.func.jvp`` a column."""
    columns = []
    for j in range(z.shape[1]):
        v = torch.zeros_like(z)
        v[:, j] = 1
        columns.append(torch.func.jvp(module, (z,), (v,))[1])
    return torch.stack(columns, dim=-1)


def by_row(module: nn.Module, z: Tensor) -> Tensor:
    """``vmap(jacfwd)``, the usual advice."""
    return torch.func.vmap(torch.func.jacfwd(lambda row: module(row[None])[0]))(z)


def mlp(dim: int, width: int, out: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out), nn.Sigmoid()
    ).requires_grad_(False)


def normed(dim: int, width: int, out: int) -> nn.Module:
    layers = nn.Sequential(
        nn.Linear(dim, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, out), nn.BatchNorm1d(out)
    )
    return layers.eval().requires_grad_(False)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cases = [
        ("2 -> 64", mlp(2, 64, 64), 2),
        ("2 -> 784", mlp(2, 128, 784), 2),
        ("2 -> 784, norms", normed(2, 128, 784), 2),
        ("20 -> 784", mlp(20, 256, 784), 20),
    ]
    for name, module, dim in cases:
        start = time.perf_counter()
        decoder = Decoder(module)
        print(f"{name}: wrapped in {(time.perf_counter() - start) * 1e3:.0f} ms")
        for rows in (100, 1000):
            z = torch.randn(rows, dim)
            value, ours = median(lambda: decoder(z)), median(lambda: decoder.value_and_jacobian(z))  # noqa: B023
            loop, row = median(lambda: by_loop(module, z)), median(lambda: by_row(module, z))  # noqa: B023
            print(
                f"  {rows:5d} rows: value {value:7.2f} ms, value and Jacobian {ours:8.2f} ms "
                f"(loop of jvp x{loop / ours:.2f}, vmap(jacfwd) x{row / ours:.2f})"
            )


if __name__ == "__main__":
    main()
