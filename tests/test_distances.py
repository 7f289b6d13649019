"""Matrices of distances against closed forms and against one another."""

import warnings

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import dijkstra
from test_spaces import points, upper

from posthoc_metric.distances import distances, neighbours
from posthoc_metric.distances.edges import segment_lengths
from posthoc_metric.distances.graph import build_distance_graph
from posthoc_metric.distances.pairs import AllPairs
from posthoc_metric.distances.report import compare
from posthoc_metric.errors import ConvergenceWarning, InvalidArgumentError
from posthoc_metric.metric import FunctionMetric
from posthoc_metric.spaces import HalfPlane, Plane, Sphere


def exact(space, a, b):
    n, m = len(a), len(b)
    return space.distance(a.repeat_interleave(m, 0), b.repeat(n, 1)).view(n, m)


@pytest.mark.parametrize("space, a", [(Sphere(), points(9, 2)), (HalfPlane(), upper(9)), (Sphere(5), points(9, 5))])
def test_solved_distances_are_the_closed_form(space, a):
    matrix, report = distances(space, a, return_report=True)
    torch.testing.assert_close(matrix, exact(space, a, a), rtol=1e-4, atol=1e-12)
    assert torch.equal(matrix, matrix.T) and (matrix.diagonal() == 0).all()
    assert report.method == "solver" and report.pairs == 36 and report.failed == report.unconverged == 0
    torch.testing.assert_close(distances(space, a[:4], a[4:]), exact(space, a[:4], a[4:]), rtol=1e-4, atol=0)


def test_either_solver_may_be_named_and_its_own_options_are_checked_before_any_work():
    space, a = HalfPlane(), upper(4)
    found = distances(space, a, solver="fixed-point", mesh=12)
    torch.testing.assert_close(found, exact(space, a, a), rtol=1e-2, atol=1e-12)
    for of in (distances, neighbours):
        for wrong in ({"solver": "newton"}, {"solver": ["relaxation"]}, {"solver": "fixed-point", "rough_rtol": 1e-3}):
            with pytest.raises(InvalidArgumentError) as refused:
                of(space, a, **wrong)
            assert "check_solver" in [entry.name for entry in refused.traceback]


def test_graph_distances_are_near_the_closed_form_and_say_how_near():
    space, a = Sphere(), points(500, 2)
    matrix, report = distances(space, a, method="graph", neighbours=60, return_report=True)
    truth = exact(space, a, a)
    relative = (matrix / truth - 1)[~torch.eye(500, dtype=torch.bool)].abs()
    assert relative.median() < 0.02
    assert torch.equal(matrix, matrix.T) and (matrix.diagonal() == 0).all()
    assert 0.5 * report.error.median < relative.median() < 2 * report.error.median
    assert report.error.bias > 0 and report.error.unsolved == 0 and report.failed == 0
    few, worse = distances(space, a, method="graph", neighbours=30, return_report=True)
    assert worse.error.median > report.error.median
    assert [stage.name for stage in report.stages] == ["neighbours", "edges", "paths", "sample"]


def test_calibration_takes_the_bias_out_and_is_judged_on_pairs_it_has_not_seen():
    space, a = Sphere(), points(200, 2)
    plain, before = distances(space, a, method="graph", neighbours=40, sample=60, return_report=True)
    scaled, after = distances(space, a, method="graph", neighbours=40, sample=60, calibrate=True, return_report=True)
    assert after.calibrated < 1 and after.error.pairs == 30
    torch.testing.assert_close(scaled, plain * after.calibrated)
    truth = exact(space, a, a) + torch.eye(200)
    assert (scaled / truth - 1).abs().median() < (plain / truth - 1).abs().median()


def test_refined_entries_are_the_solver_s():
    space, a = Sphere(), points(100, 2)
    matrix, report = distances(space, a, method="graph", neighbours=40, refine=3, return_report=True)
    truth = exact(space, a, a)
    nearest = matrix.argsort(1)[:, 1:3]
    torch.testing.assert_close(matrix.gather(1, nearest), truth.gather(1, nearest), rtol=1e-4, atol=0)
    assert 150 <= report.refined <= 300


def test_other_columns_on_the_graph():
    space, a = Sphere(), points(300, 2)
    whole = distances(space, a, method="graph", neighbours=60, sample=0)
    part = distances(space, a[:20], a[20:], method="graph", neighbours=60, sample=0)
    torch.testing.assert_close(part, whole[:20, 20:])


@pytest.mark.parametrize("k", [1, 7, 60])
def test_nearest_are_those_of_the_whole_matrix(k):
    space, a = Sphere(), points(300, 2)
    matrix, report = neighbours(space, a, k, sample=10, graph_neighbours=30, return_report=True)
    graph = build_distance_graph(space, a, 30)
    whole = dijkstra(graph.lengths)
    expected = np.sort(whole, axis=1)[:, 1 : k + 1]
    np.testing.assert_allclose(matrix.data.reshape(300, k), expected, rtol=1e-12)
    np.testing.assert_allclose(whole[np.repeat(np.arange(300), k), matrix.indices], matrix.data, rtol=1e-12)
    assert report.error.median < 0.05


def test_nearest_with_a_support_that_is_not_asked_for():
    space, a = Sphere(), points(40, 2)
    space.support = points(300, 2, seed=1)
    near = neighbours(space, a, 5, sample=0)
    whole = distances(space, a, method="graph", neighbours=32, sample=0)
    np.testing.assert_allclose(near.data.reshape(40, 5), whole.sort(1).values[:, 1:6].numpy(), rtol=1e-12)


