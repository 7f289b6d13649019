"""What is known of curves at their present nodes, from which the next step is made."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..curves.batch import Batch
from ..curves.elements import Model
from ..curves.image import Image


@dataclass
class Linearisation(Batch):
    """All that is kept about P curves of n spans at their present nodes.

    Attributes:
        nodes: (P, n+1, d).
        energy: (P,).
        gradient: with respect to the inner nodes (P, n-1, d).
        convex: the Gauss-Newton model, positive semi-definite.
        rest: what the first derivatives at hand tell of the rest of the Hessian; indefinite.
        image: of an embedding, at the nodes and between.
        jacobians: ``J_Fᵀ`` at the inner nodes (P, n-1, d, D), in single precision: they serve the secant only, and
            are kept where there is one.
        pull: ``J_Fᵀ b``, ``b`` half the energy's derivative by ``F``, at the inner nodes (P, n-1, d).
        pull_before: the same ``b`` under the Jacobians of the nodes before (P, n-1, d).
        grain: rounding error of the energy that comes from the precision of ``F`` (P,).
    """

    nodes: Tensor
    energy: Tensor
    gradient: Tensor
    convex: Model
    rest: Model
    image: Image | None = None
    jacobians: Tensor | None = None
    pull: Tensor | None = None
    pull_before: Tensor | None = None
    grain: Tensor | None = None
