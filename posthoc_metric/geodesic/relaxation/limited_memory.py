"""What the last steps tell of the inverse Hessian, in the compact form of Byrd, Nocedal & Schnabel (1994).

With steps ``S``, changes of the gradient ``Y``, an approximate inverse ``P⁻¹`` in scale ``γ``, ``Z = P⁻¹ Y``, and ``R``
the upper triangle of ``SᵀY`` and ``D`` its diagonal,

    H g = γ P⁻¹ g + S c - γ Z a,   R a = Sᵀ g,   Rᵀ c = D a - γ (Zᵀ g - YᵀZ a).

These are the directions of the two-loop recursion (Nocedal 1980), but what is remembered is read twice a step, in
products of matrices, rather than four times in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..curves.batch import Batch


@dataclass
class Memory(Batch):
    """Of P curves with k coordinates, the last m steps each; one that was not taken leaves its slot empty.

    Attributes:
        rows: ``S``, then ``Z``, one step a row (P, 2 m, k).
        crossed: ``s_i · y_j`` where step i is no later than step j (P, m, m).
        bent: ``y_i · z_j`` (P, m, m).
        scale: ``γ`` (P,).
    """

    rows: Tensor
    crossed: Tensor
    bent: Tensor
    scale: Tensor

    @staticmethod
    def empty(like: Tensor, size: int) -> Memory:
        """Of m = ``size`` steps of curves (P, k)."""
        count, width = like.shape
        small = like.new_zeros(count, size, size)
        return Memory(like.new_zeros(count, 2 * size, width), small, small.clone(), like.new_ones(count))

    def enter(
        self, number: int, step: Tensor, bend: Tensor, turned: Tensor, gradient: Tensor, solved: Tensor
    ) -> Tensor:
        """Remember step ``number``, and find ``H g`` (P, k) after it.

        Args:
            step, bend, turned: the step, how it changed the gradient, and ``P⁻¹`` times that, (P, k) each; all zero
                where it was not taken.
            gradient, solved: ``g`` and ``P⁻¹ g`` (P, k).
        """
        size = self.crossed.shape[1]
        slot = number % size
        self.rows[:, slot], self.rows[:, size + slot] = step, turned
        here, by_bend = _dots(self.rows, torch.stack([gradient, bend], dim=1)).unbind(1)
        self.crossed[:, :, slot] = by_bend[:, :size]
        self.bent[:, :, slot] = self.bent[:, slot] = by_bend[:, size:]
        curved, own = by_bend[:, slot], by_bend[:, size + slot]
        self.scale = torch.where(curved > 0, (curved / own.clamp_min(1e-300)).clamp(0.05, 20.0), self.scale)
        # from the earliest step to the last
        order = torch.arange(number + 1, number + 1 + size, device=gradient.device) % size
        along, across = here[:, order], here[:, size + order]
        crossed, bent = (square[:, order][:, :, order] for square in (self.crossed, self.bent))
        diagonal = crossed.diagonal(dim1=1, dim2=2)
        upper = crossed.triu() + torch.diag_embed((diagonal == 0).to(crossed))
        share = torch.linalg.solve_triangular(upper, along[..., None], upper=True)[..., 0]
        scale = self.scale[:, None]
        right = diagonal * share - scale * (across - (bent * share[:, None]).sum(2))
        back = torch.linalg.solve_triangular(upper.mT, right[..., None], upper=False)[..., 0]
        shares = torch.empty_like(here)
        shares[:, order], shares[:, size + order] = back, -scale * share
        return scale * solved + _sums(self.rows, shares)


def _dots(rows: Tensor, vectors: Tensor) -> Tensor:
    """Of rows (P, n, k) with vectors (P, 2, k): (P, 2, n), each curve by itself: in a batch sums have another order."""
    if rows.device.type != "cpu":
        return vectors @ rows.mT
    return torch.stack([some @ one.mT for one, some in zip(rows, vectors, strict=True)])


def _sums(rows: Tensor, shares: Tensor) -> Tensor:
    """Sums (P, k) of rows (P, n, k) in shares (P, n), each curve by itself."""
    if rows.device.type != "cpu":
        return (rows.mT @ shares[..., None])[..., 0]
    return torch.stack([one.mT @ share for one, share in zip(rows, shares, strict=True)])
