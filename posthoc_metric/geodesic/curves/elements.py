"""Curves as quadratic elements: two spans and three nodes each, with the parabola in time through them.

With chords ``a = F_1 - F_0`` and ``b = F_2 - F_1`` over times ``h_1`` and ``h_2``, ``H = h_1 + h_2``, the parabola
through three points has the energy

    ∫ ‖Ḟ‖² dt = ‖a + b‖² / H + (H / 3) ‖b / h_2 - a / h_1‖²,

never less than that of the two chords, and of fourth order where they are of second.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...metric_parts import ConformalWeight, CurvedWeight
from .batch import Batch


@dataclass
class Model(Batch):
    """A symmetric matrix over the inner nodes of each of P curves of n spans, in blocks.

    Attributes:
        diagonal: (P, n-1, d, d).
        near: couples inner node k with k + 1 (P, n-2, d, d).
        far: couples the two ends of an element (P, n/2-2, d, d): inner nodes 2k + 1 and 2k + 3.
    """

    diagonal: Tensor
    near: Tensor
    far: Tensor

    def __add__(self, other: Model) -> Model:
        return Model(self.diagonal + other.diagonal, self.near + other.near, self.far + other.far)

    def times(self, v: Tensor) -> Tensor:
        """The product with one vector a curve (P, n-1, d)."""
        column = v[..., None]
        out = self.diagonal @ column
        out[:, :-1] += self.near @ column[:, 1:]
        out[:, 1:] += self.near.mT @ column[:, :-1]
        out[:, 1:-2:2] += self.far @ column[:, 3::2]
        out[:, 3::2] += self.far.mT @ column[:, 1:-2:2]
        return out[..., 0]


def empty_model(count: int, spans: int, dim: int, like: Tensor) -> Model:
    """Zeros."""
    sizes = (spans - 1, spans - 2, spans // 2 - 2)
    return Model(*(like.new_zeros(count, size, dim, dim) for size in sizes))


@dataclass
class Stiffness(Batch):
    """The element's energy as a quadratic form of its chords, ``k11 ‖a‖² + 2 k12 ⟨a, b⟩ + k22 ‖b‖²``, each (P, n/2)."""

    k11: Tensor
    k12: Tensor
    k22: Tensor

    def flux(self, chords: Tensor) -> Tensor:
        """Half the derivative of the energy with respect to the chords (P, n, D)."""
        form = torch.stack([self.k11, self.k12, self.k12, self.k22], dim=2).unflatten(2, (2, 2))
        # a product of small matrices runs over the long chords once
        return (form.to(chords.dtype) @ chords.unflatten(1, (-1, 2))).flatten(1, 2)

    def energy(self, squares: Tensor, crossed: Tensor) -> Tensor:
        """Of curves (P,), from the squares of their chords (P, n) and the products of every element's two (P, n/2)."""
        first, second = squares[:, ::2], squares[:, 1::2]
        return (self.k11 * first + 2 * self.k12 * crossed + self.k22 * second).sum(1)

    def flux_square(self, squares: Tensor, crossed: Tensor) -> Tensor:
        """``‖flux‖²`` of curves (P,), from the same."""
        k12 = self.k12.square()
        twice = Stiffness(self.k11.square() + k12, self.k12 * (self.k11 + self.k22), self.k22.square() + k12)
        return twice.energy(squares, crossed).clamp_min(0)

    def between(self, curves: slice, first: int, last: int) -> Stiffness:
        """Of some curves, the elements from node ``first`` to node ``last``, both even."""
        some = slice(first // 2, last // 2)
        return Stiffness(self.k11[curves, some], self.k12[curves, some], self.k22[curves, some])

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """The form as a matrix over nodes: of all nodes (P, n+1), neighbours (P, n), ends of elements (P, n/2)."""
        middle = self.k11 - 2 * self.k12 + self.k22
        diagonal = _spread(torch.stack([self.k11, middle, self.k22], dim=2)[..., None])[..., 0]
        near = torch.stack([self.k12 - self.k11, self.k12 - self.k22], dim=2).flatten(1)
        return diagonal, near, -self.k12


def chord_products(chords: Tensor) -> tuple[Tensor, Tensor]:
    """``‖a‖²`` of chords (P, n, D), and ``⟨a, b⟩`` of the two of an element (P, n/2), for :class:`Stiffness`."""
    squares = torch.linalg.vecdot(chords, chords)
    return squares.double(), torch.linalg.vecdot(chords[:, ::2], chords[:, 1::2]).double()


def stiffness(h: Tensor) -> Stiffness:
    """From the time steps (P, n), n even."""
    first, second = h[:, ::2], h[:, 1::2]
    whole = first + second
    bent = whole / 3
    return Stiffness(
        1 / whole + bent / first.square(), 1 / whole - bent / (first * second), 1 / whole + bent / second.square()
    )


def node_masses(h: Tensor) -> Tensor:
    """The time that each inner node stands for (P, n-1), by Simpson's rule on every element of time steps (P, n)."""
    whole = h[:, ::2] + h[:, 1::2]
    return _spread(torch.stack([whole, 4 * whole, whole], dim=2)[..., None])[:, 1:-1, 0] / 6


@dataclass
class Places(Batch):
    """Quadrature points of every element.

    Attributes:
        shapes: what share each of the three nodes has in the point (P, n/2, q, 3).
        slopes: the same of the velocity.
        weights: (P, n/2, q), in units of time.
    """

    shapes: Tensor
    slopes: Tensor
    weights: Tensor

    def points(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Points and velocities (P, n/2, q, d) on the parabolas through ``nodes`` (P, n+1, d)."""
        # from the middle node and the two chords, so that equal nodes give no velocity at all
        chords = nodes.diff(dim=1)
        chords = torch.stack([-chords[:, ::2], chords[:, 1::2]], dim=2)
        return nodes[:, 1::2, None] + self.shapes[..., ::2] @ chords, self.slopes[..., ::2] @ chords


#: Gauss-Legendre points on [-1, 1] and their weights, for an element
_GAUSS = ((-(3**-0.5), 1.0), (3**-0.5, 1.0))
#: Gauss-Lobatto points, for each of its spans.  A wall hides between the nodes from fewer, and beside them from points
#: that are all inside: a node high on it, left at the speed of the flat ground, would pay nothing
_LOBATTO = ((-1.0, 1 / 6), (-(0.2**0.5), 5 / 6), (0.2**0.5, 5 / 6), (1.0, 1 / 6))


def places(h: Tensor, *, dense: bool) -> Places:
    """Two points an element, or four a span where ``dense``, its middle node once, for time steps ``h`` (P, n)."""
    first, second = h[:, ::2, None], h[:, 1::2, None]
    whole = first + second
    if dense:
        at, share = (h.new_tensor([pair[i] for pair in _LOBATTO]) for i in (0, 1))
        t = torch.cat([first * (1 + at) / 2, first + second * (1 + at[1:]) / 2], dim=2)
        left, right = first * share / 2, second * share / 2
        weights = torch.cat([left[..., :-1], left[..., -1:] + right[..., :1], right[..., 1:]], dim=2)
    else:
        at, share = (h.new_tensor([pair[i] for pair in _GAUSS]) for i in (0, 1))
        t, weights = whole * (1 + at) / 2, whole * share / 2
    low, mid, high = first * whole, first * second, second * whole
    shapes = torch.stack([(t - first) * (t - whole) / low, t * (whole - t) / mid, t * (t - first) / high], dim=3)
    slopes = torch.stack([(2 * t - first - whole) / low, (whole - 2 * t) / mid, (2 * t - first) / high], dim=3)
    return Places(shapes, slopes, weights)


@dataclass
class Elements(Batch):
    """What P curves' elements keep while the inner nodes move.

    Attributes:
        form: of their chords.
        where: seven places an element.
        ends: values of an embedding at the two ends (P, 2, D), where they are asked for once.
    """

    form: Stiffness
    where: Places
    ends: Tensor | None = None

    @staticmethod
    def of(h: Tensor) -> Elements:
        """From the time steps (P, n), n even."""
        return Elements(stiffness(h), places(h, dense=True))


def add_gradient(gradient: Tensor, parts: Tensor) -> None:
    """Add the elements' shares (P, n/2, 3, d) to the inner nodes' (P, n-1, d), in place."""
    gradient[:, ::2] += parts[:, :, 1]
    gradient[:, 1::2] += parts[:, :-1, 2]
    gradient[:, 1::2] += parts[:, 1:, 0]


def add_weight(
    energy: Tensor, gradient: Tensor, weight: ConformalWeight, nodes: Tensor, where: Places, *, curved: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Add ``∫ w(P[z]) ‖d/dt P[z]‖² dt`` to energies (P,) and gradients (P, n-1, d), in place.

    Returns:
        At the places: velocities (P, n/2, q, d), their squares (P, n/2, q), ``w`` (P, n/2, q), ``∇w`` (P, n/2, q, d),
        and, where asked for and known, its second derivatives (P, n/2, q, d, d).
    """
    points, v = where.points(nodes)
    flat, bend = points.flatten(0, 2), None
    if curved and isinstance(weight, CurvedWeight):
        w, slope, bend = weight.value_gradient_hessian(flat)
    else:
        w, slope = weight.value_and_gradient(flat)
    w, slope = w.view(points.shape[:3]), slope.view_as(points)
    bend = None if bend is None else bend.view(*points.shape, -1)
    square, share = v.square().sum(-1), where.weights
    energy += (share * w * square).sum((1, 2))
    by_place, by_velocity = (share * square)[..., None] * slope, 2 * (share * w)[..., None] * v
    add_gradient(gradient, where.shapes.mT @ by_place + where.slopes.mT @ by_velocity)
    return v, square, w, slope, bend


#: the pairs of an element's nodes that a symmetric model tells apart
_FIRST, _SECOND = [0, 1, 2, 0, 1, 0], [0, 1, 2, 1, 2, 2]


def couplings(where: Places) -> Tensor:
    """How a place couples the nodes of its element: (P, n/2, 6, 4q), for :func:`add_blocks`."""
    a, b = where.shapes[..., _FIRST], where.shapes[..., _SECOND]
    da, db = where.slopes[..., _FIRST], where.slopes[..., _SECOND]
    return torch.cat([a * b, a * db, da * b, da * db], dim=2).mT


def add_blocks(model: Model, coupled: Tensor, place: Tensor, mixed: Tensor, velocity: Tensor | None = None) -> None:
    """Add an integrand's second derivatives at the places, each (P, n/2, q, d, d), to the model, in place.

    Args:
        coupled: :func:`couplings` of the places.
        place: by the point twice.
        mixed: by the point, first, and the velocity.
        velocity: by the velocity twice; zero if not given.
    """
    parts = [place, mixed, mixed.mT] if velocity is None else [place, mixed, mixed.mT, velocity]
    dim = place.shape[-1]
    stacked = torch.cat(parts, dim=2).flatten(3)
    # sums of rows that begin at odd addresses are rounded by where the memory happens to be
    if dim % 2:
        stacked = torch.nn.functional.pad(stacked, (0, 1))
    blocks = (coupled[..., : stacked.shape[2]] @ stacked)[..., : dim * dim].unflatten(3, (dim, dim))
    model.diagonal[:, ::2] += blocks[:, :, 1]
    model.diagonal[:, 1::2] += blocks[:, :-1, 2]
    model.diagonal[:, 1::2] += blocks[:, 1:, 0]
    model.near[:, ::2] += blocks[:, :-1, 4]
    model.near[:, 1::2] += blocks[:, 1:, 3]
    model.far += blocks[:, 1:-1, 5]


def _spread(parts: Tensor) -> Tensor:
    """Elements' values at their three nodes (P, n/2, 3, k), summed at the nodes (P, n+1, k)."""
    count, elements, _, width = parts.shape
    total = parts.new_zeros(count, 2 * elements + 1, width)
    total[:, :-1:2] += parts[:, :, 0]
    total[:, 1::2] += parts[:, :, 1]
    total[:, 2::2] += parts[:, :, 2]
    return total
