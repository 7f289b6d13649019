"""Containers on disk: what was saved comes back as the same decoder, whatever it was saved in."""

from __future__ import annotations

import argparse
import copy
import os
import pathlib
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from posthoc_metric.checkpoint import load_decoder
from posthoc_metric.checkpoint.vet import _graph_reasons
from posthoc_metric.decoder import Decoder
from posthoc_metric.errors import CheckpointError, DerivativeWarning, InvalidArgumentError, UnsafeFileError

CELEBA = pathlib.Path(__file__).parents[1] / ".." / "shared" / "data" / "checkpoints" / "btcvae_celeba.pt"


def half(dim=2, out=6, hidden=8):
    return nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, out))


class VAE(nn.Module):
    def __init__(self, latent_dim=2, hidden=8):
        super().__init__()
        self.encoder = half(6, latent_dim, hidden)
        self.decoder = half(latent_dim, 6, hidden)

    def forward(self, x):
        return self.decoder(self.encoder(x))


@pytest.fixture
def vae():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VAE()


@pytest.fixture
def z():
    return torch.randn(7, 2, generator=torch.Generator().manual_seed(1))


def assert_same(decoder, module, z, tolerance=1e-6):
    with torch.no_grad():
        assert torch.allclose(decoder(z), module(z).flatten(1), atol=tolerance)
    expected = torch.func.vmap(torch.func.jacrev(lambda row: module(row[None]).flatten()))(z)
    assert torch.allclose(decoder.jacobian(z), expected.detach(), atol=1e-4)


STATES = {
    "plain": lambda state: state,
    "DataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "activation checkpoints": lambda state: {
        name.replace(".", "._checkpoint_wrapped_module.", 1): t for name, t in state.items()
    },
    "compiled parallel": lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
    "model prefix": lambda state: {f"model.{name}": tensor for name, tensor in state.items()},
    "averaged": lambda state: {"n_averaged": torch.tensor(3), **{f"module.{n}": t for n, t in state.items()}},
    "nested": lambda state: {"epoch": 3, "optimizer": {"lr": 0.1}, "state_dict": state},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.5},
    "nested twice": lambda state: {"checkpoint": {"model": state}},
    "dotted key": lambda state: {"v1.0": state},
    "wrapped inside": lambda state: {n.replace("decoder.", "decoder.module."): t for n, t in state.items()},
    "lightning": lambda state: {
        "pytorch-lightning_version": "2.6",
        "epoch": 1,
        "hyper_parameters": {"latent_dim": 2, "unused": "x"},
        "state_dict": {f"net.{name}": tensor for name, tensor in state.items()},
    },
    "training leftovers": lambda state: {
        "state_dict": state,
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(0.5),
        "where": pathlib.PurePosixPath("a/b"),
        "history": np.arange(3.0),
    },
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("factory", [VAE, half])
def test_state_dicts_are_found_under_keys_and_prefixes(tmp_path, vae, z, name, factory):
    path = tmp_path / "model.ckpt"
    torch.save(STATES[name](vae.state_dict()), path)
    decoder = load_decoder(path, factory=factory)
    assert_same(decoder, vae.decoder, z)
    assert "model.ckpt" in decoder.describe()


def test_what_was_found_is_reported(tmp_path, vae):
    torch.save({"state_dict": {f"model.{n}": t for n, t in vae.state_dict().items()}}, tmp_path / "m.pt")
    text = load_decoder(tmp_path / "m.pt", factory=half).describe()
    assert "'state_dict'" in text and "'model.decoder.'" in text


