"""Inversion: recovery of a generator's own samples, agreement with SciPy, one bad row among good ones."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.optimize
import torch
from family import gan
from torch import nn

from posthoc_metric.decoder import Decoder
from posthoc_metric.errors import DecoderError, InvalidArgumentError
from posthoc_metric.examples import digits_vae
from posthoc_metric.invert import InversionStatus, invert


def _samples(decoder, rows, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return decoder(torch.randn(rows, decoder.latent_dim, generator=generator))


def _generator(kind):
    if kind == "trained conv":
        return Decoder(gan(10, True).decoder, latent_dim=10)
    if kind == "trained wide":
        return Decoder(gan(64).decoder, latent_dim=64)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "random conv":
            module = nn.Sequential(
                nn.Linear(16, 16 * 4 * 4),
                nn.Unflatten(1, (16, 4, 4)),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.ConvTranspose2d(16, 8, 4, 2, 1),
                nn.ReLU(),
                nn.ConvTranspose2d(8, 3, 4, 2, 1),
                nn.Tanh(),
            )
            return Decoder(module, latent_dim=16)
        # 20 latents of which the output sees five: every Jacobian has rank 5
        return Decoder(nn.Sequential(nn.Linear(20, 5), nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 30)), latent_dim=20)


@pytest.mark.parametrize("kind", ["trained conv", "trained wide", "random conv", "rank deficient"])
def test_outputs_of_the_generators_own_samples_are_recovered(kind):
    decoder = _generator(kind)
    data = _samples(decoder, 60)
    found = invert(decoder, data)
    relative = (decoder(found.latents) - data).norm(dim=1) / data.norm(dim=1)
    assert float((relative <= 0.01).double().mean()) >= 0.95
    torch.testing.assert_close(found.residual, relative, rtol=1e-3, atol=2e-6)
    assert found.latents.dtype == torch.float32
    for status, residual in zip(found.status, found.residual, strict=True):
        assert (status is InversionStatus.REPRODUCED) == (float(residual) <= 0.01)


def test_data_off_the_range_get_the_least_squares_latent_of_scipy():
    decoder = Decoder(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6)).double(), latent_dim=2)
    data = _samples(decoder, 5).double() + 0.2 * torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    found = invert(decoder, data, max_steps=200)
    for row in range(5):
        solution = scipy.optimize.least_squares(
            lambda z, row=row: (decoder(torch.from_numpy(z)[None])[0] - data[row]).numpy(),
            found.latents[row].numpy(),
            xtol=1e-14,
            ftol=1e-14,
        )
        reached = float((2 * solution.cost) ** 0.5 / data[row].norm())
        assert float(found.residual[row]) == pytest.approx(reached, rel=1e-5)
        assert found.status[row] is InversionStatus.BEST_FIT
    assert found.converged.all()
    assert "residual" in str(found.status[0])


def test_rows_do_not_depend_on_each_other():
    decoder = _generator("random conv")
    data = _samples(decoder, 6)
    together = invert(decoder, data, starts=200)
    alone = [invert(decoder, data[row : row + 1], starts=200) for row in range(6)]
    for row, single in enumerate(alone):
        assert single.status[0] is together.status[row]
        assert float(single.residual[0]) == pytest.approx(float(together.residual[row]), abs=1e-3)


def test_more_starts_find_what_one_start_misses():
    class Bumps(nn.Module):
        """A winding curve: squared distance to a point on it has many local minima."""

        def forward(self, z):
            return torch.cat([z, 3 * torch.sin(6 * z), 3 * torch.cos(6 * z)], dim=1)

    decoder = Decoder(Bumps(), latent_dim=1)
    data = _samples(decoder, 40)
    one = invert(decoder, data, starts=1, tries=1)
    many = invert(decoder, data, starts=2000, tries=4)
    assert float((one.residual <= 0.01).double().mean()) < 0.6
    assert float((many.residual <= 0.01).double().mean()) == 1.0
    assert int(one.starts.max()) == 1


class _Holed(nn.Module):
    """NaN where the first latent exceeds a half."""

    def forward(self, z):
        return torch.where(z[:, :1] > 0.5, torch.nan, torch.cat([z, z.square(), z.prod(1, keepdim=True)], dim=1))


class _Plain:
    """A decoder that answers with an error naming the rows, as :class:`Decoder` does."""

    latent_dim, output_dim = 2, 5

    def value_and_jacobian(self, z):
        value = self(z)
        return value, torch.func.vmap(torch.func.jacfwd(lambda row: _Holed()(row[None])[0]))(z)

    def __call__(self, z):
        value = _Holed()(z)
        bad = torch.nonzero(~value.isfinite().all(1)).flatten()
        if len(bad):
            raise DecoderError("not finite", rows=tuple(bad.tolist()))
        return value


def test_a_hole_in_the_decoder_stops_no_other_row():
    decoder = _Plain()
    good = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    good[:, 0] = -good[:, 0].abs()
    found = invert(decoder, decoder(good), starts=100)
    assert all(status is InversionStatus.REPRODUCED for status in found.status)
    inside = torch.full((3, 2), 2.0, dtype=torch.float64)
    lost = invert(decoder, decoder(good), prior=inside)
    assert all(status is InversionStatus.NOT_FINITE for status in lost.status)
    assert lost.latents.isnan().all() and lost.residual.isnan().all() and not lost.converged.any()


def test_a_saturated_start_is_not_called_reproduced():
    decoder = Decoder(nn.Sequential(nn.Linear(2, 4), nn.Sigmoid()), latent_dim=2)
    found = invert(decoder, _samples(decoder, 3), prior=torch.full((1, 2), 1e6))
    assert all(status is InversionStatus.BEST_FIT for status in found.status)
    assert (found.residual > 0.01).all()


def test_step_limit_is_told():
    decoder = _generator("trained wide")
    found = invert(decoder, _samples(decoder, 4), starts=2, tries=1, max_steps=2, tolerance=1e-6)
    assert InversionStatus.UNFINISHED in found.status
    assert not found.converged.all()


def test_prior_kind_dtype_shape_and_seed():
    decoder = _generator("trained conv")
    data = _samples(decoder, 4)
    images = data.reshape(4, 1, 8, 8).double().numpy()
    before = images.copy()
    found = invert(decoder, images, prior=np.random.default_rng(0).normal(size=(50, 10)), seed=4)
    assert isinstance(found.latents, np.ndarray) and found.latents.dtype == np.float64
    assert found.steps.shape == found.starts.shape == found.converged.shape == (4,)
    assert np.array_equal(before, images)
    state = torch.random.get_rng_state()
    assert torch.equal(invert(decoder, data, seed=1).latents, invert(decoder, data, seed=1).latents)
    assert torch.equal(state, torch.random.get_rng_state())


def test_zero_rows_and_empty_batches():
    decoder = Decoder(nn.Linear(2, 4, bias=False), latent_dim=2)
    data = torch.cat([_samples(decoder, 3), torch.zeros(1, 4)])
    found = invert(decoder, data)
    assert (found.residual < 1e-3).all()
    assert invert(decoder, data[:0]).latents.shape == (0, 2)


def test_small_blocks_change_nothing(monkeypatch):
    decoder = _generator("random conv")
    data = _samples(decoder, 7)
    whole = invert(decoder, data, starts=100)
    monkeypatch.setattr(sys.modules["posthoc_metric.invert"], "_ENTRIES", 5000)
    pieces = invert(decoder, data, starts=100)
    assert whole.status == pieces.status
    torch.testing.assert_close(whole.residual, pieces.residual, rtol=0, atol=1e-3)


def test_guards():
    decoder = _generator("rank deficient")
    data = _samples(decoder, 2)
    with pytest.raises(InvalidArgumentError, match="`data` must have 30 values"):
        invert(decoder, data[:, :7])
    with pytest.raises(InvalidArgumentError, match="row 1 is"):
        invert(decoder, torch.cat([data[:1], torch.full((1, 30), torch.nan)]))
    # their rows once counted as reproduced
    with pytest.raises(InvalidArgumentError, match="another unit"):
        invert(decoder, 1e200 * data.double())
    with pytest.raises(InvalidArgumentError, match="Add an axis"):
        invert(decoder, data[0])
    with pytest.raises(InvalidArgumentError, match="`tries`"):
        invert(decoder, data, tries=0)
    with pytest.raises(InvalidArgumentError, match="`tolerance`"):
        invert(decoder, data, tolerance=2.0)
    with pytest.raises(InvalidArgumentError, match="`prior`"):
        invert(decoder, data, prior=torch.zeros(3, 7))
    with pytest.raises(TypeError, match="start"):
        invert(decoder, data, start=3)


def test_a_result_says_how_it_went_and_not_every_number():
    decoder = _generator("random conv")
    data = _samples(decoder, 6)
    data[2] += 5.0
    found = invert(decoder, data)
    lines = repr(found).splitlines()
    assert lines[0].startswith("6 latents, d = 16: 5 REPRODUCED, 1 ") and "; residuals " in lines[0]
    assert lines[1:] == [f"  row 2 {found.status[2]}"]
    assert len(found) == 6 and repr(invert(decoder, data[:0])).startswith("0 latents, d = 16: nothing to invert")


def test_data_in_half_precision_whose_squares_it_cannot_hold():
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.images = digits_vae()[0]

        def forward(self, z):
            return 200 * self.images(z)

    decoder = Decoder(Large(), latent_dim=2)
    z = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-1.0, 1.5], [-2.0, -0.5]])
    found = invert(decoder, decoder(z).half(), starts=256, tries=1)
    assert found.latents.dtype == torch.float16 and bool((found.residual < 0.01).all())
