"""Functions over modules: their precision, their mode, and copies of them in another precision."""

from __future__ import annotations

import functools
import pickle

import pytest
import torch
from torch import nn

from posthoc_metric import Decoder
from posthoc_metric.decoder.carried import modules_used_by, over_copies


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 5))


NET = mlp()


def by_global_name(z):
    return NET(z)


def by_comprehension(z):
    return torch.stack([NET(row[None])[0] for row in z])


def by_default(z, net=NET):
    return net(z)


def by_keyword(z, *, net=NET):
    return net(z)


def around(net):
    return lambda z: net(z)


def with_both(first, net, z):
    return first(z) + net(z)


FUNCTIONS = {
    "global": by_global_name,
    "comprehension": by_comprehension,
    "default": by_default,
    "keyword": by_keyword,
    "closure": around(NET),
    "partial": functools.partial(with_both, around(NET), NET),
}


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param]


def latents(rows=4):
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_function_is_checked_in_float64(function):
    NET.train()
    decoder = Decoder(function, latent_dim=2)
    assert NET.training
    assert decoder.dtype == torch.float32
    assert "float64" not in decoder.describe()
    precise = decoder.in_float64()
    assert precise is not None
    z, step = latents(), torch.tensor([1e-6, 0.0], dtype=torch.float64)
    difference = (precise(z + step) - precise(z - step)) / 2e-6
    assert torch.allclose(decoder.jacobian(z)[:, :, 0], difference, atol=1e-5)
    assert torch.allclose(precise.jacobian(z)[:, :, 0], difference, atol=1e-8)
    assert next(NET.parameters()).dtype == torch.float32


def test_a_function_of_a_half_precision_module_is_copied_to_float32():
    half = mlp().half()
    decoder = Decoder(lambda z: half(z), latent_dim=2)
    assert decoder.dtype == torch.float32
    assert torch.allclose(decoder(latents()).float(), half.float().eval()(latents().float()), atol=1e-5)


def test_finite_differences_of_a_function_have_double_precision():
    net = mlp().eval()

    def detached(z):
        return net(z).detach()

    with pytest.warns(UserWarning, match="differences in float64"):
        decoder = Decoder(detached, latent_dim=2)
    expected = Decoder(net.double(), latent_dim=2).jacobian(latents())
    assert torch.allclose(decoder.jacobian(latents()), expected, atol=1e-8)


def test_copies_leave_the_original_alone_and_can_be_pickled():
    copy = mlp(seed=2)
    twin = over_copies(by_global_name, {id(NET): copy})
    z = latents().float()
    copy.eval()
    NET.eval()
    assert torch.equal(twin(z), copy(z))
    assert torch.equal(by_global_name(z), NET(z))
    assert not torch.equal(twin(z), by_global_name(z))
    assert torch.equal(pickle.loads(pickle.dumps(twin))(z), copy(z))


def test_a_function_without_modules_stays_itself():
    def loop(z):
        return never(z)  # a name that is bound later, if at all

    def plain(z):
        return z.sin()

    for function in (loop, plain, torch.sin):
        assert over_copies(function, {id(NET): NET}) is function
        assert modules_used_by(function) == ()
    if False:
        never = plain
