"""The cells of an adaptive grid: which one holds a point, which corners are neighbours, what is known in between.

Corners are integer multiples of the finest cell, so that tables answer what trees would have to search for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import gcd

import torch
from torch import Tensor

#: steps from a corner to its neighbours reach so many cells; with two the angles between them are half as wide
_REACH = {1: 1, 2: 2}


@dataclass(frozen=True)
class Cells:
    """A box divided into cubes of 1, 2, 4, ... times the finest cell.

    Attributes:
        origin: lowest corner of the box (d,).
        unit: side of the finest cell.
        places: integer coordinates of the n corners that are in use (n, d).
        sizes: for each finest cell of the box (c_1, ..., c_d) the size of the cell that holds it.
    """

    origin: Tensor
    unit: float
    places: Tensor
    sizes: Tensor

    @property
    def points(self) -> Tensor:
        """The corners (n, d)."""
        return self.origin + self.unit * self.places.to(self.origin)

    def take(self, mask: Tensor) -> Cells:
        """The same cells with the corners in ``mask`` (n,) alone in use."""
        return Cells(self.origin, self.unit, self.places[mask], self.sizes)

    @cached_property
    def _ends(self) -> Tensor:
        return torch.tensor(self.sizes.shape, device=self.sizes.device)

    @cached_property
    def _strides(self) -> tuple[Tensor, Tensor]:
        """What a step along each axis is worth in flat tables of the finest cells, and of their corners."""

        def strides(shape: Tensor) -> Tensor:
            return torch.cat([shape[1:].flip(0).cumprod(0).flip(0), shape.new_ones(1)])

        return strides(self._ends), strides(self._ends + 1)

    @cached_property
    def _numbers(self) -> Tensor:
        """Flat table of all corners: the number of the corner in use, or -1."""
        table = self.places.new_full((int((self._ends + 1).prod()),), -1)
        table[self.places @ self._strides[1]] = torch.arange(len(self.places), device=table.device)
        return table

    @cached_property
    def _flat_sizes(self) -> Tensor:
        return self.sizes.reshape(-1).long()

    def number(self, places: Tensor) -> Tensor:
        """Numbers (...) of the corners at ``places`` (..., d), -1 where none is in use."""
        inside = ((places >= 0) & (places <= self._ends)).all(-1)
        return torch.where(inside, self._numbers[torch.where(inside, places @ self._strides[1], 0)], -1)

    def _size(self, places: Tensor) -> Tensor:
        """Sizes (...) of the cells that hold the finest cells ``places`` (..., d); 0 outside the box."""
        inside = ((places >= 0) & (places < self._ends)).all(-1)
        return torch.where(inside, self._flat_sizes[torch.where(inside, places @ self._strides[0], 0)], 0)

    def _finest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The finest cells that hold ``points`` (B, d), and their coordinates in units of these."""
        place = ((points - self.origin) / self.unit).clamp_min(0).minimum(self._ends.to(points))
        return place.floor().long().minimum(self._ends - 1), place

    def _holding(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lowest corners (B, d) and sizes (B, 1) of the cells that hold ``points`` (B, d), and how far inside."""
        finest, place = self._finest(points)
        size = self._flat_sizes[finest @ self._strides[0]][:, None]
        low = torch.div(finest, size, rounding_mode="floor") * size
        return low, size, (place - low) / size

    def between(self, known: Tensor, points: Tensor) -> Tensor:
        """``known`` (n, ...) at the corners, linearly along each axis in between, at ``points`` (B, d).

        Corners that are not in use leave it to the others; NaN where a cell has none.
        """
        low, size, share = self._holding(points)
        flat = known.reshape(len(known), -1)
        total = flat.new_zeros(len(points), flat.shape[1])
        weights = flat.new_zeros(len(points))
        for corner in product((0, 1), repeat=points.shape[1]):
            step = low.new_tensor(corner)
            number = self._numbers[(low + size * step) @ self._strides[1]]
            weight = torch.where(step.bool(), share, 1 - share).prod(1) * (number >= 0)
            total.addcmul_(flat[number], weight[:, None])
            weights += weight
        return (total / weights[:, None]).view(len(points), *known.shape[1:])

    def variation(self, matrices: Tensor) -> Tensor:
        """How far matrices (n, d, d) at the corners of a cell are from their mean: a flat table of the finest cells.

        The largest ``‖A^(-1/2) (M - A) A^(-1/2)‖_F`` of a corner's ``M``, where ``A`` is the mean; ``inf`` where a
        corner is missing or the mean is singular.
        """
        finest = torch.cartesian_prod(*(torch.arange(end, device=self.sizes.device) for end in self.sizes.shape))
        finest = finest.view(len(self._flat_sizes), -1)
        size = self._flat_sizes[:, None]
        lowest = torch.div(finest, size, rounding_mode="floor") * size
        own = (lowest == finest).all(1)
        corner = finest.new_tensor(list(product((0, 1), repeat=finest.shape[1])))
        number = self._numbers[(finest[own][:, None] + size[own, None] * corner) @ self._strides[1]]
        at = matrices[number]
        mean = at.mean(1)
        inverse, failed = torch.linalg.inv_ex(mean)
        change = inverse[:, None] @ (at - mean[:, None])
        apart = (change * change.mT).sum((-1, -2)).amax(1).sqrt()
        unknown = (number < 0).any(1) | (failed != 0) | ~torch.isfinite(apart)
        table = apart.new_empty(len(finest))
        table[own] = apart.masked_fill(unknown, float("inf"))
        return table[lowest @ self._strides[0]]

    def at(self, table: Tensor, points: Tensor) -> Tensor:
        """Entries (B,) of a table of the finest cells for those that hold ``points`` (B, d)."""
        return table[self._finest(points)[0] @ self._strides[0]]

    def around(self, points: Tensor) -> Tensor:
        """Numbers (B, m) of the corners of the cells that hold ``points`` (B, d), and of their neighbours of that size.

        -1 where there is none.
        """
        low, size, _ = self._holding(points)
        reach = range(-1, 3) if points.shape[1] < 3 else range(2)
        steps = torch.tensor(list(product(reach, repeat=points.shape[1])), device=low.device)
        return self.number(low[:, None] + size[:, None] * steps)

    def edges(self) -> tuple[Tensor, Tensor]:
        """Numbers (E,), (E,) of the corners that are neighbours, each pair once.

        An edge crosses no cell that is smaller than its steps, so that it skips nothing that the grid has resolved.
        A corner on the side of a larger cell is joined to that one's corners on its other sides.
        """
        count, dim = self.places.shape
        if count == 0:
            return self.places.new_zeros(0), self.places.new_zeros(0)
        beside = self.places.new_tensor(list(product((-1, 0), repeat=dim)))
        touching = self.places[:, None] + beside
        sizes = self._size(touching)
        inside = sizes > 0
        steps = self.places.new_tensor(_steps(dim))
        # the smallest of the cells that an edge enters where it leaves, by direction
        enters = ((2 * beside + 1) * steps[:, None] >= 0).all(-1)
        room = sizes.masked_fill(~inside, int(sizes.amax()))
        room = room[:, None].masked_fill(~enters, int(sizes.amax())).amin(-1)
        pairs = []
        for size in sizes[inside].unique().tolist():
            touch = (sizes == size).any(1).nonzero().flatten()
            other = self.number(self.places[touch][:, None] + size * steps)
            # steps are listed so that the last is the opposite of the first
            back = room.flip(1).gather(0, other.clamp_min(0))
            row, step = ((other >= 0) & (room[touch] >= size) & (back >= size)).nonzero(as_tuple=True)
            pairs.append((touch[row], other[row, step]))
        side = sizes.clamp_min(1)[..., None]
        low = torch.div(touching, side, rounding_mode="floor") * side
        beyond = self.places[:, None] - low
        hanging = inside & ((beyond % side) != 0).any(-1)
        if bool(hanging.any()):
            row, _ = hanging.nonzero(as_tuple=True)
            low, side = low[hanging][:, None], side[hanging][:, None]
            corners = low + side * (beside + 1)
            here = self.places[row][:, None]
            along = ((corners == here) & ((here - low) % side == 0)).any(-1)
            other = self.number(corners).masked_fill(along, -1)
            row = row[:, None].expand_as(other)
            pairs.append((row[other >= 0], other[other >= 0]))
        a, b = (torch.cat(side) for side in zip(*pairs, strict=True))
        key = (torch.minimum(a, b) * count + torch.maximum(a, b)).unique()
        return torch.div(key, count, rounding_mode="floor"), key % count


def _steps(dim: int) -> list[tuple[int, ...]]:
    """Steps to neighbours, none that another one takes twice."""
    reach = _REACH.get(dim, 1)
    return [step for step in product(range(-reach, reach + 1), repeat=dim) if gcd(*step) == 1]
