"""Nothing in a file runs unless the caller says so, and bad files get one clear error."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from fuzzing import Payload
from safetensors.torch import save_file
from torch import nn

from posthoc_metric.checkpoint import load_decoder
from posthoc_metric.checkpoint.vet import _script_reason
from posthoc_metric.errors import CheckpointError, PosthocMetricError, UnsafeFileError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def half():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


def exported(path):
    module = half().eval()
    program = torch.export.export(module, (torch.randn(4, 2),), dynamic_shapes=({0: torch.export.Dim("b", min=2)},))
    torch.export.save(program, path)


def rewritten(path, change):
    """The zip archive at ``path`` with ``change(name, bytes)`` applied to every member."""
    with zipfile.ZipFile(path) as archive:
        members = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def pickled(marker):
    buffer = io.BytesIO()
    torch.save({"x": Payload(marker)}, buffer)
    return buffer.getvalue()


def plant_torch(path, marker):
    torch.save({"state_dict": half().state_dict(), "extra": Payload(marker)}, path)


def plant_legacy(path, marker):
    torch.save({"a": Payload(marker), **half().state_dict()}, path, _use_new_zipfile_serialization=False)


def plant_lightning(path, marker):
    content = {"pytorch-lightning_version": "2.6", "state_dict": half().state_dict()}
    torch.save({**content, "hyper_parameters": {"loss": Payload(marker)}}, path)


def plant_pickle(path, marker):
    path.write_bytes(pickle.dumps(Payload(marker)))


def plant_joblib(path, marker):
    import joblib

    joblib.dump({"model": Payload(marker)}, path)


def plant_pythae(path, marker):
    path.mkdir()
    (path / "model_config.json").write_text(json.dumps({"name": "VAEConfig", "latent_dim": 2}))
    (path / "environment.json").write_text("{}")
    torch.save({"model_state_dict": half().state_dict()}, path / "model.pt")
    (path / "decoder.pkl").write_bytes(pickle.dumps(Payload(marker)))


def plant_scvi(path, marker):
    path.mkdir()
    content = {"model_state_dict": half().state_dict(), "var_names": np.array(["a"]), "attr_dict": Payload(marker)}
    torch.save(content, path / "model.pt")


def plant_diffusers(path, marker):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    torch.save({"x": Payload(marker)}, path / "diffusion_pytorch_model.bin")


def plant_exported_inputs(path, marker):
    exported(path)
    rewritten(path, lambda name, data: pickled(marker) if "sample_inputs" in name else data)


def plant_exported_size(path, marker):
    exported(path)
    code = f"__import__('pathlib').Path('{marker}').write_text('it ran')"

    def change(name, data):
        if not name.endswith("model.json"):
            return data
        graph = json.loads(data)
        for value in graph["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = code
        return json.dumps(graph).encode()

    rewritten(path, change)


def plant_exported_target(path, marker):
    exported(path)

    def change(name, data):
        return data.replace(b"torch.ops.aten.tanh.default", b"torch.os.system") if name.endswith("model.json") else data

    rewritten(path, change)


class Saves(nn.Module):
    def __init__(self, marker: str):
        super().__init__()
        self.marker = marker
        self.net = half()

    def forward(self, z):
        torch.save(z, self.marker)
        return self.net(z)


class SavesOnLoading(nn.Module):
    def __init__(self, marker: str):
        super().__init__()
        self.marker = marker
        self.net = half()

    @torch.jit.export
    def __getstate__(self):
        return (self.marker, self.net)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, nn.Module]):
        self.marker = state[0]

    def forward(self, z):
        return self.net(z)


def plant_script(path, marker):
    torch.jit.script(Saves(str(marker))).save(str(path))
    assert not marker.exists()


def plant_script_from_file(path, marker):
    class Maps(nn.Module):
        def __init__(self, marker: str):
            super().__init__()
            self.marker = marker

        def forward(self, z):
            return z + torch.from_file(self.marker, shared=True, size=1)

    torch.jit.script(Maps(str(marker))).save(str(path))


def plant_script_loading(path, marker):
    torch.jit.script(half()).save(str(path))
    code = b"\n  def __setstate__(self, state: int) -> NoneType:\n    return None\n"
    rewritten(path, lambda name, data: data + code if b"class Sequential" in data else data)


def plant_keras_lambda(path, marker):
    layer = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": {"class_name": "__lambda__"}}}
    keras_archive(path, {"module": "keras", "class_name": "Sequential", "config": {"layers": [layer]}})


def plant_keras_module(path, marker):
    keras_archive(path, {"module": "os", "class_name": "system", "config": {"command": f"touch {marker}"}})


def keras_archive(path, config):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.0"}))
        archive.writestr("model.weights.h5", b"")


def plant_skops(path, marker):
    skops = pytest.importorskip("skops.io", reason="the skops extra is not installed")
    from sklearn.preprocessing import FunctionTransformer

    skops.dump(FunctionTransformer(func=pathlib.Path.touch), path)


def plant_onnx(path, marker):
    onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
    from onnx import TensorProto, helper

    secret = path.parent.parent / "secret.bin"
    secret.write_bytes(b"\0" * 48)
    weight = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 6])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["z", "w"], ["x"])],
        "g",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["b", 2])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 6])],
        [weight],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())


PLANTED = {
    "torch": ("m.pt", plant_torch),
    "legacy torch": ("m.pth", plant_legacy),
    "lightning": ("m.ckpt", plant_lightning),
    "pickle": ("m.pkl", plant_pickle),
    "pickle called pt": ("m.pt", plant_pickle),
    "joblib": ("m.joblib", plant_joblib),
    "pythae": ("pythae", plant_pythae),
    "scvi": ("scvi", plant_scvi),
    "diffusers": ("diffusers", plant_diffusers),
    "exported inputs": ("m.pt2", plant_exported_inputs),
    "exported sizes": ("m.pt2", plant_exported_size),
    "exported target": ("m.pt2", plant_exported_target),
    "script": ("m.pt", plant_script),
    "script mapping a file": ("m.pt", plant_script_from_file),
    "script on loading": ("m.pt", plant_script_loading),
    "keras lambda": ("m.keras", plant_keras_lambda),
    "keras module": ("m.keras", plant_keras_module),
    "skops": ("m.skops", plant_skops),
    "onnx": ("m.onnx", plant_onnx),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("factory", [None, half])
def test_a_payload_does_not_run(tmp_path, marker, name, factory):
    filename, plant = PLANTED[name]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / filename
    plant(path, marker)
    marker.unlink(missing_ok=True)
    needs_package = name == "diffusers" and factory is None
    expected = PosthocMetricError if factory is not None or needs_package else UnsafeFileError
    if name == "pythae" and factory is not None:
        # the caller's own class stands in for the pickled one: the weights alone are read
        assert load_decoder(path, factory=factory).latent_dim == 2
    else:
        with pytest.raises(expected) as caught:
            load_decoder(path, factory=factory, latent_dim=2)
        assert filename in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["torch", "legacy torch", "lightning", "pickle", "joblib", "script"])
def test_the_payload_is_live(tmp_path, marker, name):
    """The test above would pass with a dud; with ``trust=True`` these run."""
    filename, plant = PLANTED[name]
    plant(tmp_path / filename, marker)
    with contextlib.suppress(PosthocMetricError):
        load_decoder(tmp_path / filename, factory=None if name == "script" else half, latent_dim=2, trust=True)
    assert marker.exists()


def test_torch_itself_runs_the_exported_payloads(tmp_path, marker):
    """The strings and pickles that are vetted are live in torch's own loader."""
    for plant in (plant_exported_inputs, plant_exported_size):
        plant(tmp_path / "m.pt2", marker)
        marker.unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                torch.export.load(str(tmp_path / "m.pt2"))
            except Exception as error:  # what matters is what ran before it failed
                print(type(error).__name__)
        assert marker.exists()


