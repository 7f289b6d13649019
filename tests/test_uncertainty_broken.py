"""Uncertainty models of a user's own that break the contract, and some at its edge that do not."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

import posthoc_metric as pm
from posthoc_metric import saving
from posthoc_metric.errors import CheckpointError, FitError
from posthoc_metric.support import Support
from posthoc_metric.uncertainty import RBF
from posthoc_metric.uncertainty.contract import check_contract
from posthoc_metric.uncertainty.gp import GaussianProcess


def latents(count=200, dim=2):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5)).double()


def decoder():
    return pm.Decoder(network(), latent_dim=2)


class Smooth(pm.UncertaintyModel):
    """A smooth distance to the latents, in the precision ``dtype``; ``changes`` take the place of the methods."""

    dtype = torch.float64

    def __init__(self, **changes):
        for name, method in changes.items():
            setattr(self, name, method.__get__(self) if callable(method) else method)

    def fit(self, decoder, latents, data=None, *, seed=0):
        self.latents = latents
        self.fitted = True
        return self

    def distance(self, z):
        square = torch.cdist(z.to(self.dtype), self.latents.to(self.dtype)).square()
        return (2 - 0.2 * torch.logsumexp(-5 * square, 1)).sqrt()

    def score(self, z):
        return self.distance(z)

    def closed(self, z):
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            score = self.distance(point)
            gradient = torch.autograd.grad(score.sum(), point)[0]
        return score.detach(), gradient


def closed(change, hessian=False):
    """A closed form whose parts ``change`` maps to what is returned."""

    def give(self, z):
        score, gradient = self.closed(z)
        return change(score, gradient, z.new_zeros(*z.shape, z.shape[1])) if hessian else change(score, gradient)

    return {"score_gradient_hessian" if hessian else "score_and_gradient": give}


def shaped(change):
    """A shape that is ``change`` of the identity."""

    def field(z):
        return change(torch.eye(z.shape[1], dtype=z.dtype).expand(len(z), -1, -1))

    return {"shape": lambda self: field}


def score(function):
    return {"score": lambda self, z: function(self.distance(z))}


FAULTS = {
    "score in a column": (score(lambda s: s[:, None]), r"`score` of Smooth .*shape \(10,\).*got.*\(10, 1\).*last axis"),
    "score in an array": (score(lambda s: s.detach().numpy()), r"`score` of Smooth .*tensor.*got array.*with torch"),
    "score in one number": (score(lambda s: s.sum()), r"`score` of Smooth .*\(10,\).*got.*shape \(\).*Do not sum"),
    "score in integers": (score(lambda s: s.long()), r"`score` of Smooth must return a float64.*got.*int64"),
    "score in half precision": (score(lambda s: s.half()), r"float64.*got.*float16.*\.double\(\)"),
    "score detached": (score(lambda s: s.detach()), r"`score` of Smooth must be differentiable.*does not lead back"),
    "score by way of arrays": (
        {"score": lambda self, z: self.distance(torch.from_numpy(z.numpy()))},
        r"`score` of Smooth must be differentiable.*torch says: Can't call numpy",
    ),
    "score detached in part": (score(lambda s: s + 9 * s.detach()), r"gradient that autograd finds for `score`.*90%"),
    "score that is drawn": (score(lambda s: s * torch.rand(())), "equal scores for equal latents"),
    "gradient alone": (closed(lambda s, g: g), r"`score_and_gradient` of Smooth must return None or a tuple of 2"),
    "score of another shape": (closed(lambda s, g: (s[:, None], g)), r"must return as its score.*got.*\(10, 1\)"),
    "gradient of another shape": (closed(lambda s, g: (s, g[:, :1])), r"as its gradient.*\(10, 2\).*got.*\(10, 1\)"),
    "gradient downhill": (closed(lambda s, g: (s, -g)), r"gradient of `score_and_gradient` of Smooth must be.*Derive"),
    "gradient in other units": (closed(lambda s, g: (s, 2 * g)), "differs from them by 50% in the median"),
    "gradient of other axes": (closed(lambda s, g: (s, g.flip(1))), "gradient of `score_and_gradient`"),
    "gradient that is NaN": (closed(lambda s, g: (s, g / 0 * 0)), "it is NaN or infinite"),
    "another score": (closed(lambda s, g: (s.log(), g / s[:, None])), "must return the score that `score` returns"),
    "no second derivatives": (closed(lambda s, g, h: (s, g), True), r"`score_gradient_hessian` .*tuple of 3.*of 2"),
    "second derivatives of another shape": (
        closed(lambda s, g, h: (s, g, h[0]), True),
        r"second derivatives.*\(10, 2, 2\).*got.*\(2, 2\)",
    ),
    "gradient beside second derivatives": (closed(lambda s, g, h: (s, -g, h), True), "gradient of `score_gradient_h"),
    "shape of another width": (
        shaped(lambda e: nn.functional.pad(e, (0, 1, 0, 1))),
        r"`shape` .*\(4, 2, 2\).*\(4, 3, 3\)",
    ),
    "shape beyond the identity": (shaped(lambda e: 5 * e), r"`shape` .*\[0, 1\].*from 5 to 5.*`inflation` says"),
    "shape below zero": (shaped(lambda e: -0.5 * e), r"`shape` .*\[0, 1\].*from -0.5 to -0.5"),
    "shape that is crooked": (shaped(lambda e: e - 0.5 * (1 - e).tril()), r"symmetric.*up to 0.5.*0\.5 \* \(S"),
    "shape in single precision": (shaped(lambda e: e.float()), r"float64.*got.*float32"),
    "shape that is NaN": (shaped(lambda e: e / 0), "finite matrices"),
    "shape that is no function": ({"shape": lambda self: torch.eye(2)}, "a function of latents.*Return the function"),
    "held-out scores": (
        {"held_out_scores": lambda self, decoder, latents, data, seed: self.score(latents)[:, None]},
        r"`held_out_scores` of Smooth must return None or .*\(140,\).*\(140, 1\)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_breaks_the_contract_is_named_before_anything_is_calibrated(name, monkeypatch):
    changes, words = FAULTS[name]
    # the package's attribute of that name is the function
    monkeypatch.setattr(
        sys.modules["posthoc_metric.repair"], "measure", lambda *args, **kwargs: pytest.fail("it was calibrated")
    )
    with pytest.raises(FitError, match=f"(?s){words}"):
        pm.repair(decoder(), latents(), uncertainty=Smooth(**changes))


def test_a_model_that_is_fitted_already_is_asked_too():
    model = Smooth(**score(lambda s: s[:, None])).fit(None, latents())
    with pytest.raises(FitError, match="last axis"):
        pm.repair(decoder(), latents(), uncertainty=model)


def nearest(self, z):
    """Its gradient is not finite on a latent, and jumps half-way between two."""
    return (z[:, None] - self.latents).square().sum(2).amin(1).sqrt()


def fifth(self, z):
    return torch.cdist(z, self.latents).topk(5, largest=False).values[:, -1]


def saturated(self, z):
    return 1 - torch.exp(-1e4 * torch.cdist(z.float(), self.latents.float()).amin(1).square())


@pytest.mark.parametrize("dim", [1, 2, 10])
@pytest.mark.parametrize("count", [40, 20_000])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": torch.float32},
        {"dtype": torch.float32} | closed(lambda s, g: (s.float(), g.float())),
        {"score": nearest},
        {"score": fifth},
        {"score": saturated},
        {"score": lambda self, z: 1e4 + nearest(self, z)},
    ],
    ids=["smooth", "float32", "float32 closed", "nearest", "fifth", "saturated", "far from zero"],
)
def test_kinks_and_single_precision_are_borne(changes, count, dim):
    geometry = Support(latents(count, dim))
    check_contract(Smooth(**changes).fit(None, geometry.training), geometry)


def test_weights_that_require_a_gradient_are_borne_and_are_no_gradient_of_the_latents():
    weight = nn.Parameter(torch.ones((), dtype=torch.float64))
    geometry = Support(latents())
    check_contract(Smooth(**score(lambda s: weight * s)).fit(None, geometry.training), geometry)
    with pytest.raises(FitError, match="does not lead back"):
        check_contract(Smooth(**score(lambda s: weight * s.detach())).fit(None, geometry.training), geometry)


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (1e-6, 1e-2), (1e6, 1e10)])
@pytest.mark.parametrize("make", [RBF, GaussianProcess])
def test_the_librarys_own_keep_it_in_any_units_with_a_few_points(make, scale, shift, monkeypatch):
    z = latents() * scale + shift
    geometry = Support(z)
    net = network()
    model = make().fit(pm.Decoder(lambda u: net((u - shift) / scale), latent_dim=2, probe=z), geometry.training)
    asked = []
    own = model.score
    monkeypatch.setattr(model, "score", lambda z: asked.append(len(z)) or own(z))
    check_contract(model, geometry)
    assert sum(asked) <= 130


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_asked_alike_where_nothing_is_differentiated(mode):
    with mode():
        found = pm.repair(decoder(), latents(), uncertainty=Smooth())
    assert found.gate.numbers() == pm.repair(decoder(), latents(), uncertainty=Smooth()).gate.numbers()


@pytest.mark.parametrize(
    "state, settings, words",
    [
        (lambda z: {"mean": z.numpy()}, {}, r"its `state\(\)` must hold tensors; its 'mean' is array"),
        (lambda z: {"mean": z}, {"scale": np.float32(2)}, r"its `settings\(\)` must be JSON"),
    ],
)
def test_what_a_file_cannot_hold_is_named(state, settings, words, tmp_path):
    changes = {"state": lambda self: state(latents().mean(0)), "settings": lambda self: settings}
    found = pm.repair(decoder(), latents(), uncertainty=Smooth(**changes))
    with pytest.raises(CheckpointError, match=words):
        found.save(tmp_path / "metric.safetensors")
    assert not list(tmp_path.iterdir())


def test_tensors_that_share_their_memory_are_saved(tmp_path):
    z = latents().mean(0)
    changes = {"state": lambda self: {"mean": z, "again": z, "first": z[:1]}, "settings": lambda self: {}}
    pm.repair(decoder(), latents(), uncertainty=Smooth(**changes)).save(tmp_path / "metric.safetensors")
    tensors, _ = saving.read(tmp_path / "metric.safetensors")
    assert torch.equal(tensors["model.mean"], z) and torch.equal(tensors["model.first"], z[:1])
