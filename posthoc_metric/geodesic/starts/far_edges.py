"""Edges of a graph between nodes that are far apart.

Nearest neighbours of a large population all lie within it, so that they alone join it to others by way of outliers or
not at all, and paths between populations run long.  Here every node is joined to the nearest node of each of some
regions, in turn, so that the nodes of a neighbourhood together are joined to all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

#: far edges of a node at most, and near edges for each of them, so that they add some fifth to all
_MOST = 6
_NEAR = 8
#: regions for each far edge of a node
_TURNS = 4
_SEED = 0


@dataclass(frozen=True)
class Regions:
    """Parts of a set of points (n, d), and which of them each point is joined to.

    Attributes:
        members: numbers of the points in each region.
        searches: the fitted neighbour search over each.
        region: that each point lies in (n,).
        turn: the first of the regions that each point is joined to (n,).
        each: regions that a point is joined to, one after another.
    """

    members: list[np.ndarray]
    searches: list[NearestNeighbors]
    region: np.ndarray
    turn: np.ndarray
    each: int

    def edges(self, array: np.ndarray) -> np.ndarray:
        """Pairs (E, 2) of points, the smaller number first, each once, that join every point to other regions."""
        ends = self._beyond(array, self.turn, self.region)
        return np.unique(np.sort(ends, axis=1), axis=0)

    def beyond(self, others: np.ndarray, nearest: np.ndarray) -> np.ndarray:
        """Pairs (E, 2) of rows of ``others`` (B, d) and points; each has the regions of its ``nearest`` point (B,)."""
        return self._beyond(others, self.turn[nearest], self.region[nearest])

    def _beyond(self, others: np.ndarray, turn: np.ndarray, own: np.ndarray) -> np.ndarray:
        found = [np.zeros((0, 2), dtype=np.int64)]
        for number, (members, search) in enumerate(zip(self.members, self.searches, strict=True)):
            asked = np.flatnonzero(((number - turn) % len(self.members) < self.each) & (own != number))
            if len(asked):
                index = search.kneighbors(others[asked], return_distance=False)[:, 0]
                found.append(np.stack([asked, members[index]], axis=1))
        return np.concatenate(found)


def make_regions(array: np.ndarray, each: int) -> Regions:
    """Regions of points (n, d), each around one of them, of which every point is joined to ``each``."""
    # what the points get does not depend on their order
    order = np.lexsort(array.T)
    region, turn = np.empty(len(array), dtype=np.int64), np.empty(len(array), dtype=np.int64)
    region[order] = _nearest_centre(array[order], min(_TURNS * each, len(array)))
    members = [np.flatnonzero(region == number) for number in range(int(region.max()) + 1)]
    searches = [NearestNeighbors(n_neighbors=1).fit(array[rows]) for rows in members]
    # points in order lie along an axis, and neighbours are to take different turns
    turn[order] = np.random.default_rng(_SEED).permutation(len(array)) % len(members)
    return Regions(members, searches, region, turn, each)


def far_edges_each(near: int) -> int:
    """Far edges for a node that has so many near ones."""
    return min(max(near // _NEAR, 1), _MOST)


def _nearest_centre(array: np.ndarray, count: int) -> np.ndarray:
    """Which of at most ``count`` points, chosen one after another, is nearest each (n,).

    Every other one is the farthest from those before, so that no population is too rare to have one; the rest are
    drawn in proportion to that distance, as outliers may be the farthest many times over.
    """
    random = np.random.default_rng(_SEED)
    first = int(np.linalg.norm(array - array.mean(0), axis=1).argmin())
    nearest, region = np.linalg.norm(array - array[first], axis=1), np.zeros(len(array), dtype=np.int64)
    for number in range(1, count):
        total = nearest.sum()
        if not total > 0:
            break
        centre = int(nearest.argmax() if number % 2 else random.choice(len(array), p=nearest / total))
        distance = np.linalg.norm(array - array[centre], axis=1)
        closer = distance < nearest
        region[closer], nearest[closer] = number, distance[closer]
    # a centre that coincides with one before, or lost its own region, leaves a gap in the numbers
    return np.unique(region, return_inverse=True)[1].reshape(-1)
