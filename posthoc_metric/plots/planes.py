"""The plane of a latent space that a picture shows, and its coordinates."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from .._arrays import ArrayLike, as_tensor, check_range, check_seed, describe, to_points
from ..errors import InvalidArgumentError


@dataclass(frozen=True)
class Plane:
    """``z(x, y) = origin + x · first + y · second``, with the window that is drawn.

    Attributes:
        origin: (d,).
        first, second: orthonormal, (d,) each.
        window: left, right, bottom, top.
        axis_labels: of x and y.
        title: what the plane is, for the picture; empty where it is the whole latent space.
        anchors: (3, d), the points that the plane was put through; ``None`` where it is the whole space.
    """

    origin: Tensor
    first: Tensor
    second: Tensor
    window: tuple[float, float, float, float]
    axis_labels: tuple[str, str]
    title: str = ""
    anchors: Tensor | None = None

    def ticks(self, resolution: int) -> tuple[np.ndarray, np.ndarray]:
        """The grid's x and y, (resolution,) each: the centres of its cells."""
        left, right, bottom, top = self.window
        inside = (np.arange(resolution) + 0.5) / resolution
        return left + inside * (right - left), bottom + inside * (top - bottom)

    def grid(self, resolution: int) -> Tensor:
        """Latents (resolution², d) float64, x fastest."""
        x, y = (torch.from_numpy(ticks).to(self.origin) for ticks in self.ticks(resolution))
        up, right = torch.meshgrid(y, x, indexing="ij")
        return self.origin + right.reshape(-1, 1) * self.first + up.reshape(-1, 1) * self.second

    def project(self, z: Any) -> np.ndarray:
        """Coordinates (B, 2) of latents (B, d), orthogonally.

        Raises:
            InvalidArgumentError: latents of another width.
        """
        points = as_tensor(z).detach().to(self.origin)
        if points.ndim != 2 or points.shape[1] != len(self.origin):
            raise InvalidArgumentError(
                f"latents in a picture must be (B, {len(self.origin)}), as those of its plane; got {describe(z)}."
            )
        centred = points - self.origin
        return torch.stack([centred @ self.first, centred @ self.second], dim=1).cpu().numpy()


def latent_plane(latents: ArrayLike, *, through: ArrayLike | None = None, margin: float = 0.8, seed: int = 0) -> Plane:
    """The plane on which maps over the latent space are drawn.

    For d = 2 it is the latent space itself.  For more it is the plane through three points: by default the training
    latents nearest to three k-means centres, so that it meets the data; where these lie on a line, one of the planes
    through it.

    Args:
        latents: (N, d), d ≥ 2.
        through: (3, d), for d > 2.
        margin: empty space shown around what the window must hold, in data radii.
        seed: of k-means.

    Raises:
        InvalidArgumentError: d = 1, fewer latents than the plane takes, or points ``through`` that lie on a line.
    """
    points = to_points(latents, "latents")[0].double()
    dim, seed = points.shape[1], check_seed(seed)
    margin = check_range(margin, "margin", -1e-9, 1e6, "the empty space around the data in data radii")
    fewest = 1 if dim == 2 or through is not None else 3
    if len(points) < fewest:
        raise InvalidArgumentError(
            f"`latents` must hold at least {fewest} point{'s' if fewest > 1 else ''}; got {len(points)}."
        )
    if dim < 2:
        raise InvalidArgumentError("`latents` must have at least 2 columns to be drawn as a map; got 1. Plot a curve.")
    radius = float((points - points.mean(0)).square().sum(1).mean().sqrt())
    if dim == 2 and through is None:
        axes = torch.eye(2, dtype=torch.float64, device=points.device)
        return Plane(torch.zeros_like(axes[0]), axes[0], axes[1], _window(points, margin * radius), ("$z_1$", "$z_2$"))
    if through is None:
        rows = _spread_rows(points, seed)
        anchors = points[rows]
        title = f"plane through latents {rows[0]}, {rows[1]} and {rows[2]} of a {dim}-dimensional space"
    else:
        anchors = to_points(through, "through", dim)[0].to(points)
        title = f"plane through three chosen points of a {dim}-dimensional space"
    if len(anchors) != 3:
        raise InvalidArgumentError(f"`through` must hold three points, shape (3, {dim}); got {describe(through)}.")
    centred = anchors - anchors.mean(0)
    _, extent, axes = torch.linalg.svd(centred, full_matrices=False)
    if through is not None and not extent[1] > 1e-9 * extent[0]:
        raise InvalidArgumentError("`through` must hold three points that are not on one line. Move one of them.")
    flat = torch.stack([centred @ axes[0], centred @ axes[1]], dim=1)
    labels = ("along the plane (latent units)", "across (latent units)")
    return Plane(anchors.mean(0), axes[0], axes[1], _window(flat, margin * radius), labels, title, anchors)


def principal_plane(latents: ArrayLike, *, margin: float = 0.35) -> Plane:
    """The plane on which curves are drawn: for d > 2 the first two principal components, which the title says.

    Raises:
        InvalidArgumentError: d = 1, or fewer than two latents.
    """
    points = to_points(latents, "latents")[0].double()
    if points.shape[1] <= 2:
        return latent_plane(points, margin=margin)
    margin = check_range(margin, "margin", -1e-9, 1e6, "the empty space around the data in data radii")
    if len(points) < 2:
        raise InvalidArgumentError(f"`latents` must hold at least 2 points to span a plane; got {len(points)}.")
    centred = points - points.mean(0)
    _, extent, axes = torch.linalg.svd(centred[:: max(1, len(points) // 20_000)], full_matrices=False)
    spread = (extent / extent[0].clamp_min(1e-300)).square()  # squares of tiny extents alone would be zero
    shown = f"{float(spread[:2].sum() / spread.sum()):.0%}" if float(extent[0]) > 0 else "none"
    flat = torch.stack([centred @ axes[0], centred @ axes[1]], dim=1)
    radius = float(flat.square().sum(1).mean().sqrt())
    title = f"projected on two principal components, {shown} of the variance of {points.shape[1]} dimensions"
    return Plane(
        points.mean(0), axes[0], axes[1], _window(flat, margin * radius), ("component 1", "component 2"), title
    )


def check_plane(plane: Any) -> Plane:
    """``plane``, if it is one.

    Raises:
        InvalidArgumentError: it is none.
    """
    if not isinstance(plane, Plane):
        raise InvalidArgumentError(f"`plane` must be what latent_plane(latents) gives; got {describe(plane)}.")
    return plane


def _window(flat: Tensor, margin: float) -> tuple[float, float, float, float]:
    """A square around the points (n, 2), as panels side by side are."""
    low, high = flat.amin(0), flat.amax(0)
    # latents that are all one point have a window too
    middle, half = (low + high) / 2, (float((high - low).amax()) / 2 + margin) or 1.0
    x, y = middle.tolist()
    return (x - half, x + half, y - half, y + half)


def _spread_rows(points: Tensor, seed: int) -> list[int]:
    """Rows of the latents nearest to three k-means centres, three different ones."""
    sample = points[:: max(1, len(points) // 5_000)].cpu().numpy()
    with warnings.catch_warnings():
        # latents may be fewer than three distinct points; then some rows are alike
        warnings.simplefilter("ignore", ConvergenceWarning)
        centres = as_tensor(KMeans(3, n_init=4, random_state=seed).fit(sample).cluster_centers_).to(points)
    rows: list[int] = []
    for centre in centres:
        distance = (points - centre).norm(dim=1)
        distance[rows] = torch.inf
        rows.append(int(distance.argmin()))
    return rows
