"""The relaxation solver against closed forms."""

import numpy as np
import pytest
import torch
from test_spaces import points, upper

from posthoc_metric.errors import InvalidArgumentError
from posthoc_metric.geodesic import Status, geodesic
from posthoc_metric.metric import FunctionMetric
from posthoc_metric.spaces import HalfPlane, LinearDecoder, Plane, Sphere, SwissRoll

ORACLES = {
    "plane": (Plane([[2.0, 0.5], [0.5, 1.0]]), points(20, 2), points(20, 2, 1)),
    "sphere": (Sphere(), points(20, 2), points(20, 2, 1)),
    "sphere of dimension 5": (Sphere(5), points(20, 5), points(20, 5, 1)),
    "half-plane": (HalfPlane(), upper(20), upper(20, seed=1)),
    "linear decoder": (LinearDecoder(points(7, 3, 2)), points(20, 3), points(20, 3, 1)),
    "Swiss roll": (SwissRoll(), 6 + points(20, 2), 8 + points(20, 2, 1)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_length_is_the_closed_form_distance(name):
    space, a, b = ORACLES[name]
    solution = geodesic(space, a, b)
    exact = space.distance(a, b)
    assert solution.converged.all()
    assert ((solution.length - exact).abs() <= 1e-4 * exact).all()
    assert (solution.length_error <= 1e-4 * exact).all()
    torch.testing.assert_close(solution.energy, solution.length**2, rtol=1e-3, atol=0)
    torch.testing.assert_close(solution.points[:, 0], a)
    torch.testing.assert_close(solution.points[:, -1], b)


def test_points_are_equally_spaced_in_length():
    space, a, b = ORACLES["half-plane"]
    solution = geodesic(space, a, b)
    curve = solution(torch.linspace(0, 1, 9))
    pieces = torch.stack([space.distance(curve[:, i], curve[:, i + 1]) for i in range(8)], 1)
    assert (pieces / pieces.mean(1, keepdim=True) - 1).abs().max() < 2e-3
    torch.testing.assert_close(solution(0.5), solution(torch.tensor([0.5]))[:, 0])
    speed = space.norm(solution(0.3), solution.velocity(0.3))
    torch.testing.assert_close(speed, solution.length)


def test_kind_and_dtype_come_back():
    a = np.zeros((2, 2), dtype=np.float32)
    solution = geodesic(Sphere(), a, a + np.float32(0.5))
    for value in (solution.points, solution.length, solution(0.5)):
        assert isinstance(value, np.ndarray) and value.dtype == np.float32
    assert solution.converged.dtype == bool and solution.status == (Status.CONVERGED,) * 2


def test_a_pair_of_equal_points_has_length_zero():
    solution = geodesic(Sphere(), points(3, 2), points(3, 2))
    assert solution.converged.all() and (solution.length == 0).all()


@pytest.mark.parametrize("how", ["torch", "numpy", "detached"])
def test_a_plain_function_is_enough(how):
    def torch_fn(z):
        return (4 / (1 + z.square().sum(1)) ** 2)[:, None, None] * torch.eye(2, dtype=z.dtype)

    def numpy_fn(z):
        z = np.asarray(z.detach())
        return (4 / (1 + (z**2).sum(1)) ** 2)[:, None, None] * np.eye(2)

    def detached(z):
        return (4 / (1 + z.detach().square().sum(1)) ** 2)[:, None, None] * torch.eye(2) + 0 * z.sum()

    metric = FunctionMetric({"torch": torch_fn, "numpy": numpy_fn, "detached": detached}[how], 2)
    a, b = points(10, 2), points(10, 2, 1)
    solution = geodesic(metric, a, b)
    assert solution.converged.all()
    torch.testing.assert_close(solution.length, Sphere().distance(a, b), rtol=1e-4, atol=0)


def test_bad_input_is_named():
    ok = torch.zeros(3, 2)
    nan = ok.clone()
    nan[1] = float("nan")
    for arguments, options, words in [
        ((Sphere(), torch.zeros(3, 5), ok), {}, "2 columns"),
        ((Sphere(), nan, ok), {}, "row 1 is"),
        ((Sphere(), ok, ok[:2]), {}, "3 rows"),
        ((None, ok, ok), {}, "FunctionMetric"),
        ((Sphere(), ok, ok), {"max_step": 3}, "Did you mean `max_steps`"),
        ((Sphere(), ok, ok), {"rtol": -1.0}, "positive"),
        ((Sphere(), ok, ok), {"solver": "magic"}, "solver"),
    ]:
        with pytest.raises(InvalidArgumentError, match=words):
            geodesic(*arguments, **options)
