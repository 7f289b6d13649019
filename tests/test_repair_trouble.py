"""Decoders and latents that trouble a repair: what it refuses, what it warns of, what it bears."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import posthoc_metric as pm
from posthoc_metric.errors import DecoderError, FitError


def shares(last):
    """Logits that grow with the latents, their softmax, and ``last`` of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 6), nn.Softmax(-1))
    return pm.Decoder(lambda z: last(net(z)), latent_dim=2)


def normal(count=400, dim=2):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("last", [torch.sqrt, torch.log], ids=["sqrt", "log"])
def test_a_decoder_that_overflows_in_the_void_only_is_named_by_the_offset(last):
    with pytest.raises(FitError, match=r"at \d+ of 125 points tried 1000 data radii.*add an epsilon"):
        pm.repair(shares(last), normal())
    pm.repair(shares(lambda p: last(p + 1e-6)), normal())


def test_a_derivative_that_is_not_finite_at_latents_names_the_callers_rows():
    latents = normal()
    latents[[7, 33, 250, 399]] = torch.tensor([0.0, 9.0])
    decoder = pm.Decoder(lambda z: torch.cat([z, (z[:, 1:] - 9).abs().sqrt()], 1), probe=latents, latent_dim=2)
    with pytest.raises(DecoderError, match="of `latents` gives? NaN or infinity") as caught:
        pm.repair(decoder, latents)
    assert caught.value.rows and set(caught.value.rows) <= {7, 33, 250, 399}


def test_one_latent_gone_astray_does_not_take_the_wall_away_from_the_others():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = pm.Decoder(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5)))
    latents = normal(1000)
    clean = pm.repair(decoder, latents)
    around = clean.geometry.shell(1.0, 100)
    latents[7] = 1e4
    found = pm.repair(decoder, latents).eigenvalues(around)[:, 0].median()
    assert float(found) > 0.5 * float(clean.eigenvalues(around)[:, 0].median())
