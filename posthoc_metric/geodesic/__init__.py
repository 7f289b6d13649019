"""Geodesics: shortest curves, exponential and logarithmic maps, means and distances under any metric."""

from .solution import Solution
from .solve import geodesic
from .status import Status

__all__ = ["Solution", "Status", "geodesic"]
