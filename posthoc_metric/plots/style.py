"""What all pictures share: colours, frames and headings.

Colours are Okabe & Ito's (2008), which stay apart for colour-blind readers, and every distinction is made a
second time by line style, marker or text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from .._arrays import to_tensor

INK, MUTED, FAINT = "#222222", "#6b6b6b", "#c9c9c9"
OFF_DATA, ON_DATA, SUPPORT = "#D55E00", "#0072B2", "#e6eef4"


@dataclass(frozen=True)
class Trace:
    """How one of the audit's metrics is drawn, the same in every picture."""

    label: str
    colour: str
    style: str
    marker: str


TRACES = {
    "decoder": Trace("decoder alone", "#D55E00", "-", "o"),
    "rbf-published": Trace("RBF as published", "#777777", "--", "s"),
    "repaired": Trace("repaired", "#0072B2", "-", "D"),
}


def tidy(ax: Axes, *, grid: bool = False) -> Axes:
    """Quiet frame and small ticks."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(FAINT)
    ax.tick_params(colors=MUTED, labelsize=8, length=3, color=FAINT)
    ax.xaxis.label.set(color=MUTED, size=9)
    ax.yaxis.label.set(color=MUTED, size=9)
    if grid:
        ax.grid(axis="y", color="#ececec", linewidth=0.8)
        ax.set_axisbelow(True)
    return ax


def heading(ax: Axes, title: str, subtitle: str = "") -> Axes:
    """Title at the left, and a quieter second line under it."""
    lines = [(title, 10.5, "bold", INK)] + ([(subtitle, 8.5, "normal", MUTED)] if subtitle else [])
    for height, (text, size, weight, colour) in zip((6, 21), reversed(lines), strict=False):
        # annotations, because a layout engine makes no room for a padded title over axes of equal aspect
        ax.annotate(
            text,
            (0, 1),
            (0, height),
            xycoords="axes fraction",
            textcoords="offset points",
            size=size,
            weight=weight,
            color=colour,
        )
    return ax


def logarithmic_ticks(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis of up to three decades, where powers of ten alone would mark few or none."""
    low, high = sorted(axis.get_view_interval())
    if low > 0 and high < 1001 * low:
        # within a decade there may be but one of 1, 2 and 5
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def numbers(value: Any, name: str) -> np.ndarray:
    """What matplotlib draws of a tensor on any device, an array or nested lists, float64.

    Raises:
        InvalidArgumentError: ``value`` is none of these.
    """
    return to_tensor(value, name)[0].double().cpu().numpy()


def new_axes(ax: Axes | None) -> Axes:
    return Figure(figsize=(6, 4), layout="constrained").add_subplot() if ax is None else ax
