"""What a metric is like near the data and away from them, and what a repair did to it."""

from .audit import Audit, audit
from .criteria import Criterion
from .faithfulness import Faithfulness, Followed, share_off_data
from .shells import Shell, ShellRow, Statistics, shells

__all__ = [
    "Audit",
    "Criterion",
    "Faithfulness",
    "Followed",
    "Shell",
    "ShellRow",
    "Statistics",
    "audit",
    "share_off_data",
    "shells",
]
