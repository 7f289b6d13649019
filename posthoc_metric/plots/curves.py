"""Curves in a latent plane, and what is decoded along them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap

from .._arrays import describe
from ..errors import InvalidArgumentError
from .planes import Plane, check_plane
from .style import FAINT, INK, OFF_DATA, ON_DATA, SUPPORT, numbers, tidy


def draw_curves(ax: Axes, curves: Any, offset: Any, plane: Plane, *, latents: Any = None, region: Any = None) -> Axes:
    """Curves in the latent plane: thin and blue over the data, thick and orange where they leave it.

    Args:
        curves: (B, T, d).
        offset: (B, T), the offset from the data along each curve; above 0 is off the data.
        plane: what the curves are projected to.
        latents: (N, d), drawn as grey dots.
        region: (r, r), the offset on the plane's grid; where it is at most 0 the ground is tinted.

    Raises:
        InvalidArgumentError: arrays of other shapes, or no such plane.
    """
    places, offset = numbers(curves, "curves"), numbers(offset, "offset")
    count, dim = places.shape[:2], len(check_plane(plane).origin)
    if places.ndim != 3 or places.shape[2] != dim or offset.shape != count or not count[1]:
        raise InvalidArgumentError(
            f"`offset` must be (B, T) beside `curves` (B, T, {dim}); got shapes {offset.shape} and {places.shape}. "
            "T is at least 1."
        )
    if region is not None:
        levels = numbers(region, "region")
        if levels.ndim != 2 or levels.shape[0] != levels.shape[1] or len(levels) < 2:
            raise InvalidArgumentError(f"`region` must be a square (r, r), r at least 2; got {describe(region)}.")
        lowest = np.nanmin(levels, initial=0.0)
        ax.contourf(*plane.ticks(len(levels)), levels, [lowest - 1, 0], cmap=ListedColormap([SUPPORT]), zorder=0)
    flat = plane.project(places.reshape(-1, dim)).reshape(*count, 2)
    if latents is not None:
        x, y = plane.project(latents).T
        ax.scatter(x, y, s=4, c=FAINT, linewidths=0, zorder=1)
    pieces = np.stack([flat[:, :-1], flat[:, 1:]], axis=2)
    away = (0.5 * (offset[:, :-1] + offset[:, 1:])) > 0
    ax.add_collection(LineCollection(list(pieces[~away]), colors=ON_DATA, linewidths=1.1, alpha=0.75, zorder=2))
    ax.add_collection(LineCollection(list(pieces[away]), colors=OFF_DATA, linewidths=1.9, capstyle="round", zorder=3))
    x, y = np.concatenate([flat[:, 0], flat[:, -1]]).T
    ax.scatter(x, y, s=11, c=INK, linewidths=0.6, edgecolors="white", zorder=4)
    ax.set(xlim=plane.window[:2], ylim=plane.window[2:], aspect="equal")
    ax.set(xlabel=plane.axis_labels[0], ylabel=plane.axis_labels[1])
    return tidy(ax)


def draw_frames(axes: Sequence[Axes], images: Any, *, label: str, off_data: Sequence[bool] = ()) -> Sequence[Axes]:
    """One row of decoded frames, with the row's label at the left and an orange frame where it is off the data.

    Args:
        axes: T axes, one at least.
        images: (T, h, w) or (T, h, w, 3), in [0, 1], 1 the brightest; what lies outside is cut.
        off_data: whether each is off the data (T,); none is if not given.

    Raises:
        InvalidArgumentError: arrays of other shapes.
    """
    shown = numbers(images, "images").clip(0, 1)
    if not (shown.ndim == 3 or (shown.ndim == 4 and shown.shape[3] == 3)) or not shown.size:
        raise InvalidArgumentError(
            f"`images` must be (T, h, w) or (T, h, w, 3), and one at least; got {describe(images)}."
        )
    if len(axes) != len(shown):
        raise InvalidArgumentError(f"`axes` must be as many as `images`; got {len(axes)} and {len(shown)}.")
    if len(off_data) not in (0, len(shown)):
        raise InvalidArgumentError(
            f"`off_data` must say it of every one of {len(shown)} images, or be left out; got {len(off_data)}."
        )
    for position, (ax, image) in enumerate(zip(axes, shown, strict=True)):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        away = bool(len(off_data)) and bool(off_data[position])
        for spine in ax.spines.values():
            spine.set(visible=True, color=OFF_DATA if away else "#e2e2e2", linewidth=2.4 if away else 0.8)
        ax.set(xticks=[], yticks=[])
    axes[0].set_ylabel(label, rotation=0, ha="right", va="center", size=9, color=INK, labelpad=8)
    return axes
