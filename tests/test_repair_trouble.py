"""Decoders and latents that trouble a repair: what it refuses, what it warns of, what it bears."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import posthoc_metric as pm
from posthoc_metric.belonging import _doubt
from posthoc_metric.errors import CalibrationWarning, DecoderError, DerivativeWarning, FitError
from posthoc_metric.examples import digits, digits_vae


def shares(last):
    """Logits that grow with the latents, their softmax, and ``last`` of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 6), nn.Softmax(-1))
    return pm.Decoder(lambda z: last(net(z)), latent_dim=2)


def normal(count=400, dim=2):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1))


def in_other_units(scale):
    """A decoder of three latents given in other units, and its latents."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 5))
    return (lambda z: net(z / scale)), normal(dim=3) * scale


@pytest.mark.parametrize("last", [torch.sqrt, torch.log], ids=["sqrt", "log"])
def test_a_decoder_that_overflows_far_out_is_held_to_what_lies_before(last, tmp_path):
    with pytest.warns(CalibrationWarning, match=r"NaN or infinite at \d+ of 125 points tried 1000 data radii.*to 100 "):
        repaired = pm.repair(shares(last), normal())
    audit = repaired.audit(pairs=0)
    assert audit.passed and max(row.offset for row in audit.shells if row.shell.is_void) == 100
    assert "out to offset 100" in {line.name: line.description for line in audit.criteria}["persistence"]
    repaired.save(tmp_path / "repaired.safetensors")
    assert pm.load(tmp_path / "repaired.safetensors", shares(last)).gate.reach == 100
    assert pm.repair(shares(lambda p: last(p + 1e-6)), normal()).gate.reach == 1000


@pytest.mark.parametrize(("slope", "reach"), [(0.03, 100), (0.1, 10), (1.0, 5)])
def test_an_exponential_does_not_make_the_wall_around_the_data_as_steep_as_itself(slope, reach):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Linear(2, 6).double()
    with pytest.warns(CalibrationWarning, match=f"too steep.*out to {reach} data radii"):
        repaired = pm.repair(pm.Decoder(lambda z: (slope * net(z) + 1).exp(), latent_dim=2), normal(1000))
    audit = repaired.audit(pairs=5)
    found = {line.name: line.after for line in audit.criteria}
    assert audit.passed and found["inflation"] < 1e5
    # from one side of the void to the other, around the data
    assert repaired.geodesic([[-3.0, 0.0], [-3.0, 1.0]], [[3.0, 0.0], [6.0, 1.0]]).converged.all()


def test_a_decoder_that_overflows_beside_the_data_is_refused():
    latents = normal()
    most = 1.1 * float(latents.norm(dim=1).max())
    ends = pm.Decoder(lambda z: torch.cat([z, (most - z.norm(dim=1, keepdim=True)).log()], 1), latent_dim=2)
    with pytest.raises(FitError, match=r"points tried (0.25|0.5|1) data radii.*an exp that overflows"):
        pm.repair(ends, latents)


def test_a_derivative_that_is_not_finite_at_latents_names_the_callers_rows():
    latents = normal()
    latents[[7, 33, 250, 399]] = torch.tensor([0.0, 9.0])
    decoder = pm.Decoder(lambda z: torch.cat([z, (z[:, 1:] - 9).abs().sqrt()], 1), probe=latents, latent_dim=2)
    with pytest.raises(DecoderError, match="of `latents` gives? NaN or infinity") as caught:
        pm.repair(decoder, latents)
    assert caught.value.rows and set(caught.value.rows) <= {7, 33, 250, 399}


@pytest.mark.parametrize("far", [1e4, 1e8])
def test_one_latent_gone_astray_does_not_take_the_wall_away_from_the_others(far):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = pm.Decoder(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5)))
    latents = normal(1000)
    clean = pm.repair(decoder, latents)
    around = clean.geometry.shell(1.0, 100)
    latents[7] = far
    found = pm.repair(decoder, latents).eigenvalues(around)[:, 0].median()
    assert float(found) > 0.5 * float(clean.eigenvalues(around)[:, 0].median())


@pytest.mark.parametrize("seed", [2, 5])
def test_copies_of_latents_are_not_taken_for_held_out_ones(seed):
    """They would score as known, and others like them be inflated."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = pm.Decoder(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5)))
    generator = torch.Generator().manual_seed(seed)
    latents, others = (torch.randn(count, 2, generator=generator, dtype=torch.float64) for count in (150, 1000))
    for copies in (1, 3):
        repaired = pm.repair(decoder, latents.repeat(copies, 1))
        change = repaired.log_volume(others) - repaired.decoder_metric.log_volume(others)
        assert float((change / 2).quantile(0.9)) < 0.1


