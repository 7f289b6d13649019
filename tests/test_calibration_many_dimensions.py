"""Calibration in hundreds of dimensions: what it costs, and whether quantiles of few measured points are right."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from family import mlp
from through import Through
from torch import nn

import posthoc_metric as pm
from posthoc_metric.smooth_map import gram
from posthoc_metric.support import Support
from posthoc_metric.uncertainty import moments
from posthoc_metric.uncertainty.measurement import measure
from posthoc_metric.uncertainty.spectra import spectra


class _Counting(Through):
    """A decoder that counts the points whose Jacobian is asked for, and the most at once."""

    points = most = 0

    def value_and_jacobian(self, z):
        self.points, self.most = self.points + len(z), max(self.most, len(z))
        return super().value_and_jacobian(z)


def _decoder(dim: int, outputs: int) -> pm.Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pm.Decoder(mlp([dim, 32, outputs], nn.Tanh), latent_dim=dim)


def _normal(count: int, dim: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("dim", "outputs"), [(5, 8), (8, 5), (200, 20), (200, 230)])
def test_eigenvalues_are_those_of_the_metric_whichever_side_they_are_found_on(dim, outputs):
    decoder, points = _decoder(dim, outputs), _normal(6, dim)
    kept = torch.tensor([True, False, True, False, False, True])
    found, whole = spectra(decoder, points, kept), gram(decoder, points)
    expected = torch.linalg.eigvalsh(whole).clamp_min(0)
    torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-12 * float(expected.max()))
    torch.testing.assert_close(found.grams, whole[kept])
    assert not found.bad.any()


@pytest.mark.parametrize("outputs", [2, 300])
def test_points_without_a_derivative_are_told_from_the_others(outputs):
    network = _decoder(150, outputs)

    class Holes(_Counting):
        def value_and_jacobian(self, z):
            value, jacobian = super().value_and_jacobian(z)
            return value, jacobian.masked_fill((z[:, 0] > 0)[:, None, None], torch.nan)

    points = _normal(8, 150)
    found = spectra(Holes(network), points, torch.zeros(8, dtype=torch.bool))
    assert found.bad.equal(points[:, 0] > 0)
    assert found.values[~found.bad].isfinite().all()
    assert found.values[found.bad].isnan().all()


def test_many_dimensions_are_measured_at_few_points_and_scored_at_many():
    """A thousand matrices of each kind of points took 100 s and 10 GiB in d = 512."""
    dim = 512
    decoder = _Counting(_decoder(dim, 30))
    measured = measure(decoder, Support(_normal(1000, dim)))
    assert decoder.points <= 600
    # no more at once than matrices of 256 MiB
    assert decoder.most * dim**2 * 8 <= 2**28
    assert len(measured.scored_points) == 150
    assert measured.scored_points[: len(measured.data_points)].equal(measured.data_points)


def test_ordinary_dimensions_are_measured_as_ever():
    decoder = _Counting(_decoder(64, 30))
    measured = measure(decoder, Support(_normal(8000, 64)))
    assert len(measured.data_points) == len(measured.scored_points) == measured.training_count == 1000
    assert measured.void_points.shape == (8, 125, 64)
    assert measured.void_grams.shape == (8, 125, 64, 64)


@pytest.mark.parametrize("part", ["model", "floor"])
def test_second_derivatives_are_the_same_without_a_table_of_all_centres_squares(part, monkeypatch):
    """640 centres' squares took 1.3 GiB in d = 512, and 21 in d = 2048, wherever a repair asked for them."""
    repaired = pm.repair(_decoder(12, 30), _normal(300, 12))
    points = repaired.geometry.audit[:7]
    floor = dataclasses.replace(repaired.gate.floor, level=torch.ones((), dtype=torch.float64))
    ask = {"model": repaired.model.score_gradient_hessian, "floor": floor.value_gradient_hessian}[part]
    table = ask(points)
    monkeypatch.setattr(moments, "_TABLE", 0)
    held = moments.Moments(repaired.model._points)
    assert held._table is None
    for with_table, without in zip(table, ask(points), strict=True):
        torch.testing.assert_close(without, with_table, rtol=1e-9, atol=1e-11)
    # a table of 2 GiB, which the limit forbids
    monkeypatch.undo()
    assert moments.Moments(torch.empty(1, 1).expand(640, 640))._table is None
