"""The decoder's own eigenvalues where calibration needs them: on the data, and in the void around them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._arrays import listed
from ..errors import DecoderError, FitError
from ..smooth_map import SmoothMap, gram
from ..support import Support
from .scales import mismatch

#: offsets at which the void is sampled
VOID_OFFSETS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1000.0)
#: held-out latents, and points of a shell, that an audit looks at unless it is told otherwise
AUDITED = 200
_JACOBIAN_BUDGET = 5e8
#: how many more points than of the others there are of the first shell
_MORE = 3
#: entries of matrices that are kept, of each kind of points
_KEPT_ENTRIES = 2**23


@dataclass(frozen=True)
class Measured:
    """Eigenvalues of the decoder's own metric on held-out latents and in the void.

    Attributes:
        data, void: ascending eigenvalues, (n, d) and (shells, n, d).
        data_points, void_points: where, (n, d) and (shells, n, d).
        data_grams, training_grams, void_grams: the metric itself at the first of these points, of the training latents
            and of each shell's points, (m, d, d) and (shells, m, d, d); in many dimensions not at all of them.
        support_points: training latents and gaps (n, d) whose eigenvalues ``support`` also set the floor.
        training_count: how many of them are training latents; those come first.
        more, more_points, more_grams: eigenvalues, places and matrices of more points of the first shell, (n, d),
            (n, d) and (m, d, d).
        audited: how many latents an audit will judge by.
        spacing: the 95th percentile of held-out distances to the nearest training latent, in data radii.
        scales: the held-out latents' standard deviation along each axis, (d,).
        mismatch: how ill these suit the decoder; see :func:`~posthoc_metric.uncertainty.scales.mismatch`.
    """

    data: Tensor
    data_points: Tensor
    data_grams: Tensor
    support: Tensor
    support_points: Tensor
    training_count: int
    training_grams: Tensor
    void: Tensor
    void_points: Tensor
    void_grams: Tensor
    more: Tensor
    more_points: Tensor
    more_grams: Tensor
    audited: int
    spacing: float
    scales: Tensor
    mismatch: float

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
    data_grams = _on_latents(decoder, data, support.calibration_rows)
    training_grams = _on_latents(decoder, training, support.training_rows)
    training_values = _eigenvalues(training_grams)
    # the floor must also hold in the gaps between clusters, where the gate may still be shut
    gaps = support.gaps(most // 4, seed=seed)
    gap_grams, bad = _grams(decoder, gaps)
    if bool(bad.any()):
        raise _off_the_data(f"at {int(bad.sum())} of {len(gaps)} midpoints between latents")
    shells = [support.shell(offset, each, seed=seed + 1 + index) for index, offset in enumerate(VOID_OFFSETS)]
    # the addition climbs there from nothing to more than all else, so that a median of few points is a guess
    more = support.shell(VOID_OFFSETS[0], _MORE * most // len(VOID_OFFSETS), seed=seed + 1 + len(VOID_OFFSETS))
    *void_grams, more_grams = _around(decoder, [*shells, more], (*VOID_OFFSETS, VOID_OFFSETS[0]), support.radius)
    scales = support.calibration.std(0, correction=0)
    kept = _KEPT_ENTRIES // dim**2 + 1
    grams = torch.stack(void_grams)
    # copies, so that what is not kept is not held either
    return Measured(
        data=_eigenvalues(data_grams),
        data_points=data,
        data_grams=data_grams[:kept].clone(),
        support=torch.cat([training_values, _eigenvalues(gap_grams)]),
        support_points=torch.cat([training, gaps]),
        training_count=len(training),
        training_grams=training_grams[:kept].clone(),
        void=_eigenvalues(grams.flatten(0, 1)).view(len(VOID_OFFSETS), each, dim),
        void_points=torch.stack(shells),
        void_grams=grams[:, : kept // len(VOID_OFFSETS) + 1].clone(),
        more=_eigenvalues(more_grams),
        more_points=more,
        more_grams=more_grams[:kept].clone(),
        audited=min(len(support.audit), AUDITED),
        spacing=support.spread / support.radius,
        scales=scales,
        mismatch=mismatch(data_grams, scales),
    )


def _on_latents(decoder: SmoothMap, points: Tensor, rows: Tensor) -> Tensor:
    """``JᵀJ`` (B, d, d) at latents, of which ``rows`` (B or more,) says where the caller has them."""
    found, bad = _grams(decoder, points)
    if bool(bad.any()):
        named = rows[: len(points)][bad].sort().values.tolist()
        raise DecoderError(
            f"the decoder's output and derivative must be finite at the latents; {listed(named)} of `latents` "
            f"give{'s' if len(named) == 1 else ''} NaN or infinity. Leave those latents out, or look for sqrt, log or "
            "division in the decoder and add an epsilon inside.",
            rows=tuple(named),
        )
    return found


def _around(decoder: SmoothMap, shells: list[Tensor], offsets: tuple[float, ...], radius: float) -> tuple[Tensor, ...]:
    """``JᵀJ`` (n, d, d) at each shell's points (n, d)."""
    counts = [len(points) for points in shells]
    found, bad = _grams(decoder, torch.cat(shells))
    for offset, there in zip(offsets, bad.split(counts), strict=True):
        if bool(there.any()):
            raise _off_the_data(
                f"at {int(there.sum())} of {len(there)} points tried {offset:g} data radii (of {radius:.3g}) away from "
                "the latents"
            )
    return found.split(counts)


def _off_the_data(where: str) -> FitError:
    return FitError(
        "the decoder's output and derivative must be finite around the latents too, where the repair takes over; they "
        f"are NaN or infinite {where}. If there is sqrt, log or a division in the decoder, add an epsilon inside, as "
        "in `torch.sqrt(p + 1e-6)`, or leave that last step out; or clamp the latents before they are decoded, as in "
        "`lambda z: model(z.clamp(-10, 10))` with bounds beyond your latents."
    )


def _eigenvalues(grams: Tensor) -> Tensor:
    """Ascending, (B, d) of (B, d, d)."""
    return torch.linalg.eigvalsh(grams).clamp_min(0)


def _grams(decoder: SmoothMap, points: Tensor) -> tuple[Tensor, Tensor]:
    """``J(z)ᵀ J(z)`` (B, d, d), and the mask (B,) of those points where it is not finite."""
    try:
        found = gram(decoder, points)
    except DecoderError as error:
        if not error.rows:
            raise
        # the rows are those of a chunk, the first that failed: one by one they are all found
        found = torch.cat([_gram_or_nan(decoder, point) for point in points.split(1)])
    return found, ~torch.isfinite(found).flatten(1).all(1)


def _gram_or_nan(decoder: SmoothMap, point: Tensor) -> Tensor:
    try:
        return gram(decoder, point)
    except DecoderError as error:
        if not error.rows:
            raise
        return point.new_full((1, point.shape[1], point.shape[1]), torch.nan)
