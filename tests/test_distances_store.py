"""The store when the disk is full, and when its files are not as they were left: an error that says so, never zeros."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import posthoc_metric as pm
from posthoc_metric.distances import distances, mapped, neighbours
from posthoc_metric.distances.identity import fingerprint
from posthoc_metric.distances.store import Store
from posthoc_metric.errors import CheckpointError, InvalidArgumentError, OutputError
from posthoc_metric.spaces import Sphere

from test_spaces import points  # isort: skip

SHAPES = {"x": ((10, 3), np.float64), "y": ((7,), np.int8)}
FULL = OSError(errno.ENOSPC, "No space left on device")


def full(*_):
    raise FULL


def solved(store):
    return distances(Sphere(), points(14, 2, scale=0.3), store=store)


def on_graph(store):
    return distances(Sphere(), points(40, 2, scale=0.5), method="graph", neighbours=30, sample=0, store=store)


def nearest(store):
    return neighbours(Sphere(), points(20, 2, scale=0.3), 2, sample=0, refine=True, store=store)


def values(result):
    return np.array(result if isinstance(result, np.ndarray) else result.data)


needs_fallocate = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")


class TestFullDisk:
    @needs_fallocate
    def test_space_is_taken_before_the_first_block(self, tmp_path):
        shape = (1000, 1000)
        array = mapped.make_array(tmp_path / "x.npy", np.float64, shape)
        assert array.shape == shape and array.dtype == np.float64 and not array.any()
        assert (tmp_path / "x.npy").stat().st_blocks * 512 >= array.nbytes
        array[3] = 1
        array.flush()
        assert np.array_equal(np.load(tmp_path / "x.npy"), array)

    @needs_fallocate
    def test_a_sparse_copy_gets_its_space_back(self, tmp_path):
        np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float64, (1000, 1000))
        before = (tmp_path / "x.npy").stat()
        if before.st_blocks * 512 >= before.st_size:
            pytest.skip("this file system keeps no sparse files")
        array = mapped.open_array(tmp_path / "x.npy", np.float64, (1000, 1000))
        assert (tmp_path / "x.npy").stat().st_blocks * 512 >= array.nbytes

    @pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, None])
    def test_zeros_are_written_where_space_cannot_be_reserved(self, tmp_path, monkeypatch, code):
        def unsupported(*_):
            raise OSError(code, "not here")

        monkeypatch.setattr(mapped, "_CHUNK", 1000)
        if code is None:
            monkeypatch.delattr(os, "posix_fallocate", raising=False)
        else:
            monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
        array = mapped.make_array(tmp_path / "x.npy", np.float64, (70, 11))
        array[:] = 2
        array.flush()
        again = mapped.open_array(tmp_path / "x.npy", np.float64, (70, 11))
        assert (again == 2).all() and again.shape == (70, 11)

    @pytest.mark.parametrize("work", [solved, on_graph, nearest])
    def test_no_room_for_the_arrays(self, tmp_path, monkeypatch, work):
        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(OutputError, match="`store` cannot be written.*No space left on device.*Make room"):
            work(tmp_path / "s")
        assert not [*tmp_path.rglob("*.npy"), *tmp_path.rglob("*.json")]
        monkeypatch.undo()
        work(tmp_path / "s")

    def test_no_room_for_the_matrix(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            "posthoc_metric.distances.result.make_array",
            lambda path, *rest: (
                monkeypatch.setattr(os, "posix_fallocate", full, raising=False),
                mapped.make_array(path, *rest),
            )[1],
        )
        with pytest.raises(OutputError, match="No space left on device"):
            solved(tmp_path)
        assert not (tmp_path / "distances.npy").exists()

    def test_no_room_for_the_second_array_leaves_nothing_of_the_first(self, tmp_path, monkeypatch):
        make = mapped.make_array
        monkeypatch.setattr(
            "posthoc_metric.distances.store.make_array", lambda path, *r: full() if path.stem == "y" else make(path, *r)
        )
        with pytest.raises(OutputError, match="No space left"):
            Store(tmp_path, {}, SHAPES)
        assert not [*tmp_path.glob("*.npy"), *tmp_path.glob("*.json")]

    @pytest.mark.parametrize("what", ["fsync", "flush"])
    def test_no_room_for_a_block(self, tmp_path, monkeypatch, what):
        store = Store(tmp_path, {}, SHAPES)
        store.write(0, 0, {"x": np.ones(3)})
        monkeypatch.setattr(*((os, "fsync", full) if what == "fsync" else (np.memmap, "flush", full)))
        with pytest.raises(OutputError, match="`store` cannot be written.*No space left"):
            store.write(1, 1, {"x": np.ones(3)})
        assert store.done == {0}
        store.close()

    def test_a_disk_that_is_full_in_truth(self, tmp_path):
        if not sys.platform.startswith("linux") or os.geteuid() or not shutil.which("mount"):
            pytest.skip("needs the right to mount a file system")
        place = tmp_path / "small"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs the right to mount a file system")
        script = (
            "import sys, torch\n"
            "from posthoc_metric.distances import distances\n"
            "from posthoc_metric.errors import OutputError\n"
            "from posthoc_metric.spaces import Sphere\n"
            "try:\n"
            "    distances(Sphere(), 0.3 * torch.randn(300, 2), method='graph', store=sys.argv[1])\n"
            "except OutputError as error:\n"
            "    print(error)\n"
        )
        try:
            ran = subprocess.run([sys.executable, "-c", script, str(place / "s")], capture_output=True, text=True)
        finally:
            subprocess.run(["umount", str(place)], check=True)
        assert ran.returncode == 0 and "No space left on device" in ran.stdout, ran


def cut_short(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


DAMAGE = {
    "lengths cut short": (solved, "pairs/lengths.npy", cut_short, "bytes where"),
    "codes cut to nothing": (solved, "pairs/codes.npy", lambda path: os.truncate(path, 0), "does not begin"),
    "rows cut short": (on_graph, "rows/distances.npy", cut_short, "bytes where"),
    "neighbours cut short": (on_graph, "graph/neighbours/indices.npy", cut_short, "bytes where"),
    "nearest cut short": (nearest, "nearest/nodes.npy", cut_short, "bytes where"),
    "an array deleted": (solved, "pairs/errors.npy", os.remove, "is missing"),
    "a plan deleted": (solved, "pairs/plan.json", os.remove, "is missing, although 'done.txt'"),
    "the plan of rows deleted": (on_graph, "rows/plan.json", os.remove, "is missing, although 'done.txt'"),
    "a list for a plan": (solved, "pairs/plan.json", lambda path: path.write_text("[1, 2]"), "holds a list"),
    "half a plan": (solved, "pairs/plan.json", cut_short, "is no JSON"),
    "an empty plan": (solved, "pairs/plan.json", lambda path: path.write_text(""), "is no JSON"),
    "bytes for a plan": (solved, "pairs/plan.json", lambda path: path.write_bytes(b"\xff\xfe\x00"), "is no JSON"),
    "another shape": (solved, "pairs/lengths.npy", lambda path: np.save(path, np.zeros(90)), r"shape \(90,\) where"),
    "another dtype": (
        solved,
        "pairs/lengths.npy",
        lambda path: np.save(path, np.zeros(91, np.float32)),
        "float32 of shape.* where float64",
    ),
    "edges of another shape": (
        on_graph,
        "graph/neighbours/indices.npy",
        lambda path: np.save(path, np.zeros((3, 2), np.int32)),
        r"shape \(3, 2\) where",
    ),
    "columns first": (
        on_graph,
        "rows/distances.npy",
        lambda path: np.save(path, np.asfortranarray(np.load(path))),
        "by columns where",
    ),
}


class TestDamage:
    @pytest.mark.parametrize("name", DAMAGE)
    def test_a_damaged_store_is_named_and_can_be_begun_anew(self, tmp_path, name):
        work, file, damage, words = DAMAGE[name]
        store = tmp_path / "s"
        whole = values(work(store))
        path = store / file
        damage(path)
        with pytest.raises(CheckpointError, match=f"`store` is damaged: .*{path.name}' .*{words}.*Delete the folder"):
            work(store)
        shutil.rmtree(path.parent)
        assert np.array_equal(values(work(store)), whole)

    def test_a_fresh_start_has_nothing_done(self, tmp_path):
        store = Store(tmp_path, {"what": 1}, SHAPES)
        # as a process does that is killed before the plan is written
        store.close()
        (tmp_path / "plan.json").unlink()
        again = Store(tmp_path, {"what": 2}, SHAPES)
        assert again.done == set() and json.loads((tmp_path / "plan.json").read_text()) == {"what": 2}
        again.close()

    def test_a_store_without_a_plan_can_be_used_once_it_is_deleted(self, tmp_path):
        store = Store(tmp_path, {}, SHAPES)
        store.write(0, 0, {"x": np.ones(3)})
        store.close()
        (tmp_path / "plan.json").unlink()
        for _ in range(2):
            with pytest.raises(CheckpointError, match="plan.json' is missing"):
                Store(tmp_path, {}, SHAPES)
        # nothing was made anew beside what is done
        assert np.load(tmp_path / "x.npy")[0].all()


def test_a_matrix_in_use_is_left_as_it_is_by_the_next(tmp_path):
    """Also where the next is smaller: a map of a file that was cut short ends the process."""
    first = distances(Sphere(), points(40, 2), store=tmp_path, method="solver")
    expected = np.array(first)
    second = distances(Sphere(), points(5, 2), store=tmp_path, method="graph", sample=0)
    assert np.array_equal(first, expected)
    assert second.shape == (5, 5) and np.array_equal(second, np.load(tmp_path / "distances.npy"))


def test_curves_from_another_support_are_another_computation(tmp_path):
    """Where curves start says which of several they become."""
    z, some, others = points(4, 2, scale=0.3), points(20, 2, scale=0.3), points(20, 2, scale=0.5)
    first = distances(Sphere(), z, method="solver", support=some, store=tmp_path)
    assert np.array_equal(distances(Sphere(), z, method="solver", support=some, store=tmp_path), first)
    for support in (others, None):
        with pytest.raises(InvalidArgumentError, match="another computation.*support differ"):
            distances(Sphere(), z, method="solver", support=support, store=tmp_path)


SIDES = torch.tensor([[x, y] for x in (0.0, 1.0, 9.0, 10.0) for y in (0.0, 1.0)], dtype=torch.float64)


def scaled(factor):
    """``factor(x) I`` in two dimensions."""
    return pm.FunctionMetric(lambda z: factor(z[:, 0])[:, None, None] * torch.eye(2, dtype=z.dtype), 2)


class TestMetricsThatAreEqualOnThePoints:
    flat = scaled(torch.ones_like)
    #: differ from it between the points of SIDES alone, and beyond them alone
    others = {
        "between": scaled(lambda x: 1 + 99 * torch.exp(-4 * (x - 5) ** 2)),
        "beyond": scaled(lambda x: torch.where((x - 5).abs() > 5, 9.0, 1.0)),
        "undefined": scaled(lambda x: torch.where((x - 5).abs() < 1, float("nan"), 1.0)),
    }

    @pytest.mark.parametrize("name", others)
    @pytest.mark.parametrize("call", [distances, lambda *a, **o: neighbours(*a, 2, sample=0, **o)])
    def test_a_metric_that_differs_off_them_is_another_computation(self, tmp_path, name, call):
        call(self.flat, SIDES, store=tmp_path)
        call(self.flat, SIDES, store=tmp_path)
        with pytest.raises(InvalidArgumentError, match="another computation.*: metric differ"):
            call(self.others[name], SIDES, store=tmp_path)

    def test_pairs_of_two_tables_are_looked_between_too(self, tmp_path):
        left, right = SIDES[:4], SIDES[4:]
        distances(self.flat, left, right, store=tmp_path)
        with pytest.raises(InvalidArgumentError, match="metric differ"):
            distances(self.others["between"], left, right, store=tmp_path)

    @pytest.mark.parametrize("refuses", [False, True])
    def test_what_has_no_value_off_the_points_is_the_same_again(self, tmp_path, refuses):
        def factor(x):
            off = (x > 10) | (x < 0)
            if refuses and bool(off.any()):
                raise ValueError("outside")
            return torch.where(off, float("nan"), 1.0)

        for _ in range(2):
            Store(tmp_path, fingerprint(scaled(factor), SIDES, None, {}, tmp_path), SHAPES).close()

    def test_repairs_with_other_knobs_are_others(self, tmp_path):
        decoder = pm.Decoder(torch.nn.Linear(2, 3).double())
        latents = points(60, 2)
        made = [pm.repair(decoder, latents, inflation=inflation) for inflation in (10.0, 1000.0, 10.0)]
        distances(made[0], latents[:3], store=tmp_path)
        with pytest.raises(InvalidArgumentError, match="metric, repair differ"):
            distances(made[1], latents[:3], store=tmp_path)
        distances(made[2], latents[:3], store=tmp_path)


def test_another_machine_s_rounding_is_the_same_metric(tmp_path):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = root @ root.T

    def rounded(z):
        noise = 1e-7 * torch.randn(len(z), 6, 6, generator=generator, dtype=torch.float64)
        return matrix + matrix.abs() * (noise + noise.mT)

    def plan(fn):
        return fingerprint(pm.FunctionMetric(fn, 6), points(9, 6), None, {}, tmp_path)

    Store(tmp_path, plan(rounded), SHAPES).close()
    Store(tmp_path, plan(rounded), SHAPES).close()
    turned = matrix.flip(0).flip(1)
    for other in (matrix * 1.0001, matrix + 1e-3 * torch.eye(6).double(), turned):
        with pytest.raises(InvalidArgumentError, match="metric differ"):
            Store(tmp_path, plan(lambda z, other=other: other.expand(len(z), 6, 6)), SHAPES)


def test_a_store_of_an_earlier_version_is_refused_in_words(tmp_path):
    solved(tmp_path)
    plan = tmp_path / "pairs" / "plan.json"
    known = json.loads(plan.read_text())
    plan.write_text(json.dumps({**{k: v for k, v in known.items() if k not in ("rule", "repair")}, "metric": [1.0]}))
    with pytest.raises(InvalidArgumentError, match="`store` holds blocks.*another version.*delete this folder"):
        solved(tmp_path)


class TestMatricesOfSeveralRuns:
    """One store, several runs whose blocks do not exclude each other: by another method, or calibrated."""

    calls = (
        lambda store: distances(Sphere(), points(20, 2), method="solver", store=store),
        lambda store: distances(Sphere(), points(20, 2), method="graph", sample=16, store=store),
        lambda store: distances(Sphere(), points(20, 2), method="graph", sample=16, calibrate=True, store=store),
    )

    def test_each_is_kept(self, tmp_path):
        found = [np.array(call(tmp_path)) for call in self.calls]
        for name, matrix in zip(("distances-1.npy", "distances-2.npy", "distances.npy"), found, strict=True):
            assert np.array_equal(np.load(tmp_path / name), matrix)
        # the same again is kept once
        assert np.array_equal(self.calls[2](tmp_path), found[2])
        assert len([*tmp_path.glob("*.npy"), *tmp_path.glob(".*.npy")]) == 3

    @pytest.mark.parametrize("trouble", ["refused", "stopped"])
    def test_a_run_that_fails_leaves_them(self, tmp_path, monkeypatch, trouble):
        whole = np.array(self.calls[2](tmp_path))
        with pytest.raises(InvalidArgumentError if trouble == "refused" else KeyboardInterrupt):
            if trouble == "stopped":

                def stop(*_):
                    raise KeyboardInterrupt

                monkeypatch.setattr("posthoc_metric.distances.matrix._judge", stop)
            distances(Sphere(), points(20, 2), method="graph", sample=16 + 2 * (trouble == "refused"), store=tmp_path)
        assert [path.name for path in tmp_path.glob("*.npy")] == ["distances.npy"]
        assert not [*tmp_path.glob(".*.npy")]
        assert np.array_equal(np.load(tmp_path / "distances.npy"), whole)
