"""Blocks: the same bits however they were computed; killed workers; killed processes; the store."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from joblib.externals.loky import get_reusable_executor

from posthoc_metric.distances import distances, neighbours, pairs
from posthoc_metric.distances.store import Store
from posthoc_metric.errors import CheckpointError, InvalidArgumentError, OutputError, WorkerError
from posthoc_metric.parallel import cut, progress_bars, run_blocks
from posthoc_metric.spaces import Sphere

from test_spaces import points  # isort: skip


def square(shared, block):
    return shared * block**2


def threads(shared, block):
    return torch.get_num_threads()


def die_once(shared, block):
    """Kill this worker the first time that block 2 is tried; ``shared`` is a file that remembers."""
    if block == 2 and not Path(shared).exists():
        Path(shared).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return block**2


def die(shared, block):
    os.kill(os.getpid(), signal.SIGKILL)


def ask_all(n_jobs=None):
    solved = distances(Sphere(), points(16, 2, scale=0.3), n_jobs=n_jobs)
    graph = distances(Sphere(), points(150, 2), method="graph", neighbours=20, sample=0, n_jobs=n_jobs)
    near = neighbours(Sphere(), points(300, 2), 4, sample=0, n_jobs=n_jobs)
    return solved.numpy(), graph.numpy(), near.data, near.indices


@pytest.fixture(scope="module")
def alone():
    return ask_all(1)


def same(found, expected):
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_threads_of_the_caller_change_nothing_and_are_left_alone(alone):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert same(ask_all(1), alone)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert [value for _, value in run_blocks(threads, None, [0])] == [1]
    assert torch.get_num_threads() == before


def test_two_processes_give_the_same_bits(alone):
    assert same(ask_all(2), alone)


def test_threads_as_workers_give_the_same_bits(alone):
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert same(ask_all(), alone)


def test_backends_that_hand_nothing_back_before_the_end_are_taken_too(alone):
    with joblib.parallel_config(backend="multiprocessing", n_jobs=2):
        assert same(ask_all(), alone)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed", reason="the extra [dask] is not installed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0, protocol="tcp"
        ) as workers,
        distributed.Client(workers),
    ):
        yield workers


def test_two_dask_workers_give_the_same_bits(alone, cluster):
    with joblib.parallel_config(backend="dask"):
        assert same(ask_all(), alone)


def test_a_dask_worker_killed_midway_changes_nothing(cluster, tmp_path):
    with joblib.parallel_config(backend="dask"):
        found = dict(run_blocks(die_once, str(tmp_path / "died"), range(12)))
    assert (tmp_path / "died").exists()
    assert found == {block: block**2 for block in range(12)}


def test_a_local_worker_killed_midway_changes_nothing(tmp_path):
    found = dict(run_blocks(die_once, str(tmp_path / "died"), range(12), n_jobs=2))
    assert (tmp_path / "died").exists()
    assert found == {block: block**2 for block in range(12)}


def test_what_workers_keep_is_not_sent_again_and_to_new_ones_it_is(monkeypatch):
    sent = []

    def recorded(call):
        def later(payload, *rest):
            sent.append(payload is not None)
            return joblib.delayed(call)(payload, *rest)

        return later

    monkeypatch.setattr("posthoc_metric.parallel.blocks.delayed", recorded)
    # of no other test: nobody was sent it
    shared = np.arange(1000.0) + 0.25
    for new_workers, expected in ((False, {True}), (False, {False}), (True, {False, True})):
        if new_workers:
            get_reusable_executor(max_workers=2).shutdown(wait=True)
        sent.clear()
        found = dict(run_blocks(square, shared, range(4), n_jobs=2))
        assert set(sent) == expected
        assert all(np.array_equal(found[block], shared * block**2) for block in range(4))


def test_workers_that_keep_dying_are_an_error(monkeypatch):
    monkeypatch.setattr("posthoc_metric.parallel.blocks._FRUITLESS_ROUNDS", 1)
    with pytest.raises(WorkerError, match="memory"):
        list(run_blocks(die, None, range(2), n_jobs=2))


def test_only_what_is_missing_is_computed():
    assert dict(run_blocks(square, 3, range(6), done={0, 2, 4})) == {1: 3, 3: 27, 5: 75}
    assert cut(10, 4) == [(0, 4), (4, 8), (8, 10)]


def test_a_metric_that_cannot_be_pickled_is_named():
    with pytest.raises(InvalidArgumentError, match="picklable"):
        list(run_blocks(square, (i for i in range(3)), range(2), n_jobs=2))
    with pytest.raises(InvalidArgumentError, match="n_jobs=1, the only way with TorchScript"):
        list(run_blocks(square, torch.jit.script(torch.nn.Linear(2, 2)), range(2), n_jobs=2))


CHILD = """
import sys, time
import posthoc_metric.distances.pairs as pairs
from posthoc_metric.distances import distances
from posthoc_metric.spaces import Sphere
from test_spaces import points

