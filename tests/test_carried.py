"""Functions over modules: their precision, their mode, and copies of them in another precision."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import threading
from collections import namedtuple

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


class Wrapper:
    """What holds modules and is none, beside things that nobody may copy."""

    def __init__(self, net):
        self.net = net
        self.nets = {"decoder": [net]}
        self.lock = threading.Lock()
        self.chosen = self.decode  # leads back to the wrapper

    def decode(self, z):
        return self.nets["decoder"][0](z)

    def chosen_decode(self, z):
        return self.chosen(z)

    def __call__(self, z):
        return self.net(z)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    """What has no dictionary of attributes."""

    net: nn.Module

    def decode(self, z):
        return self.net(z)


class OfItsClass:
    net = NET

    def decode(self, z):
        return self.net(z)


Pair = namedtuple("Pair", ["encoder", "decoder"])
WRAPPER, NETS, PAIR = Wrapper(NET), {"decoder": NET}, Pair(None, [NET])


@torch.no_grad()
def decorated(z):
    return NET(z)


def through_another(z):
    return by_global_name(z)


def again_and_again(net):
    def go(z, left=1):
        return go(z, left - 1) if left else net(z)

    return go


HOLDERS = {
    "attribute": lambda z: WRAPPER.net(z),
    "attribute of a local": (lambda wrapper: lambda z: wrapper.net(z))(WRAPPER),
    "dictionary": lambda z: NETS["decoder"](z),
    "list in a closure": (lambda nets: lambda z: nets[0](z))([NET]),
    "named tuple": lambda z: PAIR.decoder[0](z),
    "bound method": WRAPPER.decode,
    "method that leads back": WRAPPER.chosen_decode,
    "callable object": WRAPPER,
    "partial over an object": functools.partial(lambda wrapper, z: wrapper.decode(z), WRAPPER),
    "partial by name": functools.partial(lambda z, wrapper: wrapper.decode(z), wrapper=WRAPPER),
    "decorated": decorated,
    "slot": Slotted(NET).decode,
    "attribute of a class": OfItsClass().decode,
    "another function": through_another,
    "recursive": again_and_again(NET),
    "default in a list": lambda z, nets=[NET]: nets[0](z),  # noqa: B006
}


@pytest.mark.parametrize("name", HOLDERS)
def test_modules_are_found_in_what_a_callable_holds(name):
    function = HOLDERS[name]
    before = dict(vars(WRAPPER)), dict(WRAPPER.nets)
    NET.train()
    decoder = Decoder(function, latent_dim=2)
    precise = decoder.in_float64()
    assert decoder.dtype == torch.float32 and precise is not None
    assert "float64" not in decoder.describe()
    assert NET.training and next(NET.parameters()).dtype == torch.float32
    expected = copy.deepcopy(NET).double().eval()(latents())
    assert torch.allclose(precise(latents()), expected, atol=1e-12)
    assert torch.allclose(copy.deepcopy(decoder)(latents()), expected, atol=1e-5)
    assert (vars(WRAPPER), WRAPPER.nets) == before and WRAPPER.nets["decoder"] == [NET]


@pytest.mark.parametrize("option", ["output", "condition", "method", "method of an object"])
def test_modules_are_found_in_options_too(option):
    class Shifted(nn.Module):
        def forward(self, z, shift=0.0):
            return z + shift

    model, net, head = Shifted(), mlp(), WRAPPER
    options = {
        "output": {"output": lambda shifted: head.net(shifted)},
        "condition": {"condition": lambda z: head.net(z)[:, :2]},
        "method": {"method": lambda model, z: head.net(model(z))},
        "method of an object": {"method": "decode"},
    }[option]
    decoder = Decoder(WRAPPER if "object" in option else model, latent_dim=2, **options)
    precise = decoder.in_float64()
    assert net.training and decoder.dtype == torch.float32 and precise is not None
    assert "float64" not in decoder.describe()
    assert precise(latents()).dtype == torch.float64


BASIS = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))


class Basis:
    def __init__(self, net):
        self.net, self.basis = net, BASIS

    def decode(self, z):
        return self.net(z) @ self.basis


@pytest.mark.parametrize("function", [lambda z: NET(z) @ BASIS, Basis(NET).decode, lambda z: (z @ BASIS[:2]).sin()])
def test_tensors_beside_the_modules_are_copied_in_another_precision_too(function):
    decoder = Decoder(function, latent_dim=2)
    precise = decoder.in_float64()
    assert precise is not None and "float64" not in decoder.describe()
    assert torch.allclose(precise(latents()).float(), decoder(latents().float()), atol=1e-5)
    assert BASIS.dtype == torch.float32


def test_tensors_that_a_module_has_as_plain_attributes_are_copied_too():
    class Grid(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.basis = mlp(), BASIS

        def forward(self, z):
            return self.net(z) @ self.basis

    decoder = Decoder(Grid())
    assert decoder.in_float64() is not None and "float64" not in decoder.describe()
    assert BASIS.dtype == torch.float32


def test_functions_in_containers_of_a_module_are_over_its_copy():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()
            self.ways = {"decode": [lambda z: self.net(z)]}

        def forward(self, z):
            return self.ways["decode"][0](z)

    net = Net().eval()
    decoder = Decoder(net, latent_dim=2)
    twin, before = copy.deepcopy(decoder), decoder(latents())
    nn.init.zeros_(net.net[0].weight)
    assert torch.equal(twin(latents()), before) and not torch.equal(decoder(latents()), before)


def test_functions_that_a_module_has_as_attributes_are_over_its_copy():
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()
            self.rate = lambda t, x: self.net(x)[:, :2]

        def forward(self, z):
            for step in range(3):
                z = z + self.rate(step, z) / 3
            return z

    model = Flow()
    decoder = Decoder(model, latent_dim=2)
    precise = decoder.in_float64()
    assert precise is not None and "float64" not in decoder.describe()
    assert torch.allclose(precise(latents()), model.double().eval()(latents()), atol=1e-12)


def test_parameters_held_beside_their_module_stay_those_of_its_copy():
    weight = NET[3].weight
    twin = Decoder(lambda z: NET(z) @ weight, latent_dim=2).in_float64()
    assert twin is not None and twin.dtype == torch.float64


def test_what_is_its_own_copy_is_not_written_to():
    cached = functools.lru_cache(lambda z: NET(z))
    decoder = Decoder(lambda z: cached(z), latent_dim=2)
    assert decoder.in_float64() is None
    assert cached.__wrapped__(latents().float()).dtype == torch.float32


class StandIn:
    """Of what is loaded when it is first used."""

    __slots__ = ()

    def __getattr__(self, name):
        raise RuntimeError(f"{name} is not there yet")


def test_stand_ins_are_not_woken():
    unused = StandIn()
    assert modules_used_by(lambda z: NET(z) if unused is not None else z) == (NET,)


def test_longer_lists_are_data_and_chains_have_an_end():
    many = [NET] * 1001
    deep = [[[[[[NET]]]]]]
    assert modules_used_by(lambda z: many[0](z)) == ()
    assert modules_used_by(lambda z: deep[0][0][0][0][0][0](z)) == ()
    assert modules_used_by(lambda z: deep, NET) == (NET,)
