"""Straight lines measured by bisection, and starts from them where the scale of a chart changes a thousandfold."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from posthoc_metric.geodesic import Status, geodesic
from posthoc_metric.geodesic.options import RelaxationOptions
from posthoc_metric.geodesic.refinement.straight_lines import bisected
from posthoc_metric.metric import FunctionMetric
from posthoc_metric.spaces import HalfPlane, Sphere


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sphere(dim):
    """Pairs of which one is as near as 1e-4 to the pole that the chart lacks."""
    space = Sphere(dim)
    far = 10.0 ** (1 + torch.arange(8, dtype=torch.float64) / 2.4)[:, None]
    a, b = normal(8, dim, seed=0), far * torch.nn.functional.normalize(normal(8, dim, seed=1), dim=1)
    return space, a, b, space.distance(a, b)


def half_space(dim):
    """Heights from 1e-4 to 1e3."""
    space = HalfPlane(dim)
    a, b = normal(8, dim, seed=2), normal(8, dim, seed=3)
    a[:, -1], b[:, -1] = 10.0 ** torch.linspace(-4, 0, 8).double(), 10.0 ** torch.linspace(3, -2, 8).double()
    return space, a, b, space.distance(a, b)


def ball(dim):
    """The ball model of hyperbolic space up to radius 0.99999; distances in closed form."""

    def fn(z):
        return 4 * torch.eye(dim).to(z) / (1 - z.square().sum(1))[:, None, None] ** 2

    a, b = (torch.nn.functional.normalize(normal(8, dim, seed=seed), dim=1) for seed in (4, 5))
    a, b = (1 - 1e-5) * a, (1 - 10.0 ** -torch.linspace(0.5, 5, 8).double())[:, None] * b
    inside = (1 - a.square().sum(1)) * (1 - b.square().sum(1))
    return FunctionMetric(fn, dim), a, b, torch.acosh(1 + 2 * (a - b).square().sum(1) / inside)


@pytest.mark.parametrize("dim", [2, 3, 4])
@pytest.mark.parametrize("make", [sphere, half_space, ball])
def test_distances_where_the_scale_of_the_chart_changes_by_orders_of_magnitude(make, dim):
    metric, a, b, exact = make(dim)
    solution = geodesic(metric, a, b)
    assert set(solution.status) == {Status.CONVERGED}
    error = (solution.length - exact).abs()
    # a residual of 1e-2, at which curves are done, leaves them longer by half its square
    assert (error <= solution.length_error + 1e-4 * exact).all()
    assert (error <= 1e-3 * exact).all()
    alone = geodesic(metric, a[5:6], b[5:6])
    torch.testing.assert_close(alone.length, solution.length[5:6], rtol=1e-9, atol=0)
    torch.testing.assert_close(alone.points, solution.points[5:6], rtol=1e-9, atol=1e-9)


def test_lines_have_their_length_and_nodes_on_the_line():
    metric, a, b, _ = half_space(2)
    lines = bisected(metric.parts(), a, b, RelaxationOptions())
    for row, (start, end) in enumerate(zip(a.numpy(), b.numpy(), strict=True)):
        rise = end[1] - start[1]
        # of |b - a| / height along the line, over the logarithm of the height
        expected = np.linalg.norm(end - start) * np.log(end[1] / start[1]) / rise
        numeric = quad(lambda t, s=start, e=end: np.linalg.norm(e - s) / (s[1] + t * (e[1] - s[1])), 0, 1, limit=500)[0]
        assert np.isclose(expected, numeric, rtol=1e-6)
        assert np.isclose(float(lines.length[row]), expected, rtol=1e-3)
    share = (lines.nodes - a[:, None]) / (b - a)[:, None]
    assert torch.allclose(share[..., :1], share, atol=1e-9)
    assert (share[..., 0].diff(dim=1) > 0).all()
    assert (lines.knots.diff(dim=1) > 0).all()
    # no span changes the scale by more than a few times, where even spans would by thousands
    heights = lines.nodes[..., 1]
    assert float((heights[:, 1:] / heights[:, :-1]).log().abs().max()) < np.log(3)
    assert (lines.asked > 0).all()


def test_a_line_through_a_hole_is_left_as_it_is():
    def fn(z):
        hole = (z.square().sum(1) < 0.25)[:, None, None]
        return torch.where(hole, float("nan"), torch.eye(2).to(z))

    metric = FunctionMetric(fn, 2)
    a, b = torch.tensor([[-1.0, 0.0], [-1.0, 2.0]]).double(), torch.tensor([[1.0, 0.0], [1.0, 2.0]]).double()
    lines = bisected(metric.parts(), a, b, RelaxationOptions())
    assert lines.length.tolist() == [float("inf"), 2.0]
    assert torch.allclose(lines.nodes[0].diff(dim=0), (b - a)[0] / 128)
