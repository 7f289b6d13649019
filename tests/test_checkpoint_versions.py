"""State dicts of other versions of a class: what torch itself would load is loaded, and no more than that."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from posthoc_metric.checkpoint import load_decoder
from posthoc_metric.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def old(bias=True, hidden=8, norm=nn.utils.weight_norm):
    return nn.Sequential(norm(nn.Linear(2, hidden, bias=bias)), nn.SiLU(), norm(nn.Linear(hidden, 6, bias=bias)))


def new(bias=True, hidden=8):
    return old(bias, hidden, parametrizations.weight_norm)


@pytest.fixture
def z():
    return torch.randn(7, 2, generator=torch.Generator().manual_seed(1))


def load(tmp_path, content, factory, **options):
    torch.save(content, tmp_path / "m.pt")
    return load_decoder(tmp_path / "m.pt", factory=factory, **options)


def assert_same(decoder, module, z):
    with torch.no_grad():
        torch.testing.assert_close(decoder(z), module.eval()(z).flatten(1))


def beside(start, state, bias):
    """With an encoder of the same class, of other sizes."""
    encoder = seeded(lambda: old(bias, hidden=5), 1).state_dict()
    return {**{f"model.encoder.{n}": t for n, t in encoder.items()}, **{start + n: t for n, t in state.items()}}


PLACES = {
    "plain": (lambda state, bias: state, ""),
    "DataParallel": (lambda state, bias: {f"module.{n}": t for n, t in state.items()}, "'module.'"),
    "wrapped inside": (
        lambda state, bias: {f"decoder.{n[0]}.module{n[1:]}": t for n, t in state.items()},
        "'decoder.'",
    ),
    "beside an encoder": (
        lambda state, bias: {"epoch": 3, "state_dict": beside("model.decoder.", state, bias)},
        "'model.decoder.'",
    ),
    "averaged": (lambda state, bias: {"model": seeded(lambda: old(bias), 2).state_dict(), "ema": state}, "'ema'"),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no name in common"])
def test_older_weight_norm_fits_its_successor(tmp_path, z, name, bias):
    place, words = PLACES[name]
    module = seeded(lambda: old(bias))
    decoder = load(tmp_path, place(module.state_dict(), bias), lambda: new(bias))
    assert_same(decoder, module, z)
    assert "its own way of loading" in decoder.describe() and words in decoder.describe()


def test_prefix_and_key_by_hand(tmp_path, z):
    modules = [seeded(old, seed) for seed in (0, 1)]
    states = [module.state_dict() for module in modules]
    two = {f"{p}.{n}": t for p, state in zip("ab", states, strict=True) for n, t in state.items()}
    assert_same(load(tmp_path, two, new, prefix="b."), modules[1], z)
    with pytest.raises(CheckpointError, match="several sets of weights.*key= or prefix="):
        load(tmp_path, two, new)
    assert_same(load(tmp_path, {"a": states[0], "b": states[1]}, new, key="b"), modules[1], z)


def test_double_weights_stay_double(tmp_path, z):
    module = old().double()
    decoder = load(tmp_path, module.state_dict(), new)
    assert decoder.dtype == torch.float64
    assert_same(decoder, module, z.double())


def test_what_torch_would_not_load_is_refused_and_the_module_left_alone(tmp_path):
    state = old().state_dict()
    module = new()
    before = copy.deepcopy(module.state_dict())
    short = {n: t for n, t in state.items() if n != "2.weight_g"}
    deeper = nn.Sequential(*old(), nn.utils.weight_norm(nn.Linear(6, 6))).state_dict()
    for content in (short, deeper, old(hidden=9).state_dict(), {**state, "head.weight": torch.ones(2)}):
        with pytest.raises(CheckpointError, match="do not fit.*4 missing.*unexpected"):
            load(tmp_path, content, lambda: module)
        assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    assert load(tmp_path, {**state, "head.weight": torch.ones(2)}, new, strict=False).output_dim == 6


def test_first_versions_of_spectral_norm(tmp_path, z):
    """Those kept the weight itself and not the second of the two vectors."""
    module = seeded(lambda: old(norm=nn.utils.spectral_norm)).eval()
    state = module.state_dict()
    for name in [n for n in state if n.endswith("weight_v")]:
        del state[name]
        layer = name.removesuffix("weight_v")
        state[layer + "weight"] = module[int(layer[0])].weight.detach().clone()
        state._metadata[layer[:-1]].pop("spectral_norm")
    expected = seeded(lambda: old(norm=nn.utils.spectral_norm), 3)
    expected.load_state_dict(state)
    decoder = load(tmp_path, state, lambda: seeded(lambda: old(norm=nn.utils.spectral_norm), 3))
    assert_same(decoder, expected, z)


def test_batch_norm_without_counts(tmp_path, z):
    def make():
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6))

    module = seeded(make)
    state = {n: t for n, t in module.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert_same(load(tmp_path, {f"net.{n}": t for n, t in state.items()}, make), module, z)


def test_lazy_layers_take_the_shapes_of_the_file(tmp_path, z):
    module = seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6)))
    decoder = load(tmp_path, module.state_dict(), lambda: nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(6)))
    assert decoder.latent_dim == 2
    assert_same(decoder, module, z)
    with pytest.raises(CheckpointError, match=r"of another shape \(2.weight is \(6, 8\)"):
        load(tmp_path, module.state_dict(), lambda: nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 5)))


class Renamed(nn.Module):
    """Its first version named its part otherwise, and kept a factor of its weights apart."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))

    def forward(self, z):
        return self.net(z)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        version = local_metadata.get("version")
        if version is None or version < 2:
            for name in [n for n in state_dict if n.startswith(f"{prefix}layers.")]:
                state_dict[f"{prefix}net.{name.removeprefix(f'{prefix}layers.')}"] = state_dict.pop(name)
            state_dict[f"{prefix}net.0.weight"] *= state_dict.pop(f"{prefix}factor", 2.0)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


