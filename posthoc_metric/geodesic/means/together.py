"""The mean in many dimensions: the centre and the curves to it are relaxed together.

A Newton step of the centre takes the Hessian of every curve, ``d`` products with the Jacobian a node.  But the mean of
the curves' energies, as a function of the centre and of all inner nodes at once, is least where the centre is the mean
and the curves are geodesics, and quasi-Newton steps get there by one vector-Jacobian product a node and step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from ..curves.placement import even
from ..relaxation.many_dimensions import relax_in_blocks
from ..relaxation.matrix_free import MatrixFreeEnergy, Slope
from ..relaxation.preconditioner import Preconditioner, precondition
from ..relaxation.quasi_newton import MEMORY, relax_matrix_free
from .centre import MOST, SADDLE, SPANS, WORSE, Ended, Found, Task
from .kinked import descend_across_kinks

#: spans, each so many times the time of a whole curve long, that make the centre an inner node and cost nothing
_IDLE = 1e6
#: residuals over the tolerance, to which curves are relaxed, and these and their centre together
_STILL, _NEAR = 0.5, 1.0
#: quasi-Newton steps for curves whose centre is held, which begin near their end
_STEPS = 120
#: quasi-Newton steps that count as one
_EACH = 10
#: fewest pairs of moves and changes of gradient to remember, where many curves leave no room for more
_FEWEST = 5
#: Lanczos steps at most for the lowest way out of a place; differences over which products with the Hessian are taken,
#: and the first and longest step that way, all over the root of the energy, as the preconditioner measures them
_LANCZOS, _APART, _OUT, _FARTHEST = 8, 3e-3, 0.02, 1.0
#: how many times as little as it has on average a drawn way may have of the lowest one
_UNSEEN = 2.0


@dataclass(frozen=True)
class _Place:
    """A point with relaxed curves from it.

    Attributes:
        nodes: of the curves (P, n+1, d).
        curves: their energy, by the point and by all inner nodes.
        gradient: of that by the point (d,).
        energy: its value.
        norm: of half the gradient, over the root of the energy.
    """

    found: Found
    nodes: Tensor
    curves: _Together
    gradient: Tensor
    energy: float
    norm: float


def descend_together(task: Task, begin: Found, most: int) -> Ended:
    """From ``begin`` down to where the mean of the squared distances is least, in ``most`` steps of ten."""
    spans, number, error, stuck = SPANS, 0, inf, False
    if begin.variance == 0:
        return Ended(begin, 0.0, error, number)  # one point, or none that is reached
    least = _placed(task, begin, spans)
    while least.norm < inf and number < most:
        ended, inverse = stuck or least.norm <= task.tol, _inverse(task, least)
        # it may have ended on a summit or a saddle, from which no gradient leads away
        begins = _way_down(task, least, inverse) if ended else least.curves.packed(least.nodes)
        if begins is None:
            break
        here, gradient, steps = _moved(task, least, inverse, begins, _EACH * (most - number))
        number, before = number - (-steps // _EACH), spans
        spans = min(2 * spans, MOST)
        found = task.found(here)
        if found.kinked:
            across = descend_across_kinks(task, found, most - number)
            return Ended(across.found, across.norm, across.error, number + across.steps)
        stuck = found.lost > least.found.lost or found.variance > WORSE * least.found.variance
        if not stuck:
            place = _placed(task, found, spans)
            error = task.norm(here, place.gradient - gradient, place.energy)
            # beside a summit or a saddle the gradient is larger than on it
            fallen = found.variance * (1.0 if ended else WORSE) < least.found.variance
            # where rounding, or the choice of geodesics, sets how well the gradient is known, more nodes are of no use
            stuck = spans == before or not (fallen or place.norm < least.norm / 2)
            if fallen or place.norm < least.norm:
                least = place
        if stuck and ended:
            break
    return Ended(least.found, least.norm, error, number)


def _placed(task: Task, found: Found, spans: int) -> _Place:
    """With so many spans of the curves that were found, relaxed while the centre is held."""
    nodes, weights = task.curves(found, spans)
    energy = MatrixFreeEnergy(task.parts, nodes[:, ::8].flatten(0, 1)[:512], task.memory_limit)
    alone = torch.arange(len(nodes), device=nodes.device)
    nodes = relax_in_blocks(task.parts, energy, nodes, even(nodes, spans), alone, _STILL * task.tol, _STEPS).nodes
    curves = _Together(energy, nodes, weights)
    slope = curves.slope_on(None, curves.packed(nodes))
    gradient, mean = slope.gradient[0, 0], float(slope.energy)
    return _Place(found, nodes, curves, gradient, mean, task.norm(found.point, gradient, mean))


def _inverse(task: Task, place: _Place) -> _Arrow:
    """Of the Hessian of a place's curves, about."""
    nodes = place.nodes
    curves, _ = precondition(task.parts, nodes, even(nodes, nodes.shape[1] - 1).diff(dim=1), task.memory_limit)
    return _Arrow(curves, place.curves.weights)


