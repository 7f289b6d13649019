"""Lengths from what a relaxation leaves known of its curves' image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import posthoc_metric as pm
from posthoc_metric.geodesic.curves.image import Image
from posthoc_metric.geodesic.curves.quadrature import FIVE, FOUR, confirm, measure, sharpen
from posthoc_metric.geodesic.curves.spline import Spline, interpolate
from posthoc_metric.geodesic.refinement import routes
from posthoc_metric.geodesic.relaxation.energy import CurveEnergy
from posthoc_metric.metric import MetricParts


def _decoder(scale: float = 1.0) -> pm.Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 60)).double()
        module[0].weight.data *= scale
    return pm.Decoder(module, latent_dim=2)


def _bent(spans: int) -> Spline:
    """Two curves run at uneven speed, with knots that are not even."""
    t = torch.linspace(0, 1, spans + 1, dtype=torch.float64)
    knots = (t + 0.1 * torch.sin(2 * torch.pi * t) / (2 * torch.pi)).repeat(2, 1)
    x, y = 3 * knots - 1, torch.stack([(2 * knots[0]).sin() - 0.5, (3 * knots[1]).cos()])
    return interpolate(knots, torch.stack([x, y], dim=2))


def _image(decoder: pm.Decoder, spline: Spline) -> Image:
    energy = CurveEnergy(MetricParts(embedding=decoder), spline.nodes[0])
    found = energy.linearise(spline.nodes, energy.frame(spline.nodes, spline.knots.diff(dim=1))).image
    assert found is not None and found.whole
    return found


def _fine(decoder: pm.Decoder, spline: Spline) -> Tensor:
    """Lengths by 20,000 chords."""
    points, _ = spline.at(torch.linspace(0, 1, 20_001, dtype=torch.float64).expand(2, -1))
    return torch.stack([decoder(row).diff(dim=0).norm(dim=1).sum() for row in points])


def test_arcs_through_the_nodes_are_lengths_of_fourth_order_for_nothing():
    decoder, errors = _decoder(), []
    for spans in (8, 16, 32):
        spline = _bent(spans)
        image = _image(decoder, spline)
        with decoder.counting() as work:
            found, asked = measure(MetricParts(embedding=decoder), spline, image, FOUR)
        assert work.values == work.jvps == 0 and int(asked.sum()) == 0
        errors.append((found.length / _fine(decoder, spline) - 1).abs())
    assert (errors[-1] < 1e-5).all()
    assert (errors[0] > 10 * errors[1]).all() and (errors[1] > 10 * errors[2]).all()


def test_squared_speeds_at_the_nodes_are_the_embeddings():
    decoder, spline = _decoder(), _bent(8)
    flat = spline.slopes.flatten(0, 1)
    pushed = decoder.jvp(spline.nodes.flatten(0, 1), flat)[1]
    torch.testing.assert_close(_image(decoder, spline).at_nodes(spline).flatten(), pushed.square().sum(1))


@pytest.mark.parametrize("whole", [True, False])
def test_where_nodes_do_not_tell_enough_the_embedding_is_asked(whole):
    """Tanh units that switch within a small part of a span."""
    decoder, spline = _decoder(60.0), _bent(8)
    image = _image(decoder, spline)
    given = image if whole else Image(image.squares)
    with decoder.counting() as work:
        found, asked = measure(MetricParts(embedding=decoder), spline, given, FOUR)
    assert asked.tolist() == [8, 8] and work.jvps == 16
    alone, points = measure(MetricParts(embedding=decoder), spline, None, FOUR)
    assert points.tolist() == [17, 17]
    torch.testing.assert_close(found.lengths, alone.lengths)


def test_an_image_that_stands_still_has_no_length():
    zeros = torch.zeros(2, 5, 2, 2, dtype=torch.float64)
    still = Image(zeros, zeros[:, :4], zeros[:, :4, 0, 0])
    assert torch.equal(still.in_the_middle(_bent(4), zeros[:, :, 0, 0]), zeros[:, :4, 0, 0])


class _Eighth:
    """``w(z) = (1 + z₁⁸)²``: along the first axis the speed is a polynomial."""

    def __call__(self, z: Tensor) -> Tensor:
        return (1 + z[:, 0] ** 8).square()

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        slope = 16 * z[:, 0] ** 7 * (1 + z[:, 0] ** 8)
        return self(z), torch.stack([slope, torch.zeros_like(slope)], dim=1)


def test_every_rule_is_surer_than_the_one_before_and_kronrods_has_degree_nine():
    knots = torch.linspace(0, 1, 5, dtype=torch.float64)[None]
    spline = interpolate(knots, torch.stack([knots, torch.zeros_like(knots)], dim=2))
    parts = MetricParts(weight=_Eighth())
    simpson, _ = measure(parts, spline, None, FOUR)
    lobatto = confirm(parts, spline, simpson, FOUR)
    five = confirm(parts, spline, measure(parts, spline, None, FIVE)[0], FIVE)
    kronrod = sharpen(parts, spline, lobatto)
    exact = 10 / 9
    assert abs(float(five.length) - exact) < 1e-2 * abs(float(lobatto.length) - exact)
    for found in (simpson, lobatto):
        assert 1e-9 < abs(float(found.length) - exact) < float(found.errors.sum())
    assert abs(float(kronrod.length) - exact) < 1e-13
    assert float(kronrod.errors.sum()) < float(lobatto.errors.sum()) < float(simpson.errors.sum())


@pytest.mark.parametrize("room", [True, False])
def test_the_ends_of_a_pair_are_asked_about_once_where_there_is_room(room, monkeypatch):
    decoder = _decoder(2.0)
    metric = pm.PullbackMetric(decoder)
    a, b = torch.tensor([[-1.0, 0.3]], dtype=torch.float64), torch.tensor([[0.9, -0.6]], dtype=torch.float64)
    times, levels, ask, relaxed = [], [], CurveEnergy._ask, routes.relax

    def counted(self: CurveEnergy, points: Tensor) -> tuple[Tensor, Tensor]:
        times.append(int((points == a).all(-1).sum()))
        return ask(self, points)

    def level(*arguments: Any, **named: Any) -> Any:
        levels.append(len(arguments[1]))
        return relaxed(*arguments, **named)

    monkeypatch.setattr(CurveEnergy, "_ask", counted)
    monkeypatch.setattr(routes, "relax", level)
    if not room:
        monkeypatch.setattr(routes.Routes, "_ask_ends", lambda *_: None)
    found = metric.geodesic(a, b)
    assert bool(found.converged.all()) and len(levels) > 1
    assert sum(times) == (1 if room else sum(levels))