def test_nearest_of_points_that_coincide():
    a = points(30, 2)
    a = torch.cat([a, a[:3], a[:1]])
    near = neighbours(Plane(dim=2), a, 4, sample=0, graph_neighbours=30)
    whole = torch.cdist(a, a)
    expected = whole.sort(1).values[:, 1:5]
    np.testing.assert_allclose(near.data.reshape(34, 4), expected, rtol=1e-9, atol=1e-12)
    assert (near.diagonal() == 0).all() and not (near.tocoo().row == near.tocoo().col).any()


def test_refined_neighbours_are_the_solver_s():
    space, a = Sphere(), points(60, 2)
    near = neighbours(space, a, 3, refine=True, sample=0)
    truth = exact(space, a, a).numpy()
    np.testing.assert_allclose(near.data, truth[np.repeat(np.arange(60), 3), near.indices], rtol=1e-4)
    assert (np.diff(near.data.reshape(60, 3)) >= 0).all()


def test_kind_and_dtype_come_back():
    a = points(5, 2).float().numpy()
    for method in ("solver", "graph"):
        matrix = distances(Sphere(), a, method=method, neighbours=4, sample=0)
        assert isinstance(matrix, np.ndarray) and matrix.dtype == np.float32


def test_a_ridge_between_two_points_of_a_rule_is_not_jumped():
    ridge = FunctionMetric(
        lambda z: (1 + 1e4 * torch.exp(-(((z[:, 0] - 0.31) / 0.02) ** 2)))[:, None, None] * torch.eye(2).to(z), 2
    )
    a, b = torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[1.0, 0.0]]).double()
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    fine = torch.trapezoid((1 + 1e4 * torch.exp(-(((t - 0.31) / 0.02) ** 2))).sqrt(), t)
    found = segment_lengths(ridge.parts(), a, b, 0.1)
    assert abs(float(found[0] / fine) - 1) < 0.05


def test_pairs_are_numbered_each_once():
    for pairs in (AllPairs(7, None), AllPairs(1, None), AllPairs(3, 4)):
        first, second = pairs.at(np.arange(pairs.count))
        wide = pairs.columns or pairs.rows
        assert len(set((first * wide + second).tolist())) == pairs.count
        assert pairs.columns is not None or (first < second).all()


def test_an_unknown_length_says_so_and_spares_the_others():
    def hole(z):
        bad = z.norm(dim=1) < 0.3
        return torch.where(bad, float("nan"), 1.0)[:, None, None] * torch.eye(2).to(z)

    a = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]).double()
    for method in ("solver", "graph"):
        with pytest.warns(ConvergenceWarning, match="3 of 6 pairs have no distance"):
            matrix = distances(FunctionMetric(hole, 2), a, method=method, sample=0)
        assert not torch.isfinite(matrix[0, 1:]).any()
        torch.testing.assert_close(matrix[1, 3], torch.tensor(2.0).double())


def test_graph_errors_beyond_two_per_cent_are_warned_of():
    with pytest.warns(ConvergenceWarning, match="Raise `neighbours`"):
        distances(Sphere(), points(200, 2), method="graph", neighbours=5)


def test_the_estimate_counts_what_the_solver_does_not_vouch_for():
    estimate = compare(
        np.array([1.1, 2.0, 3.0, 1.0]), np.array([1.0, 2.0, 3.0, np.nan]), np.array([0.0, 0.5, 0.0, 0.0])
    )
    assert estimate.pairs == 2 and estimate.unsolved == 2
    assert estimate.largest == pytest.approx(0.1) and estimate.bias == pytest.approx(0.05)


def test_points_that_coincide_are_known_to_be_at_no_distance():
    rows = upper(3).repeat_interleave(4, 0)
    found, report = neighbours(HalfPlane(), rows, 3, return_report=True)
    assert not found.data.any() and report.error.pairs == 36 and report.error.largest == 0.0
    # and have no say in what the others are off by
    estimate = compare(np.array([0.0, 0.0, 2.2]), np.array([0.0, 0.0, 2.0]), np.array([np.nan, 0.0, 0.0]))
    assert (estimate.pairs, estimate.unsolved) == (3, 0) and estimate.scale == pytest.approx(1 / 1.1)
    # but not where only one of the two says so
    assert compare(np.array([1.0]), np.zeros(1), np.zeros(1)).pairs == 0


def test_bad_input_is_named():
    a = points(4, 2)
    for call, words in [
        (lambda: distances(None, a), "FunctionMetric"),
        (lambda: distances(Sphere(), a, method="magic"), "method"),
        (lambda: distances(Sphere(), a, rtl=1.0), "Did you mean `rtol`"),
        (lambda: distances(Sphere(), a, return_reports=True), "known are method.*Did you mean `return_report`"),
        (lambda: distances(Sphere(), a[:0]), "no rows"),
        (lambda: distances(Sphere(), points(3, 5)), "2 columns"),
        (lambda: distances(Sphere(), a, method="graph", neighbours=0), "neighbours"),
        (lambda: distances(Sphere(), a, refine=-1), "refine"),
        (lambda: distances(Sphere(), a, sample=1, calibrate=True), "sample"),
        (lambda: distances(Sphere(), a, n_jobs=0), "n_jobs"),
        (lambda: neighbours(Sphere(), a, 0), "`k`"),
    ]:
        with pytest.raises(InvalidArgumentError, match=words):
            call()


def test_one_point_has_no_pairs_whose_error_could_be_unknown():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix, report = distances(Sphere(), points(1, 2), method="graph", return_report=True)
        near, others = neighbours(Sphere(), points(1, 2), 3, return_report=True)
    assert matrix.tolist() == [[0.0]] and near.nnz == 0 and report.error is None and others.error is None


def test_neighbours_are_checked_even_where_no_graph_is_made():
    with pytest.raises(InvalidArgumentError, match="neighbours"):
        distances(Sphere(), points(3, 2), neighbours=0)
