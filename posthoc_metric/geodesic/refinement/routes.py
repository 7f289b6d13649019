"""Which way curves are relaxed: by Newton steps with Jacobians, or by gradients alone.

In few dimensions Newton steps are few.  In more, the model of the energy may hold for tiny steps only, and where the
decoder has kinks it sees none of them: every node then rests in its own linear piece, although the curve could be
shorter.  Such curves go on by gradients alone, which compare points a whole step apart.  In many dimensions all do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...metric import MetricParts
from ..curves.batch import in_blocks
from ..curves.image import Image
from ..options import RelaxationOptions
from ..relaxation.doubles import couples_of
from ..relaxation.energy import CurveEnergy
from ..relaxation.gauss_newton import Relaxed, relax
from ..relaxation.many_dimensions import ManyDimensions
from ..relaxation.matrix_free import matrix_free
from ..starts.start_curves import StartCurves
from ..status import CODES, Status
from .candidates import Begun

#: dimensions up to which Newton's method keeps every curve
FEW = 3
#: Newton steps at one number of spans, after which a curve is given up to gradients
_TRIES = 15
#: steps at one number of spans, unless it is the last
_STEPS_A_LEVEL = 25
#: the same in few dimensions up to MOST_COARSE, where steps of few curves cost nearly as much as those of all
_STEPS_IN_FEW = 5
_STEPS_A_COARSE_LEVEL = 80
#: residual to which coarse curves are relaxed: they are compared before they are stationary to the tolerance asked for
COARSE_TOL = 5e-2
#: spans above which steps are dear, and a curve with kinks has had nodes enough to be told from a smooth one
MOST_COARSE = 64
#: spans that curves are begun with, at most
MOST_BEGUN = 256

_LATE = CODES[Status.STEP_LIMIT]


class Routes:
    """The ways of one solve.

    Attributes:
        parts: the metric as it may be asked within the memory limit.
        many: the way by gradients alone, where all curves take it.
        tries: Newton steps at one number of spans, after which a curve is given up to gradients.
        ends: what an embedding says of the ends of every pair, for curves of any number of spans to share, where they
            fit into a quarter of the memory limit; see :meth:`CurveEnergy.ends`.
    """

    def __init__(self, parts: MetricParts, starts: StartCurves, options: RelaxationOptions, *, plain: bool = False):
        self.options = options
        self.dim = starts.nodes.shape[2]
        self.many: ManyDimensions | None = None
        self.rest: ManyDimensions | None = None
        if parts.embedding is not None and self.dim > FEW:
            self.rest = ManyDimensions(parts, starts, options)
            if matrix_free(parts, self.dim) and not plain:
                self.many = self.rest
        # what gradients have brought as far as they can is not soon given back to them
        self.tries = options.max_steps if plain else _TRIES
        self.parts = parts if self.many is None else self.many.parts
        probe = starts.nodes[:, ::16].flatten(0, 1)
        probe = probe[torch.isfinite(probe).all(1)][:512]
        self.energy = CurveEnergy(self.parts, probe, options.memory_limit, plain=plain)
        self.ends = self._ask_ends(starts)

    def _ask_ends(self, starts: StartCurves) -> Tensor | None:
        embedding = self.parts.embedding
        if embedding is None or self.many is not None:
            return None
        count = int(starts.pair.max()) + 1
        if 4 * 16 * count * (1 + self.dim) * embedding.output_dim > self.options.memory_limit:
            return None
        points = starts.nodes.new_zeros(count, 2, self.dim)
        points[starts.pair] = starts.nodes[:, [0, -1]]
        return self.energy.ends(points)

    @property
    def learnt(self) -> tuple[int, ...]:
        """The shape of what is learnt of the Hessian at a node: nothing where there are gradients alone."""
        return (self.dim, self.dim) if self.many is None else (0,)

    def relax(self, begun: Begun, tol: float) -> tuple[Relaxed, Tensor]:
        """Curves relaxed, those of a pair that come together marked; and which Newton steps did not bring on (P,)."""
        spans = begun.knots.shape[1] - 1
        # a curve that is slow here goes on with more nodes, where its like are still in the batch; in many dimensions
        # steps with few nodes are cheap beside the Jacobians of many
        few = _STEPS_IN_FEW if self.dim <= FEW else _STEPS_A_COARSE_LEVEL
        most = _STEPS_A_LEVEL if spans > MOST_COARSE else few
        last = 2 * spans > self.options.max_spans
        steps = self.options.max_steps if last else min(most, self.options.max_steps)
        if self.many is not None:
            return self.many.relax(begun.nodes, begun.knots, begun.pair, tol, steps), begun.stubborn
        if self.rest is None:
            return self._by_newton(begun, tol, steps, doubles=True), begun.stubborn
        relaxed, stubborn = self._newton_first(begun, tol, steps, self.rest)
        self.rest.mark_doubles(relaxed, begun.knots, couples_of(begun.pair))
        return relaxed, stubborn

    def _newton_first(self, begun: Begun, tol: float, steps: int, rest: ManyDimensions) -> tuple[Relaxed, Tensor]:
        """By Newton steps, and by ``rest`` what they do not bring on."""
        nodes, knots, stubborn = begun.nodes, begun.knots, begun.stubborn
        pieces, order, spent = [], [], torch.zeros(2, len(nodes), dtype=torch.long, device=nodes.device)
        easy = (~stubborn).nonzero().flatten()
        if len(easy):
            found = self._by_newton(begun.take(easy), tol, min(steps, self.tries), doubles=False)
            late = found.status == _LATE
            found.image = None if found.image is None else found.image.only_nodes()
            if len(easy) == len(nodes) and not bool(late.any()):
                return found, stubborn
            pieces, order = [found.take(~late)], [easy[~late]]
            nodes, stubborn = nodes.index_copy(0, easy, found.nodes), stubborn.index_copy(0, easy, late)
            spent[:, easy] = torch.stack([found.steps, found.evaluations])
        rows = stubborn.nonzero().flatten()
        if len(rows):
            other = rest.relax(nodes[rows], knots[rows], begun.pair[rows], tol, steps)
            other.secant = torch.zeros_like(other.nodes[:, 1:-1, :, None]).expand(-1, -1, -1, self.dim)
            # nothing is known of the image of these, and nobody asks
            other.image = Image(torch.zeros_like(other.nodes[..., None]).expand(-1, -1, -1, self.dim))
            other.steps += spent[0, rows]
            other.evaluations += spent[1, rows]
            pieces, order = [*pieces, other], [*order, rows]
        return Relaxed.join(pieces).take(torch.cat(order).argsort()), stubborn

    def _by_newton(self, begun: Begun, tol: float, steps: int, *, doubles: bool) -> Relaxed:
        """As many curves at once as the memory limit lets."""

        def relaxed(rows: Tensor) -> Relaxed:
            some = begun.take(rows)
            return relax(
                self.energy,
                some.nodes,
                some.knots,
                tol=tol,
                max_steps=steps,
                rate=some.rate,
                secant=some.secant,
                pair=some.pair if doubles else None,
                ends=None if self.ends is None else self.ends.index_select(0, some.pair),
            )

        return in_blocks(begun.pair, self.energy.at_once(begun.nodes.shape[1], self.dim), relaxed)