def test_old_torch_files(tmp_path, vae, z):
    torch.save(vae.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same(load_decoder(tmp_path / "old.pt", factory=half), vae.decoder, z)


def test_safetensors(tmp_path, vae, z):
    save_file(vae.state_dict(), tmp_path / "m.safetensors")
    assert_same(load_decoder(tmp_path / "m.safetensors", factory=half), vae.decoder, z)


def test_double_weights_stay_double(tmp_path, vae, z):
    torch.save(vae.double().state_dict(), tmp_path / "m.pt")
    decoder = load_decoder(tmp_path / "m.pt", factory=half)
    assert decoder.dtype == torch.float64
    assert torch.equal(decoder(z.double()), vae.decoder(z.double()).detach())


@pytest.mark.parametrize("how", ["tests.test_checkpoint", "file"])
def test_factory_by_name(tmp_path, vae, z, how, monkeypatch):
    (tmp_path / "mymodel.py").write_text(
        "from torch import nn\n"
        "def make(hidden):\n"
        "    return nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 6))\n"
    )
    torch.save(vae.state_dict(), tmp_path / "m.pt")
    if how == "file":
        name = f"{tmp_path / 'mymodel.py'}:make"
    else:
        monkeypatch.syspath_prepend(tmp_path)
        name = "mymodel:make"
    assert_same(load_decoder(tmp_path / "m.pt", factory=name, factory_kwargs={"hidden": 8}), vae.decoder, z)


def test_a_module_as_factory_is_copied(tmp_path, vae, z):
    torch.save(vae.state_dict(), tmp_path / "m.pt")
    empty = half()
    before = empty[0].weight.clone()
    assert_same(load_decoder(tmp_path / "m.pt", factory=empty), vae.decoder, z)
    assert torch.equal(empty[0].weight, before)


@pytest.mark.parametrize("factory", ["nonsense", "no_such_package_xyz:Thing", "math:no_such", 3])
def test_a_factory_that_cannot_be_had(tmp_path, vae, factory):
    torch.save(vae.state_dict(), tmp_path / "m.pt")
    with pytest.raises(InvalidArgumentError, match="factory"):
        load_decoder(tmp_path / "m.pt", factory=factory)


def test_a_factory_that_needs_arguments(tmp_path, vae):
    torch.save(vae.state_dict(), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="factory_kwargs"):
        load_decoder(tmp_path / "m.pt", factory=lambda width: half(hidden=width))


def test_the_checkpoints_own_arguments_are_used(tmp_path, z):
    big = VAE(latent_dim=2, hidden=11)
    torch.save({"state_dict": big.state_dict(), "hyper_parameters": {"hidden": 11, "lr": 1.0}}, tmp_path / "m.ckpt")
    decoder = load_decoder(tmp_path / "m.ckpt", factory=VAE)
    assert "hidden" in decoder.describe()
    assert_same(decoder, big.decoder, z)


@pytest.mark.parametrize("key", [None, "ema", "ema.shadow_params"])
def test_averages_kept_without_names_are_told_apart_from_a_missing_key(tmp_path, vae, key):
    averages = {"decay": 0.999, "shadow_params": [weight.detach() for weight in vae.parameters()]}
    torch.save({"ema": averages} if key else averages, tmp_path / "ema.pt")
    with pytest.raises(
        CheckpointError, match=r"shadow_params' is a list of 8 tensors without names.*state_dict\(\)"
    ) as e:
        load_decoder(tmp_path / "ema.pt", factory=VAE, key=key)
    assert "key=" not in str(e.value)


def test_a_key_that_leads_to_no_weights_says_what_is_there(tmp_path, vae):
    torch.save({"model": vae.state_dict(), "epoch": 3}, tmp_path / "vae.pt")
    with pytest.raises(CheckpointError, match="under the key 'epoch'; it holds int .3.*another key="):
        load_decoder(tmp_path / "vae.pt", factory=VAE, key="epoch")


def test_a_key_of_which_only_the_beginning_is_there_is_named_as_a_whole(tmp_path, vae):
    torch.save({"nets": {"vae": vae.state_dict()}}, tmp_path / "vae.pt")
    with pytest.raises(CheckpointError, match=r"`key` is 'nets.gan', .*; 'nets' there holds 'vae'"):
        load_decoder(tmp_path / "vae.pt", factory=VAE, key="nets.gan")


def test_two_networks_in_one_file_need_a_key(tmp_path, z):
    one, two = half(), half()
    torch.save({"netA_state_dict": one.state_dict(), "netB_state_dict": two.state_dict()}, tmp_path / "gan.pt")
    with pytest.raises(CheckpointError, match="netA_state_dict.*netB_state_dict.*key="):
        load_decoder(tmp_path / "gan.pt", factory=half)
    assert_same(load_decoder(tmp_path / "gan.pt", factory=half, key="netB_state_dict"), two, z)
    with pytest.raises(CheckpointError, match="'netC'.*netA_state_dict"):
        load_decoder(tmp_path / "gan.pt", factory=half, key="netC")


@pytest.mark.parametrize(
    "averaged", ["model_ema", "ema_net", "ema2", "net.averaged", "G_ema", "g_running", "ema.module"]
)
@pytest.mark.parametrize("plain", ["g", "schema_net", "emanation"])
def test_the_average_of_the_weights_is_taken_and_the_others_reported(averaged, plain, tmp_path, z):
    one, average = half(), half()
    latent_avg = {"latent_avg": torch.zeros(3), "d": nn.Linear(3, 1).state_dict()}
    torch.save({plain: one.state_dict(), averaged: average.state_dict(), **latent_avg}, tmp_path / "m.pt")
    decoder = load_decoder(tmp_path / "m.pt", factory=half)
    assert_same(decoder, average, z)
    assert (
        f"moving average of the weights, as is meant for samples; others fit too, by key= or prefix=: key '{plain}'"
        in (decoder.describe())
    )
    assert_same(load_decoder(tmp_path / "m.pt", factory=half, key=plain), one, z)


def test_averages_beside_a_copy_of_the_weights_that_they_are_made_of(tmp_path, z):
    """As ema_pytorch keeps them."""
    one, average = half(), half()
    both = {
        f"{p}.{n}": t for p, m in (("online_model", one), ("ema_model", average)) for n, t in m.state_dict().items()
    }
    for content in (both, {"model": one.state_dict(), "ema": {**both, "initted": torch.tensor(True)}}):
        torch.save(content, tmp_path / "m.pt")
        assert_same(load_decoder(tmp_path / "m.pt", factory=half), average, z)


def test_averages_that_lightning_put_in_the_place_of_the_weights(tmp_path, z):
    now, average = half(), half()
    content = {"state_dict": average.state_dict(), "current_model_state": now.state_dict()}
    torch.save({**content, "averaging_state": {"n_averaged": torch.tensor(3)}}, tmp_path / "m.ckpt")
    decoder = load_decoder(tmp_path / "m.ckpt", factory=half)
    assert_same(decoder, average, z)
    assert "key 'current_model_state'" in decoder.describe()


def test_whose_average_is_meant_is_not_guessed(tmp_path, z):
    names = ("netA", "netA_ema", "netB")
    torch.save({name: half().state_dict() for name in names}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="'netA'.*'netA_ema'.*'netB'.*key="):
        load_decoder(tmp_path / "m.pt", factory=half)


def test_the_average_of_whole_modules_is_taken(tmp_path, z):
    """As the StyleGANs of NVIDIA are saved."""
    modules = {"G": half(), "D": nn.Linear(3, 1), "G_ema": half()}
    torch.save({"training_set_kwargs": {}, **modules, "augment_pipe": None}, tmp_path / "m.pkl")
    decoder = load_decoder(tmp_path / "m.pkl", trust=True)
    assert_same(decoder, modules["G_ema"], z)
    assert "the module under the key 'G_ema'; others by key=: 'G', 'D'" in decoder.describe()
    assert_same(load_decoder(tmp_path / "m.pkl", trust=True, key="G"), modules["G"], z)
    torch.save({**modules, "G2": half()}, tmp_path / "m.pkl")
    with pytest.raises(CheckpointError, match="'G', 'D', 'G_ema', 'G2'.*key="):
        load_decoder(tmp_path / "m.pkl", trust=True)


def test_averages_without_names_beside_the_weights_are_reported(tmp_path, z):
    one = half()
    torch.save({"g": one.state_dict(), "g_ema": [weight.detach() for weight in half().parameters()]}, tmp_path / "m.pt")
    decoder = load_decoder(tmp_path / "m.pt", factory=half)
    assert_same(decoder, one, z)
    assert "not loaded: 'g_ema' is a list of 4 tensors without names" in decoder.describe()


def test_prefix_by_hand(tmp_path, z):
    one, two = half(), half()
    state = {f"{p}.{n}": t for p, m in (("a", one), ("b", two)) for n, t in m.state_dict().items()}
    torch.save(state, tmp_path / "m.pt")
    assert_same(load_decoder(tmp_path / "m.pt", factory=half, prefix="b."), two, z)


class Wrapped(nn.Module):
    """All its names begin with those of its wrappers."""

    def __init__(self):
        super().__init__()
        self.module = nn.ModuleDict({"decoder": half()})

    def forward(self, z):
        return self.module["decoder"](z)


@pytest.mark.parametrize(
    ("save", "put"),
    [
        (lambda vae: vae.decoder.state_dict(), "module.decoder."),
        (lambda vae: {f"decoder.{n}": t for n, t in vae.decoder.state_dict().items()}, "module."),
        (lambda vae: {"state_dict": {f"net.{n}": t for n, t in vae.decoder.state_dict().items()}}, "module.decoder."),
        (lambda vae: vae.state_dict(), "module."),
    ],
)
def test_a_prefix_that_the_file_lacks_is_put_before_its_names(tmp_path, vae, z, save, put):
    torch.save(save(vae), tmp_path / "m.pt")
    decoder = load_decoder(tmp_path / "m.pt", factory=Wrapped)
    assert_same(decoder, vae.decoder, z)
    assert f"prefix '{put}' put before their names" in decoder.describe()


def test_a_prefix_is_put_before_the_names_of_one_set_of_weights_only(tmp_path, vae, z):
    torch.save({"net": vae.decoder.state_dict(), "other": half().state_dict()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"several sets of weights.*key 'net'.*key 'other'.*key="):
        load_decoder(tmp_path / "m.pt", factory=Wrapped)
    assert_same(load_decoder(tmp_path / "m.pt", factory=Wrapped, key="net"), vae.decoder, z)


def test_no_prefix_makes_up_for_weights_that_are_missing(tmp_path, vae):
    torch.save(vae.decoder.state_dict(), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="missing"):
        load_decoder(tmp_path / "m.pt", factory=VAE)  # its encoder has no weights there


def test_weights_of_another_class_are_refused(tmp_path, vae):
    torch.save(vae.state_dict(), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"another shape.*\(8, 2\)"):
        load_decoder(tmp_path / "m.pt", factory=lambda: half(hidden=9))
    with pytest.raises(CheckpointError, match="2 missing"):
        load_decoder(tmp_path / "m.pt", factory=lambda: nn.Sequential(*half(), nn.Tanh(), nn.Linear(6, 6)))


def test_a_deeper_network_in_the_file_is_refused_unless_said(tmp_path):
    deep = nn.Sequential(*half(), nn.Tanh(), nn.Linear(6, 6))
    torch.save({f"decoder.{n}": t for n, t in deep.state_dict().items()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="2 unexpected.*strict=False"):
        load_decoder(tmp_path / "m.pt", factory=half)
    assert load_decoder(tmp_path / "m.pt", factory=half, strict=False).output_dim == 6


@pytest.mark.parametrize("strict", [True, False])
def test_strict_is_advised_only_where_it_helps(tmp_path, strict):
    deep = nn.Sequential(*half(), nn.Tanh(), nn.Linear(6, 6))
    torch.save({**half().state_dict(), "9.weight": torch.ones(2)}, tmp_path / "m.pt")
    for factory, words in ((lambda: deep, "2 missing.*, 1 unexpected"), (lambda: half(hidden=9), "another shape")):
        with pytest.raises(CheckpointError, match=words) as caught:
            load_decoder(tmp_path / "m.pt", factory=factory, strict=strict)
        assert "pass strict=False" not in str(caught.value)
        assert ("makes up for none that are missing" in str(caught.value)) == (not strict and "missing" in words)


def test_counts_of_batches_and_wrappers_are_no_reason(tmp_path):
    normed = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6))
    state = {n.replace("0.", "0.module."): t for n, t in normed.state_dict().items() if "tracked" not in n}
    torch.save({**state, "9.weight": torch.ones(2)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="with 1 unexpected .*or pass strict=False"):
        load_decoder(tmp_path / "m.pt", factory=lambda: normed)
    assert load_decoder(tmp_path / "m.pt", factory=lambda: normed, strict=False).output_dim == 6


def test_weights_without_a_class_ask_for_one(tmp_path, vae):
    torch.save({"state_dict": vae.state_dict()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="8 tensors under 'state_dict'.*factory="):
        load_decoder(tmp_path / "m.pt")


def test_a_pickled_module_needs_trust(tmp_path, vae, z):
    torch.save(vae, tmp_path / "m.pt")
    with pytest.raises(UnsafeFileError, match="m.pt.*trust=True"):
        load_decoder(tmp_path / "m.pt")
    assert_same(load_decoder(tmp_path / "m.pt", trust=True), vae.decoder, z)


@pytest.mark.parametrize("key", [None, "model"])
def test_the_weights_of_a_pickled_module_go_into_what_the_factory_makes(tmp_path, vae, z, key):
    """The factory was left out without a word, and what it does otherwise with it."""

    class Doubled(type(vae)):
        def decode(self, z):
            return 2 * self.decoder(z)

    torch.save(vae if key is None else {"model": vae, "epoch": 3}, tmp_path / "m.pt")
    for told in (None, key):
        found = load_decoder(tmp_path / "m.pt", factory=Doubled, key=told, method="decode", trust=True)
        assert torch.allclose(found(z), 2 * load_decoder(tmp_path / "m.pt", trust=True)(z))
    with pytest.raises(CheckpointError, match="do not fit the module"):
        load_decoder(tmp_path / "m.pt", factory=lambda: torch.nn.Linear(2, 3), trust=True)


def test_a_scripted_decoder_in_half_precision_is_loaded_without_a_word_of_torch_s_own(tmp_path, vae, z):
    torch.jit.script(half().half()).save(str(tmp_path / "m.pt"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*grad attribute")
        assert load_decoder(tmp_path / "m.pt").dtype == torch.float32


@pytest.mark.parametrize("how", ["script", "trace", "freeze"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path, vae, z, how):
    module = vae.decoder.eval()
    if how == "trace":
        scripted = torch.jit.trace(module, z)
    else:
        scripted = torch.jit.script(module)
    if how == "freeze":
        scripted = torch.jit.freeze(scripted)
    scripted.save(str(tmp_path / "m.pt"))
    assert_same(load_decoder(tmp_path / "m.pt", latent_dim=2), module, z)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("batch", ["dynamic", "static"])
def test_exported_programs(tmp_path, vae, z, batch):
    module = vae.decoder.eval()
    shapes = ({0: torch.export.Dim("b", min=2)},) if batch == "dynamic" else None
    program = torch.export.export(module, (torch.randn(5, 2),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "m.pt2")
    decoder = load_decoder(tmp_path / "m.pt2")
    assert decoder.latent_dim == 2
    assert_same(decoder, module, z)
    assert_same(decoder, module, z[:1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("most", [16, 1024])
def test_an_exported_program_of_bounded_batches_is_asked_in_such(tmp_path, vae, most):
    module = vae.decoder.eval()
    shapes = ({0: torch.export.Dim("b", min=1, max=most)},)
    torch.export.save(torch.export.export(module, (torch.randn(4, 2),), dynamic_shapes=shapes), tmp_path / "m.pt2")
    decoder = load_decoder(tmp_path / "m.pt2")
    assert f"takes batches of up to {most} rows" in decoder.describe()
    z = torch.randn(1500, 2, generator=torch.Generator().manual_seed(0))
    assert_same(decoder, module, z)
    assert torch.allclose(decoder.jacobian(z), Decoder(module).jacobian(z), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_that_returns_a_dictionary(tmp_path, vae, z):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = vae.decoder

        def forward(self, z):
            return {"mean": self.net(z), "rest": [z.exp(), {"scale": z}]}

    program = torch.export.export(Named().eval(), (z,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "m.pt2")
    assert_same(load_decoder(tmp_path / "m.pt2", latent_dim=2, output="mean"), vae.decoder.eval(), z)


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ('[1, {"type": "builtins.dict", "context": "[\\"mean\\", \\"a\\"]", "children_spec": []}]', True),
        ('[1, {"type": "builtins.dict", "context": "{\\"__enum__\\": true, \\"fqn\\": \\"os:a\\"}"}]', False),
        ('[1, {"context": "[\\"__import__(1)\\"]"}]', False),
        ('{"__import__(1)": 1}', False),
        ("[1, (2)]", False),
    ],
)
def test_what_says_how_results_are_nested_is_read_to_the_bottom(text, harmless):
    assert any(True for _ in _graph_reasons({"out_spec": text}, "")) != harmless


@pytest.mark.filterwarnings("ignore")
def test_an_exported_convolution_with_no_grad_inside(tmp_path, z):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(2, 16)
            self.conv = nn.ConvTranspose2d(4, 3, 4, 2, 1)

        def forward(self, z):
            return torch.sigmoid(self.conv(torch.relu(self.up(z)).view(z.shape[0], 4, 2, 2)))

    net = Net().eval()
    program = torch.export.export(net, (torch.randn(4, 2),), dynamic_shapes=({0: torch.export.Dim("b")},))
    torch.export.save(program, tmp_path / "m.pt2")
    assert_same(load_decoder(tmp_path / "m.pt2"), net, z)


def onnx_mlp(path, module, batch="batch", shape=(2,), external=None, check_runtime=True):
    """An ONNX graph of an MLP written with onnx itself."""
    onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
    if check_runtime:
        pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    from onnx import TensorProto, helper, numpy_helper

    names = {"w0": module[0].weight, "b0": module[0].bias, "w1": module[2].weight, "b1": module[2].bias}
    weights = [numpy_helper.from_array(tensor.detach().numpy().copy(), name) for name, tensor in names.items()]
    nodes = [helper.make_node("Reshape", ["z", "flat"], ["z2"])] if len(shape) > 1 else []
    if nodes:
        weights.append(numpy_helper.from_array(np.array([-1, int(np.prod(shape))]), "flat"))
    nodes += [
        helper.make_node("Gemm", ["z2" if nodes else "z", "w0", "b0"], ["h"], transB=1),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Gemm", ["t", "w1", "b1"], ["x"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 6])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if external is not None:
        onnx.save_model(model, path, save_as_external_data=True, location=external, size_threshold=0)
    else:
        onnx.save_model(model, path)
    return model


@pytest.mark.parametrize(("batch", "shape"), [("batch", (2,)), (5, (2,)), ("batch", (2, 1, 1))])
def test_onnx_through_its_runtime(tmp_path, vae, z, batch, shape, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    onnx_mlp(tmp_path / "m.onnx", vae.decoder, batch, shape)
    with pytest.warns(DerivativeWarning, match="float32"):
        decoder = load_decoder(tmp_path / "m.onnx")
    assert decoder.latent_dim == 2 and "run by ONNX Runtime: onnx2torch" in decoder.describe()
    expected = torch.func.vmap(torch.func.jacrev(vae.decoder))(z).detach()
    assert torch.allclose(decoder(z), vae.decoder(z), atol=1e-6)
    assert (decoder.jacobian(z) - expected).abs().max() < 1e-4 * expected.abs().max()


def converter(monkeypatch, convert):
    """Stands in for onnx2torch."""
    monkeypatch.setitem(sys.modules, "onnx2torch", types.SimpleNamespace(convert=convert))


def test_onnx_rebuilt_in_torch_where_a_converter_gives_the_same(tmp_path, vae, z, monkeypatch):
    onnx_mlp(tmp_path / "m.onnx", vae.decoder)
    converter(monkeypatch, lambda graph: copy.deepcopy(vae.decoder).train())
    decoder = load_decoder(tmp_path / "m.onnx")  # and no warning of finite differences
    assert "rebuilt in torch by onnx2torch" in decoder.describe() and "forward-mode" in decoder.describe()
    assert_same(decoder, vae.decoder, z)


@pytest.mark.parametrize(
    ("convert", "why"),
    [
        (lambda graph: nn.Sequential(nn.Linear(2, 6)), "differs by"),
        (lambda graph: nn.Sequential(nn.Linear(2, 1)), "differs by nan"),
        (lambda graph: nn.Linear(3, 6), "cannot rebuild it"),
        (lambda graph: {}["Gemm"], "cannot rebuild it"),
    ],
)
def test_onnx_falls_back_to_its_runtime_where_a_converter_fails(tmp_path, vae, z, monkeypatch, convert, why):
    onnx_mlp(tmp_path / "m.onnx", vae.decoder)
    converter(monkeypatch, convert)
    with pytest.warns(DerivativeWarning):
        decoder = load_decoder(tmp_path / "m.onnx")
    assert "run by ONNX Runtime" in decoder.describe() and why in decoder.describe()
    assert torch.allclose(decoder(z), vae.decoder(z), atol=1e-6)


def test_onnx_of_one_batch_size_is_not_converted(tmp_path, vae, z, monkeypatch):
    onnx_mlp(tmp_path / "m.onnx", vae.decoder, batch=5)
    converter(monkeypatch, lambda graph: vae.decoder)
    with pytest.warns(DerivativeWarning):
        assert "its batch size is fixed" in load_decoder(tmp_path / "m.onnx").describe()


@pytest.mark.parametrize("kind", ["mlp", "convolutions and batch norm"])
def test_onnx_rebuilt_by_the_real_converter(tmp_path, vae, kind):
    try:
        import onnx2torch  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"onnx2torch cannot be imported: {error}")
    if kind == "mlp":
        onnx_mlp(tmp_path / "m.onnx", vae.decoder)
    else:
        onnx_convolutions(tmp_path / "m.onnx")
    decoder = load_decoder(tmp_path / "m.onnx")
    assert "rebuilt in torch by onnx2torch" in decoder.describe() and "forward-mode" in decoder.describe()
    assert decoder.output_dim == (6 if kind == "mlp" else 64)


def onnx_convolutions(path):
    """ConvTranspose, BatchNormalization, Relu, ConvTranspose, Conv, Sigmoid from (6, 1, 1) to (1, 8, 8)."""
    onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    shapes = {"w": (6, 8, 4, 4), "s": (8,), "b": (8,), "m": (8,), "v": (8,), "u": (8, 4, 4, 4), "c": (1, 4, 3, 3)}
    weights = {name: draw.standard_normal(shape).astype(np.float32) / 2 for name, shape in shapes.items()}
    weights["v"] = weights["v"] ** 2 + 0.1
    nodes = [
        helper.make_node("ConvTranspose", ["z", "w"], ["1"], kernel_shape=[4, 4]),
        helper.make_node("BatchNormalization", ["1", "s", "b", "m", "v"], ["2"]),
        helper.make_node("Relu", ["2"], ["3"]),
        helper.make_node("ConvTranspose", ["3", "u"], ["4"], kernel_shape=[4, 4], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["4", "c"], ["5"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["5"], ["x"]),
    ]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 6, 1, 1])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_onnx_pickles(tmp_path, vae, z, monkeypatch):
    import pickle

    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    onnx_mlp(tmp_path / "m.onnx", vae.decoder)
    with pytest.warns(DerivativeWarning):
        decoder = load_decoder(tmp_path / "m.onnx")
    assert torch.equal(pickle.loads(pickle.dumps(decoder))(z), decoder(z))


def test_onnx_with_weights_beside_it(tmp_path, vae, z, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    onnx_mlp(tmp_path / "m.onnx", vae.decoder, external="m.weights")
    with pytest.warns(DerivativeWarning):
        decoder = load_decoder(tmp_path / "m.onnx")
    assert torch.allclose(decoder(z), vae.decoder(z), atol=1e-6)
    (tmp_path / "m.weights").unlink()
    with pytest.raises(CheckpointError, match="beside it"):
        load_decoder(tmp_path / "m.onnx")


def fitted_regressor(activation="tanh"):
    from sklearn.neural_network import MLPRegressor

    rng = np.random.default_rng(0)
    latents = rng.normal(size=(60, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MLPRegressor(hidden_layer_sizes=(7, 5), activation=activation, max_iter=20, random_state=0).fit(
            latents, np.sin(latents @ rng.normal(size=(3, 4)))
        )


@pytest.mark.parametrize("activation", ["tanh", "relu", "logistic", "identity"])
def test_skops_perceptron_is_rebuilt_in_torch(tmp_path, activation):
    skops = pytest.importorskip("skops.io", reason="the skops extra is not installed")
    regressor = fitted_regressor(activation)
    skops.dump(regressor, tmp_path / "m.skops")
    decoder = load_decoder(tmp_path / "m.skops")
    z = np.random.default_rng(1).normal(size=(9, 3))
    assert decoder.dtype == torch.float64 and "differences" not in decoder.describe()
    assert np.allclose(decoder(z), regressor.predict(z), atol=1e-12)


def test_a_pickled_regressor_needs_trust(tmp_path):
    import joblib

    regressor = fitted_regressor()
    joblib.dump(regressor, tmp_path / "m.joblib")
    with pytest.raises(UnsafeFileError, match="pickle"):
        load_decoder(tmp_path / "m.joblib")
    z = np.random.default_rng(1).normal(size=(9, 3))
    assert np.allclose(load_decoder(tmp_path / "m.joblib", trust=True)(z), regressor.predict(z))


class CelebA(nn.Module):
    """The decoder of the shared checkpoint, written from its description."""

    def __init__(self):
        super().__init__()
        self.lin1, self.lin2, self.lin3 = nn.Linear(10, 256), nn.Linear(256, 256), nn.Linear(256, 512)
        self.convT_64 = nn.ConvTranspose2d(32, 32, 4, 2, 1)
        self.convT1 = nn.ConvTranspose2d(32, 32, 4, 2, 1)
        self.convT2 = nn.ConvTranspose2d(32, 32, 4, 2, 1)
        self.convT3 = nn.ConvTranspose2d(32, 3, 4, 2, 1)

    def forward(self, z):
        x = torch.relu(self.lin3(torch.relu(self.lin2(torch.relu(self.lin1(z))))))
        x = x.view(z.shape[0], 32, 4, 4)
        for layer in (self.convT_64, self.convT1, self.convT2):
            x = torch.relu(layer(x))
        return torch.sigmoid(self.convT3(x))


@pytest.mark.skipif(not CELEBA.exists(), reason="the shared CelebA checkpoint is not beside this checkout")
def test_a_real_checkpoint():
    decoder = load_decoder(CELEBA, factory=CelebA)
    assert "'decoder.'" in decoder.describe()
    assert decoder.output_shape == (3, 64, 64)
    z = torch.randn(2, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, jacobian = decoder.value_and_jacobian(z)
    assert value.shape == (2, 12288) and jacobian.shape == (2, 12288, 10)
    assert 0.2 < float(value.mean()) < 0.8 and float(value.std()) > 0.1
    twin = CelebA().double()
    state = torch.load(CELEBA, weights_only=True)
    twin.load_state_dict({n.removeprefix("decoder."): t for n, t in state.items() if n.startswith("decoder.")})
    step = torch.zeros_like(z)
    step[:, 3] = 1e-6
    with torch.no_grad():
        differences = (twin(z + step) - twin(z - step)).flatten(1) / 2e-6
    assert (differences - jacobian[:, :, 3]).abs().max() < 1e-4 * differences.abs().max()


def test_a_path_in_the_users_home(tmp_path, vae, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(vae.state_dict(), tmp_path / "m.pt")
    assert load_decoder(os.path.join("~", "m.pt"), factory=half).latent_dim == 2


def test_loading_draws_nothing_from_the_caller_s_generator(tmp_path):
    torch.save(half().state_dict(), tmp_path / "decoder.pt")
    before = torch.get_rng_state()
    load_decoder(tmp_path / "decoder.pt", factory=half)
    assert torch.equal(torch.get_rng_state(), before)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.one, self.other = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight

    def forward(self, z):
        return self.other(torch.tanh(self.one(torch.tanh(self.first(z)))))


def test_tied_weights_that_the_file_holds_once(tmp_path, z):
    from safetensors.torch import save_model

    module = Tied().eval()
    save_model(module, str(tmp_path / "m.safetensors"))
    assert_same(load_decoder(tmp_path / "m.safetensors", factory=Tied, latent_dim=2), module, z)


class Gone(nn.Module):
    """Of a script that saved it whole."""

    __module__ = "__main__"

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 5)

    def forward(self, z):
        return self.layer(z)


def test_how_to_go_on_with_a_module_whose_class_a_script_defined(tmp_path, z, monkeypatch):
    path, script = tmp_path / "m.pt", sys.modules["__main__"]
    with monkeypatch.context() as there:
        there.setattr(script, "Gone", Gone, raising=False)
        torch.save(Gone(), path)
    with pytest.raises(CheckpointError, match=r"import them in another one, as by `from mymodels import \*`"):
        load_decoder(path, trust=True)
    monkeypatch.setattr(script, "Gone", Gone, raising=False)
    module = torch.load(path, weights_only=False)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    assert_same(load_decoder(tmp_path / "state.pt", factory=Gone), module, z)


class Vocabulary(nn.Module):
    """Logits from the embedding of the encoder, whose name is the shorter of the two."""

    def __init__(self):
        super().__init__()
        self.emb, self.up, self.head = nn.Embedding(5, 8), nn.Linear(2, 8), nn.Linear(8, 5)
        self.head.weight = self.emb.weight

    def forward(self, z):
        return self.head(torch.tanh(self.up(z)))


class Logits(nn.Module):
    """The decoder of it alone, with weights of its own."""

    def __init__(self):
        super().__init__()
        self.up, self.head = nn.Linear(2, 8), nn.Linear(8, 5)

    def forward(self, z):
        return self.head(torch.tanh(self.up(z)))


@pytest.mark.parametrize("factory", [Vocabulary, Logits])
def test_tied_weights_under_the_name_that_the_file_does_not_hold(tmp_path, z, factory):
    from safetensors.torch import save_model

    module, path = Vocabulary().eval(), tmp_path / "m.safetensors"
    save_model(module, str(path))
    assert_same(load_decoder(path, factory=factory, latent_dim=2, strict=False), module, z)


def test_tied_weights_that_were_left_out_of_a_state_dict(tmp_path, z):
    module = Vocabulary().eval()
    kept = {f"model.{name}": tensor for name, tensor in module.state_dict().items() if name != "head.weight"}
    torch.save(kept, tmp_path / "m.pt")
    assert_same(load_decoder(tmp_path / "m.pt", factory=Vocabulary, latent_dim=2), module, z)


def diffusers_folder(path, **files):
    """As diffusers saves a model, by the dotted names of its files without their endings."""
    from safetensors.torch import save_file

    (path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    for name, module in files.items():
        save_file(module.state_dict(), path / f"diffusion_pytorch_model{name}.safetensors")


def test_weights_of_a_folder_are_the_plain_ones_where_there_are_variants(tmp_path, z):
    plain = half()
    diffusers_folder(tmp_path, **{".fp16": half().half(), "": plain, ".non_ema": half()})
    assert_same(load_decoder(tmp_path, factory=half), plain, z)


def test_a_variant_in_another_format_gives_way_to_the_plain_weights(tmp_path, z):
    plain = half()
    diffusers_folder(tmp_path, **{".fp16": half().half()})
    torch.save(plain.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    torch.save({"lr": 0.1}, tmp_path / "training_args.bin")
    assert_same(load_decoder(tmp_path, factory=half), plain, z)


def test_weights_that_are_split_over_several_files(tmp_path):
    diffusers_folder(tmp_path, **{"-00001-of-00002": half(), "-00002-of-00002": half()})
    with pytest.raises(CheckpointError, match="split over several files"):
        load_decoder(tmp_path, factory=half)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", [torch.int8, torch.complex64])
def test_weights_that_stand_for_other_numbers_are_refused(tmp_path, kind, strict):
    coded = {name: (50 * value).to(kind) if value.ndim == 2 else value for name, value in half().state_dict().items()}
    torch.save({**coded, "0.scale": torch.tensor(0.02)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=rf"2 of another kind \(0.weight is of {kind}"):
        load_decoder(tmp_path / "m.pt", factory=half, strict=strict)


class Scaled(nn.Module):
    """Keeps a number that is no tensor in its state dict, as torch lets it."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.net, self.scale = half(), scale

    def forward(self, z):
        return self.scale * self.net(z)

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]


class InBytes(Scaled):
    """The same as a tensor whose length depends on the number."""

    def get_extra_state(self):
        return torch.frombuffer(bytearray(str(self.scale).encode()), dtype=torch.uint8)

    def set_extra_state(self, state):
        self.scale = float(bytes(state.tolist()))


@pytest.mark.parametrize("make", [Scaled, InBytes])
@pytest.mark.parametrize("prefix", ["", "model.decoder."])
def test_what_a_class_keeps_beside_its_tensors_is_loaded(tmp_path, z, make, prefix):
    module = make(3.125)
    torch.save({prefix + name: value for name, value in module.state_dict().items()}, tmp_path / "m.pt")
    assert_same(load_decoder(tmp_path / "m.pt", factory=make), module, z)


def test_what_is_left_in_the_file_is_reported(tmp_path):
    extra = {"encoder.weight": torch.zeros(2, 2), "quant.weight": torch.zeros(1)}
    torch.save({**half().state_dict(), **extra}, tmp_path / "decoder.pt")
    assert "has no place for it: encoder, quant" in load_decoder(tmp_path / "decoder.pt", factory=half).describe()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_module_with_computed_weights_as_factory(tmp_path, z):
    module = half()
    nn.utils.weight_norm(module[0])
    torch.save(module.state_dict(), tmp_path / "m.pt")
    assert_same(load_decoder(tmp_path / "m.pt", factory=module), module.eval(), z)


def test_a_file_as_factory_that_imports_its_neighbour_says_where_to_put_it(tmp_path, vae):
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    (tmp_path / "wrapping.py").write_text("from neighbouring_blocks import Block\n")
    before = list(sys.path)
    with pytest.raises(
        InvalidArgumentError, match=r"wrapping.py that imports 'neighbouring_blocks'.*on PYTHONPATH"
    ) as e:
        load_decoder(tmp_path / "vae.pt", factory=f"{tmp_path / 'wrapping.py'}:Block")
    assert "Name a module" not in str(e.value)
    assert sys.path == before  # its folder stayed there


def test_a_file_as_factory_may_define_dataclasses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        "from __future__ import annotations",
        "from dataclasses import dataclass",
        "from torch import nn",
        "@dataclass",
        "class Sizes:",
        "    width: int = 8",
        "def make():",
        "    return nn.Sequential(nn.Linear(2, Sizes().width), nn.Tanh())",
    ]
    for name in ("model.py", "torch.py"):  # the second named like a module that it imports
        (tmp_path / name).write_text("\n".join(lines))
        torch.save({"0.weight": torch.randn(8, 2), "0.bias": torch.zeros(8)}, tmp_path / "m.pt")
        assert load_decoder(tmp_path / "m.pt", factory=f"{name}:make", latent_dim=2).output_dim == 8
    assert "model" not in sys.modules and sys.modules["torch"] is torch


@pytest.mark.parametrize("name", ["sequence", "frequency", "semantics", "x_sequence", "post_quant", "class_embed"])
def test_words_that_hold_the_name_of_another_part_are_none(tmp_path, name):
    """What the module has no place for may be a layer that it lacks."""
    extra = {f"{name}.weight": torch.zeros(2, 2)}
    torch.save({**half().state_dict(), **extra}, tmp_path / "decoder.pt")
    with pytest.raises(CheckpointError, match=f"1 unexpected \\({name}.weight\\)"):
        load_decoder(tmp_path / "decoder.pt", factory=half)
    load_decoder(tmp_path / "decoder.pt", factory=half, strict=False)


@pytest.mark.parametrize(
    "name", ["encoder", "enc", "z_enc", "imgenc", "cond_encoder", "ema", "model_ema", "ema_decoder"]
)
def test_other_parts_by_their_names_are_left(tmp_path, name):
    torch.save({**half().state_dict(), f"{name}.weight": torch.zeros(2, 2)}, tmp_path / "decoder.pt")
    load_decoder(tmp_path / "decoder.pt", factory=half)


@pytest.mark.parametrize("wrap", [dict, lambda state: {"epoch": 3, "state_dict": state}])
@pytest.mark.parametrize("change", [lambda a: a, lambda a: a.astype(">f4"), lambda a: a[::-1].copy()[::-1]])
def test_weights_as_numpy_arrays(tmp_path, z, wrap, change):
    module = half()
    torch.save(wrap({name: change(t.numpy()) for name, t in module.state_dict().items()}), tmp_path / "m.pt")
    assert_same(load_decoder(tmp_path / "m.pt", factory=half), module, z)


def test_weights_as_numpy_arrays_in_npz_are_told_how_to_be_saved(tmp_path, z):
    module = half()
    np.savez(tmp_path / "m.npz", **{name: t.numpy() for name, t in module.state_dict().items()})
    with pytest.raises(CheckpointError, match=r"torch.save\(dict\(numpy.load\(path\)\)"):
        load_decoder(tmp_path / "m.npz", factory=half)
    torch.save(dict(np.load(tmp_path / "m.npz")), tmp_path / "m.pt")
    assert_same(load_decoder(tmp_path / "m.pt", factory=half), module, z)
