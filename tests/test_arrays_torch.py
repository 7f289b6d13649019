"""Arrays in files of torch.save: by any key, of NumPy or torch, in types NumPy lacks; other objects are named."""

import pickle

import numpy as np
import pytest
import torch

from posthoc_metric._arrays import to_points
from posthoc_metric.arrays_io import read_named
from posthoc_metric.checkpoint import load_decoder
from posthoc_metric.errors import CheckpointError, InvalidArgumentError, UnsafeFileError

VALUES = np.arange(6.0).reshape(3, 2)
TENSOR = torch.from_numpy(VALUES)


@pytest.mark.parametrize("key", [0, 1.5, True, "z", ("a", 1)])
def test_any_key_is_named_as_it_is_written(tmp_path, key):
    torch.save({key: TENSOR}, tmp_path / "a.pt")
    assert np.array_equal(read_named(str(tmp_path / "a.pt"), "latents"), VALUES)
    torch.save({key: TENSOR, "other": torch.zeros(2)}, tmp_path / "a.pt")
    assert np.array_equal(read_named(f"{tmp_path / 'a.pt'}:{key}", "latents"), VALUES)
    with pytest.raises(InvalidArgumentError, match="holds the arrays .*, other; say which"):
        read_named(str(tmp_path / "a.pt"), "latents")


def test_keys_that_are_written_alike_are_not_guessed_between(tmp_path):
    torch.save({0: TENSOR, "0": -TENSOR}, tmp_path / "a.pt")
    with pytest.raises(InvalidArgumentError, match="several arrays that are called 0"):
        read_named(str(tmp_path / "a.pt:0"), "latents")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u1"])
def test_arrays_of_numpy_beside_tensors(tmp_path, dtype):
    torch.save({"z": TENSOR, "x": VALUES.astype(dtype)}, tmp_path / "a.pt")
    for name in ("a.pt:z", "a.pt:x"):
        assert np.array_equal(read_named(str(tmp_path / name), "latents"), VALUES)
    assert read_named(str(tmp_path / "a.pt:x"), "latents").dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_types_that_numpy_lacks_are_widened(tmp_path, dtype):
    torch.save(TENSOR.to(dtype), tmp_path / "a.pt")
    array = read_named(str(tmp_path / "a.pt"), "latents")
    assert array.dtype == np.float32 and np.array_equal(array, VALUES)


@pytest.mark.parametrize("array", [torch.complex(TENSOR, TENSOR).conj(), VALUES * 1j, np.array([{}], dtype=object)])
def test_what_is_no_real_number_is_said(tmp_path, array):
    torch.save({"z": array}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="must hold real numbers.*dtype (complex|object)"):
        read_named(str(tmp_path / "a.pt"), "latents")


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_named_in_plain_words(tmp_path, zipped):
    content = {"z": TENSOR, "x": VALUES, "model": torch.nn.Linear(2, 2)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"holds Python objects \(torch.nn.*Linear\).*arrays alone") as caught:
        read_named(str(tmp_path / "a.pt:z"), "latents")
    assert "\x1b" not in str(caught.value) and "Weights only" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\x00\x01", pickle.dumps({"z": VALUES}), b"PK\x03\x04"])
def test_what_torch_did_not_write_is_said(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="no whole .pt file of numbers") as caught:
        read_named(str(tmp_path / "a.pt"), "latents")
    assert "\x1b" not in str(caught.value) and "Weights only" not in str(caught.value)


def test_damage_is_not_told_as_a_bare_number(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"junk" * 50)
    with pytest.raises(CheckpointError, match=r"numbers \(KeyError: \d+\)"):
        read_named(str(tmp_path / "a.pt"), "latents")


@pytest.mark.parametrize(
    ("value", "dim", "said"),
    [
        (np.zeros(7), 1, r"`z\[:, None\]`"),
        (np.zeros(3), 3, r"`z\[None\]`"),
        (np.zeros(7), 3, "Pass an array of points, one a row"),
        ([torch.ones(2, requires_grad=True)] * 3, 2, r"torch.stack\(z\)"),
        ([[1.0], [1.0, 2.0]], 2, "numpy.asarray"),
    ],
)
def test_the_advice_for_what_is_no_batch_helps(value, dim, said):
    with pytest.raises(InvalidArgumentError, match=said):
        to_points(value, "z", dim)


def test_a_checkpoint_names_what_it_cannot_read_and_not_its_arrays(tmp_path):
    torch.save({"x": VALUES, "what": slice(1)}, tmp_path / "a.pt")
    with pytest.raises(UnsafeFileError, match=r"\(builtins.slice\)"):
        load_decoder(tmp_path / "a.pt")