@pytest.mark.parametrize("start", ["", "module.", "model.decoder."])
def test_a_class_that_renames_its_own(tmp_path, z, start):
    module = seeded(Renamed)
    state = {n.replace("net.", "layers."): t.clone() for n, t in module.state_dict().items()}
    state["layers.0.weight"] /= 4
    state["factor"] = torch.tensor(4.0)
    assert_same(load(tmp_path, {start + n: t for n, t in state.items()}, Renamed), module, z)


def wrapped(module, names):
    for name in reversed(names):
        holder = nn.Module()
        holder.add_module(name, module)
        module = holder
    return module


@pytest.mark.parametrize("names", [(), ("module",), ("model", "decoder"), ("model", "module", "decoder")])
def test_a_class_learns_which_version_saved_the_file(tmp_path, z, names):
    module = seeded(Renamed)
    assert_same(load(tmp_path, {"state_dict": wrapped(module, names).state_dict()}, Renamed), module, z)


@pytest.mark.parametrize("told", [3, {"": 5, 7: {"version": "x"}}, {"": {"version": 2}}])
def test_odd_versions_in_a_file_do_no_harm(tmp_path, z, told):
    module = seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6)))
    state = module.state_dict()
    state._metadata = told
    assert_same(load(tmp_path, state, lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))), module, z)


class Content(Renamed):
    """Takes what it finds and asks for no more."""

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        nn.Module._load_from_state_dict(self, state_dict, prefix, local_metadata, strict, [], [], errors)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        super().load_state_dict(state_dict, strict=False, assign=assign)
        return nn.modules.module._IncompatibleKeys([], [])


def test_a_class_that_is_content_with_a_part_is_not_filled_by_a_part(tmp_path):
    state = {n: t for n, t in Content().state_dict().items() if not n.startswith("net.2.")}
    with pytest.raises(CheckpointError, match="2 missing"):
        load(tmp_path, state, Content)
