"""Curves judged once more by the metric alone, where what the steps have taught of the energy may be wrong.

A step across a kink changes the Jacobian at once, however short it was, and a model of the energy that has learnt this
is so stiff that every slope looks like none.  Where gradients alone brought a curve on for a long time, most of what
is left lies in directions that few steps went, of which the model has learnt too little.  The Gauss-Newton model has
learnt nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...metric import MetricParts
from ..curves.linear import solve_model
from ..options import RelaxationOptions
from ..relaxation.energy import CurveEnergy
from ..status import CODES, Status
from .refined import Refined
from .routes import FEW, MOST_COARSE

#: dimensions beyond which Jacobians at every node are more than the curve itself has cost
_MOST_DIM = 32
#: evaluations of a curve over what Jacobians at its nodes cost, from which on these do not weigh
_LONG = 2
#: what is added to the model where it is nearly singular, as a share of its own blocks
_LITTLE = 1e-9

_CONVERGED, _UNRESOLVED = CODES[Status.CONVERGED], CODES[Status.UNRESOLVED]


def admit_slopes(
    parts: MetricParts, found: Refined, options: RelaxationOptions, *, every: bool = False, but: Tensor | None = None
) -> Tensor:
    """Add to the errors of curves ``found``, where these may be wrong, what a Gauss-Newton step still promises to gain.

    Those for which that is more than is allowed are ``UNRESOLVED``.  A residual ``r`` is a share of ``r² / 2`` of the
    energy, and half of that of the length.

    Args:
        parts, found, options: of the relaxation.
        every: judge the others, too.
        but: mask (B,) of curves to leave out, which nodes at given times cannot judge.

    Returns:
        Which of the pairs (B,) were ``CONVERGED`` before.
    """
    facts = found.facts
    admitted = torch.zeros_like(found.rough)
    dim = found.spline.nodes.shape[2]
    # a curve with few kinks may look smooth, but has taken many spans to say so
    suspect = found.rough | (facts.spans > MOST_COARSE) | every
    if dim > FEW:
        suspect |= found.evaluations > _LONG * dim * (facts.spans + 1)
    if but is not None:
        suspect &= ~but
    rows = (suspect & torch.isfinite(facts.length) & (facts.length > 0)).nonzero().flatten()
    if dim > _MOST_DIM or len(rows) == 0:
        return admitted
    probe = found.spline.nodes[rows, ::16].flatten(0, 1)[:512]
    energy = CurveEnergy(parts, probe, options.memory_limit, plain=True)
    for spans in facts.spans[rows].unique().tolist():
        some = rows[facts.spans[rows] == spans]
        for part in some.split(energy.at_once(spans + 1, dim)):
            found.evaluations[part] += spans + 1
            knots, nodes = found.spline.knots[part, : spans + 1], found.spline.nodes[part, : spans + 1]
            residual = _residuals(energy, nodes, knots)
            gain, error = residual.square() / 4 * facts.length[part], facts.length_error[part]
            lenient = found.rough[part] | (spans >= MOST_COARSE)
            loose = max(options.rtol, options.rough_rtol) * facts.length[part]
            still = gain <= torch.where(lenient, loose, options.rtol * facts.length[part])
            facts.length_error[part] = torch.where(still, error.maximum(gain), error + gain)
            facts.residual[part] = facts.residual[part].maximum(residual)
            claimed = part[~still & (facts.status[part] == _CONVERGED)]
            facts.status[claimed], admitted[claimed] = _UNRESOLVED, True
    return admitted


def _residuals(energy: CurveEnergy, nodes: Tensor, knots: Tensor) -> Tensor:
    """``sqrt(gᵀ H⁻¹ g / E)`` with the Gauss-Newton model (P,) of curves (P, n+1, d); 0 where there is no model."""
    here = energy.linearise(nodes.contiguous(), energy.frame(nodes, knots.diff(dim=1)))
    here.convex.diagonal += _LITTLE * torch.diag_embed(here.convex.diagonal.diagonal(dim1=-2, dim2=-1))
    step, known = solve_model(here.convex, here.gradient)
    square = (step * here.gradient).sum((1, 2)) / here.energy.clamp_min(1e-300)
    return torch.where(known, square.clamp_min(0), 0.0).sqrt()
