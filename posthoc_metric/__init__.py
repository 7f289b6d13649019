"""Repair the geometry of a trained generative model after training.

Public names, in the order of the pipeline.
"""

from .decoder import Decoder
from .metric import FunctionMetric, Metric, PullbackMetric
from .repair import RepairedMetric, load, repair
from .uncertainty import UncertaintyModel

__version__ = "0.1.0"

__all__ = [
    "Decoder",
    "FunctionMetric",
    "Metric",
    "PullbackMetric",
    "RepairedMetric",
    "UncertaintyModel",
    "load",
    "repair",
]
