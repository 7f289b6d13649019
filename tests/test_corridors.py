"""Starts through corridors: the shortest ways through the lanes about curves of the plane."""

import importlib

import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

from posthoc_metric import Decoder, FunctionMetric, PullbackMetric, repair
from posthoc_metric.examples import digits, digits_vae
from posthoc_metric.geodesic.guard import guard
from posthoc_metric.geodesic.starts.make import _grid, cache_of, make_starts
from posthoc_metric.geodesic.starts.start_curves import StartCurves, straight

corridors = importlib.import_module("posthoc_metric.geodesic.starts.corridors")


def bumps(z):
    """A bumpy plane."""
    height = 1 + 40 * (z[:, :1] * 9).sin().square() * (z[:, 1:] * 8 + z[:, :1]).cos().square()
    return height[:, :, None] * torch.eye(2, dtype=z.dtype)


def lines_on_a_grid(metric, count=5, seed=0):
    """Straight lines (count,), and a grid around them."""
    generator = torch.Generator().manual_seed(seed)
    a, b = 0.8 * (2 * torch.rand(2, count, 2, generator=generator, dtype=torch.float64) - 1)
    return _grid(cache_of(metric), guard(metric.parts()), (0.0, 0.0, 1.5, 1.5), a.device, None), straight(a, b)


@pytest.mark.parametrize("seed", range(3))
def test_no_way_through_the_lanes_is_shorter_by_dijkstra_either(seed):
    grid, lines = lines_on_a_grid(FunctionMetric(bumps, 2), seed=seed)
    lanes = corridors._lanes(lines.nodes)
    forms = corridors._forms(grid, lanes)
    corners, lengths = corridors._shortest(lanes, forms)
    _, stations, number, _ = lanes.shape
    for row in range(len(lanes)):
        heads, tails, weights = [], [], []
        for station in range(stations - 1):
            for lane in range(number):
                for other in range(max(0, lane - corridors._REACH), min(number, lane + corridors._REACH + 1)):
                    dx, dy = lanes[row, station + 1, other] - lanes[row, station, lane]
                    products = torch.stack([dx * dx, dx * dy, dy * dy])
                    ends = forms[row, station, lane], forms[row, station + 1, other]
                    weights.append(float((sum(end @ products for end in ends) / 2).sqrt()))
                    heads.append(station * number + lane)
                    tails.append((station + 1) * number + other)
        graph = coo_matrix((weights, (heads, tails)), shape=(stations * number,) * 2).tocsr()
        middle = number // 2
        expected = dijkstra(graph, indices=middle)[(stations - 1) * number + middle]
        assert float(lengths[row]) == pytest.approx(expected, rel=1e-12)
    # at the ends all lanes meet
    torch.testing.assert_close(corners[:, [0, -1]], lines.nodes[:, [0, -1]], rtol=0, atol=1e-12)


def test_curves_keep_their_ends_and_get_no_longer():
    grid, lines = lines_on_a_grid(FunctionMetric(bumps, 2), 20)
    corridors.estimate(grid, lines)
    found = corridors.through_corridors(grid, lines)
    assert torch.equal(found.pair, lines.pair) and torch.equal(found.nodes[:, [0, -1]], lines.nodes[:, [0, -1]])
    assert bool((found.length <= lines.length).all()) and float(found.length.sum()) < 0.95 * float(lines.length.sum())


def test_what_the_grid_has_resolved_stays():
    plane = FunctionMetric(lambda z: torch.eye(2, dtype=z.dtype).expand(len(z), -1, -1), 2)
    grid, lines = lines_on_a_grid(plane)
    assert corridors.through_corridors(grid, lines) is lines


def test_a_curve_has_the_same_corridor_alone():
    grid, lines = lines_on_a_grid(FunctionMetric(bumps, 2), 150)
    corridors.estimate(grid, lines)
    together = corridors.through_corridors(grid, lines)
    for row in (0, 70, 149):
        alone = corridors.through_corridors(grid, lines.take(torch.tensor([row])))
        assert torch.equal(alone.nodes[0], together.nodes[row]) and torch.equal(alone.length[0], together.length[row])


def test_no_way_leads_where_there_is_no_metric():
    def holed(z):
        inside = (z - torch.tensor([0.0, 0.25], dtype=z.dtype)).norm(dim=1) < 0.2
        return torch.where(inside[:, None, None], float("nan"), bumps(z))

    grid, lines = lines_on_a_grid(FunctionMetric(holed, 2), 1)
    line = straight(torch.tensor([[-0.8, 0.0]]).double(), torch.tensor([[0.8, 0.0]]).double())
    corridors.estimate(grid, line)
    found = corridors.through_corridors(grid, line)
    assert bool(torch.isfinite(holed(found.nodes[0])).all()) or torch.equal(found.nodes, line.nodes)


def test_fewer_evaluations_for_lengths_as_short(monkeypatch):
    module, encoder = digits_vae()
    latents = encoder(digits().data).double()
    metric = repair(Decoder(module, latent_dim=2), latents, digits().data)
    a, b = metric.geometry.latents[:160].split(80)
    found = metric.geodesic(a, b)
    monkeypatch.setattr(
        importlib.import_module("posthoc_metric.geodesic.starts.make"), "through_corridors", lambda grid, curves: curves
    )
    before = metric.geodesic(a, b)
    assert float(found.evaluations.sum()) < 0.95 * float(before.evaluations.sum())
    # in this wiggly metric a few curves lie in neighbouring valleys, with and without
    assert float(found.length.sum()) < (1 + 1e-3) * float(before.length.sum())


def test_a_line_that_is_one_with_its_path_is_left_alone(monkeypatch):
    """On a surface that the grid resolves nothing is gained."""
    asked = []
    monkeypatch.setattr(
        importlib.import_module("posthoc_metric.geodesic.starts.make"),
        "through_corridors",
        lambda grid, curves: asked.append(curves) or curves,
    )
    torch.manual_seed(0)
    plane = PullbackMetric(Decoder(torch.nn.Linear(2, 4).double(), latent_dim=2))
    a, b = torch.randn(2, 6, 2, dtype=torch.float64)
    starts = make_starts(plane, guard(plane.parts()), a, b, None, ("straight", "grid"))
    assert isinstance(starts, StartCurves) and not asked
