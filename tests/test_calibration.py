"""What a repair promises holds on points that it has not seen, or it warns."""

from __future__ import annotations

import warnings

import pytest
import torch
from family import mlp
from torch import nn

import posthoc_metric as pm
from posthoc_metric.errors import CalibrationWarning, FitError
from posthoc_metric.support import Support
from posthoc_metric.uncertainty import RBF, Gate
from posthoc_metric.uncertainty.calibration import Knobs, calibrate
from posthoc_metric.uncertainty.evened import Evened
from posthoc_metric.uncertainty.gp import GaussianProcess
from posthoc_metric.uncertainty.measurement import measure
from posthoc_metric.uncertainty.sample import likely


def _decoder(dim: int, seed: int) -> pm.Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pm.Decoder(mlp([dim, 64, 64, 50], nn.Tanh), latent_dim=dim)


def _normal(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def _ring(count: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ways = torch.randn(count, dim, generator=generator)
    noise = 0.15 * torch.randn(count, dim, generator=generator)
    return 2 * ways / ways.norm(dim=1, keepdim=True) + noise


def _repaired(decoder: pm.Decoder, latents: torch.Tensor, **options):
    """Without minding a support that is smaller than asked for, which is told of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=CalibrationWarning)
        warnings.filterwarnings("ignore", message="only 9[0-9]% of held-out", category=CalibrationWarning)
        return pm.repair(decoder, latents, **options)


def _criteria(repaired, seed: int) -> dict:
    return {line.name: line for line in repaired.audit(pairs=0, baseline=False, seed=seed).criteria}


@pytest.mark.parametrize(("dim", "count", "seed"), [(3, 200, 5038), (3, 150, 5149), (5, 200, 5158), (4, 150, 5169)])
def test_the_volume_does_not_fall_on_other_points_of_a_shell(dim, count, seed):
    """Where half of a shell is walled and half is not, medians of a hundred points differ by far more than 0.05."""
    repaired = _repaired(_decoder(dim, seed), _normal(count, dim, seed), seed=seed % 50)
    for audit in range(4):
        assert _criteria(repaired, audit)["persistence"].passed


@pytest.mark.parametrize("count", [120, 500])
def test_a_shape_keeps_to_the_bound_on_the_condition_number(count):
    """A process knows derivatives along a ring and not across it, so that its shape alone has a κ beyond the bound."""
    latents = _ring(count, 2, 7)
    repaired = _repaired(_decoder(2, 0), latents, uncertainty="gp", max_condition_number=1.2)
    near = repaired.geometry.shell(0.5, 100)
    uneven = torch.linalg.eigvalsh(repaired.model.shape()(near))
    assert float((uneven[:, -1] / uneven[:, 0]).sqrt().quantile(0.95)) > 1.2
    assert _criteria(repaired, 0)["conditioning near the data"].passed


@pytest.mark.parametrize(("dim", "count"), [(2, 40), (3, 40), (2, 200), (5, 200)])
def test_inflation_by_a_process_is_no_less_than_asked_for(dim, count):
    latents = _normal(count, dim, count)
    latents[::20] *= 4.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        repaired = pm.repair(_decoder(dim, count), latents, uncertainty="gp")
    held_out = torch.cat([repaired.geometry.audit, repaired.geometry.calibration])
    costliest = repaired.decoder_metric.eigenvalues(held_out)[:, -1].quantile(0.95)
    for offset in (1.0, 2.0, 100.0):
        least = repaired.eigenvalues(repaired.geometry.shell(offset, 400, seed=99))[:, 0].quantile(0.05)
        assert float((least / costliest).sqrt()) > 9.8


class _Certain(RBF):
    """Claims to know one direction of six everywhere."""

    def shape(self):
        return lambda z: torch.diag_embed(torch.tensor([1e-6, 1.0, 1.0, 1.0, 1.0, 1.0]).double().expand(len(z), 6))


class _Holed(RBF):
    """Has no score at one point."""

    hole: torch.Tensor

    def score(self, z):
        return super().score(z).masked_fill((z == self.hole).all(1), float("nan"))


def test_a_score_is_asked_to_be_finite_at_every_point_that_volumes_are_judged_by():
    decoder, support = _decoder(2, 0), Support(_normal(300, 2, 0))
    measured = measure(decoder, support)
    model = _Holed().fit(decoder, support.training)
    for points in (measured.data_points, measured.void_points[3], measured.more_points):
        model.hole = points[0]
        with pytest.raises(FitError, match="score must be finite"):
            calibrate(model, measured, Knobs())


def test_a_model_that_says_it_knows_directions_in_the_void_is_told_of():
    # of falling volumes, too
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        repaired = pm.repair(_decoder(6, 0), _normal(400, 6, 0), uncertainty=_Certain())
    assert any("must tend to the identity" in str(one.message) for one in caught)
    assert not _criteria(repaired, 0)["inflation"].passed


class _Blind(pm.UncertaintyModel):
    """Has the same score everywhere."""

    def fit(self, decoder, latents, data=None, *, seed=0):
        return self

    def score(self, z):
        return 0 * z.sum(1)


def test_a_model_that_does_not_tell_the_data_from_the_void_is_told_of():
    latents = _normal(400, 2, 0)
    with pytest.warns(CalibrationWarning, match="does not tell the data from the void"):
        repaired = pm.repair(_decoder(2, 0), latents, uncertainty=_Blind())
    assert not _criteria(repaired, 0)["inflation"].passed
    change = repaired.log_volume(latents) - repaired.decoder_metric.log_volume(latents)
    assert float(change.median()) < 0.1


def test_an_evened_shape_is_that_of_its_formula_in_all_its_forms():
    latents = _normal(60, 3, 1).double()
    shape = GaussianProcess().fit(_decoder(3, 1), latents).shape()
    even = Evened(shape, 0.3)
    z, v = torch.cat([latents[:5], 3 * latents[5:10]]), _normal(10, 3, 2).double()
    matrices = 0.7 * shape(z) + 0.3 * torch.eye(3).double()
    torch.testing.assert_close(even(z), matrices)
    assert 0.3 <= float(torch.linalg.eigvalsh(even(z)).min()) < 0.5
    along = (matrices @ v[..., None])[..., 0]
    torch.testing.assert_close(even.square(z, v), (along * v).sum(1))
    slope, pull = even.slope(z, v), even.pull(z, v)
    torch.testing.assert_close(slope[0], matrices)
    torch.testing.assert_close(pull[0], along)
    step = 1e-5
    for axis, way in enumerate(step * torch.eye(3).double()):
        change = ((even(z + way) - even(z - way)) @ v[..., None])[..., 0] / (2 * step)
        torch.testing.assert_close(slope[1][..., axis], change, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(pull[1][:, axis], (change * v).sum(1), rtol=1e-6, atol=1e-7)
    without = Evened(lambda at: shape(at), 0.3)
    assert without.slope(z, v) is None and without.pull(z, v) is None
    torch.testing.assert_close(without.square(z, v), even.square(z, v))


def test_what_evens_a_shape_is_saved_and_files_of_earlier_versions_have_none(tmp_path):
    from posthoc_metric import saving

    decoder, path = _decoder(2, 0), tmp_path / "repaired.safetensors"
    repaired = _repaired(decoder, _ring(120, 2, 7), uncertainty="gp", max_condition_number=2.0)
    assert repaired.gate.even == 0.25
    z = repaired.geometry.shell(0.25, 20)
    repaired.save(path)
    assert torch.equal(pm.load(path, decoder).tensor(z), repaired.tensor(z))
    tensors, facts = saving.read(path)
    del facts["gate"]["even"]
    saving.write(path, tensors, facts)
    earlier = pm.load(path, decoder)
    assert isinstance(earlier.gate, Gate) and earlier.gate.even == 0.0
    assert float((earlier.tensor(z) - repaired.tensor(z)).abs().max()) > 0


def test_ranks_are_off_by_as_many_standard_errors_as_asked_for():
    """Of the difference between quantiles of two samples, here counted."""
    generator = torch.Generator().manual_seed(0)
    seen, others = torch.rand(4000, 80, generator=generator), torch.rand(4000, 200, generator=generator)
    for share in (0.5, 0.1):
        asked = likely(share, 80, 200, -2.0)
        below = seen.quantile(asked, dim=1) <= others.quantile(share, dim=1)
        # two standard errors of a normal distribution: 2.3 %
        assert 0.955 < float(below.double().mean()) < 0.995
    assert likely(0.95, 10, 10, 2.0) == 1.0 and likely(0.05, 10, 10, -2.0) == 0.0
