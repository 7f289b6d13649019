"""Centres that cover the latents: k-means, then the outliers it leaves behind."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

#: above this many latents k-means sees mini-batches
MINIBATCH_FROM = 20_000
_CHUNK = 65_536


@dataclass(frozen=True)
class Centres:
    """Cluster centres of N latents.

    Attributes:
        points: (K, d).
        counts: latents in each cluster (K,).
        mean_square_radius: mean squared distance of a cluster's latents to its centre (K,).
        labels: the cluster of each latent (N,).
    """

    points: Tensor
    counts: Tensor
    mean_square_radius: Tensor
    labels: Tensor


def squared_distances(z: Tensor, points: Tensor) -> Tensor:
    """``‖z_b - c_k‖²`` (B, K), from differences: exact near zero, and without (B, K, d) arrays."""
    return torch.cdist(z, points, compute_mode="donot_use_mm_for_euclid_dist").square_()


def nearest(latents: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to, and index of, the nearest of ``points``; each (N,), in chunks of bounded memory."""
    distances, labels = [], []
    for chunk in latents.split(_CHUNK):
        # the expanded form is one matrix product; its rounding cannot matter for an assignment
        square = (chunk.square().sum(1, keepdim=True) - 2 * chunk @ points.T + points.square().sum(1)).clamp_min_(0)
        best = square.min(dim=1)
        distances.append(best.values)
        labels.append(best.indices)
    return torch.cat(distances), torch.cat(labels)


def place_centres(latents: Tensor, count: int, *, seed: int = 0, outliers: int = 0) -> Centres:
    """At most ``count`` k-means centres of ``latents`` (N, d), and up to ``outliers`` more.

    k-means spends its centres by mass and can leave a small far cluster without one.  The latents farthest
    from every centre get centres of their own (farthest-first traversal, Gonzalez 1985) while they are
    farther away than three times the 99th percentile.
    """
    shift = latents.mean(0)
    array = (latents - shift).double().cpu().numpy()  # the one copy, on the CPU for scikit-learn
    distinct = len(np.unique(array[:: max(1, len(array) // 5000)], axis=0))
    count = max(1, min(count, distinct))
    if len(array) > MINIBATCH_FROM:
        method = MiniBatchKMeans(count, random_state=seed, batch_size=4096, n_init=1, max_iter=20)
    else:
        method = KMeans(count, random_state=seed, n_init=1)
    with warnings.catch_warnings():
        # of latents that all but coincide fewer clusters remain, and empty ones are left out below
        warnings.simplefilter("ignore", ConvergenceWarning)
        points = torch.from_numpy(method.fit(array).cluster_centers_).double()
    rows = torch.from_numpy(array)
    distance, labels = nearest(rows, points)
    far = 9 * torch.quantile(distance[:: max(1, len(distance) // 100_000)], 0.99)
    for _ in range(outliers):
        worst = int(distance.argmax())
        if not distance[worst] > far:
            break
        points = torch.cat([points, rows[worst, None]])
        update = (rows - rows[worst]).square().sum(1)
        closer = update < distance
        distance = torch.where(closer, update, distance)
        labels[closer] = len(points) - 1
    counts = torch.bincount(labels, minlength=len(points))
    radius = distance.new_zeros(len(points)).index_add_(0, labels, distance) / counts.clamp_min(1)
    kept = counts > 0
    relabel = torch.cumsum(kept, 0) - 1
    device = latents.device
    return Centres(
        points=points[kept].to(device) + shift.double(),
        counts=counts[kept].to(device),
        mean_square_radius=radius[kept].to(device),
        labels=relabel[labels].to(device),
    )
