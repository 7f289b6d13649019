"""A report that a person can read, and the same numbers for a program."""

from .pairs import PairStatistics, pair_statistics
from .writer import write_report

__all__ = ["PairStatistics", "pair_statistics", "write_report"]
