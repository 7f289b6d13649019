"""Repair the geometry of a trained generative model after training.

The names below are what most work needs::

    decoder = pm.Decoder(module)                  # or pm.load_decoder("model.pt", factory=...)
    repaired = pm.repair(decoder, latents, data)  # a Metric, as PullbackMetric and FunctionMetric are
    paths = repaired.geodesic(start, end)         # a Solution with a Status for each pair

More is in ``posthoc_metric.geodesic`` (exponential and logarithmic maps, means), :mod:`posthoc_metric.distances`,
:mod:`posthoc_metric.geometry` (curvature, transport, volumes, random walks), :mod:`posthoc_metric.diagnostics`,
:mod:`posthoc_metric.estimators`, :mod:`posthoc_metric.plots` and :mod:`posthoc_metric.report`.
"""

from .checkpoint import load_decoder
from .decoder import Decoder, fisher_rao
from .geodesic import Solution, Status, geodesic
from .invert import invert
from .loading import load
from .metric import FunctionMetric, Metric, PullbackMetric
from .mixup import GeodesicMixup, geodesic_mixup
from .repair import RepairedMetric, repair
from .uncertainty import UncertaintyModel

__version__ = "0.1.0"

__all__ = [
    "Decoder",
    "FunctionMetric",
    "GeodesicMixup",
    "Metric",
    "PullbackMetric",
    "RepairedMetric",
    "Solution",
    "Status",
    "UncertaintyModel",
    "fisher_rao",
    "geodesic",
    "geodesic_mixup",
    "invert",
    "load",
    "load_decoder",
    "repair",
]
