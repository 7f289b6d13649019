"""Which corners of an adaptive grid are neighbours.

In NumPy: there are dozens of operations on small arrays of integers, and their number is what costs.
"""

from __future__ import annotations

from itertools import product
from math import gcd

import numpy as np

#: steps from a corner to its neighbours reach so many cells; with two the angles between them are half as wide
_REACH = {1: 1, 2: 2}


def grid_edges(places: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (E,), (E,) of the corners that are neighbours, each pair once.

    An edge crosses no cell that is smaller than its steps, so that it skips nothing that the grid has resolved.
    A corner on the side of a larger cell is joined to that one's corners on its other sides.

    Args:
        places: integer coordinates of the corners in use (n, d), in units of the finest cell.
        sizes: for each finest cell of the box (c_1, ..., c_d) the size of the cell that holds it, a power of two.
    """
    count, dim = places.shape
    if count == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    # a margin about the box that no step to a neighbour leaves
    margin = 2 * int(sizes.max())
    wide = np.zeros([end + 1 + 2 * margin for end in sizes.shape], dtype=sizes.dtype)
    wide[tuple(slice(margin, margin + end) for end in sizes.shape)] = sizes
    strides = np.array([int(np.prod(wide.shape[axis + 1 :])) for axis in range(dim)])
    flat = (places + margin) @ strides
    numbers = np.full(wide.size, -1, dtype=np.int32)
    numbers[flat] = np.arange(count, dtype=np.int32)
    beside = np.array(list(product((-1, 0), repeat=dim)))
    around = wide.ravel()[flat[:, None] + beside @ strides]
    steps = np.array(_steps(dim))
    stepped, every = steps @ strides, np.arange(len(steps))
    # which of the cells around a corner an edge enters, by direction
    enters = ((2 * beside + 1) * steps[:, None] >= 0).all(-1).T.astype(np.float32)
    levels = [size for size in np.unique(around).tolist() if size > 0]
    pairs = []
    for size in levels:
        smaller = (around > 0) & (around < size)
        free = smaller.astype(np.float32) @ enters == 0
        touches = (around == size).any(1)
        touch = np.flatnonzero(touches)
        other = numbers[flat[touch][:, None] + size * stepped]
        near = np.maximum(other, 0)
        # steps are listed so that the last is the opposite of the first
        back = free.ravel()[near * len(steps) + every[::-1]]
        once = (touch[:, None] < other) | ~touches[near]
        row, step = np.nonzero((other >= 0) & free[touch] & back & once)
        pairs.append((touch[row], other[row, step]))
    if len(levels) > 1:
        pairs.append(_hanging(places, beside, around.astype(np.int64), numbers, margin, strides))
    a, b = (np.concatenate(side).astype(np.int64) for side in zip(*pairs, strict=True))
    return a, b


def _hanging(
    places: np.ndarray, beside: np.ndarray, sizes: np.ndarray, numbers: np.ndarray, margin: int, strides: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Edges from corners on the side of a cell of ``sizes`` (n, 2^d) to its corners on other sides."""
    side = np.maximum(sizes, 1)[..., None]
    low = (places[:, None] + beside) & -side
    # sides are powers of two
    row, cell = np.nonzero((sizes > 0) & (((places[:, None] - low) & (side - 1)) != 0).any(-1))
    low, side, here = low[row, cell][:, None], side[row, cell][:, None], places[row][:, None]
    corners = low + side * (beside + 1)
    way = corners - here
    other = numbers[(corners + margin) @ strides]
    along = ((way == 0) & ((here - low) & (side - 1) == 0)).any(-1)
    # those that steps of the corner's other cells take already
    step = np.gcd.reduce(way, axis=-1)
    short = np.abs(way).max(-1) <= _REACH.get(way.shape[-1], 1) * step
    met = (sizes[row][:, None] == step[..., None]).any(-1) | (sizes[other] == step[..., None]).any(-1)
    at, which = np.nonzero((other >= 0) & ~along & ~(short & met))
    a, b = row[at], other[at, which].astype(np.int64)
    key = np.unique(np.minimum(a, b) * len(places) + np.maximum(a, b))
    return np.divmod(key, len(places))


def _steps(dim: int) -> list[tuple[int, ...]]:
    """Steps to neighbours, none that another one takes twice."""
    reach = _REACH.get(dim, 1)
    return [step for step in product(range(-reach, reach + 1), repeat=dim) if gcd(*step) == 1]
