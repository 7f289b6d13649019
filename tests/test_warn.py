"""Warnings name the caller's line, by whichever of several ways it came in."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import posthoc_metric as pm
from posthoc_metric.distances import distances
from posthoc_metric.errors import PosthocMetricWarning
from posthoc_metric.estimators import GeodesicKMeans
from posthoc_metric.geodesic import exp, log, mean
from posthoc_metric.geometry import principal_geodesics
from posthoc_metric.spaces import HalfPlane, Plane

UP, BELOW = np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([[0.0, -1.0], [1.0, -1.0]])


class StepsFarOut(nn.Module):
    """Rounds one of its outputs where latents are large."""

    def forward(self, z):
        return torch.cat([z, torch.where(z[:, :1] > 50, (z[:, :1] / 10).round(), z[:, :1] / 10)], dim=1)


def fitted_anew():
    decoder = pm.Decoder(StepsFarOut(), latent_dim=2)
    pm.repair(decoder, 100 + 200 * torch.rand(200, 2, generator=torch.Generator().manual_seed(0)))


def a_mean_not_found():
    X = np.array([[0.0, 1.0], [0.1, 1.3]])
    GeodesicKMeans(1, HalfPlane(), mean_options={"max_steps": 0, "tol": 1e-9, "starts": "straight"}).fit_predict(X)


ENTRANCES = {
    "exp": lambda: exp(HalfPlane(), UP, UP, max_steps=1),
    "metric.exp": lambda: HalfPlane().exp(UP, UP, max_steps=1),
    "log": lambda: log(HalfPlane(), UP, BELOW, starts="straight"),
    "metric.log": lambda: HalfPlane().log(UP, BELOW, starts="straight"),
    "mean": lambda: mean(HalfPlane(), UP, max_steps=0, tol=1e-9, starts="straight"),
    "metric.mean": lambda: HalfPlane().mean(UP, max_steps=0, tol=1e-9, starts="straight"),
    "distances": lambda: distances(HalfPlane(), UP, BELOW, starts="straight"),
    "metric.distances": lambda: HalfPlane().distances(UP, BELOW, starts="straight"),
    "principal geodesics": lambda: principal_geodesics(Plane(dim=2), UP[[0, 0]]),
    "an estimator's fit_predict": a_mean_not_found,
    "a decoder probed anew": fitted_anew,
}


@pytest.mark.parametrize("way", ENTRANCES)
def test_a_warning_names_the_line_that_the_library_was_called_from(way):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ENTRANCES[way]()
    ours = [warning for warning in caught if issubclass(warning.category, PosthocMetricWarning)]
    assert ours and {warning.filename for warning in ours} == {__file__}
