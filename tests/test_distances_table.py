"""The tabulated metric against the metric itself."""

import numpy as np
import pytest
import torch
from test_spaces import points, upper

from posthoc_metric.distances import MetricTable, distances
from posthoc_metric.distances.splines import make_level, places
from posthoc_metric.errors import ConvergenceWarning, InvalidArgumentError, NumericalError
from posthoc_metric.geodesic import geodesic
from posthoc_metric.metric import FunctionMetric
from posthoc_metric.spaces import HalfPlane, LinearDecoder, Plane, Sphere, Torus


@pytest.mark.parametrize("space, z", [(Sphere(), points(50, 2)), (Sphere(3), points(50, 3)), (Torus(), points(50, 2))])
def test_the_table_is_the_metric_to_what_it_says(space, z):
    table = MetricTable(space, z, rtol=1e-3)
    v = points(len(z), space.dim, 5)
    error = (table.norm(z, v) / space.norm(z, v) - 1).abs()
    assert error.max() <= 1e-3 and table.error.p99 <= 1e-3
    assert error.max() <= 2 * table.error.largest + 1e-12
    assert table.error.median < table.error.p99 <= table.error.largest
    assert (torch.linalg.eigvalsh(table.tensor(z)) > 0).all()


def test_splines_are_exact_for_cubics_and_go_on_beyond_the_box():
    low, step, shape = torch.tensor([-1.0, 2.0]).double(), torch.tensor([0.25, 0.5]).double(), (13, 11)

    def cubic(z):
        return (z[:, 0] ** 3 - z[:, 0] * z[:, 1] ** 2 + 2 * z[:, 1] + 1)[:, None]

    level = make_level(low, step, shape, cubic(places(low, step, shape, torch.arange(13 * 11))))
    z = low + torch.rand(200, 2, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([2.0, 3.0])
    for where in (z, z + step * torch.tensor([[0.9, -0.4]])):
        found = torch.zeros(200, 1).double()
        level.add_to(found, where)
        torch.testing.assert_close(found, cubic(where), rtol=1e-10, atol=1e-10)


def test_only_what_varies_is_refined():
    bump = FunctionMetric(
        lambda z: (1 + 50 * torch.exp(-z.square().sum(1) / 0.02))[:, None, None] * torch.eye(2).to(z), 2
    )
    table = MetricTable(bump, [[-2.0, -2.0], [2.0, 2.0]], rtol=1e-3)
    shares = [float(level.live.double().mean()) for level in table.levels]
    assert len(shares) > 3 and shares[-1] < 0.1
    finest = np.prod(table.levels[-1].shape)
    assert table.evaluations < 0.3 * finest
    assert len(MetricTable(Plane(dim=2), points(5, 2)).levels) <= 2


def test_outside_the_box_the_metric_itself_answers():
    table = MetricTable(Sphere(), points(20, 2))
    far = torch.tensor([[9.0, 9.0], [0.0, 0.0]]).double()
    exact = Sphere().tensor(far)
    assert torch.equal(table.tensor(far)[0], exact[0])
    torch.testing.assert_close(table.tensor(far)[1], exact[1], rtol=1e-3, atol=0)
    assert isinstance(table.tensor(far.numpy()), np.ndarray)


def test_the_solver_and_the_graph_take_a_table():
    z = points(200, 2)
    table = MetricTable(Sphere(), z)
    a, b = z[:10], z[10:20]
    torch.testing.assert_close(geodesic(table, a, b).length, Sphere().distance(a, b), rtol=1e-3, atol=0)
    of_table, report = distances(table, z, method="graph", neighbours=60, return_report=True)
    torch.testing.assert_close(of_table, distances(Sphere(), z, method="graph", neighbours=60), rtol=1e-3, atol=1e-9)
    assert report.error.unsolved == 0


def test_a_table_that_misses_says_so():
    rough = FunctionMetric(lambda z: (2 + (300 * z[:, 0]).sin())[:, None, None] * torch.eye(2).to(z), 2)
    with pytest.warns(ConvergenceWarning, match="max_levels"):
        table = MetricTable(rough, [[0.0, 0.0], [1.0, 1.0]], max_levels=2)
    assert table.error.p99 > 0.05


def test_bad_input_is_named():
    with pytest.raises(InvalidArgumentError, match="at most 3 dimensions"):
        MetricTable(Sphere(4), points(5, 4))
    with pytest.raises(InvalidArgumentError, match="rtol"):
        MetricTable(Sphere(), points(5, 2), rtol=0)
    with pytest.raises(InvalidArgumentError, match="max_levels"):
        MetricTable(Sphere(), points(5, 2), max_levels=0)
    with pytest.raises(InvalidArgumentError, match="no rows"):
        MetricTable(Sphere(), points(0, 2))
    with pytest.raises(NumericalError, match="Repair"):
        MetricTable(LinearDecoder([[1.0, 0.0]]), points(5, 2))
    with pytest.raises(NumericalError, match="finite"):
        MetricTable(HalfPlane(), upper(5) - 1)


def test_a_metric_that_is_infinite_is_named_by_where_it_is():
    def field(z):
        return (1 / z[:, 0].abs())[:, None, None] * torch.eye(2, dtype=z.dtype)

    with pytest.raises(NumericalError, match=r"for example at \[\[0\.0, "):
        MetricTable(FunctionMetric(field, 2), [[-1.0, -1.0], [1.0, 1.0]])
