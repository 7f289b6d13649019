"""Curves in a latent plane, and what is decoded along them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap

from .._arrays import as_tensor
from ..errors import InvalidArgumentError
from .planes import Plane
from .style import FAINT, INK, OFF_DATA, ON_DATA, SUPPORT, tidy


def draw_curves(
    ax: Axes, curves: Any, offset: np.ndarray, plane: Plane, *, latents: Any = None, region: np.ndarray | None = None
) -> Axes:
    """Curves in the latent plane: thin and blue over the data, thick and orange where they leave it.

    Args:
        curves: (B, T, d).
        offset: (B, T), the offset from the data along each curve; above 0 is off the data.
        plane: what the curves are projected to.
        latents: (N, d), drawn as grey dots.
        region: (r, r), the offset on the plane's grid; where it is at most 0 the ground is tinted.
    """
    if np.ndim(curves) != 3 or np.shape(offset) != tuple(np.shape(curves)[:2]):
        raise InvalidArgumentError(
            f"`offset` must be (B, T) beside `curves` (B, T, d); got shapes {np.shape(offset)} and "
            f"{tuple(np.shape(curves))}."
        )
    if region is not None:
        ground = ListedColormap([SUPPORT])
        ax.contourf(*plane.ticks(len(region)), region, [min(region.min(), 0) - 1, 0], cmap=ground, zorder=0)
    flat = plane.project(as_tensor(curves).flatten(0, 1)).reshape(*np.shape(curves)[:2], 2)
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


def draw_frames(
    axes: Sequence[Axes], images: np.ndarray, *, label: str, off_data: Sequence[bool] = ()
) -> Sequence[Axes]:
    """One row of decoded frames, with the row's label at the left and an orange frame where it is off the data.

    Args:
        axes: T axes.
        images: (T, h, w) or (T, h, w, 3), in [0, 1].
    """
    if len(axes) != len(images):
        raise InvalidArgumentError(f"`axes` must be as many as `images`; got {len(axes)} and {len(images)}.")
    for position, (ax, image) in enumerate(zip(axes, images, strict=True)):
        ax.imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        away = bool(len(off_data)) and bool(off_data[position])
        for spine in ax.spines.values():
            spine.set(visible=True, color=OFF_DATA if away else "#e2e2e2", linewidth=2.4 if away else 0.8)
        ax.set(xticks=[], yticks=[])
    axes[0].set_ylabel(label, rotation=0, ha="right", va="center", size=9, color=INK, labelpad=8)
    return axes
