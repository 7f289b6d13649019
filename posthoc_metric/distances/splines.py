"""Uniform cubic B-splines on nested grids: coarse everywhere, finer where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

#: nodes beyond the box on either side, so that every cell has all its splines and those their values
GHOSTS = 2
_CHUNK = 65_536


@dataclass(frozen=True)
class Level:
    """One grid: ``Σ_i c_i B((z - low)/step - i)``, with B the tensor product of cubic B-splines.

    Attributes:
        low: (d,) corner of the box; step: (d,) spacing.
        shape: nodes along each axis, ghosts included.
        coefficients: (nodes, p), zero where this level adds nothing.
        live: whether any coefficient of a cell is not zero, (cells,) over all nodes' cells.
    """

    low: Tensor
    step: Tensor
    shape: tuple[int, ...]
    coefficients: Tensor
    live: Tensor

    def add_to(self, total: Tensor, z: Tensor) -> None:
        """Add this level's values at z (B, d) to ``total`` (B, p); beyond the box the outermost cells' cubics go on."""
        scaled = (z - self.low) / self.step
        # the right edge of the box belongs to its last cell
        last = torch.tensor([n - 2 * GHOSTS - 2 for n in self.shape], device=z.device)
        cell = torch.minimum(scaled.floor().long().clamp_min(0), last)
        strides = _strides(self.shape, z.device)
        base = ((cell + GHOSTS) * strides).sum(1)
        rows = self.live[base].nonzero().flatten()
        for part in rows.split(_CHUNK):
            u = scaled[part] - cell[part]
            weights = reduce(_outer, [_basis(u[:, axis]) for axis in range(z.shape[1])])
            offsets = reduce(_outer_sum, [torch.arange(-1, 3, device=z.device) * stride for stride in strides])
            values = self.coefficients[base[part, None] + offsets]
            total[part] += torch.einsum("bk,bkp->bp", weights, values)


def places(low: Tensor, step: Tensor, shape: tuple[int, ...], index: Tensor) -> Tensor:
    """Latents (n, d) of the nodes of a grid with flat ``index`` (n,)."""
    grid = torch.stack(torch.unravel_index(index, shape), 1)
    return low + (grid - GHOSTS) * step


def make_level(low: Tensor, step: Tensor, shape: tuple[int, ...], values: Tensor) -> Level:
    """The quasi-interpolant of ``values`` (nodes, p): exact for cubics, and local (de Boor & Fix 1973).

    A coefficient is ``(-f_{i-1} + 8 f_i - f_{i+1}) / 6`` along each axis in turn.
    """
    grid = values.reshape(*shape, -1)
    for axis in range(len(shape)):
        filtered = grid.clone()
        inner = [slice(None)] * grid.ndim
        before, after = list(inner), list(inner)
        inner[axis], before[axis], after[axis] = slice(1, -1), slice(None, -2), slice(2, None)
        filtered[tuple(inner)] = (8 * grid[tuple(inner)] - grid[tuple(before)] - grid[tuple(after)]) / 6
        grid = filtered
    coefficients = grid.reshape(values.shape)
    busy = (coefficients != 0).any(1).view(shape)
    return Level(low, step, shape, coefficients, dilate(busy, -2, 1).reshape(-1))


def dilate(mask: Tensor, first: int, last: int) -> Tensor:
    """Where any of ``mask`` shifted by ``first`` to ``last`` along every axis is true."""
    for axis in range(mask.ndim):
        size = mask.shape[axis]
        grown = torch.zeros_like(mask)
        for shift in range(first, last + 1):
            source = mask.narrow(axis, max(-shift, 0), size - abs(shift))
            grown.narrow(axis, max(shift, 0), size - abs(shift)).logical_or_(source)
        mask = grown
    return mask


def _basis(u: Tensor) -> Tensor:
    """The four cubic B-splines that are not zero at a share ``u`` (B,) of a cell, (B, 4)."""
    v = 1 - u
    return torch.stack([v**3, 3 * u**3 - 6 * u**2 + 4, 3 * v**3 - 6 * v**2 + 4, u**3], dim=1) / 6


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, :, None] * b[:, None, :]).flatten(1)


def _outer_sum(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None] + b[None, :]).flatten()


def _strides(shape: tuple[int, ...], device: torch.device) -> Tensor:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return torch.tensor(strides, device=device)
