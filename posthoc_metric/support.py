"""Where the data lie in the latent space: held-out split, radius, offset, shells.

Everything here is plain Euclidean geometry of the latents and says nothing of any decoder.
A point's *offset* is ``(distance to the nearest training latent - q95) / R`` with ``q95`` the 95th
percentile of that distance over held-out latents and ``R² = mean ‖z_n - mean(z)‖²``, without the farthest
latents where those alone make it; it reads alike in every dimension, because in high dimension the distances
concentrate and ``q95`` absorbs it.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from .errors import InvalidArgumentError

#: a KD-tree beats brute force up to about this dimension
_TREE_DIM = 12
#: latent dimensions up to which a tree of all training latents answers within microseconds, however many there are;
#: beyond them at most so many are asked for the nearest
_ALL_DIM, _MOST_NEIGHBOURS = 4, 50_000
#: fewest latents that can be split into training, calibration and audit
FEWEST = 20
_HELD_OUT = 0.15
_MOST_HELD_OUT = 4_000
_CHUNK = 4096
#: the share of latents, at least one, that may not set the radius alone, and how many times larger it must be for that
_FARTHEST, _FAR_ALONE = 0.01, 2.0


class Support:
    """The training latents of a repair, split once and for all by ``seed``.

    Args:
        latents: (N, d), finite; float64 is used throughout.
        seed: of the split and of nothing else.

    Attributes:
        training, calibration, audit: disjoint subsets of the latents, (n, d) each, and no latent has copies in two.
            Models see the first, knobs are set on the second, and what is claimed is measured on the third.
        mean: (d,); radius: R, the root-mean-square distance to the mean; that without the farthest 1 % of the latents
            where they more than double it: a latent gone astray is no measure of the others.

    Raises:
        InvalidArgumentError: fewer than 20 latents, or all of them equal.
    """

    def __init__(self, latents: Tensor, *, seed: int = 0):
        if len(latents) < FEWEST:
            raise InvalidArgumentError(
                f"`latents` must hold at least {FEWEST} points, so that some can be held out; got {len(latents)}. "
                "Encode more data, or draw more samples from the prior."
            )
        order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(seed), device="cpu").to(
            latents.device
        )
        held = min(max(int(_HELD_OUT * len(latents)), 1), _MOST_HELD_OUT)
        order, self._cuts = _copies_together(latents.detach()[order], order, (held, 2 * held))
        # one float64 copy, in the order of the split, of which the subsets are views
        self._ordered = latents.detach()[order].double()
        self._order = order
        self.seed = seed
        self.mean = self._ordered.mean(0)
        self.radius = float(without_strays(self._ordered).var(0, correction=0).sum().sqrt())
        if not self.radius > 1e-12 * float(self.mean.norm()):
            raise InvalidArgumentError(
                "`latents` must differ from one another; all rows are equal. Was one latent repeated, "
                "or has the encoder collapsed?"
            )

    @property
    def dim(self) -> int:
        return self._ordered.shape[1]

    @property
    def count(self) -> int:
        """N, of all latents."""
        return len(self._ordered)

    @property
    def latents(self) -> Tensor:
        """All latents (N, d) in the caller's order."""
        return self._ordered[torch.argsort(self._order)]

    @property
    def audit(self) -> Tensor:
        return self._ordered[: self._cuts[0]]

    @property
    def calibration(self) -> Tensor:
        return self._ordered[self._cuts[0] : self._cuts[1]]

    @property
    def training(self) -> Tensor:
        return self._ordered[self._cuts[1] :]

    @property
    def calibration_rows(self) -> Tensor:
        """Which of the caller's rows the calibration latents are, (n,)."""
        return self._order[self._cuts[0] : self._cuts[1]]

    @property
    def training_rows(self) -> Tensor:
        """Which of the caller's rows the training latents are, (n,)."""
        return self._order[self._cuts[1] :]

    @cached_property
    def _frame(self) -> Tensor:
        """The latents' principal axes as columns, each pointing to where their third moment is positive.

        Random directions are drawn in this frame, so that a rotation of the latents rotates them too.
        """
        sample = self.training[:_MOST_NEIGHBOURS] - self.mean
        _, axes = torch.linalg.eigh(sample.T @ sample)
        skew = (sample @ axes).pow(3).sum(0)
        return axes * torch.where(skew < 0, -1.0, 1.0)

    @cached_property
    def _neighbours(self) -> Tensor:
        # an outlier that has a centre of its own is no void: the score there is low, and so must be the offset
        return (self.training if self.dim <= _ALL_DIM else self.training[:_MOST_NEIGHBOURS]) - self.mean

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self._neighbours.cpu().numpy())

    @cached_property
    def spread(self) -> float:
        """``q95``: the 95th percentile of the held-out latents' distance to the nearest training latent."""
        return float(torch.quantile(self.distance(self.calibration), 0.95))

    def distance(self, z: Tensor) -> Tensor:
        """Euclidean distance (B,) of z (B, d) to the nearest training latent, on the device of z."""
        centred = z.to(self.mean.device).double() - self.mean
        if self.dim <= _TREE_DIM:
            found, _ = self._tree.query(centred.cpu().numpy(), workers=1)
            return torch.as_tensor(found, device=z.device)
        rows = [torch.cdist(chunk, self._neighbours).amin(1) for chunk in centred.split(_CHUNK)]
        return torch.cat(rows).to(z.device) if rows else z.new_zeros(0, dtype=torch.float64)

    def offset(self, z: Tensor) -> Tensor:
        """Offset (B,) of z (B, d): about zero or below on the data, one a data radius beyond them."""
        return (self.distance(z) - self.spread) / self.radius

    def shell(self, offset: float, count: int, *, seed: int = 0) -> Tensor:
        """``count`` points (count, d) of the given offset, on random rays from random training latents.

        Each ray is walked by the distance still missing; a distance function cannot be overshot that way
        (sphere tracing, Hart 1996), so the point found is the ray's first of that offset.
        """
        generator = torch.Generator().manual_seed(seed)
        training = self.training
        rows = torch.randint(len(training), (count,), generator=generator, device="cpu").to(training.device)
        ray = torch.randn(count, self.dim, generator=generator, device="cpu", dtype=torch.float64).to(training.device)
        ray = (ray / ray.norm(dim=1, keepdim=True)) @ self._frame.T
        origin = training[rows]
        target = self.spread + offset * self.radius
        reach = torch.zeros(count, dtype=torch.float64, device=training.device)
        active = torch.arange(count, device=training.device)
        for _ in range(200):
            missing = target - self.distance(origin[active] + reach[active, None] * ray[active])
            reach[active] += missing.clamp_min(0)
            active = active[missing > 1e-3 * self.radius]
            if not len(active):
                break
        return origin + reach[:, None] * ray

    def gaps(self, count: int, *, seed: int = 0) -> Tensor:
        """Up to ``count`` midpoints (n, d) of far pairs of training latents that lie off the data (offset > 0)."""
        generator = torch.Generator().manual_seed(seed)
        training = self.training
        pairs = torch.randint(len(training), (8 * count, 2), generator=generator, device="cpu").to(training.device)
        first, second = training[pairs[:, 0]], training[pairs[:, 1]]
        length = (first - second).norm(dim=1)
        middle = 0.5 * (first + second)[length > length.median()]
        return middle[self.offset(middle) > 0][:count]


