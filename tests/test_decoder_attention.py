"""Attention layers, whose kernels for calls without a graph round otherwise: values and ``Jᵀu`` by one evaluation."""

import pytest
import torch
from torch import nn

from posthoc_metric.decoder import Decoder


def random(rows, dim, seed=1, dtype=torch.float64):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Transformer(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.up, self.out = nn.Linear(3, 6 * 8), nn.Linear(8, 4)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, z):
        return self.out(self.layers(self.up(z).view(-1, 6, 8)))


class SelfAttention(nn.Module):
    """One layer; where it hands out its weights, only odd numbers of rows in double precision are rounded apart."""

    def __init__(self, weights):
        super().__init__()
        self.up, self.layer = nn.Linear(3, 6 * 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.weights = weights

    def forward(self, z):
        tokens = self.up(z).view(-1, 6, 16)
        return self.layer(tokens, tokens, tokens, need_weights=self.weights)[0]


MODELS = {
    "norm last": Transformer,
    "norm first": lambda: Transformer(norm_first=True, activation="gelu"),
    "attention": lambda: SelfAttention(weights=False),
    "attention with weights": lambda: SelfAttention(weights=True),
}


def built(name, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_one_evaluation_gives_what_a_plain_call_gives(name, dtype):
    module = built(name, dtype)
    decoder = Decoder(module, latent_dim=3)
    eps = torch.finfo(dtype).eps
    for rows in (1, 2, 3, 4, 7, 16, 33):
        z, u = random(rows, 3, dtype=dtype), random(rows, decoder.output_dim, 2, dtype)
        assert rows <= decoder.pull_rows
        with decoder.counting() as work:
            value, pull = decoder.value_and_pull(z)
            pulled = pull(u)
        assert (work.values, work.vjps) == (0, rows)
        assert torch.equal(value, decoder(z))
        exact = decoder.vjp(z, u)[1]
        torch.testing.assert_close(pulled, exact, rtol=8 * eps, atol=8 * eps * float(exact.abs().amax()))
        with torch.no_grad():
            own = module.eval()(z).flatten(1)
        torch.testing.assert_close(value, own, rtol=32 * eps, atol=32 * eps * float(own.abs().amax()))


def test_torchs_own_switch_stays_as_it_is_and_others_keep_their_kernels():
    assert torch.backends.mha.get_fastpath_enabled()
    seen = []

    class Watching(Transformer):
        def forward(self, z):
            seen.append(torch.backends.mha.get_fastpath_enabled())
            return super().forward(z)

    decoder = Decoder(Watching(), latent_dim=3)
    assert "f(z) by a plain call, with no fast path" in decoder.describe()
    seen.clear()
    decoder(random(4, 3))
    assert seen == [True]
    assert torch.backends.mha.get_fastpath_enabled()
    plain = Decoder(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)), latent_dim=3)
    assert plain.pull_rows > 0 and "plain call" not in plain.describe()
