"""Containers of the heavy packages, each against the real package; ``.ci/extras`` installs them and runs this file."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from posthoc_metric.checkpoint import load_decoder
from posthoc_metric.errors import CheckpointError, MissingExtraError, UnsafeFileError

pytestmark = pytest.mark.filterwarnings("ignore")


def needs(package, extra):
    """The package, or a skip that says what to install."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(package)
    except ModuleNotFoundError:
        pytest.skip(f"{package} is not installed; .ci/extras runs this with posthoc-metric[{extra}]")


def differences(function, z, step=1e-6):
    """Central differences in float64: columns (B, D, d)."""
    columns = []
    for j in range(z.shape[1]):
        shift = torch.zeros_like(z)
        shift[:, j] = step
        with torch.no_grad():
            columns.append((function(z + shift) - function(z - shift)).flatten(1) / (2 * step))
    return torch.stack(columns, dim=-1)


def assert_same(decoder, function, twin, z, tolerance=1e-4):
    """Values as the package's own; the Jacobian as differences of its float64 twin."""
    with torch.no_grad():
        assert torch.allclose(decoder(z), function(z).flatten(1), rtol=1e-4, atol=1e-5)
    assert "finite differences\n" not in decoder.describe()
    expected = differences(twin, z.double())
    gap = (decoder.jacobian(z).double() - expected).abs().max()
    assert gap < tolerance * expected.abs().max()


def latents(dim, rows=4):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(3))


def test_lightning_checkpoint(tmp_path):
    lightning = needs("lightning", "lightning")

    class Lit(lightning.LightningModule):
        def __init__(self, hidden=8):
            super().__init__()
            self.save_hyperparameters()
            self.encoder = nn.Linear(6, 2)
            self.decoder = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 6))

        def training_step(self, batch, _):
            return (self.decoder(self.encoder(batch[0])) - batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    model = Lit(hidden=9)
    trainer = lightning.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    data = torch.utils.data.TensorDataset(torch.randn(16, 6))
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=8))
    trainer.save_checkpoint(tmp_path / "lit.ckpt")
    decoder = load_decoder(tmp_path / "lit.ckpt", factory=Lit)
    assert "hidden" in decoder.describe()
    z = latents(2)
    values = model.decoder(z).detach()
    assert torch.allclose(decoder(z), values, atol=1e-6)
    half = load_decoder(
        tmp_path / "lit.ckpt", factory=lambda: nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 6))
    )
    assert torch.allclose(half(z), values, atol=1e-6)
    twin = model.decoder.double()
    assert torch.allclose(decoder.jacobian(z).double(), differences(twin, z.double()), atol=1e-5)


def test_pythae_folder(tmp_path):
    models = needs("pythae.models", "pythae")
    model = models.VAE(models.VAEConfig(input_dim=(1, 4, 4), latent_dim=3))
    model.save(str(tmp_path / "vae"))
    decoder = load_decoder(tmp_path / "vae")
    assert decoder.output_shape == (1, 4, 4)
    z = latents(3)
    expected = model.decoder.eval()(z)["reconstruction"].flatten(1)
    assert torch.allclose(decoder(z), expected, atol=1e-6)
    twin = model.decoder.double()
    assert_same(decoder, lambda x: expected, lambda x: twin(x)["reconstruction"], z)


def test_pythae_folder_with_a_pickled_decoder_is_refused(tmp_path):
    models = needs("pythae.models", "pythae")
    nets = importlib.import_module("pythae.models.nn")
    outputs = importlib.import_module("pythae.models.base.base_utils")

    class Own(nets.BaseDecoder):
        def __init__(self, args):
            super().__init__()
            self.layer = nn.Linear(3, 16)

        def forward(self, z):
            return outputs.ModelOutput(reconstruction=torch.tanh(self.layer(z)).view(-1, 1, 4, 4))

    config = models.VAEConfig(input_dim=(1, 4, 4), latent_dim=3)
    model = models.VAE(config, decoder=Own(config))
    model.save(str(tmp_path / "vae"))
    with pytest.raises(UnsafeFileError, match="decoder.pkl"):
        load_decoder(tmp_path / "vae")
    z = latents(3)
    expected = model.decoder(z)["reconstruction"].flatten(1).detach()
    by_class = load_decoder(tmp_path / "vae", factory=Own, factory_kwargs={"args": config})
    assert torch.allclose(by_class(z), expected, atol=1e-6)
    assert torch.allclose(load_decoder(tmp_path / "vae", trust=True)(z), expected, atol=1e-6)


def kl_autoencoder():
    diffusers = needs("diffusers", "diffusers")
    return diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        norm_num_groups=2,
        sample_size=8,
    ).eval()


def tiny_autoencoder():
    diffusers = needs("diffusers", "diffusers")
    return diffusers.AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
    ).eval()


