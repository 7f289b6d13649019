"""The machine's memory bounds what a piece of work takes."""

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import posthoc_metric as pm
from posthoc_metric import machine
from posthoc_metric.examples import digits_vae
from posthoc_metric.geodesic.options import FixedPointOptions, RelaxationOptions


@pytest.mark.parametrize(("memory", "share"), [(2**36, 2**29), (2**32, 2**28), (2**20, 2**16), (8, 1)])
def test_a_piece_of_work_takes_a_share_of_the_memory_and_no_more_than_a_bound(memory, share, monkeypatch):
    monkeypatch.setattr(machine, "physical_memory", lambda: memory)
    assert machine.working_memory() == share
    assert RelaxationOptions().memory_limit == FixedPointOptions().memory_limit == share
    assert RelaxationOptions(memory_limit=7).memory_limit == 7


def test_a_decoder_takes_half_of_that(monkeypatch):
    monkeypatch.setattr(machine, "physical_memory", lambda: 2**32)
    module, _ = digits_vae()
    assert pm.Decoder(module, latent_dim=2).max_bytes == 2**27
    assert pm.Decoder(module, latent_dim=2, max_bytes=1000).max_bytes == 1000


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_CONTAINER_LIMITS", (str(limit), str(tmp_path / "not there")))
    whole = machine.physical_memory()
    limit.write_text("max\n")
    assert machine.physical_memory() == whole > 2**20
    limit.write_text("1048576\n")
    assert machine.physical_memory() == 2**20


def test_one_blas_thread_and_then_as_many_as_before():
    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        with machine.one_blas_thread():
            assert threads() == {1}
        assert threads() == {2}
