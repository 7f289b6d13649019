"""What discrete curves keep while their nodes move: their time steps, with all that these decide, and their ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..smooth_map import SmoothMap
from .batch import Batch
from .elements import Places, Stiffness, couplings, places, stiffness


@dataclass
class Frame(Batch):
    """Of P curves of n spans.

    Attributes:
        h: time steps (P, n).
        form: of the elements' chords.
        diagonal, near, far: twice what the squares of an embedding's Jacobians at the inner nodes, and their products
            at neighbours and at ends of elements, count in the model: (P, n-1, 1, 1), (P, n-2, 1, 1), (P, n/2-2, 1, 1).
        where: quadrature points, where there is a weight or a field.
        coupled: :func:`~.elements.couplings` of these.
        ends: ``F`` and ``J_Fᵀ`` at the two ends, side by side (P, 2, 1 + d, D), where there is an embedding.
        squares: ``J_FᵀJ_F`` at the two ends (P, 2, d, d).
    """

    h: Tensor
    form: Stiffness
    diagonal: Tensor
    near: Tensor
    far: Tensor
    where: Places | None = None
    coupled: Tensor | None = None
    ends: Tensor | None = None
    squares: Tensor | None = None


def frame(h: Tensor, *, quadrature: bool, dense: bool) -> Frame:
    """From the time steps (P, n) alone; ``dense`` as in :func:`~.elements.places`."""
    form = stiffness(h)
    diagonal, near, far = (2 * part[:, 1:-1, None, None] for part in form.coefficients())
    where = places(h, dense=dense) if quadrature else None
    return Frame(h, form, diagonal, near, far, where, None if where is None else couplings(where))


def set_ends(out: Frame, embedding: SmoothMap, nodes: Tensor) -> None:
    """Ask an embedding about the ends of ``nodes`` (P, n+1, d), given in the precision that it computes in."""
    values, jacobians = embedding.value_and_jacobian(nodes[:, [0, -1]].flatten(0, 1))
    out.ends = torch.cat([values[:, None], jacobians.mT], dim=1).view(len(nodes), 2, 1 + nodes.shape[2], -1)
    tips = out.ends[:, :, 1:].double()
    out.squares = tips @ tips.mT
