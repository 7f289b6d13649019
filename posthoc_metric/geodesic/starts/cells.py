"""The cells of an adaptive grid: which one holds a point, which corners are neighbours, what is known in between.

Corners are integer multiples of the finest cell, so that tables answer what trees would have to search for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from .grid_edges import grid_edges
from .spread import spread

#: points whose cells' corners are held at once
_ROWS = 16_384


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

    @cached_property
    def _ends(self) -> Tensor:
        return torch.tensor(self.sizes.shape, device=self.sizes.device)

    @cached_property
    def _flat_sizes(self) -> Tensor:
        return self.sizes.reshape(-1).long()

    @cached_property
    def _strides(self) -> Tensor:
        """What a step along each axis is worth in the flat table of the finest cells."""
        return _strides(self._ends)

    @cached_property
    def _wide(self) -> tuple[int, Tensor]:
        """A margin about the box that no step to a neighbour leaves, and the strides of flat tables that have it."""
        margin = 2 * int(self.sizes.max())
        return margin, _strides(self._ends + 1 + 2 * margin)

    def _flat(self, places: Tensor) -> Tensor:
        """Entries (...) of ``places`` (..., d) in tables with the margin."""
        margin, strides = self._wide
        return ((places + margin) * strides).sum(-1)

    @cached_property
    def _numbers(self) -> Tensor:
        """Table with the margin of all corners: the number of the corner in use, or -1."""
        table = self.places.new_full((int((self._ends + 1 + 2 * self._wide[0]).prod()),), -1)
        table[self._flat(self.places)] = torch.arange(len(self.places), device=table.device)
        return table

    @cached_property
    def _cells(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Which cell holds each finest one, in a flat table; the lowest corners, sizes and corners of the cells."""
        axes, sizes = self._strides.tolist(), self.sizes.int()
        # sizes are powers of two
        place = torch.zeros_like(sizes)
        for axis, (stride, end) in enumerate(zip(axes, sizes.shape, strict=True)):
            along = torch.arange(end, dtype=sizes.dtype, device=sizes.device).view(-1, *[1] * (sizes.ndim - 1 - axis))
            place += (along & -sizes) * stride
        place = place.flatten()
        own = place == torch.arange(len(place), dtype=place.dtype, device=place.device)
        first = own.nonzero().flatten()
        low = torch.stack([first // stride % end for stride, end in zip(axes, sizes.shape, strict=True)], dim=1)
        size = self._flat_sizes[first]
        corner = low.new_tensor(list(product((0, 1), repeat=len(axes))))
        numbers = _picked(self._numbers, self._flat(low)[:, None] + size[:, None] * (corner * self._wide[1]).sum(1))
        return (own.cumsum(0) - 1).index_select(0, place), low, size, numbers

    @cached_property
    def complete(self) -> Tensor:
        """Which of the cells have all of their corners in use (m,)."""
        return (self._cells[3] >= 0).all(1)

    @cached_property
    def _complete(self) -> bool:
        return bool(self.complete.all())

    @cached_property
    def _scales(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The box's lowest corner, sides and highest finest cell, each (d, 1); one over the cells' sizes (m,)."""
        ends = self._ends.to(self.origin)[:, None]
        return self.origin[:, None], ends, ends - 1, 1 / self._cells[2].to(self.origin)

    def holding(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Which cells hold ``points`` (B, d), and the coordinates of these in units of the finest cell (d, B)."""
        origin, ends, last, _ = self._scales
        # operations along many rows are quicker than along a few columns
        place = (points.mT.contiguous() - origin).div_(self.unit).clamp_min_(0).minimum(ends)
        finest = self._strides.to(place) @ place.minimum(last).floor_()
        return self._cells[0].index_select(0, finest.long()), place

    def table(self, known: Tensor) -> Tensor:
        """What is known at the n corners (n, ...) as :meth:`at` reads it: of the corners of each cell (m, 2^d k)."""
        number = self._cells[3]
        corners = known.flatten(1)[number.clamp_min(0)]
        return (corners if self._complete else corners.masked_fill((number < 0)[..., None], 0.0)).flatten(1)

    def at(self, table: Tensor, cell: Tensor, place: Tensor) -> Tensor:
        """Values (B, k) at points that ``cell`` (B,) hold at ``place`` (d, B), linearly along each axis of the cell.

        Corners that are not in use leave it to the others; NaN where a cell has none.
        """
        found = []
        for cells, places in zip(cell.split(_ROWS), place.split(_ROWS, dim=1), strict=True):
            shares = self._inside(cells, places)
            values = _lerped(table.index_select(0, cells), shares)
            if not self._complete and not bool(self.complete.index_select(0, cells).all()):
                values /= _lerped((self._cells[3].index_select(0, cells) >= 0).to(values), shares)
            found.append(values)
        return torch.cat(found) if len(found) > 1 else found[0]

    def _inside(self, cell: Tensor, place: Tensor) -> Tensor:
        """How far along the sides of ``cell`` (B,) the points at ``place`` (d, B) are, from 0 to 1 (d, B)."""
        part = self._scales[3].index_select(0, cell)
        return place * part - (place.minimum(self._scales[2]) * part).floor_()

    def shares(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Corners of the cells of ``points`` (B, d), -1 where one is not in use, and their shares in it, (B, 2^d).

        The shares are those of what is linear along each axis.
        """
        cell, place = self.holding(points)
        weights = place.new_ones(len(points), 1)
        for share in self._inside(cell, place):
            weights = (weights[..., None] * torch.stack([1 - share, share], dim=1)[:, None]).flatten(1)
        return self._cells[3].index_select(0, cell), weights

    def variation(self, matrices: Tensor) -> Tensor:
        """How far matrices (n, d, d) at the corners of each of the m cells are from their mean (m,).

        The largest ``‖A^(-1/2) (M - A) A^(-1/2)‖_F`` of a corner's ``M``, where ``A`` is the mean; ``inf`` where a
        corner is missing or the mean is singular.
        """
        number = self._cells[3]
        apart = spread(matrices[number])
        return apart.masked_fill((number < 0).any(1) | ~torch.isfinite(apart), float("inf"))

    def around(self, points: Tensor) -> Tensor:
        """Numbers (B, m) of the corners of the cells that hold ``points`` (B, d), and of their neighbours of that size.

        -1 where there is none.
        """
        cell, _ = self.holding(points)
        low, size = self._cells[1][cell], self._cells[2][cell, None]
        reach = range(-1, 3) if points.shape[1] < 3 else range(2)
        steps = torch.tensor(list(product(reach, repeat=points.shape[1])), device=low.device)
        return _picked(self._numbers, self._flat(low)[:, None] + size * (steps * self._wide[1]).sum(1))

    def edges(self) -> tuple[Tensor, Tensor]:
        """Numbers (E,), (E,) of the corners that are neighbours, each pair once; see :func:`grid_edges`."""
        a, b = grid_edges(self.places.cpu().numpy(), self.sizes.cpu().numpy())
        return torch.from_numpy(a).to(self.places.device), torch.from_numpy(b).to(self.places.device)


def _picked(table: Tensor, index: Tensor) -> Tensor:
    """Entries (...) of a flat table."""
    return table.index_select(0, index.flatten()).view(index.shape)


def _lerped(corners: Tensor, shares: Tensor) -> Tensor:
    """Values (B, k) at ``shares`` (d, B) of the sides of cells, linearly between their ``corners`` (B, 2^d k)."""
    for share in shares:
        lower, upper = corners.chunk(2, dim=1)
        corners = torch.lerp(lower, upper, share[:, None])
    return corners


def _strides(shape: Tensor) -> Tensor:
    return torch.cat([shape[1:].flip(0).cumprod(0).flip(0), shape.new_ones(1)])
