"""What a relaxation leaves known of its curves' image under an embedding: how fast it runs, without asking again.

A span's image has a chord, and tangents at both ends.  A circle that has this chord and turns by the angle between
the tangents is as long as the span's image but for the fourth power of the spacing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Batch
from .spline import Spline


@dataclass
class Image(Batch):
    """Of P curves of n spans.

    Attributes:
        squares: ``J_FᵀJ_F`` at the nodes (P, n+1, d, d).
        across: ``J_Fᵀ`` at a node times ``J_F`` at the next (P, n, d, d), where it is kept.
        chords: ``‖F_{k+1} - F_k‖²`` (P, n), where it is kept.
    """

    squares: Tensor
    across: Tensor | None = None
    chords: Tensor | None = None

    @property
    def whole(self) -> bool:
        """Whether it tells of what is between the nodes."""
        return self.across is not None and self.chords is not None

    def only_nodes(self) -> Image:
        """The same without what is between the nodes."""
        return Image(self.squares)

    def at_nodes(self, spline: Spline) -> Tensor:
        """Squared speeds of the image of ``spline`` at its nodes (P, n+1)."""
        return torch.einsum("pki,pkij,pkj->pk", spline.slopes, self.squares, spline.slopes)

    def in_the_middle(self, spline: Spline, at_nodes: Tensor) -> Tensor:
        """Squared speeds in the middle of every span (P, n), with which Simpson's rule has the length of the arc.

        ``at_nodes`` are :meth:`at_nodes` of ``spline``.
        """
        assert self.across is not None and self.chords is not None
        slopes, speeds = spline.slopes, at_nodes.clamp_min(0).sqrt()
        left, right = speeds[:, :-1], speeds[:, 1:]
        product = torch.einsum("pki,pkij,pkj->pk", slopes[:, :-1], self.across, slopes[:, 1:])
        angle = (product / (left * right)).nan_to_num(nan=1.0).clamp(-1, 1).acos()
        arc = self.chords.sqrt() / torch.sinc(angle / (2 * math.pi))
        return ((6 * arc / spline.knots.diff(dim=1) - left - right) / 4).clamp_min(0).square()
