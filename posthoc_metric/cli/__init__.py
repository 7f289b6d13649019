"""The command line: ``posthoc-metric --help``."""

from .main import main

__all__ = ["main"]
