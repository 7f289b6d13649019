"""Curves that the caller gives to start from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import posthoc_metric as pm
from posthoc_metric.errors import InvalidArgumentError
from posthoc_metric.spaces import HalfPlane


def hill(z: torch.Tensor) -> torch.Tensor:
    """The plane with a hill about the origin: what is on the left and right of it is joined above and below."""
    return torch.eye(2, dtype=z.dtype) * (1 + 40 * torch.exp(-2 * z.square().sum(1)))[:, None, None]


HILL = pm.FunctionMetric(hill, 2)
LEFT, RIGHT = [[-2.0, 0.2]], [[2.0, 0.2]]


def arc(up: float, points: int = 9) -> np.ndarray:
    """From the left to the right, past the hill at a height."""
    t = np.linspace(0, 1, points)
    return np.stack([-2 + 4 * t, 0.2 + up * np.sin(np.pi * t)], axis=1)[None]


def test_a_given_curve_chooses_the_valley():
    """Each way round is a geodesic, and what else is tried finds the shorter one of the two."""
    above, below = (
        pm.geodesic(HILL, LEFT, RIGHT, initial=arc(up), starts="given", rtol=1e-6, tol=1e-4) for up in (1.5, -1.5)
    )
    assert above.converged.all() and below.converged.all()
    assert above.start == below.start == ("given",)
    assert above(0.5)[0, 1] > 1 > -1 > below(0.5)[0, 1]
    # turned about the horizontal axis, the one is the other for ends that lie below it
    mirrored = pm.geodesic(HILL, [[-2.0, -0.2]], [[2.0, -0.2]], initial=arc(1.5), starts="given", rtol=1e-6, tol=1e-4)
    assert mirrored.length == pytest.approx(below.length, rel=1e-5)
    assert below.length > 1.01 * above.length
    assert pm.geodesic(HILL, LEFT, RIGHT, initial=arc(-1.5)).length == pytest.approx(above.length, rel=1e-3)


def test_a_solution_of_pairs_nearby_is_moved_to_the_new_ends():
    """Lengths are those of the closed form, and take fewer evaluations than from nothing."""
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.rand(8, 2, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    before = pm.geodesic(HalfPlane(), start, end)
    start, end = start + 0.02, end - 0.01
    after = pm.geodesic(HalfPlane(), start, end, initial=before, starts="given")
    assert after.start == ("given",) * 8 and after.converged.all()
    torch.testing.assert_close(after.length, HalfPlane().distance(start, end), rtol=1e-4, atol=0)
    torch.testing.assert_close(after.points[:, [0, -1]], torch.stack([start, end], dim=1))


def test_a_curve_that_is_not_finite_is_passed_over_and_touches_no_other():
    """The straight line stands in for it, and the other pair has the same bits as alone."""
    curves = np.concatenate([arc(1.5), arc(1.5)])
    curves[0, 3] = math.nan
    both = pm.geodesic(HILL, LEFT * 2, RIGHT * 2, initial=curves, starts="given")
    alone = pm.geodesic(HILL, LEFT, RIGHT, initial=curves[1:], starts="given")
    assert both.start == ("straight", "given")
    np.testing.assert_array_equal(both.points[1:], alone.points)
    straight = pm.geodesic(HILL, LEFT, RIGHT, starts="straight")
    np.testing.assert_array_equal(both.points[:1], straight.points)


def test_given_curves_go_to_the_workers_with_their_pairs():
    """Each worker gets those of its pairs."""
    start, end = np.array(LEFT * 3), np.array(RIGHT * 3)
    curves = np.concatenate([arc(1.5), arc(-1.5), arc(-1.5)])
    here = pm.geodesic(HalfHill(), start, end, initial=curves, starts="given")
    there = pm.geodesic(HalfHill(), start, end, initial=curves, starts="given", n_jobs=2)
    np.testing.assert_allclose(there.length, here.length, rtol=1e-9)
    assert (here(0.5)[:, 1] > 0).tolist() == [True, False, False] == (there(0.5)[:, 1] > 0).tolist()


class HalfHill(pm.Metric):
    """The hill as a class of its own, which can be pickled."""

    dim = 2

    def tensor(self, z):
        """At points (B, 2)."""
        return hill(z)


def test_a_decoder_in_many_dimensions_goes_on_from_its_own_solution():
    """A solution of loose tolerance, given back, is relaxed to the length that is found from nothing."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(10, 40), torch.nn.Tanh(), torch.nn.Linear(40, 60)).double()
    metric = pm.PullbackMetric(pm.Decoder(net, latent_dim=10))
    start, end = torch.randn(2, 3, 10, dtype=torch.float64).unbind(0)
    loose = pm.geodesic(metric, start, end, max_steps=1, max_spans=16)
    found = pm.geodesic(metric, start, end, initial=loose, starts="given")
    assert found.converged.all() and found.start == ("given",) * 3
    torch.testing.assert_close(found.length, pm.geodesic(metric, start, end).length, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"initial": arc(1.5)[0]}, r"\(1, m, 2\).*curve\[None\]"),
        ({"initial": arc(1.5, points=1)}, "two points or more"),
        ({"initial": np.concatenate([arc(1.5), arc(1.5)])}, "one curve for each pair"),
        ({"initial": "above"}, "`initial`"),
        ({"initial": arc(1.5), "starts": "straight"}, "Add 'given'"),
        ({"starts": "given"}, "Give them as `initial`"),
        ({"initial": arc(1.5), "solver": "fixed-point"}, "straight lines"),
    ],
)
def test_what_does_not_fit_is_told(options, words):
    """The message names the argument and what to do."""
    with pytest.raises(InvalidArgumentError, match=words):
        pm.geodesic(HILL, LEFT, RIGHT, **options)


def test_a_curve_that_overflows_does_not_stop_the_others():
    """What has no value at any node of a batch is still differentiated, and comes out as not finite."""
    start, end = [[0.0, 1.0], [0.0, 1.0]], [[0.0, 2.0]] * 2
    curves = torch.tensor([[[0.0, 1.0], [far, far], [0.0, 2.0]] for far in (1e300, 1.5)], dtype=torch.float64)
    found = pm.geodesic(lambda z: HalfPlane().tensor(z), start, end, initial=curves, starts="given")
    assert found.status == (pm.Status.NOT_FINITE, pm.Status.CONVERGED)
    alone = pm.geodesic(lambda z: HalfPlane().tensor(z), start[:1], end[:1], initial=curves[:1], starts="given")
    assert alone.status == (pm.Status.NOT_FINITE,)