@pytest.mark.parametrize("make", [kl_autoencoder, tiny_autoencoder])
@pytest.mark.parametrize("safe", [True, False])
def test_diffusers_folder(tmp_path, make, safe):
    model = make()
    model.save_pretrained(tmp_path / "model", safe_serialization=safe)
    decoder = load_decoder(tmp_path / "model", latent_shape=(2, 4, 4))
    assert decoder.output_shape == (1, 8, 8)
    z = latents(32)
    with torch.no_grad():
        values = model.decode(z.view(-1, 2, 4, 4)).sample
    twin = model.double()
    assert_same(decoder, lambda x: values, lambda x: twin.decode(x.view(-1, 2, 4, 4)).sample, z)


def test_diffusers_latent_shape_and_pipeline_folder(tmp_path):
    model = kl_autoencoder()
    model.save_pretrained(tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    decoder = load_decoder(tmp_path / "pipeline")
    assert decoder.latent_dim == 32
    (tmp_path / "pipeline" / "vae" / "config.json").write_text('{"_class_name": "DiffusionPipeline"}')
    with pytest.raises(CheckpointError, match="no autoencoder"):
        load_decoder(tmp_path / "pipeline")


def test_scvi_folder(tmp_path):
    scvi = needs("scvi", "scvi")
    anndata = importlib.import_module("anndata")
    rng = np.random.default_rng(0)
    table = anndata.AnnData(rng.poisson(2, size=(60, 15)).astype("float32"))
    table.obs["batch"] = ["a", "b"] * 30
    scvi.model.SCVI.setup_anndata(table, batch_key="batch")
    model = scvi.model.SCVI(table, n_latent=3, n_hidden=16)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path)
    model.save(str(tmp_path / "model"))
    module = model.module.eval()
    z = latents(3)

    def mean(x, library, batch):
        batches = torch.full((len(x), 1), batch)
        return module.generative(z=x, library=torch.full((len(x), 1), library, dtype=x.dtype), batch_index=batches)[
            "px"
        ].mean

    decoder = load_decoder(tmp_path / "model")
    assert decoder.latent_dim == 3 and decoder.output_dim == 15
    other = load_decoder(
        tmp_path / "model", condition={"library": torch.tensor([[2.0]]), "batch_index": torch.tensor([[1]])}
    )
    with torch.no_grad():
        expected = mean(z, float(np.log(1e4)), 0)
        assert torch.allclose(decoder(z), expected, rtol=1e-4)
        assert torch.allclose(other(z), mean(z, 2.0, 1), rtol=1e-4)
    module.double()
    assert_same(decoder, lambda x: expected, lambda x: mean(x, float(np.log(1e4)), 0), z)


def keras_on_torch():
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = needs("keras", "keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras runs on another backend; set KERAS_BACKEND=torch")
    return keras


def test_keras_model(tmp_path):
    keras = keras_on_torch()
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, "tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Reshape((2, 4)),
            keras.layers.GRU(5),
            keras.layers.Dense(6),
        ]
    )
    model.save(tmp_path / "m.keras")
    decoder = load_decoder(tmp_path / "m.keras")
    z = latents(3)
    with torch.no_grad():
        assert torch.allclose(decoder(z), torch.as_tensor(model(z, training=False)).cpu(), atol=1e-6)
    # Keras computes in float32 whatever comes: its own differences have four digits
    expected = differences(lambda x: torch.as_tensor(model(x.float(), training=False)).double(), z.double(), 3e-2)
    assert (decoder.jacobian(z).double() - expected).abs().max() < 5e-3 * expected.abs().max()
    assert "finite differences\n" not in decoder.describe()


def test_keras_lambda_layers_are_refused(tmp_path):
    keras = keras_on_torch()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2.0), keras.layers.Dense(4)])
    model.save(tmp_path / "m.keras")
    with pytest.raises(UnsafeFileError, match="Lambda"):
        load_decoder(tmp_path / "m.keras")
    assert load_decoder(tmp_path / "m.keras", trust=True).output_dim == 4


@pytest.mark.parametrize("package", ["pythae.models", "diffusers", "scvi.model", "keras", "onnxruntime", "skops.io"])
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    path, extra = tmp_path / "model", package.split(".")[0]
    if package == "pythae.models":
        path.mkdir()
        (path / "model_config.json").write_text('{"name": "VAEConfig"}')
        torch.save({"model_state_dict": nn.Linear(2, 3).state_dict()}, path / "model.pt")
    elif package == "diffusers":
        path.mkdir()
        (path / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    elif package == "scvi.model":
        path.mkdir()
        registry = {"model_name": "SCVI"}
        torch.save({"model_state_dict": {}, "attr_dict": {"registry_": registry}}, path / "model.pt")
    elif package == "keras":
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in (("config.json", "{}"), ("metadata.json", "{}"), ("model.weights.h5", "")):
                archive.writestr(name, text)
    elif package == "onnxruntime":
        pytest.importorskip("onnx", reason="the onnx extra is not installed")
        from test_checkpoint import half, onnx_mlp

        extra, path = "onnx", tmp_path / "model.onnx"
        onnx_mlp(path, half(), check_runtime=False)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("schema.json", "{}")
    with pytest.raises(MissingExtraError, match=rf"posthoc-metric\[{extra}\]"):
        load_decoder(path)
