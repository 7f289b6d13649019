"""An audit as pictures."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from .style import FAINT, INK, MUTED, TRACES, logarithmic_ticks, new_axes, tidy

if TYPE_CHECKING:
    from ..diagnostics import Audit

#: what is larger than this is the rounding error of something else
_ROUNDING = 1e15
#: letters in a line of words across a panel
_LINE = 64


def log_volume_by_offset(audit: Audit, ax: Axes | None = None) -> Axes:
    """Log volume per dimension against the offset from the data: median, and band from 5 to 95 %.

    The shells of an audit stand evenly spaced in order of their offset, with the held-out data first; a repaired
    metric must not fall from left to right.

    Args:
        audit: what :meth:`RepairedMetric.audit` gave.
        ax: drawn on and returned; a new figure's if not given.
    """
    ax = tidy(new_axes(ax), grid=True)
    _by_offset(ax, audit, "log_volume", "q50", ("q05", "q95"))
    ax.set_ylabel("½ log det M / d  (nats)")
    return ax


def condition_by_offset(audit: Audit, ax: Axes | None = None) -> Axes:
    """95th percentile of the condition number κ(J) against the offset from the data, on a logarithmic scale.

    A shell on which the metric is singular but for rounding has no point; the line breaks there.
    """
    ax = tidy(new_axes(ax), grid=True)
    ax.set_yscale("log")
    _by_offset(ax, audit, "condition_number", "q95")
    ax.set_ylabel("κ(J), 95th percentile  (ratio)")
    logarithmic_ticks(ax.yaxis)
    return ax


def _by_offset(ax: Axes, audit: Audit, quantity: str, line: str, band: tuple[str, str] | None = None) -> None:
    rows = [row for row in audit.shells if row.name != "gaps"]
    position = np.arange(len(rows))
    for name, trace in TRACES.items():
        if name not in rows[0].metrics:
            continue

        def values(statistic: str, name: str = name) -> np.ndarray:
            found = np.array([getattr(row.metrics[name], f"{quantity}_{statistic}") for row in rows])
            return np.where(np.abs(found) < _ROUNDING, found, np.nan)

        ax.plot(
            position,
            values(line),
            color=trace.colour,
            linestyle=trace.style,
            linewidth=1.8,
            marker=trace.marker,
            markersize=4.5,
            label=trace.label,
        )
        if band is not None:
            ax.fill_between(position, values(band[0]), values(band[1]), color=trace.colour, alpha=0.15, linewidth=0)
    ax.set_xticks(position, ["data" if row.name == "data" else f"{row.offset:g}" for row in rows])
    ax.set_xlabel("offset from the data  (data radii)")


def audit_panel(audit: Audit, ax: Axes | None = None) -> Axes:
    """Every criterion of an audit as a row: before and after as a multiple of the bound, on a logarithmic scale.

    Right of the line is better than the bound, whichever way the criterion goes.
    """
    ax = tidy(new_axes(ax))
    rows = list(reversed(audit.criteria))
    reach = 4.0
    sides = [TRACES[name] for name in ("decoder", "repaired")]
    for y, row in enumerate(rows):
        ax.axhline(y, color="#efefef", linewidth=0.8, zorder=0)
        if row.passed is None:
            # the layout would make room beside the axes for what is wider than they are
            said = textwrap.fill("not judged: " + row.reason, _LINE, max_lines=2, placeholder=" …")
            ax.text(-reach, y, said, va="center", size=8, color=MUTED, in_layout=False, backgroundcolor="white")
            continue
        margins = [_margin(value, row.bound, row.relation, reach) for value in (row.before, row.after)]
        if row.name.startswith("fidelity"):
            margins[0] = float("nan")  # the decoder against itself: zero by definition, and off the scale
        if abs(margins[1] - margins[0]) > 0.3:
            ax.annotate(
                "", (margins[1], y), (margins[0], y), arrowprops={"arrowstyle": "->", "color": FAINT, "lw": 1.4}
            )
        alike = abs(margins[1] - margins[0]) < 0.15  # one marker lies on the other, and both are to be seen
        for margin, trace, size in zip(margins, sides, (14 if alike else 7, 7), strict=True):
            ax.plot(margin, y, trace.marker, color=trace.colour, markersize=size, markeredgecolor="white")
    for trace in sides:  # for the legend alone
        ax.plot([], [], trace.marker, color=trace.colour, markersize=7, markeredgecolor="white", label=trace.label)
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(rows)), [row.name for row in rows])
    ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=9)
    ax.spines["left"].set_visible(False)
    ax.set(xlim=(-reach - 0.3, reach + 0.3), ylim=(-0.6, len(rows) - 0.4))
    ticks = np.arange(-reach, reach + 1, 2)
    names = [f"$10^{{{tick:.0f}}}$" for tick in ticks]
    names[0], names[len(names) // 2], names[-1] = "≤ " + names[0], "bound", "≥ " + names[-1]
    ax.set_xticks(ticks, names)
    ax.set_xlabel("times better than the bound")
    return ax


def _margin(value: float, bound: float, relation: str, reach: float) -> float:
    """log10 of how many times better than its bound a value is, cut to ±reach."""
    if np.isnan(value):
        return float("nan")
    tiny = 10.0**-300
    margin = np.log10(max(value, tiny)) - np.log10(max(bound, tiny))
    return float(np.clip(margin if relation == "at least" else -margin, -reach, reach))
