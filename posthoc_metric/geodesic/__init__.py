"""Geodesics: shortest curves, exponential and logarithmic maps and means under any metric."""

from .maps.logarithm import Logarithm, log, logarithm
from .maps.shooting import Shot, exp, shoot
from .means.mean import FrechetMean, frechet_mean, mean
from .options import FixedPointOptions, RelaxationOptions
from .solution import Solution
from .solve import geodesic
from .status import Status

__all__ = [
    "FixedPointOptions",
    "FrechetMean",
    "Logarithm",
    "RelaxationOptions",
    "Shot",
    "Solution",
    "Status",
    "exp",
    "frechet_mean",
    "geodesic",
    "log",
    "logarithm",
    "mean",
    "shoot",
]
