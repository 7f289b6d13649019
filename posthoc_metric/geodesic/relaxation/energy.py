"""The energy of discrete curves, its gradient and its second-order model.

A curve is nodes ``z_0 .. z_n`` at times ``t_0 .. t_n``, n even, taken in quadratic elements of two spans.  The energy
under the metric ``J_Fᵀ J_F + w I + U`` is the sum over the elements of

    ∫ ‖d/dt P[F]‖² dt + ∫ w(P[z]) ‖d/dt P[z]‖² dt + ∫ d/dt P[z]ᵀ U(P[z]) d/dt P[z] dt,

``P[·]`` the parabola in time through an element's three values, the first integral exact and the others by Gauss
points.  The first needs no derivative of the metric, every term couples the nodes of an element only, and a
discrete geodesic is of fourth order in the spacing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._precision import computes_in_single
from ...field_derivative import FieldDerivative
from ...metric import MetricParts
from ...smooth_map import SmoothMap, gram
from ..curves.elements import add_blocks, add_gradient, add_weight, chord_products, empty_model
from ..curves.image import Image
from ..curves.rows import alike, unpadded
from .field_model import add_field_model
from .frame import Frame
from .linearisation import Linearisation

#: latent dimensions in which a grid leads round walls, so that few points of quadrature will do for a field
_FEW = 3
#: share of the energy that may be rounding error before chords are taken from Jacobians
CANCELLED = 1e-4
#: bytes of Jacobians, in double precision, that are asked for at once, where a call alone costs as much as some fifty
#: points; and that are worked on at once, while they are in the cache
_ASKED = 16 * 2**20
_CACHED = 4 * 2**20


class CurveEnergy:
    """The discrete energy under one metric; ``probe`` (N, d) are points it will be used near.

    Where the Jacobians of a single curve would not fit into ``memory_limit`` bytes they are asked for a few nodes at
    a time and reduced to their (d, d) products at once; the secant correction, which needs them whole, is left out.
    So it is where the energy is to be ``plain``, and then fields are integrated by many points in few dimensions, too.
    """

    def __init__(self, parts: MetricParts, probe: Tensor, memory_limit: int = 512 * 2**20, *, plain: bool = False):
        self.embedding = parts.embedding
        self.memory_limit = memory_limit
        # fewer values than latents leave directions out, of which steps in the metric's scale would teach nonsense
        many = self.embedding is not None and self.embedding.output_dim >= self.embedding.latent_dim
        self.secant, self.plain = many and not plain, plain
        self.weight = parts.weight
        self.field = None if parts.field is None else FieldDerivative(parts.field, probe)
        self.dtype, self.precision = torch.float64, 0.0
        if parts.embedding is not None:
            single = computes_in_single(parts.embedding, probe)
            self.dtype = _own_dtype(parts.embedding, probe[:16]) if single else torch.float64
            self.precision = rounding(single)

    def frame(self, nodes: Tensor, h: Tensor, ends: Tensor | None = None) -> Frame:
        """What curves through ``nodes`` (P, n+1, d) with time steps ``h`` (P, n) keep while the inner nodes move.

        ``ends`` are :meth:`ends` of their first and last nodes, where these are known.
        """
        total, dim = nodes.shape[1:]
        squares = None
        if self.embedding is not None and self.lean(total, dim):
            # one at a time: the Jacobians of a few points may already be all that there is room for
            tips = nodes[:, [0, -1]].flatten(0, 1)
            squares = torch.cat([gram(self.embedding, tip) for tip in tips.split(1)]).view(-1, 2, dim, dim)
            ends = None
        elif self.embedding is not None:
            ends = self.ends(nodes[:, [0, -1]]) if ends is None else ends
            slopes = ends[:, :, 1:].double()
            squares = slopes @ slopes.mT
        quadrature = self.weight is not None or self.field is not None
        return Frame.of(h, quadrature=quadrature, dense=self.dense(dim), ends=ends, squares=squares)

    def dense(self, dim: int) -> bool:
        """Whether curves are integrated by many points of quadrature; see :func:`~.elements.places`."""
        # a weight builds walls; a field varies smoothly, and costs more.  At nodes few points are the more exact there,
        # but of a field that does not they come to lie where it is small
        return dim > _FEW or self.weight is not None or self.plain

    def linearise(self, nodes: Tensor, frame: Frame, before: Linearisation | None = None) -> Linearisation:
        """Energy, gradient and models at ``nodes`` (P, n+1, d), of curves that were at ``before``."""
        count, total, dim = nodes.shape
        zeros = nodes.new_zeros
        out = Linearisation(
            nodes,
            energy=zeros(count),
            gradient=zeros(count, total - 2, dim),
            convex=empty_model(count, total - 1, dim, nodes),
            rest=empty_model(count, total - 1, dim, nodes),
        )
        if self.embedding is not None:
            if self.lean(total, dim):
                self._add_chords_leanly(out, frame)
            else:
                self._add_chords(out, frame, before)
            assert out.image is not None and frame.squares is not None
            out.image.squares[:, [0, -1]] = frame.squares
            out.convex.diagonal += frame.diagonal * out.image.squares[:, 1:-1]
            out.convex.near *= frame.near
            out.convex.far *= frame.far
        if self.weight is not None:
            self._add_weight(out, frame)
        if self.field is not None:
            self._add_field(out, frame)
        return out

    def lean(self, nodes: int, dim: int) -> bool:
        """Whether the Jacobians of a curve of so many nodes are too large to be kept."""
        # those of this step, of the last, and a copy between them
        return self.embedding is not None and 24 * nodes * self.embedding.output_dim * dim > self.memory_limit

    def at_once(self, nodes: int, dim: int) -> int:
        """How many curves of so many nodes the memory limit lets relax together."""
        width = 0 if self.embedding is None or self.lean(nodes, dim) else self.embedding.output_dim
        # the Jacobians of this step and of the last, in single precision, and copies between them
        return max(1, self.memory_limit // (8 * nodes * (2 * width * dim + 60 * dim**2)))

    def _add_chords_leanly(self, out: Linearisation, frame: Frame) -> None:
        assert self.embedding is not None
        count, total, dim = out.nodes.shape
        squares = out.nodes.new_zeros(count, total, dim, dim)
        out.image, out.grain = Image(squares), torch.zeros_like(out.energy)
        # two more than a chunk, for the products with those before
        chunk = max(2, self.memory_limit // (24 * self.embedding.output_dim * dim) - 2)
        for p in range(count):
            values = torch.cat([self.embedding(part) for part in out.nodes[p].split(4 * chunk)])
            r = values.diff(dim=0)
            flux = frame.form.between(slice(p, p + 1), 0, total - 1).flux(r[None])[0]
            out.energy[p] += (flux * r).sum()
            out.grain[p] = 2 * self.precision * values[0].norm() * flux.square().sum().sqrt()
            bend = flux[:-1] - flux[1:]
            held = values.new_zeros(0, values.shape[1], dim)
            for first in range(1, total - 1, chunk):
                stop = min(first + chunk, total - 1)
                jacobians = self.embedding.value_and_jacobian(out.nodes[p, first:stop])[1]
                out.gradient[p, first - 1 : stop - 1] += (
                    2 * (jacobians.mT @ bend[first - 1 : stop - 1, :, None])[..., 0]
                )
                squares[p, first:stop] = jacobians.mT @ jacobians
                start, held = first - len(held), torch.cat([held, jacobians])
                for node in range(max(start + 1, first), stop):
                    this = held[node - start]
                    out.convex.near[p, node - 2] = held[node - 1 - start].mT @ this
                    if node % 2 == 0 and node - 2 >= max(start, 1):
                        out.convex.far[p, node // 2 - 2] = held[node - 2 - start].mT @ this
                held = held[-2:]

    def _add_chords(self, out: Linearisation, frame: Frame, before: Linearisation | None) -> None:
        assert self.embedding is not None
        count, total, dim = out.nodes.shape
        new, width = out.nodes.new_empty, self.embedding.output_dim
        out.image = Image(new(count, total, dim, dim), new(count, total - 1, dim, dim), new(count, total - 1))
        out.grain = new(count)
        out.pull = new(count, total - 2, dim)
        if self.secant:
            out.jacobians = new(count, total - 2, dim, width, dtype=torch.float32)
            out.pull_before = torch.zeros_like(out.pull)
        # large temporaries cost more to allocate than to compute
        asked, block = (max(1, size // (8 * total * width * dim)) for size in (_ASKED, _CACHED))
        for first in range(0, count, asked):
            values, jacobians = self._ask(out.nodes[first : first + asked, 1:-1])
            for some in range(0, len(values), block):
                curves = slice(first + some, first + min(some + block, len(values)))
                here = slice(some, some + block)
                self._add_some_chords(out, curves, values[here], jacobians[here], frame, before)
        out.gradient += 2 * out.pull

    def ends(self, points: Tensor) -> Tensor:
        """``F`` and ``J_Fᵀ``, side by side (P, 2, 1 + d, D), at the two ends (P, 2, d) of curves, which never move."""
        values, jacobians = self._ask(points)
        return torch.cat([values[:, :, None], jacobians], dim=2)

    def _ask(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """``F`` (P, m, D) and ``J_Fᵀ`` (P, m, d, D) at points (P, m, d)."""
        assert self.embedding is not None
        values, jacobians = self.embedding.value_and_jacobian(alike(points).to(self.dtype))
        return unpadded(values, points), unpadded(jacobians.mT, points)

    def _add_some_chords(
        self, out: Linearisation, some: slice, values: Tensor, rows: Tensor, frame: Frame, before: Linearisation | None
    ) -> None:
        """Of the curves ``some`` (p,), from ``F`` (p, n-1, D) and ``J_Fᵀ`` (p, n-1, d, D) at the inner nodes."""
        assert frame.ends is not None and frame.size is not None
        assert out.image is not None and out.image.across is not None and out.image.chords is not None
        assert out.pull is not None and out.grain is not None
        nodes, ends = out.nodes[some], frame.ends[some]
        count, total, dim = nodes.shape
        form = frame.form.between(some, 0, total - 1)
        r = values.new_empty(count, total - 1, values.shape[2])
        torch.sub(values[:, 1:], values[:, :-1], out=r[:, 1:-1])
        torch.sub(values[:, 0], ends[:, 0, 0], out=r[:, 0])
        torch.sub(ends[:, 1, 0], values[:, -1], out=r[:, -1])
        squares, crossed = chord_products(r)
        energy = form.energy(squares, crossed)
        # errors of different chords have nothing to do with one another
        grain = 2 * self.precision * frame.size[some] * form.flux_square(squares, crossed).sqrt()
        close = grain > CANCELLED * energy
        if bool(close.any()):
            # the values of near nodes agree in most of their digits; their derivatives do not lose any
            every = torch.cat([ends[close, :1, 1:], rows[close], ends[close, 1:, 1:]], dim=1)
            mean = (every[:, :-1] + every[:, 1:]) / 2
            r[close] = (nodes[close].diff(dim=1)[:, :, None].to(r.dtype) @ mean)[:, :, 0]
            squares, crossed = chord_products(r)
            energy = form.energy(squares, crossed)
        out.energy[some] += energy
        out.grain[some], out.image.chords[some] = grain, squares
        flux = form.flux(r)
        bend = (flux[:, :-1] - flux[:, 1:])[:, :, None]
        out.pull[some] = torch.linalg.vecdot(rows, bend)
        if before is not None and before.jacobians is not None and out.pull_before is not None:
            out.pull_before[some] = torch.linalg.vecdot(before.jacobians[some], bend.float())
        if out.jacobians is not None:
            out.jacobians[some] = rows
        # conditions of Jacobians are squared here; the first node of a curve holds a place, so that every other node
        # of all curves is a slice
        wide = rows.new_empty(count, total - 1, dim, rows.shape[3], dtype=torch.float64)
        wide[:, 0], wide[:, 1:] = ends[:, 0, 1:], rows
        flat, every_other = wide.flatten(0, 1), wide[:, ::2].flatten(0, 1)
        out.image.squares[some, :-1] = (flat @ flat.mT).view(count, -1, dim, dim)
        across = _products(flat).view(count, -1, dim, dim)
        torch.matmul(wide[:, -1], ends[:, 1, 1:].mT.double(), out=across[:, -1])
        out.image.across[some], out.convex.near[some] = across, across[:, 1:-1]
        out.convex.far[some] = _products(every_other).view(count, -1, dim, dim)[:, 1:-1]

    def _add_weight(self, out: Linearisation, frame: Frame) -> None:
        assert self.weight is not None and frame.where is not None and frame.coupled is not None
        where, coupled = frame.where, frame.coupled
        v, square, w, slope, bend = add_weight(out.energy, out.gradient, self.weight, out.nodes, where, curved=True)
        share = where.weights
        mixed = (share[..., None] * slope)[..., None] * v[..., None, :]
        # Gauss-Newton for sqrt(w) v holds half of what mixes place and velocity, and half of the curvature where
        # log w is linear, as it nearly is on the flank of a wall
        steep = (slope * (share * square / w.clamp_min(1e-300) / 2)[..., None])[..., None] * slope[..., None, :]
        eye = torch.eye(v.shape[3], dtype=v.dtype, device=v.device)
        add_blocks(out.convex, coupled, steep, mixed, (2 * share * w)[..., None, None] * eye)
        exact = steep if bend is None else (share * square)[..., None, None] * bend - steep
        add_blocks(out.rest, coupled, exact, mixed)

    def _add_field(self, out: Linearisation, frame: Frame) -> None:
        assert self.field is not None and frame.where is not None and frame.coupled is not None
        where, coupled = frame.where, frame.coupled
        points, v = where.points(out.nodes)
        places, ways = points.flatten(1, 2), v.flatten(1, 2)
        found: tuple[Tensor | None, ...]
        if self.embedding is None:
            found = self.field.curved(alike(places), alike(ways))
        else:
            # a decoder's own second derivatives are learnt from its Jacobians; a field's beside them are worth less
            # than they cost
            found = (*self.field(alike(places), alike(ways)), None)
        tensors, pushed, exact = (None if part is None else unpadded(part, places) for part in found)
        assert tensors is not None and pushed is not None
        share = where.weights[..., None, None]
        tensors, pushed = share * tensors.reshape(*v.shape, -1), share * pushed.reshape(*v.shape, -1)
        along = (tensors @ v[..., None])[..., 0]
        out.energy += (v * along).sum((1, 2, 3))
        by_place = (pushed.mT @ v[..., None])[..., 0]
        add_gradient(out.gradient, where.shapes.mT @ by_place + where.slopes.mT @ (2 * along))
        bend = None if exact is None else share * exact.reshape(tensors.shape)
        add_field_model(out.convex, out.rest, coupled, tensors, pushed, bend)


def _products(rows: Tensor) -> Tensor:
    """``rows_k rows_{k+1}ᵀ`` of (N, d, D): (N, d, d), the last left as it comes."""
    products = rows.new_empty(len(rows), rows.shape[1], rows.shape[1])
    torch.matmul(rows[:-1], rows[1:].mT, out=products[:-1])
    return products


def _own_dtype(embedding: SmoothMap, points: Tensor) -> torch.dtype:
    """float32 where a map in single precision has the same values at float32 points (n, d), as decoders have."""
    same = torch.equal(embedding(points.float()).double(), embedding(points))
    return torch.float32 if same else torch.float64


def rounding(single: bool) -> float:
    """Relative rounding error of what is computed in single or in double precision."""
    return torch.finfo(torch.float32 if single else torch.float64).eps
