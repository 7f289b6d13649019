"""Decoders that end in a wide linear layer: the metric by its triangular factor is that of all outputs."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import posthoc_metric as pm


def wide(last: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 60)]
    return nn.Sequential(*layers, *([] if last is None else [last])).double()


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.spread = (
            nn.Linear(3, 8).double(),
            nn.Linear(8, 60).double(),
            nn.Linear(8, 60).double(),
        )

    def forward(self, z):
        h = torch.tanh(self.body(z))
        return {"x": torch.distributions.Normal(self.mean(h).view(-1, 3, 20), self.spread(h).exp().view(-1, 3, 20))}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(3, 20).double(), nn.Linear(4, 12).double()

    def forward(self, z):
        return self.last(torch.tanh(self.body(z)).view(-1, 5, 4))


class Recomputed(nn.Module):
    """Evaluates itself anew for its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net = wide()

    def forward(self, z):
        return checkpoint(self.net, z, use_reentrant=False)


def latents(rows: int = 40) -> torch.Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("model", "width"),
    [(wide(), 8), (wide(nn.Unflatten(1, (3, 20))), 8), (Heads(), 8), (Tokens(), 20)],
    ids=["plain", "images", "heads", "tokens"],
)
def test_the_metric_is_that_of_all_outputs(model, width):
    decoder, z = pm.Decoder(model, latent_dim=3), latents()
    metric = pm.PullbackMetric(decoder)
    assert metric.parts().embedding.output_dim == width and decoder.output_dim == 60
    jacobian = decoder.jacobian(z)
    assert torch.allclose(metric.tensor(z), jacobian.mT @ jacobian, rtol=1e-12)
    value, thin = decoder(z), metric.parts().embedding(z)
    assert torch.allclose(torch.pdist(value), torch.pdist(thin), rtol=1e-9)


def test_lengths_are_those_of_chords_of_all_outputs():
    decoder, z = pm.Decoder(wide().float(), latent_dim=3), latents(12)
    data = decoder(latents(300)) + 0.05 * torch.randn(300, 60, generator=torch.Generator().manual_seed(2))
    for metric in (pm.PullbackMetric(decoder), pm.repair(decoder, latents(300), data)):
        found = metric.geodesic(z[:6], z[6:])
        assert bool(found.converged.all())
        if isinstance(metric, pm.PullbackMetric):
            fine = metric.decoder.in_float64()(found(torch.linspace(0, 1, 2000)).reshape(-1, 3)).view(6, 2000, 60)
            chords = fine.diff(dim=1).norm(dim=2).sum(1)
            assert torch.allclose(found.length, chords, rtol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        wide(nn.Sigmoid()),
        wide(nn.SiLU(inplace=True)),
        nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 12)).double(),
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 60).double()),
        Recomputed(),
        torch.vmap(wide()),
        torch.compile(wide(), backend="eager"),
    ],
    ids=["sigmoid", "in place", "narrow", "normed", "recomputed", "mapped", "compiled"],
)
def test_other_ends_are_taken_as_they_are(model):
    decoder, z = pm.Decoder(model, latent_dim=3), latents(5)
    assert decoder.isometric() is decoder
    jacobian = decoder.jacobian(z)
    assert torch.allclose(pm.PullbackMetric(decoder).tensor(z), jacobian.mT @ jacobian, rtol=1e-12)


def test_a_layer_that_is_used_twice_is_taken_as_it_is():
    lift, down, last = (nn.Linear(*size).double() for size in ((3, 8), (60, 8), (8, 60)))
    decoder = pm.Decoder(lambda z: last(down(torch.tanh(last(lift(z))))), latent_dim=3)
    assert decoder.isometric() is decoder


def test_weights_that_change_in_place_are_followed_and_another_layer_is_refused():
    model, z = wide(), latents(5)
    metric = pm.PullbackMetric(pm.Decoder(model, latent_dim=3))
    before = metric.tensor(z)
    model[-1].weight.data.mul_(2.0)
    assert torch.allclose(metric.tensor(z), 4.0 * before, rtol=1e-12)
    model[-1].weight = nn.Parameter(model[-1].weight.detach().clone())
    with pytest.raises(pm.errors.DecoderError, match="replaced after it was wrapped"):
        metric.tensor(z)


def test_copies_have_weights_of_their_own_and_precision_can_be_had():
    model, z = wide().float(), latents(5)
    metric = pm.PullbackMetric(pm.Decoder(model, latent_dim=3))
    before = metric.tensor(z)
    copies = [copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))]
    model[-1].weight.data.mul_(2.0)
    for one in copies:
        assert torch.equal(one.tensor(z), before)
    finer = metric.parts().embedding.in_float64()
    assert finer.dtype == torch.float64 and finer.output_dim == 8
    jacobian = metric.decoder.in_float64().jacobian(z)
    assert torch.allclose(finer.jacobian(z).mT @ finer.jacobian(z), jacobian.mT @ jacobian, rtol=1e-12)


def test_rows_are_counted_with_those_of_the_decoder():
    decoder = pm.Decoder(wide(), latent_dim=3)
    metric = pm.PullbackMetric(decoder)
    with decoder.counting() as work:
        metric.tensor(latents(7))
    assert (work.values, work.jvps) == (7, 21)


def test_modes_and_what_hooks_see_stay_the_callers():
    model = wide()
    model.train()
    widths = []
    model[0].register_forward_hook(lambda module, args, result: widths.append(result.shape[1]))
    pm.PullbackMetric(pm.Decoder(model, latent_dim=3)).tensor(latents(4))
    assert model.training and model[-1].out_features == 60 and set(widths) == {8}
    assert model(latents(4)).shape == (4, 60)
