"""Warnings at the caller's own line."""

from __future__ import annotations

import sys
import warnings

from .errors import PosthocMetricWarning

#: whose code is not the caller's: estimators are called by scikit-learn's own methods, too
_OURS = (__name__.partition(".")[0], "sklearn")


def warn_caller(message: str, category: type[PosthocMetricWarning]) -> None:
    """Give a warning at the line that this library was called from, however deep inside it the reason was found."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
