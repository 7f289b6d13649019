"""Every script in demos/ runs in its quick form, the studies give finite tables, and what they compute is right."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import posthoc_metric as pm
from posthoc_metric.errors import MissingExtraError

DEMOS = Path(__file__).resolve().parents[1] / "demos"
SCRIPTS = sorted(path.stem for path in DEMOS.glob("*.py"))


@pytest.fixture(autouse=True)
def _demos_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMOS))


def imported(name: str):
    return importlib.import_module(name)


def test_there_are_demos():
    studies = {"conditioning", "sevens", "clusters", "circle", "stability", "augmentation", "single_cells"}
    assert studies <= set(SCRIPTS)


#: over a minute even in its quick form, because it clusters by Fréchet means
SLOW = {"distances_sklearn"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in SCRIPTS])
def test_quick_run(name, tmp_path, capsys):
    if name == "single_cells":
        pytest.importorskip("scanpy", reason="scanpy, of the extra [singlecell], ships this study's data")
    main = imported(name).main
    taken = inspect.signature(main).parameters
    assert "quick" in taken
    options = {"out": tmp_path / name} if "out" in taken else {}
    if "source" in taken:
        options["source"] = _pictures(tmp_path / "source")
    state = torch.get_rng_state()
    tables = main(quick=True, **options)
    assert capsys.readouterr().out.strip() or tables
    assert torch.equal(state, torch.get_rng_state())
    if (tmp_path / name / f"{name}.md").exists():
        _check_tables(tables, (tmp_path / name / f"{name}.md").read_text(encoding="utf-8"))
        assert 1_000 < (tmp_path / name / f"{name}.png").stat().st_size <= 120_000


def _pictures(folder):
    """What a demo that takes pictures may be given."""
    folder.mkdir()
    for name in ("maps.png", "geodesics.png"):
        Image.fromarray(np.zeros((40, 90, 3), np.uint8)).save(folder / name)
    return folder


def _check_tables(tables, text):
    for table in tables:
        assert table.rows and table.title in text
        for row in table.rows:
            assert not re.search(r"\bnan\b|\binf\b", " ".join(row[1:])) or row[0] == "k-means, Euclidean", row


def test_studies_have_a_table_to_fill():
    Table = imported("common").Table
    table = Table("t", ["a", "b"])
    table.add("x", 1.5)
    assert "| x | 1.5 |" in str(table)
    with pytest.raises(ValueError, match="2 cells"):
        table.add("x")


def test_missing_scanpy_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scanpy", None)
    with pytest.raises(MissingExtraError, match=r"posthoc-metric\[singlecell\]"):
        imported("single_cells").main(quick=True, out=tmp_path)


def test_grid_distances_agree_with_a_closed_form():
    """The half plane: ds² = (dx² + dy²) / y², whose distance is known."""
    metric = pm.FunctionMetric(lambda z: torch.eye(2, dtype=z.dtype) / z[:, 1, None, None] ** 2, 2)
    points = torch.rand(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points[:, 1] += 1
    found = imported("common").grid_distances(metric, points, resolution=80, margin=0.3)
    difference = points[:, None] - points[None]
    true = torch.acosh(1 + difference.square().sum(-1) / (2 * points[:, None, 1] * points[None, :, 1])).numpy()
    apart = true > 0.1
    assert np.abs(found / np.where(apart, true, 1) - 1)[apart].max() < 0.02
    assert np.allclose(found, found.T) and np.all(np.diag(found) == 0)


def test_medoids_and_f_measure_on_clusters_that_are_plain():
    clusters = imported("clusters")
    generator = np.random.default_rng(0)
    truth = np.repeat([3, 4, 7], 20)
    points = generator.normal(size=(60, 2)) + 12 * np.searchsorted([3, 4, 7], truth)[:, None]
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert clusters.f_measure(truth, clusters.k_medoids(distances, 3, seed=0)) == 1.0
    assert clusters.f_measure(truth, generator.permutation(np.arange(60) % 3)) < 0.6
    assert clusters.k_nn(distances, truth) == 1.0


def test_the_circle_knows_its_arcs():
    circle = imported("circle").Circle.make(50, seed=0)
    arc = circle.arc(0.1, 2 * math.pi - 0.1)
    # the short way, through angle 0
    assert torch.allclose(arc[:, :2].norm(dim=1), torch.ones(len(arc)), atol=1e-5)
    assert float(arc[:, 0].min()) > 0.99
    there, back = circle.arc(1.0, 2.5), circle.arc(2.5, 1.0)
    assert torch.allclose(there, back.flip(0), atol=1e-4)


def test_variation_ignores_a_mere_change_of_unit():
    variation = imported("stability").variation
    distances = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    assert np.allclose(variation(distances, scale_free=True), 0)
    assert np.allclose(variation(distances, scale_free=False), np.std([1, 10], ddof=1) / 5.5)


def test_a_trained_model_is_read_back_and_not_trained_again(tmp_path):
    common = imported("common")
    study = common.Study("x", True, tmp_path)
    trained = []

    def make(settings):
        return study.cached("model", settings, lambda: common.mlp([2, 3]), lambda m: trained.append(m))

    first, again = make({"seed": 0}), make({"seed": 0})
    assert len(trained) == 1 and torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, make({"seed": 1})[0].weight) and len(trained) == 2


def test_an_interrupted_study_goes_on_where_it_was(tmp_path, monkeypatch):
    common = imported("common")
    calls = []

    def compute():
        calls.append(1)
        return {"length": [1.5, float("inf")]}

    def ask(**options):
        study = common.Study("stability", True, tmp_path)
        return study.remembered("part", {"pairs": 3}, compute, **options)

    assert ask() == ask() == {"length": [1.5, float("inf")]} and len(calls) == 1
    ask(live=True)
    assert len(calls) == 2
    # other code, other results
    monkeypatch.setattr(common.Study, "_sources", lambda self: b"changed")
    ask()
    assert len(calls) == 3


def test_images_fall_back_to_the_bundled_digits_and_say_so(monkeypatch, capsys):
    data = imported("common.data")

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(data, "fetch_openml", offline)
    images = data.load_images()
    assert "could not be fetched" in capsys.readouterr().out and "could not be fetched" in images.source
    assert images.pixels.shape == (1797, 64) and float(images.pixels.max()) == 1.0


def test_idx_files_are_read(tmp_path):
    import gzip

    pixels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    files = {"t10k-images-idx3-ubyte.gz": pixels, "t10k-labels-idx1-ubyte.gz": np.array([7, 1], np.uint8)}
    for name, values in files.items():
        head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
        (tmp_path / name).write_bytes(gzip.compress(head + values.tobytes()))
    images = imported("common").load_images(tmp_path)
    assert images.labels.tolist() == [7, 1] and images.shape == (4, 4)
    assert torch.allclose(images.pixels * 255, torch.arange(32.0).view(2, 16))
    with pytest.raises(SystemExit, match="--mnist"):
        imported("common").load_images(tmp_path / "nothing")
