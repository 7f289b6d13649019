"""Start curves in few dimensions: the grid's cells, its shortest paths, and which curves are worth relaxing."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, hstack, vstack
from scipy.sparse.csgraph import connected_components, dijkstra

from posthoc_metric import Decoder, geodesic
from posthoc_metric.geodesic.guard import guard
from posthoc_metric.geodesic.starts.grid import build_grid
from posthoc_metric.geodesic.starts.make import cache_of, make_starts
from posthoc_metric.geodesic.starts.ruler import TensorRuler
from posthoc_metric.geodesic.starts.saved_graphs import graphs_state, restore_graphs
from posthoc_metric.geodesic.starts.shortest_paths import shortest_paths
from posthoc_metric.geodesic.starts.spread import spread
from posthoc_metric.metric import FunctionMetric, PullbackMetric
from posthoc_metric.spaces import HalfPlane, Sphere, SwissRoll


def walled(dim, height=20.0, hole=None):
    """A thin wall at z_1 = 0.3, and no metric at all about ``hole``."""

    def tensor(z):
        cost = 1 + height * torch.exp(-((z[:, 0] - 0.3) ** 2) / 0.005)
        if hole is not None:
            cost = torch.where((z - hole).norm(dim=1) < 0.25, float("nan"), cost)
        return cost[:, None, None] * torch.eye(dim, dtype=z.dtype)

    return FunctionMetric(tensor, dim)


def grid_of(metric, half=1.0):
    sides = torch.full((metric.dim,), half, dtype=torch.float64)
    return build_grid(TensorRuler(guard(metric.parts())), -sides, 0.8 * sides, None)


def points(count, dim, seed, half=0.9):
    generator = torch.Generator().manual_seed(seed)
    return half * (2 * torch.rand(count, dim, generator=generator, dtype=torch.float64) - 1)


def between(cells, known, z):
    """What is known (n, ...) at the corners of a grid, as its cells have it at z (B, d)."""
    return cells.at(cells.table(known), *cells.holding(z)).view(len(z), *known.shape[1:])


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_spread_of_matrices_is_that_of_whitened_ones(dim):
    generator = torch.Generator().manual_seed(dim)
    roots = torch.randn(20, 4, 5, dim, generator=generator, dtype=torch.float64)
    matrices = roots.mT @ roots
    mean = matrices.mean(1)
    values, vectors = torch.linalg.eigh(mean)
    whiten = vectors @ torch.diag_embed(values.rsqrt()) @ vectors.mT
    expected = (whiten[:, None] @ (matrices - mean[:, None]) @ whiten[:, None]).flatten(2).norm(dim=2).amax(1)
    torch.testing.assert_close(spread(matrices), expected, rtol=1e-10, atol=0)
    # a mean without an inverse has no spread, and takes none from its neighbours
    matrices[3] = 0
    found = spread(matrices)
    assert found.isfinite().tolist() == [row != 3 for row in range(20)]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_what_is_linear_along_each_axis_is_known_exactly_between_corners(dim):
    grid = grid_of(walled(dim))
    sizes = grid.cells.sizes.unique()
    assert len(sizes) > 1

    def field(z):
        return torch.stack([z.prod(1), 2 - z[:, 0]], dim=1)

    z = points(500, dim, 0, 0.8)
    torch.testing.assert_close(between(grid.cells, field(grid.points), z), field(z), rtol=1e-12, atol=1e-12)
    # corners that have no value leave theirs to the others
    holed = grid_of(walled(dim, hole=torch.zeros(dim, dtype=torch.float64)))
    found = between(holed.cells, torch.ones(len(holed.points), 1, dtype=torch.float64), z)[:, 0]
    assert bool(found.isnan().any()) and bool((found - 1)[~found.isnan()].abs().max() < 1e-12)
    assert bool(found[z.norm(dim=1) > 0.6].isfinite().all())


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_edges_join_the_grid_and_cross_no_cell_smaller_than_their_steps(dim):
    cells = grid_of(walled(dim)).cells
    a, b = cells.edges()
    count = len(cells.places)
    assert bool((a != b).all()) and len((torch.minimum(a, b) * count + torch.maximum(a, b)).unique()) == len(a)
    matrix = csr_matrix((np.ones(len(a)), (a.numpy(), b.numpy())), shape=(count, count))
    assert connected_components(matrix, directed=False)[0] == 1
    degree = torch.bincount(torch.cat([a, b]), minlength=count)
    assert int(degree.min()) >= {1: 1, 2: 3, 3: 3}[dim]
    step = cells.places[b] - cells.places[a]
    inner = (step != 0).all(1)
    for share in (0.03, 0.37, 0.61, 0.97):
        at = (cells.places[a] + share * step)[inner].floor().long()
        held = cells.sizes[at.unbind(1)]
        # corners on the side of a cell reach its other corners, no more than one cell away
        reach = step[inner].abs().amax(1)
        assert bool((reach <= {1: 1, 2: 2, 3: 1}[dim] * held).all())


@pytest.mark.parametrize("dim", [2, 3])
def test_paths_are_the_shortest_that_there_are(dim):
    grid, count = grid_of(walled(dim)), 12
    size = len(grid.points)
    start, end = points(count, dim, 1, 0.75), points(count, dim, 2, 0.75)
    edges = []
    for ends in (start, end):
        near, lengths = grid.attach(ends)
        used = np.isfinite(lengths)
        rows = np.repeat(np.arange(count), used.sum(1))
        edges.append(csr_matrix((lengths[used], (rows, near[used])), shape=(count, size)))
    leave, arrive = edges
    none = csr_matrix((count, count))
    graph = hstack([grid.lengths, csr_matrix((size, count)), arrive.T])
    whole = vstack([graph, hstack([leave, none, none]), csr_matrix((count, size + 2 * count))]).tocsr()
    own = np.arange(count)
    expected = dijkstra(whole, indices=size + own)[own, size + count + own]
    paths = shortest_paths(grid, start, end)
    corners, lengths = paths.corners, paths.lengths
    np.testing.assert_allclose(lengths.numpy(), expected, rtol=1e-12)
    assert torch.equal(corners[:, 0], start) and torch.equal(corners[:, -1], end)
    # what is longer than a pair's own limit is not found, all else is what it was
    limits = lengths * torch.tensor([0.999, 1.001]).double().repeat(count // 2)
    paths = shortest_paths(grid, start, end, limits)
    again, cut = paths.corners, paths.lengths
    assert bool(torch.isinf(cut[::2]).all()) and torch.equal(cut[1::2], lengths[1::2])
    assert torch.equal(again[1], corners[1, : again.shape[1]])
    alone = shortest_paths(grid, start[3:4], end[3:4], limits[3:4]).corners
    assert torch.equal(alone[0], again[3, : alone.shape[1]])


@pytest.mark.parametrize("metric", [Sphere(), HalfPlane(), SwissRoll(), walled(2)], ids=lambda m: type(m).__name__)
def test_a_pair_has_the_same_start_curves_alone(metric):
    a, b = points(30, 2, 3), points(30, 2, 4)
    a[:, 1], b[:, 1] = a[:, 1] + 1.2, b[:, 1] + 1.2
    together = make_starts(metric, guard(metric.parts()), a, b, None, ("straight", "grid"))
    for pair in (0, 7, 19, 29):
        one = slice(pair, pair + 1)
        alone = make_starts(metric, guard(metric.parts()), a[one], b[one], None, ("straight", "grid"))
        rows = together.pair == pair
        for name in ("kind", "knots", "nodes", "length"):
            assert torch.equal(getattr(alone, name), getattr(together, name)[rows]), name


def test_line_and_path_are_one_curve_where_no_hill_parts_them():
    def curved(z):
        return torch.diag_embed(torch.stack([1 + 0.5 * torch.sin(2 * z[:, 1]), torch.ones_like(z[:, 0])], dim=1))

    a, b = points(40, 2, 5), points(40, 2, 6)
    smooth = FunctionMetric(curved, 2)
    starts = make_starts(smooth, guard(smooth.parts()), a, b, None, ("straight", "grid"))
    assert len(starts.pair) == len(a)


def test_a_hole_without_a_metric_does_not_hide_the_way_round_it():
    metric = walled(2, height=0.0, hole=torch.zeros(2, dtype=torch.float64))
    a, b = torch.tensor([[-0.9, 0.02]]).double(), torch.tensor([[0.9, 0.02]]).double()
    starts = make_starts(metric, guard(metric.parts()), a, b, None, ("straight", "grid"))
    assert set(starts.kind.tolist()) == {0, 1}
    assert float(starts.nodes[1].norm(dim=1).min()) > 0.2


def test_without_a_value_anywhere_the_line_is_left():
    nowhere = FunctionMetric(lambda z: torch.full((len(z), 2, 2), float("nan"), dtype=z.dtype), 2)
    a, b = points(3, 2, 7), points(3, 2, 8)
    starts = make_starts(nowhere, guard(nowhere.parts()), a, b, None, ("straight", "grid"))
    assert starts.kind.tolist() == [0, 0, 0] and bool(torch.isinf(starts.length).all())


def test_grids_are_restored_with_their_cells():
    metric, again = SwissRoll(), SwissRoll()
    a, b = points(5, 2, 9), points(5, 2, 10)

    def starts(of):
        return make_starts(of, guard(of.parts()), a, b, None, ("straight", "grid"))

    expected = starts(metric)
    tensors, facts = graphs_state(metric)
    restore_graphs(again, tensors, facts)
    restored = dict(cache_of(again).graphs)
    found = starts(again)
    # the very same objects: none was built anew
    assert restored and cache_of(again).graphs == restored
    for name in ("pair", "kind", "knots", "nodes", "length"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert cache_of(again).graphs.keys() == cache_of(metric).graphs.keys()


def test_a_line_whose_nodes_a_grid_placed_badly_starts_anew():
    """The ball's metric is finite outside, too, and so large at its edge that no grid's cell tells a length there."""

    def ball(z):
        return (4 / (1 - z.square().sum(1)).square())[:, None, None] * torch.eye(2, dtype=z.dtype)

    start, end = (
        torch.tensor([row], dtype=torch.float64) for row in ([-0.0987201, -0.0159484], [0.6703377, -0.6005393])
    )
    share = (start - end).square().sum(1) / ((1 - start.square().sum(1)) * (1 - end.square().sum(1)))
    metric = FunctionMetric(ball, 2)
    solution = metric.geodesic(torch.cat([start, start / 2]), torch.cat([end, end / 2]))
    assert bool(solution.converged.all())
    torch.testing.assert_close(solution.length[:1], torch.acosh(1 + 2 * share), rtol=1e-4, atol=0)
    alone = metric.geodesic(start, end)
    assert torch.equal(alone.length[0], solution.length[0])
    assert torch.equal(alone.steps[0], solution.steps[0])


@pytest.mark.parametrize("dim", [3, 4])
def test_pairs_of_equal_ends_alone_are_solved_like_in_a_batch(dim):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(dim, 16), torch.nn.Tanh(), torch.nn.Linear(16, 9))
    decoder = Decoder(module, latent_dim=dim)
    z = torch.randn(60, dim).double()
    metric = PullbackMetric(decoder)
    both = geodesic(metric, z[:2], z[[0, 5]], support=z)
    alone = geodesic(metric, z[:1], z[:1], support=z)
    assert alone.converged.all() and float(alone.length[0]) == float(both.length[0]) == 0.0
    assert geodesic(metric, z[:3], z[:3], support=z).converged.all()


def test_a_grid_that_has_not_resolved_the_metric_is_not_believed_alone():
    """In three dimensions cells miss a narrow tube along a helix, and curves across are twice as long or more."""

    def helix(t):
        return torch.stack([torch.cos(9 * t), torch.sin(9 * t), 2 * t - 1], dim=1)

    along = helix(torch.linspace(0, 1, 400, dtype=torch.float64))

    def tube(z):
        near = torch.cdist(z, along).square().amin(1)
        return (1 + 300 * (1 - torch.exp(-near / 0.0128)))[:, None, None] * torch.eye(3, dtype=z.dtype)

    metric = FunctionMetric(tube, 3)
    start, end = helix(torch.tensor([0.1]).double()), helix(torch.tensor([0.8]).double())
    found = geodesic(metric, start, end, support=along[::4], max_spans=64)
    assert found.start == ("graph",)
    crossing = geodesic(metric, start, end, support=along[::4], max_spans=64, starts=("straight", "grid"))
    assert float(crossing.length) > 1.8 * float(found.length)
