"""The decoder's own eigenvalues where calibration needs them: on the data, and in the void around them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._arrays import listed
from ..errors import DecoderError, FitError
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
    """Eigenvalues of ``JᵀJ`` at points whose number a budget of Jacobian entries bounds.

    Raises:
        DecoderError: the derivative is not finite at some of the latents; ``rows`` are the caller's.
        FitError: it is finite there, but not between or around them.
    """
    dim = support.dim
    most = int(min(max(_JACOBIAN_BUDGET / (dim * decoder.output_dim), 64), 1000))
    each = max(most // len(VOID_OFFSETS), 24)
    data, training = support.calibration[:most], support.training[:most]
    data_values = _on_latents(decoder, data, support.calibration_rows)
    training_values = _on_latents(decoder, training, support.training_rows)
    # the floor must also hold in the gaps between clusters, where the gate may still be shut
    gaps = support.gaps(most // 4, seed=seed)
    gap_values, bad = _eigenvalues(decoder, gaps)
    if bool(bad.any()):
        raise _off_the_data(f"at {int(bad.sum())} of {len(gaps)} midpoints between latents")
    void = torch.stack(
        [support.shell(offset, each, seed=seed + 1 + index) for index, offset in enumerate(VOID_OFFSETS)]
    )
    void_values, bad = _eigenvalues(decoder, void.flatten(0, 1))
    if bool(bad.any()):
        counts = bad.view(len(VOID_OFFSETS), each).sum(1)
        nearest = int(torch.nonzero(counts)[0])
        raise _off_the_data(
            f"at {int(counts[nearest])} of {each} points tried {VOID_OFFSETS[nearest]:g} data radii "
            f"(of {support.radius:.3g}) away from the latents"
        )
    return Measured(
        data=data_values,
        data_points=data,
        support=torch.cat([training_values, gap_values]),
        support_points=torch.cat([training, gaps]),
        training_count=len(training),
        void=void_values.view(len(VOID_OFFSETS), each, dim),
        void_points=void,
        spacing=support.spread / support.radius,
    )


def _on_latents(decoder: SmoothMap, points: Tensor, rows: Tensor) -> Tensor:
    """Ascending eigenvalues (B, d) at latents, of which ``rows`` (B or more,) says where the caller has them."""
    values, bad = _eigenvalues(decoder, points)
    if bool(bad.any()):
        named = rows[: len(points)][bad].sort().values.tolist()
        raise DecoderError(
            f"the decoder's output and derivative must be finite at the latents; {listed(named)} of `latents` "
            f"give{'s' if len(named) == 1 else ''} NaN or infinity. Leave those latents out, or look for sqrt, log or "
            "division in the decoder and add an epsilon inside.",
            rows=tuple(named),
        )
    return values


def _off_the_data(where: str) -> FitError:
    return FitError(
        "the decoder's output and derivative must be finite around the latents too, where the repair takes over; they "
        f"are NaN or infinite {where}. If there is sqrt, log or a division in the decoder, add an epsilon inside, as "
        "in `torch.sqrt(p + 1e-6)`, or leave that last step out; or clamp the latents before they are decoded, as in "
        "`lambda z: model(z.clamp(-10, 10))` with bounds beyond your latents."
    )


def _eigenvalues(decoder: SmoothMap, points: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues (B, d) of ``J(z)ᵀ J(z)``, and the mask (B,) of those points where it is not finite."""
    try:
        found = gram(decoder, points)
    except DecoderError as error:
        if not error.rows:
            raise
        # the rows are those of a chunk, the first that failed: one by one they are all found
        found = torch.cat([_gram_or_nan(decoder, point) for point in points.split(1)])
    bad = ~torch.isfinite(found).flatten(1).all(1)
    if bool(bad.any()):
        return torch.zeros_like(points), bad
    return torch.linalg.eigvalsh(found).clamp_min(0), bad


def _gram_or_nan(decoder: SmoothMap, point: Tensor) -> Tensor:
    try:
        return gram(decoder, point)
    except DecoderError as error:
        if not error.rows:
            raise
        return point.new_full((1, point.shape[1], point.shape[1]), torch.nan)
