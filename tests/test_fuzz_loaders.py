"""Mutated files of every kind: an error of the library's tree or a load, no crash, no hang, nothing executed.

``PM_FUZZ_CASES`` sets how many; ``python tests/fuzzing.py --cases 10000`` prints a table.
"""

import os
import random

import pytest
from fuzzing import fuzz, half, latents, load, make_corpus, mutate
from safetensors import safe_open

import posthoc_metric as pm
from posthoc_metric.errors import CheckpointError

CASES = int(os.environ.get("PM_FUZZ_CASES", "220"))

pytestmark = pytest.mark.filterwarnings("ignore")


def test_mutated_files_end_in_an_error_of_ours_or_in_a_load():
    counts, wrong = fuzz(CASES)
    assert sum(counts.values()) == CASES
    assert not wrong, wrong
    # the mutations are neither harmless nor all of one kind
    refused = sum(number for (_, outcome), number in counts.items() if outcome == "refused")
    assert CASES / 2 < refused < CASES or CASES < 100


def test_the_corpus_loads_where_it_carries_no_payload(tmp_path):
    kinds = make_corpus(tmp_path)
    decoder = pm.Decoder(half(), latent_dim=2)
    assert len(kinds) >= 15
    for kind in kinds:
        if not kind.startswith("payload"):
            assert load(kind, tmp_path / kind, decoder) is not None, kind


def test_a_mutation_follows_from_its_case():
    data = bytes(range(256)) * 4
    assert mutate(data, "a.bin", random.Random("a:1")) == mutate(data, "a.bin", random.Random("a:1"))
    assert any(mutate(data, "a.bin", random.Random(f"a:{number}")) != data for number in range(5))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_flipped_bit_in_a_saved_metric_is_noticed(tmp_path, share):
    decoder, path = pm.Decoder(half(), latent_dim=2), tmp_path / "r.safetensors"
    pm.repair(decoder, latents()).save(path)
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="not a whole safetensors|damaged"):
        pm.load(path, decoder)


def test_a_saved_metric_without_its_digest_is_refused(tmp_path):
    import safetensors.torch

    decoder, path = pm.Decoder(half(), latent_dim=2), tmp_path / "r.safetensors"
    pm.repair(decoder, latents()).save(path)
    with safe_open(path, framework="pt") as stream:
        metadata = {key: value for key, value in stream.metadata().items() if key != "digest"}
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match="damaged since"):
        pm.load(path, decoder)