compute = pairs._solve
pairs._BLOCK = 8

def slow(shared, block):
    time.sleep(0.1)
    return compute(shared, block)

pairs._solve = slow
distances(Sphere(), points(16, 2, scale=0.3), store=sys.argv[1])
"""


def test_a_killed_process_is_taken_up_where_it_was(tmp_path, monkeypatch):
    store, again, compute = tmp_path / "store", [], pairs._solve
    ledger = store / "pairs" / "done.txt"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(store)], cwd=Path(__file__).parent)
    try:
        _wait(lambda: ledger.exists() and len(ledger.read_bytes().splitlines()) >= 4, 60)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    done = [int(line.split()[0]) for line in ledger.read_text().splitlines()]
    total = len(cut(16 * 15 // 2, 8))
    assert 4 <= len(done) < total and len(set(done)) == len(done)

    def logged(shared, block):
        again.append(block[0] // 8)
        return compute(shared, block)

    monkeypatch.setattr(pairs, "_BLOCK", 8)
    with monkeypatch.context() as patched:
        patched.setattr(pairs, "_solve", logged)
        distances(Sphere(), points(16, 2, scale=0.3), store=store)
    assert sorted(done + again) == list(range(total))
    fresh = distances(Sphere(), points(16, 2, scale=0.3))
    np.testing.assert_array_equal(np.load(store / "distances.npy"), fresh.numpy())


BEATING = """
import sys, time
from pathlib import Path
from posthoc_metric.parallel import run_blocks

def beat(folder, name):
    end = time.time() + 60
    while time.time() < end:
        Path(folder, name).write_text("alive")
        time.sleep(0.05)

