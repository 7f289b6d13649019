"""Repair the geometry of a trained generative model after training.

Public names, in the order of the pipeline.
"""

from .decoder import Decoder
from .invert import invert
from .metric import FunctionMetric, Metric, PullbackMetric
from .mixup import GeodesicMixup, geodesic_mixup
from .repair import RepairedMetric, load, repair
from .uncertainty import UncertaintyModel

__version__ = "0.1.0"

__all__ = [
    "Decoder",
    "FunctionMetric",
    "GeodesicMixup",
    "Metric",
    "PullbackMetric",
    "RepairedMetric",
    "UncertaintyModel",
    "geodesic_mixup",
    "invert",
    "load",
    "repair",
]