def _copies_together(latents: Tensor, order: Tensor, cuts: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """An order (N,) of latents (N, d) that has copies of one side by side, and cuts that part none of them.

    Copies of training latents, held out, would be taken for known wherever others lie.
    """
    if len(torch.unique(hashes(latents))) == len(latents):
        return order, cuts
    _, group, counts = torch.unique(latents + 0.0, dim=0, return_inverse=True, return_counts=True)
    if len(counts) < FEWEST:
        return order, cuts
    # groups in the order of their first members
    place = torch.full_like(counts, len(latents)).scatter_reduce_(
        0, group, torch.arange(len(latents), device=group.device), "amin"
    )
    together = torch.argsort(place[group], stable=True)
    ends = torch.cumsum(counts[torch.argsort(place)], 0)
    first, second = (int(ends[torch.searchsorted(ends, cut)]) for cut in cuts)
    if not cuts[0] <= first < second <= len(latents) // 2:
        return order, cuts
    return order[together], (first, second)


def hashes(latents: Tensor) -> Tensor:
    """Numbers (N,) that are equal for equal latents (N, d), and for hardly any others."""
    found = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(2**62, (latents.shape[1],), generator=generator, device="cpu").tolist()
    for column, factor in zip(latents.unbind(1), factors, strict=True):
        bits = (column.double() + 0.0).view(torch.int64)  # with one zero only
        # the high bits of short numbers, too, are to reach the low ones
        found += (bits ^ (bits >> 29)) * (2 * factor + 1)
    return found


def without_strays(latents: Tensor) -> Tensor:
    """Latents (N, d) without the farthest 1 %, at least one, where those alone more than double the radius.

    Nothing but the farthest may differ; there is no other measure then, and all are handed back.
    """
    plain = float(latents.var(0, correction=0).sum().sqrt())
    centre = latents[:: 1 + len(latents) // _MOST_HELD_OUT].median(0).values
    # exact differences: by products they would drown in the square of a far mean
    distance = torch.cdist(latents, centre[None], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
    near = distance.argsort()[: len(latents) - math.ceil(_FARTHEST * len(latents))]
    # about any other centre than their mean this is more, so that ordinary latents need no second pass
    if plain <= _FAR_ALONE * float(distance[near].square().mean().sqrt()):
        return latents
    trimmed = latents[near]
    radius = float(trimmed.var(0, correction=0).sum().sqrt())
    return trimmed if radius > 1e-12 * float(centre.norm()) else latents
