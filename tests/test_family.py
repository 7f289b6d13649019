"""The default repair on decoders that nothing here was tuned to one by one."""

from __future__ import annotations

import math

import pytest
import torch
from family import members, mlp
from torch import nn

import posthoc_metric as pm
from posthoc_metric.errors import CalibrationWarning


@pytest.mark.parametrize("index", range(len(members())))
def test_the_audit_passes_on_trained_decoders(index):
    member = members()[index]()
    dim = member.latents.shape[1]
    repaired = pm.repair(pm.Decoder(member.decoder, latent_dim=dim), member.latents, member.data)
    audit = repaired.audit(pairs=0, points=60)
    assert audit.passed, f"{member.name}\n{audit}"


def _ring(count: int) -> torch.Tensor:
    angle = 2 * math.pi * torch.rand(count)
    return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(count, 2)


LATENTS = {
    "ring": lambda: _ring(1000),
    "ring of 200": lambda: _ring(200),
    "200 in d=50": lambda: torch.randn(200, 50),
    "two clusters": lambda: torch.cat([torch.randn(500, 2) * 0.3 - 3, torch.randn(500, 2) * 0.3 + 3]),
    "five clusters in d=5": lambda: (torch.randn(5, 5) * 4).repeat_interleave(200, 0) + 0.3 * torch.randn(1000, 5),
    "unequal densities": lambda: torch.cat([torch.randn(2000, 2) * 0.01 - 1, torch.randn(300, 2) + 3]),
    "every point ten times": lambda: torch.randn(100, 3).repeat(10, 1),
    "one tiny far cluster": lambda: torch.cat([torch.randn(3000, 2), torch.randn(8, 2) * 0.1 + 20]),
    "collapsed axes": lambda: torch.randn(2000, 10) * torch.logspace(0, -4, 10),
    "a plane in d=30": lambda: torch.randn(1500, 2) @ torch.randn(2, 30) + 0.01 * torch.randn(1500, 30),
    "d=1": lambda: torch.randn(500, 1),
    "lattice": lambda: torch.cartesian_prod(torch.linspace(-1, 1, 30), torch.linspace(-1, 1, 30)),
}


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("name", LATENTS)
def test_the_audit_passes_on_latents_of_any_shape(name, activation):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        latents = LATENTS[name]()
        dim = latents.shape[1]
        decoder = pm.Decoder(mlp([dim, 64, 64, 50], activation), latent_dim=dim)
        data = decoder(latents) + 0.05 * torch.randn(len(latents), 50)
    audit = pm.repair(decoder, latents, data).audit(pairs=0, points=60)
    assert audit.passed, f"{name}\n{audit}"


@pytest.mark.parametrize("dim", [2, 5])
def test_few_latents_of_a_prior_lose_some_support_and_say_so(dim):
    """The farthest of a thousand samples lie as far from the rest as the void does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = pm.Decoder(mlp([dim, 64, 64, 50], nn.Tanh), latent_dim=dim)
    latents = torch.randn(1000, dim, generator=torch.Generator().manual_seed(0))
    with pytest.warns(CalibrationWarning, match="only 9[0-9]% of held-out latents"):
        repaired = pm.repair(decoder, latents)
    audit = repaired.audit(pairs=0, points=60)
    assert audit.passed, str(audit)


@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.CalibrationWarning")
@pytest.mark.parametrize(
    ("dim", "count", "seed"),
    [(2, 200, 5), (3, 200, 2), (3, 300, 1), (4, 200, 4), (4, 300, 5), (5, 200, 4), (5, 300, 0)],
)
def test_a_few_hundred_latents_are_enough(dim, count, seed):
    """Thirty held-out latents alone say too little of where the data end: each of these failed with them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = pm.Decoder(mlp([dim, 64, 64, 50], nn.Tanh), latent_dim=dim)
    latents = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    audit = pm.repair(decoder, latents).audit(pairs=0)
    assert audit.passed, str(audit)


def test_heavy_tails_lose_some_support_and_say_so():
    """Held-out latents lie farther from the data than the void does."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        latents = torch.randn(1500, 2) / torch.rand(1500, 1)
        decoder = pm.Decoder(mlp([2, 64, 50], nn.Tanh), latent_dim=2)
    with pytest.warns(CalibrationWarning, match="of held-out latents could be left alone"):
        pm.repair(decoder, latents)
