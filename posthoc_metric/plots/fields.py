"""Scalar fields of a metric over a latent plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.image import AxesImage

from .._arrays import as_tensor, check_count, describe
from ..errors import InvalidArgumentError
from ..metric import Metric, check_metric
from .planes import Plane, check_plane
from .style import FAINT, MUTED, logarithmic_ticks, numbers, tidy


@dataclass(frozen=True)
class Quantity:
    """A scalar field of a metric and how it is drawn."""

    method: str
    label: str
    colours: str
    logarithmic: bool


QUANTITIES = {
    "log_volume": Quantity("log_volume", "magnification factor ½ log det M  (nats)", "viridis", False),
    "condition_number": Quantity("condition_number", "condition number κ(J)  (ratio)", "magma", True),
}


def _quantity(name: str) -> Quantity:
    if not isinstance(name, str) or name not in QUANTITIES:
        raise InvalidArgumentError(f"`quantity` must be one of {', '.join(QUANTITIES)}; got {describe(name)}.")
    return QUANTITIES[name]


def evaluate(metric: Metric, plane: Plane, quantity: str = "log_volume", resolution: int = 160) -> np.ndarray:
    """A metric's scalar field on the plane's grid, (resolution, resolution), rows along the second axis.

    Raises:
        InvalidArgumentError: an unknown quantity.
    """
    check_metric(metric)
    check_plane(plane)
    resolution = check_count(resolution, "resolution", 1, "the points along a side of the picture")
    values = getattr(metric, _quantity(quantity).method)(plane.grid(resolution))
    return as_tensor(values).detach().cpu().numpy().reshape(resolution, resolution)


def shared_norm(fields: Sequence[np.ndarray], quantity: str = "log_volume", ceiling: float = 1e3) -> Normalize:
    """One colour scale for several fields, from the 1st to the 99th percentile of all their finite values.

    A condition number's scale starts at 1 and ends at ``ceiling`` at the latest; what lies beyond shows in the end
    colour.

    Raises:
        InvalidArgumentError: no finite values, or a ceiling where the scale begins.
    """
    finite = np.concatenate([np.zeros(0), *(numbers(field, "fields").ravel() for field in fields)])
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        raise InvalidArgumentError("`fields` must hold finite values; there are none. Is the metric singular?")
    low, high = np.percentile(finite, [1, 99])
    if _quantity(quantity).logarithmic:
        if not ceiling > 1:
            raise InvalidArgumentError(
                f"`ceiling` must be above 1, where the scale of condition numbers begins; got {ceiling!r}."
            )
        return LogNorm(1.0, float(min(max(high, 2.0), ceiling)), clip=True)
    return Normalize(float(low), float(max(high, low + 1e-6)), clip=True)


def draw_field(
    ax: Axes,
    field: Any,
    plane: Plane,
    *,
    quantity: str = "log_volume",
    norm: Normalize | None = None,
    latents: Any = None,
    offset: Any = None,
) -> Axes:
    """A scalar field over the latent plane, with the data and the edge of the data.

    Args:
        ax: drawn on, and returned; ``ax.images[0]`` is what a colour bar takes.
        field: (r, r) as :func:`evaluate` gives it; where it is NaN the map is grey.
        norm: the colour scale; pass one to several axes to make them comparable.
        latents: (N, d), drawn as dots where they fall on the plane; the points that it was put through if not given.
        offset: (r, r), the offset from the data on the same grid; its levels 0 and 1 are drawn as lines.

    Raises:
        InvalidArgumentError: arrays of other shapes, a field without finite values, or no such plane or quantity.
    """
    check_plane(plane)
    kind, values = _quantity(quantity), numbers(field, "field")
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise InvalidArgumentError(f"`field` must be a square (r, r), as evaluate gives it; got {describe(field)}.")
    norm = norm or shared_norm([values], quantity)
    # a singular metric has log volume -inf and condition number inf: the ends of the scale, not holes
    low, high = float(norm.vmin or 0.0), float(norm.vmax or 1.0)
    shown = np.nan_to_num(values, nan=np.nan, posinf=high, neginf=low)
    ax.imshow(
        np.ma.masked_invalid(shown),
        origin="lower",
        extent=plane.window,
        cmap=matplotlib.colormaps[kind.colours].with_extremes(bad=FAINT),
        norm=norm,
        interpolation="bilinear",
        aspect="equal",
    )
    dots = plane.anchors if latents is None else latents
    if dots is not None and len(dots):
        x, y = plane.project(dots).T
        many = len(x) > 50
        ax.scatter(x, y, s=3 if many else 22, c="white", alpha=0.55 if many else 1, linewidths=0, zorder=2)
    if offset is not None:
        x, y = plane.ticks(len(values))
        offset = numbers(offset, "offset")
        if offset.shape != values.shape:
            raise InvalidArgumentError(f"`offset` must be {values.shape}, as `field` is; got shape {offset.shape}.")
        for level, style in ((0.0, "-"), (1.0, (0, (4, 3)))):
            if offset.min() < level < offset.max():
                ax.contour(x, y, offset, [level], colors="white", linewidths=1.1, linestyles=[style])
    ax.set(xlim=plane.window[:2], ylim=plane.window[2:], xlabel=plane.axis_labels[0], ylabel=plane.axis_labels[1])
    tidy(ax)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    return ax


def colour_bar(image: AxesImage, axes: Sequence[Axes], quantity: str = "log_volume") -> Axes:
    """One colour bar with units beside several axes of one figure; returns the bar's own axes."""
    kind = _quantity(quantity)
    figure = axes[0].figure
    bar = figure.colorbar(
        image, ax=list(axes), shrink=0.86, aspect=28, pad=0.015, extend="max" if kind.logarithmic else "both"
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize=8, length=3, color=FAINT)
    if kind.logarithmic:
        logarithmic_ticks(bar.ax.yaxis)
    bar.set_label(kind.label, size=9, color=MUTED)
    return bar.ax
