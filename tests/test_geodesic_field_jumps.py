"""Metrics that jump, as costs of obstacles do, against the law of refraction."""

import importlib

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from posthoc_metric.geodesic import Status, geodesic
from posthoc_metric.metric import FunctionMetric

NORMAL = torch.tensor([1.0, 0.3], dtype=torch.float64) / 1.09**0.5


def across(z):
    return z @ NORMAL.to(z) - 0.1


def faced(contrast):
    """Beyond a straight face a unit step is ``contrast`` long."""
    return FunctionMetric(
        lambda z: (1 + (contrast**2 - 1) * (across(z) > 0))[:, None, None] * torch.eye(2, dtype=z.dtype), 2
    )


def refracted(a, b, contrast):
    """The least length of two straight pieces that meet on the face, for one pair on both sides of it."""
    along = np.array([-float(NORMAL[1]), float(NORMAL[0])])
    worth = [contrast if float(across(end[None])[0]) > 0 else 1.0 for end in (a, b)]

    def length(u):
        meet = 0.1 * NORMAL.numpy() + u * along
        return sum(w * np.linalg.norm(end.numpy() - meet) for w, end in zip(worth, (a, b), strict=True))

    return minimize_scalar(length, bounds=(-10, 10), method="bounded", options={"xatol": 1e-12}).fun


@pytest.fixture
def pairs():
    torch.manual_seed(5)
    a, b = torch.randn(60, 2).double(), torch.randn(60, 2).double()
    both = (across(a) > 0) != (across(b) > 0)
    return a[both], b[both]


@pytest.mark.parametrize("solver", ["relaxation", "fixed-point"])
@pytest.mark.parametrize("contrast", [1.02, 2.0])
def test_what_is_not_refracted_is_not_called_a_geodesic(pairs, contrast, solver):
    a, b = pairs if solver == "relaxation" else (ends[:10] for ends in pairs)
    found = geodesic(faced(contrast), a, b, solver=solver)
    exact = torch.tensor([refracted(p, q, contrast) for p, q in zip(a, b, strict=True)])
    off = found.length - exact
    claimed = found.converged
    assert (off[claimed] <= 1e-3 * exact[claimed]).all()
    # what is admitted is enough but where a pair looks along the face
    assert (off <= found.length_error + 1e-6).double().mean() >= 0.9
    if contrast == 1.02:
        assert solver == "fixed-point" or claimed.all()
    else:
        assert {status for status, sure in zip(found.status, claimed, strict=True) if not sure} >= {Status.UNRESOLVED}


def test_what_is_steep_but_smooth_is_no_jump_and_what_is_smooth_is_not_looked_at(pairs, monkeypatch):
    a, b = pairs
    steep = FunctionMetric(
        lambda z: (1 + 3 * torch.sigmoid(across(z) / 1e-3))[:, None, None] * torch.eye(2, dtype=z.dtype), 2
    )
    found = geodesic(steep, a, b)
    assert found.converged.all()
    exact = torch.tensor([refracted(p, q, 2.0) for p, q in zip(a, b, strict=True)])
    torch.testing.assert_close(found.length, exact, rtol=5e-3, atol=0)
    asked = []

    def smooth(z):
        asked.append(len(z))
        return (1 + 0.1 * z[:, 0].square())[:, None, None] * torch.eye(2, dtype=z.dtype)

    calm = geodesic(FunctionMetric(smooth, 2), a, b)
    number = sum(asked)
    # the function has the name of its package
    monkeypatch.setattr(importlib.import_module("posthoc_metric.geodesic.pairs"), "admit_jumps", lambda *_: None)
    asked.clear()
    assert geodesic(FunctionMetric(smooth, 2), a, b).evaluations.equal(calm.evaluations)
    assert sum(asked) == number
