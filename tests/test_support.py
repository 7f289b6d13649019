from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from posthoc_metric.errors import InvalidArgumentError
from posthoc_metric.support import Support


@pytest.mark.parametrize("dim", [2, 30])
def test_distance_and_offset_are_those_of_their_definition(dim):
    latents = torch.randn(300, dim, generator=torch.Generator().manual_seed(0))
    support = Support(latents)
    z = 3 * torch.randn(50, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    nearest = cdist(z.numpy(), support.training.numpy()).min(1)
    held_out = cdist(support.calibration.numpy(), support.training.numpy()).min(1)
    radius = math.sqrt(latents.double().var(0, correction=0).sum())
    expected = (nearest - np.quantile(held_out, 0.95)) / radius
    np.testing.assert_allclose(support.offset(z).numpy(), expected, rtol=1e-6, atol=1e-7)


def test_in_few_dimensions_every_latent_of_very_many_is_known():
    """Else an outlier with a centre of its own has a low score in what counts as void, and the wall gets no room."""
    support = Support(torch.randn(150_000, 2, generator=torch.Generator().manual_seed(0)))
    assert support.distance(support.training[-1000:]).max() == 0


def test_the_split_is_disjoint_complete_and_seeded():
    latents = torch.arange(200.0)[:, None].repeat(1, 2)
    support = Support(latents, seed=3)
    parts = torch.cat([support.audit, support.calibration, support.training])
    assert sorted(parts[:, 0].tolist()) == latents[:, 0].tolist()
    assert torch.equal(support.latents, latents.double())
    assert torch.equal(latents[support.training_rows].double(), support.training)
    assert torch.equal(Support(latents, seed=3).audit, support.audit)
    assert not torch.equal(Support(latents, seed=4).audit, support.audit)


@pytest.mark.parametrize("dim", [1, 2, 40])
@pytest.mark.parametrize("offset", [0.25, 1.0, 1000.0])
def test_shells_have_the_offset_they_say(dim, offset):
    support = Support(torch.randn(400, dim, generator=torch.Generator().manual_seed(0)))
    reached = support.offset(support.shell(offset, 60))
    assert float((reached - offset).abs().max()) < 2e-3


def test_gaps_lie_off_the_data():
    generator = torch.Generator().manual_seed(0)
    blobs = torch.cat([torch.randn(200, 2, generator=generator) * 0.2 + shift for shift in (-3, 3)])
    support = Support(blobs)
    gaps = support.gaps(50)
    assert len(gaps) == 50
    assert float(support.offset(gaps).min()) > 0


def test_drawn_points_move_with_the_latents():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(300, 3, dtype=torch.float64, generator=generator).exp()
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    moved = Support(latents @ rotation.T * 50 + 1e4)
    expected = Support(latents).shell(1.0, 20) @ rotation.T * 50 + 1e4
    torch.testing.assert_close(moved.shell(1.0, 20), expected, rtol=1e-7, atol=1e-4)


@pytest.mark.parametrize(
    ("latents", "words"), [(torch.randn(5, 2), "at least 20 points"), (torch.ones(50, 2), "all rows are equal")]
)
def test_latents_that_cannot_be_split_are_refused(latents, words):
    with pytest.raises(InvalidArgumentError, match=words):
        Support(latents)


@pytest.mark.parametrize("dim", [1, 2, 30])
def test_the_radius_of_ordinary_latents_is_their_root_mean_square_distance(dim):
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, dim, generator=generator)
    heavy = normal / torch.randn(2000, 3, generator=generator).square().mean(1, keepdim=True).sqrt()
    # a cluster of a fiftieth is no outlier
    clusters = 0.1 * normal + 20 * (torch.rand(2000, 1, generator=generator) < 0.02)
    for latents in (normal, heavy, clusters, normal[:20], normal + 1e5):
        assert Support(latents).radius == pytest.approx(
            math.sqrt(latents.double().var(0, correction=0).sum()), rel=1e-9
        )


@pytest.mark.parametrize("count", [20, 2000])
@pytest.mark.parametrize("far", [100.0, 1e4, 1e8])
def test_a_latent_gone_astray_does_not_set_the_radius(count, far):
    latents = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    clean = Support(latents).radius
    latents[7] = far
    assert Support(latents).radius == pytest.approx(clean, rel=0.25 if count == 20 else 0.05)


def test_latents_that_but_for_one_are_equal_have_a_radius():
    latents = torch.ones(50, 2)
    latents[7] = 2.0
    assert Support(latents).radius > 0


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_no_latent_has_copies_in_two_of_the_shares(copies):
    """Copies of training latents, held out, would be taken for known wherever other latents lie."""
    distinct = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    latents = torch.cat([distinct, -0.0 * distinct[:1], distinct.repeat(copies - 1, 1)])
    support = Support(latents)
    shares = [support.training, support.calibration, support.audit]
    assert sum(map(len, shares)) == len(latents)
    assert torch.equal(support.latents, latents.double())
    assert torch.equal(latents[support.calibration_rows].double(), support.calibration)
    assert torch.equal(latents[support.training_rows].double(), support.training)
    kinds = [{tuple(row) for row in share.tolist()} for share in shares]
    assert not (kinds[0] & kinds[1] or kinds[0] & kinds[2] or kinds[1] & kinds[2])
    assert all(0.14 <= len(share) / len(latents) <= 0.17 for share in shares[1:])
    again = Support(latents)
    assert torch.equal(again.audit, support.audit)


def test_too_few_distinct_latents_are_split_as_they_are():
    support = Support(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).repeat(20, 1))
    assert [len(share) for share in (support.training, support.calibration, support.audit)] == [70, 15, 15]


def test_latents_without_copies_are_split_by_the_seed_alone():
    latents = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    assert torch.equal(Support(latents, seed=3).training, latents[order[60:]].double())
