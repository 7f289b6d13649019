"""The decoder's own eigenvalues where calibration needs them: on the data, and in the void around them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import FitError
from ..smooth_map import SmoothMap, gram
from ..support import Support

#: offsets at which the void is sampled
VOID_OFFSETS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1000.0)
_JACOBIAN_BUDGET = 5e8


@dataclass(frozen=True)
class Measured:
    """Eigenvalues of the decoder's own metric on held-out latents and in the void.

    Attributes:
        data, void: ascending eigenvalues, (n, d) and (shells, n, d).
        data_points, void_points: where, (n, d) and (shells, n, d).
        support_points: training latents and gaps (n, d) whose eigenvalues ``support`` also set the floor.
        training_count: how many of them are training latents; those come first.
        spacing: the 95th percentile of held-out distances to the nearest training latent, in data radii.
    """

    data: Tensor
    data_points: Tensor
    support: Tensor
    support_points: Tensor
    training_count: int
    void: Tensor
    void_points: Tensor
    spacing: float

    @property
    def costliest(self) -> float:
        """95th percentile of the largest eigenvalue on held-out data."""
        return float(torch.quantile(self.data[:, -1], 0.95))


def measure(decoder: SmoothMap, support: Support, *, seed: int = 0) -> Measured:
    """Eigenvalues of ``JᵀJ`` at points whose number a budget of Jacobian entries bounds."""
    dim = support.dim
    most = int(min(max(_JACOBIAN_BUDGET / (dim * decoder.output_dim), 64), 1000))
    each = max(most // len(VOID_OFFSETS), 24)
    data = support.calibration[:most]
    # the floor must also hold in the gaps between clusters, where the gate may still be shut
    training = torch.cat([support.training[:most], support.gaps(most // 4, seed=seed)])
    void = torch.stack(
        [support.shell(offset, each, seed=seed + 1 + index) for index, offset in enumerate(VOID_OFFSETS)]
    )
    void_values = decoder_eigenvalues(decoder, void.flatten(0, 1)).reshape(len(VOID_OFFSETS), each, dim)
    return Measured(
        data=decoder_eigenvalues(decoder, data),
        data_points=data,
        support=decoder_eigenvalues(decoder, training),
        support_points=training,
        training_count=min(most, len(support.training)),
        void=void_values,
        void_points=void,
        spacing=support.spread / support.radius,
    )


def decoder_eigenvalues(decoder: SmoothMap, points: Tensor) -> Tensor:
    """Ascending eigenvalues (B, d) of ``J(z)ᵀ J(z)``.

    Raises:
        FitError: the Jacobian is not finite at a point.
    """
    found = gram(decoder, points)
    bad = ~torch.isfinite(found).flatten(1).all(1)
    if bool(bad.any()):
        raise FitError(
            "the decoder's Jacobian must be finite on and around the latents; it is NaN or infinite at "
            f"{int(bad.sum())} of {len(points)} points tried. Look for sqrt, log or division in the decoder, "
            "or wrap it in float64."
        )
    return torch.linalg.eigvalsh(found).clamp_min(0)