def _room(task: Task, place: _Place, most: int) -> int:
    """How many moves of all nodes to remember."""
    return min(most, max(_FEWEST, task.memory_limit // (8 * 4 * place.nodes.numel())))


def _moved(task: Task, place: _Place, inverse: _Arrow, packed: Tensor, most: int) -> tuple[Tensor, Tensor, int]:
    """The centre (d,) with which its curves have the least energy, the gradient there, and the steps it took."""
    curves = place.curves
    found = relax_matrix_free(
        curves,
        inverse,
        packed,
        even(packed, packed.shape[1] - 1),
        tol=_NEAR * task.tol,
        max_steps=most,
        pair=torch.zeros(1, dtype=torch.int64, device=packed.device),
        memory=_room(task, place, MEMORY),
    )
    return found.nodes[0, 1], curves.slope_on(None, found.nodes).gradient[0, 0], int(found.steps)


def _way_down(task: Task, place: _Place, inverse: _Arrow) -> Tensor | None:
    """Curves and centre, packed, of less energy than at a place where a descent has ended, if that is no minimum."""
    curves, root = place.curves, place.energy**0.5
    here = curves.packed(place.nodes)
    slope = curves.slope_on(None, here)

    def beside(way: Tensor, size: float) -> Tensor:
        return torch.cat([here[:, :1], here[:, 1:-1] + size * root * way, here[:, -1:]], dim=1)

    def bent(way: Tensor) -> Tensor:
        return (curves.slope_on(None, beside(way, _APART)).gradient - slope.gradient) / (_APART * root)

    way = _lowest(inverse, bent, torch.zeros_like(slope.gradient), _room(task, place, _LANCZOS))
    if way is None:
        return None
    least, best = float(slope.energy - slope.grain), None
    for sign in (1, -1):
        size = sign * _OUT
        while abs(size) <= _FARTHEST:
            there = beside(way, size)
            if not (energy := float(curves.slope_on(None, there).energy)) < least:
                break
            size, least, best = 2 * size, energy, there
    return best


def _lowest(inverse: _Arrow, bent: Callable[[Tensor], Tensor], pull: Tensor, most: int) -> Tensor | None:
    """The way (1, m, d) on which the energy bends down, as the preconditioner measures, if it does (Lanczos 1950).

    Args:
        bent: the product of the Hessian with a way.
        pull: zeros, of the shape of a way.
        most: products.
    """
    # of all that moves, what a centre that is moved takes with it
    generator = torch.Generator().manual_seed(0)
    pull[0, 0] = torch.randn(pull.shape[2], generator=generator, dtype=torch.float64, device="cpu").to(pull)
    way, values, vectors = inverse.solve(pull), np.zeros(1), np.zeros((0, 1))
    ways: list[Tensor] = []
    main: list[float] = []
    beside: list[float] = []
    before = pull_before = torch.zeros_like(pull)
    link = float((way * pull).sum()) ** 0.5
    while len(ways) < most and 0 < link < inf:
        way, pull = way / link, pull / link
        ways.append(way)
        product, back = bent(way), beside[-1] if beside else 0.0
        main.append(float((way * product).sum()))
        if not isfinite(main[-1]):
            return None
        pull, pull_before = product - main[-1] * pull - back * pull_before, pull
        way, before = inverse.solve(product) - main[-1] * way - back * before, way
        link = max(float((way * pull).sum()), 0.0) ** 0.5
        values, vectors = eigh_tridiagonal(main, beside, select="i", select_range=(0, 0))
        doubt = link * abs(vectors[-1, 0])
        # either no way leads down that the drawn one has anything of, or this one surely does
        if values[0] - _UNSEEN * pull.shape[2] ** 0.5 * doubt > SADDLE or values[0] + doubt < SADDLE:
            break
        beside.append(link)
    if not ways or values[0] >= SADDLE:
        return None
    return torch.stack([float(part) * one for part, one in zip(vectors[:, 0], ways, strict=True)]).sum(0)


class _Together:
    """The weighted mean energy of curves (P, n+1, d) with one centre, as that of one curve through all that moves.

    Its inner nodes are the centre, and then the inner nodes of every curve; its ends mean nothing.
    """

    def __init__(self, energy: MatrixFreeEnergy, nodes: Tensor, weights: Tensor):
        self.energy, self.weights = energy, weights
        self._begin, self._ends = nodes[:, :1].expand(-1, 2, -1), nodes[:, -1:]
        self._count, self._inner, self._dim = len(nodes), nodes.shape[1] - 2, nodes.shape[2]
        h = even(nodes, nodes.shape[1] - 1).diff(dim=1)
        idle = torch.full_like(h[:, :2], _IDLE)
        self._elements = energy.elements(self._curves(self.packed(nodes)), torch.cat([idle, h], dim=1))

    def packed(self, nodes: Tensor) -> Tensor:
        """The one curve (1, 1 + P(n-1) + 2, d)."""
        return torch.cat([nodes[0, [0, 0]], nodes[:, 1:-1].flatten(0, 1), nodes[0, -1:]])[None]

    def elements(self, nodes: Tensor, h: Tensor) -> None:
        """What the curves keep is kept here."""

    def slope_on(self, elements: None, nodes: Tensor) -> Slope:
        """At the one curve."""
        found, share = self.energy.slope_on(self._elements, self._curves(nodes)), self.weights
        # of the inner nodes the first is idle, and the second the centre
        gradient = share[:, None, None] * found.gradient[:, 1:]
        by_all = torch.cat([gradient[:, 0].sum(0, keepdim=True), gradient[:, 1:].flatten(0, 1)])
        # errors of different curves have nothing to do with one another
        return Slope((share @ found.energy)[None], by_all[None], (share * found.grain).norm()[None])

    def energies(self, nodes: Tensor, h: Tensor) -> Tensor:
        """Energy (1,) alone."""
        return self.slope_on(None, nodes).energy

    def _curves(self, packed: Tensor) -> Tensor:
        """The curves from the idle nodes on (P, n+3, d)."""
        centre = packed[:, 1:2].expand(self._count, 1, self._dim)
        inner = packed[0, 2:-1].view(self._count, self._inner, self._dim)
        return torch.cat([self._begin, centre, inner, self._ends], dim=1)


class _Arrow:
    """An approximate inverse of :class:`_Together`'s Hessian: the curves' own, and the centre's Schur complement.

    Args:
        curves: of P curves with their centre held.
        weights: of the curves (P,).
    """

    def __init__(self, curves: Preconditioner, weights: Tensor):
        self._curves, self._weights = curves, weights
        self._first = first = curves.at_the_start()
        # how the inner nodes follow the centre
        ways = [curves.solve(curves.spread(first[:, :, way])) for way in range(first.shape[2])]
        self._response = torch.stack(ways, dim=3)
        own = torch.einsum("p,pij->ij", weights, first - first @ self._response[:, 0])
        self._factor = torch.linalg.cholesky((own + own.mT) / 2)

    def take(self, index: Tensor) -> _Arrow:
        """There is but one."""
        return self

    def solve(self, gradient: Tensor) -> Tensor:
        """Its product with (1, 1 + P(n-1), d)."""
        centre, inner = self._parts(gradient)
        alone = self._curves.solve(inner / self._weights[:, None, None])
        pulled = centre + torch.einsum("p,pij,pj->i", self._weights, self._first, alone[:, 0])
        moved = torch.cholesky_solve(pulled[:, None], self._factor)[:, 0]
        return self._whole(moved, alone + self._response @ moved)

    def times(self, move: Tensor) -> Tensor:
        """The product with what it is the inverse of."""
        centre, inner = self._parts(move)
        pulled = torch.einsum("p,pij,pj->i", self._weights, self._first, centre - inner[:, 0])
        out = self._curves.times(inner) - self._curves.spread(self._first @ centre)
        return self._whole(pulled, self._weights[:, None, None] * out)

    def _parts(self, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Of the centre (d,) and of the curves' inner nodes (P, n-1, d)."""
        return whole[0, 0], whole[0, 1:].unflatten(0, (len(self._weights), -1))

    def _whole(self, centre: Tensor, inner: Tensor) -> Tensor:
        return torch.cat([centre[None], inner.flatten(0, 1)])[None]
