"""Geodesic distances by the matrix: solved pair by pair, on a graph, in blocks over cores or a cluster."""

from .matrix import distances
from .nearest import neighbours
from .report import DistanceReport, ErrorEstimate, Stage
from .table import MetricTable, TableError

__all__ = ["DistanceReport", "ErrorEstimate", "MetricTable", "Stage", "TableError", "distances", "neighbours"]
