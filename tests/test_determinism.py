"""The same seed gives the same bits: twice, in another process, after save and load; threads change last digits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import posthoc_metric as pm
from posthoc_metric.estimators import GeodesicKMedoids

#: relative difference of one and two threads, by what is compared: a curve depends on every rounding before it
THREADS = {"tensor": 1e-9, "gate": 1e-9, "log volumes": 1e-9, "length": 1e-6}


def wide():
    """A decoder wide enough for its matrix products to be shared among threads."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 24)).double()


def latents(count=200):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    z[: count // 2] += 4
    return z


def results(uncertainty="rbf", seed=0, everything=True):
    """What a run gives, by name."""
    decoder, z = pm.Decoder(wide(), latent_dim=3), latents()
    repaired = pm.repair(decoder, z, decoder(z), uncertainty=uncertainty, seed=seed)
    solution = repaired.geodesic(z[:2], z[100:102])
    found = {
        "tensor": repaired.tensor(2 * z[:50]),
        "gate": torch.tensor(list(repaired.gate.numbers().values()), dtype=torch.float64),
        "curve": solution.points,
        "length": solution.length,
        "log volumes": repaired.log_volume(3 * z[:50]),
    }
    if not everything:
        return found
    audit = repaired.audit(pairs=2, seed=seed, points=100)
    return found | {
        "distances": repaired.distances(z[:3]),
        "criteria": torch.tensor([line.after for line in audit.criteria], dtype=torch.float64),
        "inverse": pm.invert(decoder, decoder(z[:3]), starts=64, seed=seed).latents,
    }


def same(one, other):
    return [name for name in other if not torch.equal(one[name].nan_to_num(-1), other[name].nan_to_num(-1))]


@pytest.fixture(scope="module")
def first():
    return results()


def test_twice_the_same(first):
    assert same(first, results()) == []


def test_another_seed_gives_another_split(first):
    assert "tensor" in same(first, results(seed=1, everything=False))


def test_what_was_drawn_before_does_not_matter(first):
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  (it is the global generator that must not matter)
    state = torch.random.get_rng_state()
    assert same(first, results()) == []
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_process_gives_the_same(first):
    """Hashes of strings differ from process to process; nothing may depend on the order of a set."""
    code = "import torch; torch.set_num_threads(1); import test_determinism as t; print(t.digest(t.results()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest(first)


def digest(found):
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in found.values())).hexdigest()


def test_two_threads_agree_with_one_to_the_stated_precision(first):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = results(everything=False)
    finally:
        torch.set_num_threads(threads)
    for name, tolerance in THREADS.items():
        gap = (found[name] - first[name]).abs().max() / first[name].abs().max()
        assert gap <= tolerance, (name, float(gap))


@pytest.mark.parametrize("uncertainty", ["rbf", "gp", "rbf-published"])
def test_the_same_after_save_and_load(tmp_path, uncertainty):
    decoder, z = pm.Decoder(wide(), latent_dim=3), latents(120)
    repaired = pm.repair(decoder, z, decoder(z), uncertainty=uncertainty)
    repaired.save(tmp_path / "r.safetensors")
    loaded = pm.load(tmp_path / "r.safetensors", decoder)
    assert torch.equal(loaded.tensor(2 * z[:40]), repaired.tensor(2 * z[:40]))
    one, other = (metric.geodesic(z[:1], z[60:61]) for metric in (repaired, loaded))
    assert torch.equal(one.points, other.points) and torch.equal(one.length, other.length)
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert torch.equal(pm.load(again, decoder).tensor(z), repaired.tensor(z))


def test_one_file_has_the_same_bytes_twice(tmp_path):
    decoder, z = pm.Decoder(wide(), latent_dim=3), latents(120)
    for name in ("a", "b"):
        pm.repair(decoder, z).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_clusters_and_mixtures_follow_their_seed():
    decoder, z = pm.Decoder(wide(), latent_dim=3), latents(120)
    repaired = pm.repair(decoder, z)
    fits = [GeodesicKMedoids(2, repaired, random_state=3).fit(z[::20].numpy()) for _ in range(2)]
    assert (fits[0].labels_ == fits[1].labels_).all() and fits[0].inertia_ == fits[1].inertia_
    labels = torch.arange(len(z)) % 3
    drawn = [pm.geodesic_mixup(repaired, z, labels, curve="straight", pairs=8, seed=5).sample(6) for _ in range(2)]
    assert torch.equal(drawn[0][0], drawn[1][0]) and torch.equal(drawn[0][1], drawn[1][1])
