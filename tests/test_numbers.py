"""Precision and scale: float32 beside float64, and repaired metrics wherever latents lie and however large they are."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from test_properties import _Composed, _latents, _module
from test_spaces import points
from torch import Tensor

import posthoc_metric as pm
from posthoc_metric.geodesic import Status
from posthoc_metric.metric import PullbackMetric


@functools.cache
def metrics(kind: str) -> tuple[pm.Metric, pm.Metric]:
    """The metric of the float32 decoder, and that of the same weights in float64."""
    low = copy.deepcopy(_module()).float()
    high = copy.deepcopy(low).double()
    one, other = pm.Decoder(low, latent_dim=2), pm.Decoder(high, latent_dim=2)
    if kind == "decoder":
        return PullbackMetric(one), PullbackMetric(other)
    return pm.repair(one, _latents().float()), pm.repair(other, _latents().float().double())


@pytest.mark.parametrize("kind", ["decoder", "repaired"])
def test_float32_and_float64_decoders_agree(kind):
    low, high = metrics(kind)
    z = points(200, 2, scale=0.7).float()
    one, other = low.tensor(z).double(), high.tensor(z.double())
    size = other.flatten(1).amax(1)[:, None, None]
    assert ((one - other).abs() <= 1e-4 * size).all()
    a, b = z[:30], z[30:60]
    single, double = low.geodesic(a, b), high.geodesic(a.double(), b.double())
    assert single.length.dtype == torch.float32 and double.length.dtype == torch.float64
    assert single.converged.all() and double.converged.all()
    error = (single.length.double() - double.length).abs()
    claimed = single.length_error.double() + double.length_error
    assert (error <= torch.maximum(2 * claimed, 1e-3 * double.length)).all()
    assert (error / double.length).median() <= 1e-5


def repaired_at(scale: float, uncertainty: str = "rbf") -> tuple[pm.Metric, Tensor]:
    """The default repair of one decoder whose latents (150, 2) have that scale, and those latents."""
    inverse = torch.eye(2, dtype=torch.float64) / scale
    decoder = _Composed(pm.Decoder(_module(), latent_dim=2), inverse, 0.0)
    return pm.repair(decoder, scale * _latents(), uncertainty=uncertainty), scale * _latents()


def chords(metric: pm.Metric, curve: Tensor) -> Tensor:
    step, middle = curve.diff(dim=1), (curve[:, 1:] + curve[:, :-1]) / 2
    return metric.norm(middle.reshape(-1, 2), step.reshape(-1, 2)).view(len(curve), -1).sum(1)


@pytest.mark.parametrize("kind", ["decoder", "repaired"])
def test_what_a_float32_decoder_calls_converged_float64_does_not_refuse(kind):
    """Lengths are measured anew in float64, and the curve handed to the float64 solver to be shortened."""
    low, high = metrics(kind)
    a = points(100, 2, 3).float()
    # from far apart to differences of a few float32 spacings
    b = a + (10.0 ** -(torch.arange(100) % 7)[:, None] * points(100, 2, 4)).float()
    single = low.geodesic(a, b)
    curve = single._spline.at(single._clock.at(torch.linspace(0, 1, 513, dtype=torch.float64).expand(100, -1)))[0]
    measured, best = chords(high, curve), high.geodesic(a.double(), b.double())
    assert best.converged.all()
    length, claimed = single.double_length, single.length_error.double()
    sure = single.converged
    refused = sure & ((length - measured).abs() > claimed + 1e-3 * measured)
    refused |= sure & (measured - best.length > torch.maximum(3 * claimed, 2e-3 * best.length) + best.length_error)
    assert not refused.any(), refused.nonzero().flatten().tolist()
    assert sure.double().mean() >= 0.6
    # what is not sure says so in words
    assert all(
        status in (Status.UNRESOLVED, Status.STALLED, Status.STEP_LIMIT, Status.CONVERGED) for status in single.status
    )


@pytest.mark.parametrize("uncertainty", ["rbf", "gp"])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_no_negative_eigenvalue_and_no_nan_at_any_offset_and_scale(scale, uncertainty):
    metric, latents = repaired_at(scale, uncertainty)
    radius = float((latents - latents.mean(0)).square().sum(1).mean().sqrt())
    offsets = torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1000.0], dtype=torch.float64)
    directions = points(40, 2, 5)
    directions = directions / directions.norm(dim=1, keepdim=True)
    z = latents[:40] + (offsets[:, None, None] * radius * directions).reshape(9, 40, 2)
    tensors = metric.tensor(z.reshape(-1, 2))
    assert torch.isfinite(tensors).all()
    values = torch.linalg.eigvalsh(tensors)
    assert (values > 0).all()
    assert torch.equal(tensors, tensors.mT) or ((tensors - tensors.mT).abs() <= 1e-12 * values[:, -1:, None]).all()
    assert (values[:, 1] / values[:, 0]).sqrt().max() <= 1.1e3
    # and the same geometry at every scale: M is a quadratic form of latent steps
    if scale != 1.0:
        same, _ = repaired_at(1.0, uncertainty)
        expected = same.tensor((z / scale).reshape(-1, 2))
        size = expected.flatten(1).abs().amax(1)[:, None, None]
        assert ((tensors * scale**2 - expected).abs() / size).max() <= 1e-3


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_geodesics_at_any_scale_of_the_latents(scale):
    found = []
    for size in (1.0, scale):
        metric, latents = repaired_at(size)
        found.append(metric.geodesic(latents[:12], latents[12:24]))
    one, other = found
    assert one.converged.all() and other.converged.all()
    slack = 2 * (one.length_error + other.length_error) + 1e-5 * one.length
    assert ((one.length - other.length).abs() <= slack).all()