list(run_blocks(beat, sys.argv[1], ["one", "two"], n_jobs=2))
"""


def test_workers_end_with_the_process_that_they_work_for(tmp_path):
    """Killed, it tells them nothing; they computed on and then waited, with all their memory."""
    driver = subprocess.Popen([sys.executable, "-c", BEATING, str(tmp_path)])
    hearts = [tmp_path / name for name in ("one", "two")]
    try:
        _wait(lambda: all(heart.exists() for heart in hearts), 60)
    finally:
        driver.kill()
        driver.wait()
    _wait(lambda: all(time.time() - heart.stat().st_mtime > 2 for heart in hearts), 20)


def _wait(true, seconds):
    end = time.time() + seconds
    while not true():
        assert time.time() < end
        time.sleep(0.05)


def test_graph_and_neighbours_resume_from_their_stores(tmp_path):
    for name, call in {
        "matrix": lambda **o: distances(Sphere(), points(60, 2), method="graph", neighbours=30, sample=5, **o),
        "near": lambda **o: neighbours(Sphere(), points(30, 2, scale=0.3), 2, sample=0, refine=True, **o),
    }.items():
        first, _ = call(store=tmp_path / name, return_report=True)
        second, report = call(store=tmp_path / name, return_report=True)
        assert report.stages == () and (first != second).sum() == 0
        third = call()
        assert np.array_equal(
            np.asarray(getattr(second, "data", second)), np.asarray(getattr(third, "data", third))
        ) or (np.array_equal(np.asarray(second), third.numpy()))


SHAPES = {"x": ((10, 3), np.float64)}


def test_a_torn_line_of_the_ledger_is_a_block_that_is_not_done(tmp_path):
    store = Store(tmp_path, {"what": 1.5}, SHAPES)
    for block in (0, 3):
        store.write(block, slice(block, block + 1), {"x": np.full((1, 3), block + 1.0)})
    store.close()
    ledger = tmp_path / "done.txt"
    whole = ledger.read_bytes()
    for torn in (b"7 12", b"7 00000000\n", b"\xff\n"):
        ledger.write_bytes(whole + torn)
        again = Store(tmp_path, {"what": 1.5 + 1e-12}, SHAPES)
        assert again.done == {0, 3} and (again.arrays["x"][3] == 4).all()
        again.write(7, slice(7, 8), {"x": np.ones((1, 3))})
        again.close()
        again = Store(tmp_path, {"what": 1.5}, SHAPES)
        assert again.done == {0, 3, 7}
        again.close()
        ledger.write_bytes(whole)


def test_another_computation_s_store_is_refused(tmp_path):
    Store(tmp_path / "s", {"what": 1.5}, SHAPES).close()
    with pytest.raises(InvalidArgumentError, match="what differ"):
        Store(tmp_path / "s", {"what": 1.6}, SHAPES)
    distances(Sphere(), points(5, 2), store=tmp_path / "d")
    for metric, a, options in ((Sphere(radius=2.0), points(5, 2), {}), (Sphere(), points(5, 2, 1), {})):
        with pytest.raises(InvalidArgumentError, match="another computation"):
            distances(metric, a, store=tmp_path / "d", **options)
    with pytest.raises(InvalidArgumentError, match="solver"):
        distances(Sphere(), points(5, 2), store=tmp_path / "d", rtol=1e-3)


@pytest.mark.parametrize("count", [36, 40, 50])
def test_a_graph_of_another_support_is_another_computation(tmp_path, count):
    options = {"method": "graph", "neighbours": 30, "sample": 0, "store": tmp_path}
    distances(Sphere(), points(40, 2), support=points(40, 2, 1), **options)
    with pytest.raises(InvalidArgumentError, match="another computation.*nodes, support differ"):
        distances(Sphere(), points(40, 2), support=points(count, 2, 2), **options)


def test_two_writers_and_damaged_files_are_refused(tmp_path):
    pytest.importorskip("fcntl", reason="file locks need a POSIX system")
    first = Store(tmp_path, {}, SHAPES)
    with pytest.raises(OutputError, match="another process"):
        Store(tmp_path, {}, SHAPES)
    first.close()
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(CheckpointError, match="damaged"):
        Store(tmp_path, {}, SHAPES)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="must be a folder; .* is a file"):
        Store(tmp_path / "file" / "below", {}, SHAPES)


def test_the_plan_is_legible(tmp_path):
    distances(Sphere(), points(5, 2), store=tmp_path)
    plan = json.loads((tmp_path / "pairs" / "plan.json").read_text())
    assert plan["method"] == "solver" and len(plan["a"]) == 64


def test_progress_is_shown_on_standard_error_when_asked_for(capsys):
    distances(Sphere(), points(5, 2))
    assert capsys.readouterr() == ("", "")
    with progress_bars(True) as bars:
        list(run_blocks(square, 1, range(3), progress=bars, stage="squares"))
    out, err = capsys.readouterr()
    assert out == "" and "squares" in err and "3/3" in err
    assert len(bars.seconds["squares"]) == 3
