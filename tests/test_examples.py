"""The shipped decoder, the data it was trained on, and the script that trains it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from sklearn.neighbors import KNeighborsClassifier

from posthoc_metric import examples

ROOT = Path(__file__).parent.parent


def training_script():
    spec = importlib.util.spec_from_file_location("train_digits_vae", ROOT / "demos" / "train_digits_vae.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_digits_are_images_in_the_unit_range():
    digits = examples.digits()
    assert digits.data.shape == (1797, 64) and digits.data.dtype == torch.float32
    assert digits.data.min() == 0 and digits.data.max() == 1
    assert digits.labels.unique().tolist() == list(range(10))


def test_the_vae_is_trained_frozen_and_in_eval_mode():
    decoder, encoder = examples.digits_vae()
    digits = examples.digits()
    latents = encoder(digits.data)
    assert latents.shape == (1797, 2)
    for module in (decoder, encoder):
        assert not module.training and not any(p.requires_grad for p in module.parameters())
    unexplained = (decoder(latents) - digits.data).square().mean() / digits.data.var(0, correction=0).mean()
    assert unexplained < 0.5
    neighbours = KNeighborsClassifier(10).fit(latents[::2].numpy(), digits.labels[::2].numpy())
    assert neighbours.score(latents[1::2].numpy(), digits.labels[1::2].numpy()) > 0.85


def test_loading_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    examples.digits_vae()
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_missing_asset_says_what_to_do(monkeypatch):
    monkeypatch.setattr(examples, "ASSET", "absent.safetensors")
    with pytest.raises(examples.CheckpointError, match="train_digits_vae.py"):
        examples.digits_vae()


def test_import_reads_neither_weights_nor_data():
    code = (
        "import sys; opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "import posthoc_metric.examples as e\n"
        "read = lambda: [path for path in opened if 'digits' in path.lower()]\n"
        "print(len(read())); e.digits_vae(); print(len(read()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]


def test_the_training_script_writes_the_same_file_twice(tmp_path, capsys):
    script = training_script()
    bounds = [script.main(tmp_path / name, quick=True) for name in ("a", "b")]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert bounds[0] == bounds[1] and bounds[0]["bound_test"] < 45
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_the_shipped_file_says_how_it_was_made():
    asset = Path(examples.__file__).parent / "assets" / examples.ASSET
    with safetensors.safe_open(asset, "pt") as file:
        record = json.loads(file.metadata()["posthoc_metric"])
    script = training_script()
    assert record["training"] == script.asdict(script.Training())
    assert record["bounds_in_nats"]["bound_test"] < 25


@pytest.mark.slow
def test_training_again_gives_the_shipped_file(tmp_path, capsys):
    asset = Path(examples.__file__).parent / "assets" / examples.ASSET
    with safetensors.safe_open(asset, "pt") as file:
        record = json.loads(file.metadata()["posthoc_metric"])
    if record["torch"] != torch.__version__:
        pytest.skip(f"the shipped file was made with torch {record['torch']}")
    training_script().main(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == asset.read_bytes()