@pytest.mark.parametrize("scale", [[1.0, 0.01, 1.0], [1.0, 1.0, 100.0]])
def test_latent_axes_of_very_unequal_scale_are_told_of_and_what_is_advised_helps(scale):
    model, latents = in_other_units(torch.tensor(scale))
    with pytest.warns(CalibrationWarning, match=r"very unequal scale.*times costlier.*`scale = latents.std\(0\)`"):
        pm.repair(pm.Decoder(model, latent_dim=3, probe=latents), latents)
    spread = latents.std(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        pm.repair(pm.Decoder(lambda u: model(u * spread), latent_dim=3), latents / spread)


def test_axes_without_any_spread_that_alone_matter_are_told_of_in_words():
    # a ratio without bound, which came out as a number of 309 digits
    model, latents = in_other_units(torch.ones(3))
    latents[:, 1] = 0.7
    decoder = pm.Decoder(lambda z: model(z * torch.tensor([0.0, 1.0, 0.0])), latent_dim=3)
    with pytest.warns(CalibrationWarning, match="only along latent axes on which the latents do not differ") as caught:
        pm.repair(decoder, latents)
    assert len(str(caught[0].message)) < 500


def test_axes_that_the_decoder_ignores_may_have_any_spread():
    """As the collapsed dimensions of a VAE do; neither may those whose spread goes with the decoder's slope."""
    model, latents = in_other_units(torch.ones(3))
    idle = 1e-3 * normal(dim=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        for factor in (1e-4, 1.0):
            decoder = pm.Decoder(lambda z, f=factor: model(z[:, :3] + f * z[:, 3:].sum(1, keepdim=True)), latent_dim=5)
            pm.repair(decoder, torch.cat([latents, idle], 1))
        decoder = pm.Decoder(lambda z: torch.cat([model(z * torch.tensor([1.0, 0.01, 1.0])), z], 1), latent_dim=3)
        pm.repair(decoder, latents * torch.tensor([1.0, 0.01, 1.0]))


class Last(nn.Module):
    """A small network with ``last`` behind it; ``rows`` counts what it and its copies were called with."""

    rows = 0

    def __init__(self, last, width=8):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, width))
        self.last = last

    def forward(self, z):
        Last.rows += len(z)
        return self.last(self.net(z))


def hemisphere(y):
    q = nn.functional.normalize(y.view(-1, 2, 4), dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)


CUTS = {
    "angle": lambda y: torch.atan2(y[:, :4], y[:, 4:]),
    "remainder": lambda y: torch.remainder(4 * y, 2 * torch.pi),
    "quaternion": hemisphere,
    "one of many": lambda y: torch.cat([y, torch.where(y[:, :1] > 0, y[:, :1], y[:, :1] - 0.3)], 1),
}
CONTINUOUS = {
    "relu": nn.ReLU(),
    "clamp": lambda y: (3 * y).clamp(-1, 1),
    "max-pool": lambda y: nn.functional.max_pool1d(y[:, None], 2)[:, 0],
    "steep": lambda y: torch.sigmoid(1e3 * y),
    "single precision inside": lambda y: torch.sigmoid(20 * y.float()).float(),
    "a constant beside": lambda y: torch.cat([y, 1e3 + 0 * y, 5 + 1e-8 * y], 1),
    "a circle": lambda y: torch.cat([y.cos(), y.sin()], 1),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_decoder_that_jumps_along_a_cut_is_told_of(cut, dtype):
    latents = normal(300)
    with warnings.catch_warnings():
        # what the wrapping itself says of values near the cut is not asked here
        warnings.simplefilter("ignore", DerivativeWarning)
        decoder = pm.Decoder(Last(CUTS[cut]).to(dtype), latent_dim=2)
    with pytest.warns(DerivativeWarning, match=r"jumps on \d+ of 128 segments.*sin and cos"):
        pm.repair(decoder, latents)


@pytest.mark.parametrize("last", CONTINUOUS)
def test_what_is_steep_or_kinked_but_continuous_is_not_taken_for_a_jump(last):
    decoder = pm.Decoder(Last(CONTINUOUS[last]), latent_dim=2)
    before = Last.rows
    assert decoder.cuts(normal(300)) == ""
    assert Last.rows - before < 2000


def encoded():
    """The shipped decoder, and 300 digits with their latents."""
    module, encoder = digits_vae()
    data = digits().data[:300]
    return pm.Decoder(module, latent_dim=2), encoder(data).double(), data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: 255 * x, "`data` may be scaled otherwise.*times as much as decoder"),
        (lambda x: x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))], "may not belong.*row by row"),
        (lambda x: normal(len(x), 64), "may not belong"),
    ],
    ids=["scaled", "shuffled", "others"],
)
def test_data_that_are_not_what_the_latents_encode_are_told_of(change, words):
    decoder, latents, data = encoded()
    with pytest.warns(CalibrationWarning, match=words):
        pm.repair(decoder, latents, change(data))


def test_hardly_any_order_of_the_rows_passes_for_their_own():
    decoder, latents, data = encoded()
    output, data = decoder(latents)[:256].double(), data[:256].double()
    draw = torch.Generator().manual_seed(0)
    assert not [n for n in range(400) if _doubt(output, data[torch.randperm(256, generator=draw)]) == ""]


def test_images_with_their_channels_last_are_told_of_with_the_order_that_is_right():
    """They match better than by chance, as the places of light and dark are much the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = pm.Decoder(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 60), nn.Unflatten(1, (3, 4, 5))))
    latents = normal()
    images = decoder(latents).reshape(-1, 3, 4, 5)
    with pytest.warns(CalibrationWarning, match=r"shape \(4, 5, 3\).*shape \(3, 4, 5\).*with \(0, 3, 1, 2\)"):
        pm.repair(decoder, latents, images.permute(0, 2, 3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        for right in (images.permute(0, 2, 3, 1).permute(0, 3, 1, 2), images.flatten(1), images[:, None]):
            pm.repair(decoder, latents, right)


@pytest.mark.parametrize("count", [20, 300])
def test_data_that_the_decoder_gives_in_another_form_are_no_cause_for_doubt(count):
    decoder, latents, data = encoded()
    output, data = decoder(latents)[:count].double(), data[:count].double()
    noisy = output + 3 * output.std() * normal(count, 64)
    logits = torch.logit(output.clamp(1e-6, 1 - 1e-6))
    collapsed = output.mean(0) + 1e-3 * (output - output.mean(0))
    constant = torch.ones_like(output)
    assert _doubt(output, (data - data.mean(0)) / (data.std(0) + 1e-6)) == ""
    for form in (output, logits, logits.exp(), -1 + 2 * output, collapsed, constant):
        for given in (data, (data > 0.5).double(), data / 255, noisy):
            assert _doubt(form, given) == ""
