"""Work spread over processes and machines, for every stage that has enough of it."""

from .blocks import cut, run_blocks, worker_count
from .progress import Progress, progress_bars

__all__ = ["Progress", "cut", "progress_bars", "run_blocks", "worker_count"]
