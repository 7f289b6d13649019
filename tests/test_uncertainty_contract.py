"""What every uncertainty model must do, the library's own and a user's: copy `MODELS` and add yours."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import posthoc_metric as pm
from posthoc_metric.errors import InvalidArgumentError
from posthoc_metric.support import Support
from posthoc_metric.uncertainty import RBF, PublishedRBF, UncertaintyModel, pieces
from posthoc_metric.uncertainty.gp import GaussianProcess

DEMOS = Path(__file__).resolve().parents[1] / "demos"


def _ensemble() -> UncertaintyModel:
    sys.path.insert(0, str(DEMOS))
    try:
        model = importlib.import_module("ensemble_uncertainty").SavedEnsemble()
    finally:
        sys.path.remove(str(DEMOS))
    model.steps = 200
    return model


@dataclass(frozen=True)
class Kind:
    """A model under test.

    Attributes:
        rotates: whether the fit is to be the same in rotated latents; a network's initial weights have axes.
    """

    make: Callable[[], UncertaintyModel]
    rotates: bool = True


MODELS = {
    "rbf": Kind(RBF),
    "gp exact": Kind(GaussianProcess),
    "gp inducing": Kind(lambda: GaussianProcess(inducing=128)),
    "ensemble of the demo": Kind(_ensemble, rotates=False),
}
ROWS = {"gp inducing": 1200}


def _decoder(dim: int, seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers = nn.Sequential(nn.Linear(dim, 24), nn.Tanh(), nn.Linear(24, 12)).double()
    for parameter in layers.parameters():
        size = parameter.shape[-1] ** -0.5
        parameter.data = size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return layers


def _latents(rows: int, dim: int) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    kind: Kind
    model: UncertaintyModel
    latents: torch.Tensor
    data: torch.Tensor
    network: nn.Sequential
    support: Support


CASES = [pytest.param((name, dim), id=f"{name} d={dim}") for name in MODELS for dim in (2, 10)]


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    name, dim = request.param
    latents = _latents(ROWS.get(name, 300), dim)
    network = _decoder(dim)
    decoder = pm.Decoder(network, latent_dim=dim)
    data = decoder(latents) + 0.1 * _latents(len(latents), 12)
    before, state = (latents.clone(), data.clone()), torch.random.get_rng_state()
    model = MODELS[name].make()
    assert not model.fitted
    assert model.fit(decoder, latents, data, seed=2) is model
    assert model.fitted
    assert torch.equal(latents, before[0]) and torch.equal(data, before[1])
    assert torch.equal(state, torch.random.get_rng_state())
    return Case(MODELS[name], model, latents, data, network, Support(latents))


def _points(case: Case) -> torch.Tensor:
    """On the data, around them, beyond them and far away."""
    shells = [case.support.shell(offset, 6) for offset in (0.2, 1.0, 10.0, 1000.0)]
    return torch.cat([case.latents[:6], *shells])


def _gradient(model: UncertaintyModel, z: torch.Tensor) -> torch.Tensor:
    found = model.score_and_gradient(z)
    if found is not None:
        torch.testing.assert_close(found[0], model.score(z), rtol=1e-12, atol=1e-12)
        return found[1]
    point = z.clone().requires_grad_()
    return torch.autograd.grad(model.score(point).sum(), point)[0]


def test_score_is_finite_float64_one_a_row_and_leaves_its_input(case):
    z = _points(case)
    before = z.clone()
    score = case.model.score(z)
    assert score.shape == (len(z),) and score.dtype == torch.float64 and not score.requires_grad
    assert torch.isfinite(score).all()
    assert torch.isfinite(_gradient(case.model, z)).all()
    assert torch.equal(z, before)


def test_batch_equals_items(case):
    z = _points(case)
    alone = torch.cat([case.model.score(row[None]) for row in z])
    torch.testing.assert_close(case.model.score(z), alone, rtol=1e-9, atol=1e-9)
    shape = case.model.shape()
    if shape is not None:
        torch.testing.assert_close(shape(z), torch.cat([shape(row[None]) for row in z]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dim", [2, 10])
def test_many_points_are_weighed_a_few_at_a_time_and_come_out_the_same(monkeypatch, dim):
    latents = _latents(300, dim)
    model = RBF().fit(pm.Decoder(_decoder(dim), latent_dim=dim), latents)
    whole = model.score_gradient_hessian(latents)
    assert torch.equal(whole[0], model.score(latents))
    monkeypatch.setattr(pieces, "_CACHED", 4096)
    for found, expected in zip(model.score_gradient_hessian(latents), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.score_and_gradient(latents)[1], whole[1], rtol=1e-10, atol=1e-10)


def test_gradient_is_the_finite_difference(case):
    for z in (case.latents[:6], case.support.shell(0.3, 6), case.support.shell(5.0, 6)):
        gradient = _gradient(case.model, z)
        step = 1e-5 * case.support.radius
        for j in range(z.shape[1]):
            e = torch.zeros_like(z)
            e[:, j] = step
            numeric = (case.model.score(z + e) - case.model.score(z - e)) / (2 * step)
            torch.testing.assert_close(gradient[:, j], numeric, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_score_grows_away_from_the_data(case):
    known = case.model.score(case.latents)
    medians = [case.model.score(case.support.shell(offset, 60)).median() for offset in (0.5, 2.0, 10.0, 1000.0)]
    assert float(medians[0]) > float(known.median())
    assert all(later > earlier for earlier, later in zip(medians, medians[1:], strict=False))
    beyond = case.model.score(case.support.shell(2.0, 60))
    assert float(beyond.quantile(0.05)) > float(known.quantile(0.95))


def test_shape_is_symmetric_between_zero_and_one_and_the_identity_far_away(case):
    shape = case.model.shape()
    if shape is None:
        pytest.skip("this model's ignorance has no shape")
    z = _points(case)
    matrices = shape(z)
    assert matrices.dtype == torch.float64 and matrices.shape == (len(z), z.shape[1], z.shape[1])
    assert torch.equal(matrices, matrices.mT)
    values = torch.linalg.eigvalsh(matrices)
    assert float(values.min()) >= 0 and float(values.max()) <= 1 + 1e-12
    far = shape(case.support.shell(100.0, 4))
    torch.testing.assert_close(far, torch.eye(z.shape[1], dtype=torch.float64).expand_as(far), rtol=0, atol=1e-9)


def test_rebuilt_from_its_state_it_is_bit_equal(case):
    import json

    settings = json.loads(json.dumps(case.model.settings()))
    state = {name: tensor.clone() for name, tensor in case.model.state().items()}
    assert state and all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    again = type(case.model).from_state(settings, state)
    z = _points(case)
    assert again.fitted
    assert torch.equal(again.score(z), case.model.score(z))
    if case.model.shape() is not None:
        assert torch.equal(again.shape()(z), case.model.shape()(z))
    assert json.loads(json.dumps(again.settings())) == settings
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state().items())


def test_it_is_the_same_up_to_scale_shift_and_rotation_of_the_latents(case):
    dim = case.latents.shape[1]
    generator = torch.Generator().manual_seed(5)
    rotation = torch.eye(dim, dtype=torch.float64)
    if case.kind.rotates:
        rotation, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))

    def move(z):
        return 1000 * z @ rotation.T + 1e4

    back = nn.Linear(dim, dim).double()
    with torch.no_grad():
        back.weight.copy_(rotation.T / 1000)
        back.bias.copy_(-torch.full((dim,), 1e4, dtype=torch.float64) @ rotation / 1000)
    name = next(name for name, kind in MODELS.items() if kind is case.kind)
    moved = MODELS[name].make()
    moved.fit(pm.Decoder(nn.Sequential(back, case.network), latent_dim=dim), move(case.latents), case.data, seed=2)
    z = torch.cat([case.latents[:20], case.support.shell(0.5, 20), case.support.shell(3.0, 20)])
    here, there = case.model.score(z), moved.score(move(z))
    # a score may be in latent units: it is compared up to a constant factor, which the calibration takes out
    factor = float((here * there).sum() / here.square().sum())
    torch.testing.assert_close(there, factor * here, rtol=1e-3, atol=1e-3 * factor * float(here.abs().max()))
    if case.model.shape() is not None:
        shapes = rotation @ case.model.shape()(z) @ rotation.T
        torch.testing.assert_close(moved.shape()(move(z)), shapes, rtol=0, atol=1e-3)


def test_it_repairs_and_the_repaired_metric_saves(case, tmp_path):
    decoder = pm.Decoder(case.network, latent_dim=case.latents.shape[1])
    repaired = pm.repair(decoder, case.latents, case.data, uncertainty=case.model)
    assert repaired.model is case.model
    far = repaired.geometry.shell(2.0, 30)
    assert float(repaired.eigenvalues(far)[:, 0].min()) > float(repaired.eigenvalues(case.latents)[:, -1].median())
    repaired.save(tmp_path / "repaired.safetensors")
    again = pm.load(tmp_path / "repaired.safetensors", decoder, model=type(case.model))
    assert torch.equal(again.tensor(far), repaired.tensor(far))


@pytest.mark.parametrize("name", MODELS)
def test_without_data_and_by_seed(name):
    latents = _latents(ROWS.get(name, 60), 2)
    decoder = pm.Decoder(_decoder(2), latent_dim=2)
    one, other = (MODELS[name].make().fit(decoder, latents, seed=7) for _ in range(2))
    assert torch.equal(one.score(latents), other.score(latents))


def test_scores_by_cross_validation_are_those_of_latents_never_seen():
    latents = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fresh = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    decoder = pm.Decoder(lambda z: torch.tanh(z), latent_dim=3)
    model = RBF().fit(decoder, latents)
    held_out = model.held_out_scores(decoder, latents)
    for share in (0.5, 0.9):
        expected = float(model.score(fresh).quantile(share))
        assert abs(float(held_out.quantile(share)) - expected) < 0.15 * expected
        assert float(model.score(latents).quantile(share)) < 0.9 * float(held_out.quantile(share))


@pytest.mark.parametrize("kind, name", [(RBF, "centres"), (PublishedRBF, "count"), (GaussianProcess, "inducing")])
def test_a_number_of_centres_may_be_numpy_s_and_is_checked(kind, name):
    assert type(kind(**{name: np.int64(12)}).settings()[name]) is int  # which JSON takes, as NumPy's it does not
    for wrong in (0, -3, 2.5, "8", True):
        with pytest.raises(InvalidArgumentError, match=f"`{name}` is .* must be an integer of at least"):
            kind(**{name: wrong})
