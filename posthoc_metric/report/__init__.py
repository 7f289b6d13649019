"""A report that a person can read, and the same numbers for a program."""

from .pairs import PairStatistics, pair_statistics
from .writer import check_image_shape, write_report

__all__ = ["PairStatistics", "check_image_shape", "pair_statistics", "write_report"]
