"""Start graphs in many dimensions between populations of unequal size, where geodesics are straight."""

import torch

from posthoc_metric.geodesic.guard import guard
from posthoc_metric.geodesic.starts.make import StartCache, _support_graph
from posthoc_metric.geodesic.starts.shortest_paths import shortest_paths
from posthoc_metric.spaces import Plane


def test_paths_between_populations_are_little_longer_than_the_straight_lines():
    generator = torch.Generator().manual_seed(0)
    label = torch.repeat_interleave(torch.arange(3), torch.tensor([700, 250, 20]))
    centres = torch.zeros(3, 6, dtype=torch.float64)
    centres[:, :2] = torch.tensor([(0.0, 0.0), (12.0, 0.0), (6.0, 14.0)])
    z = centres[label] + 0.3 * torch.randn(len(label), 6, dtype=torch.float64, generator=generator)
    cache = StartCache()
    graph = _support_graph(cache, guard(Plane(dim=6).parts()), z)
    # the same latents have the same graph, whose far edges are few
    assert _support_graph(cache, graph.ruler.parts, z.clone()) is graph and graph.lengths.nnz < 2 * 12 * len(z)
    start, end = z[:250], z[700:950]
    straight = (end - start).norm(dim=1)
    ratio = shortest_paths(graph, start, end).lengths / straight
    assert (ratio > 1 - 1e-9).all() and ratio.median() < 1.07 and ratio.max() < 1.2
    # a length is a sum over pieces and as exact
    edges = graph.lengths.tocoo()
    between = (z[edges.row] - z[edges.col]).norm(dim=1)
    torch.testing.assert_close(torch.from_numpy(edges.data), between, rtol=1e-9, atol=1e-12)


def test_latents_of_the_same_sums_have_graphs_of_their_own():
    z = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cache, parts = StartCache(), guard(Plane(dim=4).parts())
    graph = _support_graph(cache, parts, z)
    for others in (z[:, [1, 0, 2, 3]], torch.cat([z[:, :3], z[:, 3:].flip(0)], dim=1)):
        assert torch.equal(_support_graph(cache, parts, others).points, others)
    assert _support_graph(cache, parts, z.clone()) is graph
