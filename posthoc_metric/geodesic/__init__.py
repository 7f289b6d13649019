"""Geodesics: shortest curves, exponential and logarithmic maps, means and distances under any metric."""

from .maps import FrechetMean, Logarithm, exp, frechet_mean, log, logarithm, mean
from .matrix import distances
from .options import RelaxationOptions
from .shooting import Shot, shoot
from .solution import Solution
from .solve import geodesic
from .status import Status

__all__ = [
    "FrechetMean",
    "Logarithm",
    "RelaxationOptions",
    "Shot",
    "Solution",
    "Status",
    "distances",
    "exp",
    "frechet_mean",
    "geodesic",
    "log",
    "logarithm",
    "mean",
    "shoot",
]
