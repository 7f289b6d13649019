"""Repair the geometry of a trained generative model after training.

Public names, in the order of the pipeline.
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
