"""Processor time and peak memory of repairs on a million latents, alone and with data on disk.

Run ``python tests/benchmarks/million_latents.py FOLDER``; the data, (N, 784) in single precision, are 3.1 GB and are
written to FOLDER once.  Every row is a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import posthoc_metric as pm

COUNT = 1_000_000


def decoder() -> pm.Decoder:
    """An untrained perceptron, d = 2 and D = 784: what is measured does not depend on its weights."""
    torch.manual_seed(0)
    layers = [nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 784), nn.Sigmoid()]
    return pm.Decoder(nn.Sequential(*layers), latent_dim=2)


def write(path: Path, latents: torch.Tensor) -> None:
    """The decoder's outputs as a file to be mapped."""
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(latents), 784))
    for start in range(0, len(latents), 20_000):
        rows[start : start + 20_000] = decoder()(latents[start : start + 20_000]).numpy()
    rows.flush()


def one(uncertainty: str, path: Path | None, count: int) -> str:
    """One repair in this process."""
    torch.set_num_threads(1)
    latents = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    data = None if path is None else np.load(path, mmap_mode="r")
    started = time.process_time()
    repaired = pm.repair(decoder(), latents, data, uncertainty=uncertainty)
    seconds = time.process_time() - started
    unit = 2**30 if sys.platform == "darwin" else 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    passed = repaired.audit(pairs=0, baseline=False).passed
    kind = "latents alone" if path is None else "data on disk"
    return (
        f"{uncertainty:4s} {kind:14s} {seconds:6.1f} s of processor time, peak {peak:.2f} GiB, audit passed: {passed}"
    )


def main(folder: Path, count: int = COUNT) -> None:
    """Print the four lines; the data are written by a process of their own, whose memory does not count."""
    path = folder / f"million_latents_{count}.npy"
    base = [sys.executable, __file__, str(folder), "--count", str(count)]
    if not path.exists():
        subprocess.run([*base, "--write"], check=True)
    for uncertainty in ("rbf", "gp"):
        for more in ([], ["--data"]):
            subprocess.run([*base, "--one", uncertainty, *more], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    for hidden in ("--write", "--data"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    file = chosen.folder / f"million_latents_{chosen.count}.npy"
    if chosen.write:
        write(file, torch.randn(chosen.count, 2, generator=torch.Generator().manual_seed(0)))
    elif chosen.one:
        print(one(chosen.one, file if chosen.data else None, chosen.count), flush=True)
    else:
        main(chosen.folder, chosen.count)
