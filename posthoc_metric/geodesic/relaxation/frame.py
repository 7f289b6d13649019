"""What discrete curves keep while their nodes move: their time steps, with all that these decide, and their ends."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..curves.batch import Batch
from ..curves.elements import Places, Stiffness, couplings, places, stiffness


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
        ends: ``F`` and ``J_Fᵀ`` at the two ends of an embedding, side by side (P, 2, 1 + d, D), where they are kept.
        squares: ``J_FᵀJ_F`` at the two ends of an embedding (P, 2, d, d).
        size: ``‖F‖`` at the first end (P,), where ``ends`` are kept.
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
    size: Tensor | None = None

    @staticmethod
    def of(
        h: Tensor, *, quadrature: bool, dense: bool, ends: Tensor | None = None, squares: Tensor | None = None
    ) -> Frame:
        """From the time steps (P, n), n even; ``dense`` as in :func:`~.elements.places`."""
        form = stiffness(h)
        diagonal, near, far = (2 * part[:, 1:-1, None, None] for part in form.coefficients())
        where = places(h, dense=dense) if quadrature else None
        coupled = None if where is None else couplings(where)
        size = None if ends is None else ends[:, 0, 0].norm(dim=-1).double()
        return Frame(h, form, diagonal, near, far, where, coupled, ends, squares, size)
