"""Curves across kinks of a decoder judged once more by the metric alone: what the last steps taught may be a kink.

A step across a kink changes the Jacobian at once, however short it was, and a model of the energy that has learnt this
is so stiff that every slope looks like none.  The Gauss-Newton model has learnt nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..metric import MetricParts
from .energy import CurveEnergy
from .linear import solve_model
from .refinement import Refined
from .relaxation import STATUSES
from .routes import MOST_COARSE
from .status import Status

#: dimensions beyond which Jacobians at every node are more than the curve itself has cost
_MOST_DIM = 32
#: what is added to the model where it is nearly singular, as a share of its own blocks
_LITTLE = 1e-9

_CONVERGED, _UNRESOLVED = STATUSES.index(Status.CONVERGED), STATUSES.index(Status.UNRESOLVED)


def admit_slopes(parts: MetricParts, found: Refined, rtol: float, memory_limit: int) -> None:
    """Add to the errors of curves ``found`` across kinks what a Gauss-Newton step still promises to gain.

    Those for which that is more than ``rtol`` are ``UNRESOLVED``.  A residual ``r`` is a share of ``r² / 2`` of the
    energy, and half of that of the length.
    """
    facts = found.facts
    dim = found.spline.nodes.shape[2]
    # a curve with few kinks may look smooth, but has taken many spans to say so
    suspect = (found.rough | (facts.spans > MOST_COARSE)) & torch.isfinite(facts.length) & (facts.length > 0)
    rows = suspect.nonzero().flatten()
    if parts.embedding is None or dim > _MOST_DIM or len(rows) == 0:
        return
    energy = CurveEnergy(parts, found.spline.nodes[rows, ::16].flatten(0, 1)[:512], memory_limit)
    for spans in facts.spans[rows].unique().tolist():
        some = rows[facts.spans[rows] == spans]
        for part in some.split(energy.at_once(spans + 1, dim)):
            found.evaluations[part] += spans + 1
            knots, nodes = found.spline.knots[part, : spans + 1], found.spline.nodes[part, : spans + 1]
            residual = _residuals(energy, nodes, knots)
            gain, error = residual.square() / 4 * facts.length[part], facts.length_error[part]
            still = gain <= rtol * facts.length[part]
            facts.length_error[part] = torch.where(still, error.maximum(gain), error + gain)
            facts.residual[part] = facts.residual[part].maximum(residual)
            facts.status[part[~still & (facts.status[part] == _CONVERGED)]] = _UNRESOLVED


def _residuals(energy: CurveEnergy, nodes: Tensor, knots: Tensor) -> Tensor:
    """``sqrt(gᵀ H⁻¹ g / E)`` with the Gauss-Newton model (P,) of curves (P, n+1, d); 0 where there is no model."""
    here = energy.linearise(nodes.contiguous(), energy.frame(nodes, knots.diff(dim=1)))
    here.convex.diagonal += _LITTLE * torch.diag_embed(here.convex.diagonal.diagonal(dim1=-2, dim2=-1))
    step, known = solve_model(here.convex, here.gradient)
    square = (step * here.gradient).sum((1, 2)) / here.energy.clamp_min(1e-300)
    return torch.where(known, square.clamp_min(0), 0.0).sqrt()