def good(kind, path):
    if kind == "torch":
        torch.save(half().state_dict(), path)
    elif kind == "legacy":
        torch.save(half().state_dict(), path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        save_file(half().state_dict(), path)
    elif kind == "script":
        torch.jit.script(half()).save(str(path))
    elif kind == "exported":
        exported(path)
    elif kind == "onnx":
        from test_checkpoint import onnx_mlp

        onnx_mlp(path, half())
    elif kind == "skops":
        skops = pytest.importorskip("skops.io", reason="the skops extra is not installed")
        from sklearn.linear_model import LinearRegression

        skops.dump(LinearRegression().fit(np.eye(3), np.eye(3)), path)


KINDS = {"torch": "pt", "legacy": "pth", "safetensors": "safetensors", "script": "pt", "exported": "pt2",
         "onnx": "onnx", "skops": "skops"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_say_so(tmp_path, kind, share):
    path = tmp_path / f"model.{KINDS[kind]}"
    good(kind, path)
    data = path.read_bytes()
    path.write_bytes(data[: max(3, int(share * len(data)))])
    weights = kind in ("torch", "legacy", "safetensors")
    with pytest.raises(CheckpointError, match=path.name):
        load_decoder(path, factory=half if weights else None, latent_dim=2)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_say_so(tmp_path, kind):
    path = tmp_path / f"model.{KINDS[kind]}"
    good(kind, path)
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 3, len(data) // 3 + 60):
        data[at] ^= 0xFF
    path.write_bytes(bytes(data))
    weights = kind in ("torch", "legacy", "safetensors")
    try:
        load_decoder(path, factory=half if weights else None, latent_dim=2)
    except PosthocMetricError as error:
        assert path.name in str(error) or "decoder" in str(error)


WRONG = {
    "empty": (b"", "empty"),
    "text": (b"hello world, this is a readme\n" * 9, "no container"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "LFS"),
    "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "PNG"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "HDF5"),
    "gzip": (b"\x1f\x8b\x08\x00" + b"\0" * 50, "gzip"),
    "zeros": (b"\0" * 4096, "no container"),
    "one byte": (b"P", "no container"),
    "zip": (b"PK\x03\x04" + b"\0" * 40, "cut short or damaged"),
    "long header": (struct.pack("<Q", 2**50) + b'{"a":1}' * 9, "cut short or damaged"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_named_for_what_they_are(tmp_path, name):
    content, words = WRONG[name]
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_decoder(path, factory=half)
    assert str(path) in str(caught.value)


def test_arrays_are_no_model(tmp_path):
    np.save(tmp_path / "z.npy", np.eye(3))
    np.savez(tmp_path / "z.npz", z=np.eye(3))
    for name in ("z.npy", "z.npz"):
        with pytest.raises(CheckpointError, match="numbers"):
            load_decoder(tmp_path / name)


def test_an_ordinary_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(CheckpointError, match="ordinary zip.*notes.txt"):
        load_decoder(tmp_path / "m.pt")


def test_a_huge_file(tmp_path):
    path = tmp_path / "huge.pt"
    with path.open("wb") as file:
        file.truncate(2**43)
    with pytest.raises(CheckpointError, match="huge: 8,192 GiB"):
        load_decoder(path)


def test_a_zip_that_unpacks_to_more_than_memory(tmp_path, monkeypatch):
    from posthoc_metric.checkpoint import sniff

    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\0" * 2**22)
    monkeypatch.setattr(sniff, "physical_memory", lambda: 2**20)
    with pytest.raises(CheckpointError, match="unpacks to"):
        load_decoder(tmp_path / "m.pt")


def test_a_tensor_that_claims_more_than_the_file_holds(tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    with pytest.raises(CheckpointError, match="m.safetensors"):
        load_decoder(tmp_path / "m.safetensors", factory=half)


def test_no_such_path_and_an_odd_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no .*nowhere.pt"):
        load_decoder(tmp_path / "nowhere.pt")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "readme.txt").write_text("x")
    with pytest.raises(CheckpointError, match="readme.txt"):
        load_decoder(tmp_path / "odd")


DEEP = "[" * 100_000


def test_json_nested_deeper_than_python_reads_is_damage(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(DEEP)
    with pytest.raises(CheckpointError, match="config.json"):
        load_decoder(tmp_path / "model")
    (tmp_path / "model" / "model_index.json").write_text(DEEP)
    with pytest.raises(CheckpointError, match="looks like a diffusers pipeline|must be a JSON description"):
        load_decoder(tmp_path / "model")
    for depth, end in ((100_000, ""), (500, "]" * 500)):  # the second is read, but too deep for what looks into it
        with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
            archive.writestr("m/archive_format", "pt2")
            archive.writestr("m/models/model.json", DEEP[:depth] + end)
        with pytest.raises(CheckpointError, match="cannot be read as one: it was cut short or damaged"):
            load_decoder(tmp_path / "m.pt2")


def test_a_tensor_alone(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="no weights by name|no model"):
        load_decoder(tmp_path / "m.pt", factory=half)


def test_a_checkpoint_without_weights(tmp_path):
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="no weights by name.*'epoch'"):
        load_decoder(tmp_path / "m.pt", factory=half)


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 6))

    def forward(self, z):
        return self.net(z)


def test_a_script_that_calls_functions_by_another_name_is_read(tmp_path):
    """TorchScript writes ``_0 = __torch__.torch.nn.functional.batch_norm`` and calls ``_0``."""
    model = Normalised().eval()
    torch.jit.script(model).save(str(tmp_path / "m.pt"))
    decoder = load_decoder(tmp_path / "m.pt", latent_dim=2)
    z = torch.randn(5, 2)
    assert torch.allclose(decoder(z), model(z), atol=1e-6)


HIDDEN = {
    "an alias of what saves": "_0 = torch.save\n    _0(z, 'x')",
    "a builtin's name for what saves": "range = torch.save\n    range(z, 'x')",
    "an alias of an operator": "_0 = ops.foreign.run\n    _0(z)",
    "an alias of a group of operators": "_0 = ops.foreign\n    (_0).run(z)",
    "an alias of torch": "_0 = torch\n    (_0).save(z, 'x')",
    "an alias of a compiled class": "_0 = __torch__.torch.classes.foreign.Run\n    _0(z)",
    "an alias that reaches outside": "_0 = __torch__.torch.save\n    _0(z, 'x')",
    "an alias of an alias": "_1 = __torch__.a.f\n    _0 = _1\n    _0(z)",
    "an alias bound twice": "_0 = __torch__.a.f\n    _0 = z\n    _0(z)",
    "an alias bound again by a loop": "_0 = __torch__.a.f\n    for _0 in z:\n      _0(z)",
    "an alias among several": "_0, _1 = __torch__.a.f, z\n    _0(z)",
    "an alias of a parameter's name": "z = __torch__.a.f\n    z(z)",
    "an alias of an attribute": "_0 = self.f\n    _0(z)",
    "an alias in another function": "_2(z)",
    "a root bound anew": "__torch__ = self\n    _0 = __torch__.f\n    _0(z)",
    "torch handed on": "_0 = getattr(torch, 'save')",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_no_alias_hides_what_is_called(tmp_path, name):
    other = "\n  def other(self, z: Tensor) -> Tensor:\n    _2 = __torch__.a.f\n    return _2(z)\n"
    code = f"class M(Module):\n  def forward(self, z: Tensor) -> Tensor:\n    {HIDDEN[name]}\n    return z\n{other}"
    torch.jit.script(half()).save(str(tmp_path / "m.pt"))
    rewritten(tmp_path / "m.pt", lambda member, data: code.encode() if b"class Sequential" in data else data)
    with pytest.raises(UnsafeFileError, match="run code"):
        load_decoder(tmp_path / "m.pt", latent_dim=2)


def test_the_alias_alone_is_no_reason_to_refuse():
    assert _script_reason(b"def f(z: Tensor) -> Tensor:\n  _0 = __torch__.a.f\n  return _0(z, )\n") == ""
