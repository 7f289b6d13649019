"""The decoder's own eigenvalues where calibration needs them: on the data, and in the void around them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._arrays import listed
from ..errors import DecoderError, FitError
from ..smooth_map import SmoothMap
from ..support import Support
from .scales import mismatch
from .spectra import Spectra, spectra

#: offsets at which the void is sampled
VOID_OFFSETS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1000.0)
#: the offset up to which nothing is given up: the inflation is in full force from there on
_FULL = 1.0
#: by how much the decoder's largest eigenvalue in the void may exceed that on the data. To keep κ(J) in bounds the wall
#: must be as steep as the decoder is, and an exponential would make it 1e25 and more all around the data
_STEEPEST = 1e8
#: held-out latents, and points of a shell, that an audit looks at unless it is told otherwise
AUDITED = 200
_JACOBIAN_BUDGET = 5e8
#: entries of the matrices at the points of one kind, whose eigenvalues cost d times as much; reached from d = 182 on
_MATRIX_BUDGET = 2**25
#: points of one kind, whatever the budgets say
_FEWEST, _MOST = 64, 1000
#: how many more points than of the others there are of the first shell
_MORE = 3
#: entries of matrices that are kept, of each kind of points
_KEPT_ENTRIES = 2**23


@dataclass(frozen=True)
class Measured:
    """Eigenvalues of the decoder's own metric on held-out latents and in the void.

    Attributes:
        offsets: of the shells: those of ``VOID_OFFSETS`` that the repair can be held to, which are the first so many.
        beyond: what the decoder does farther out, if these are not all; otherwise empty.
        data, void: ascending eigenvalues, (n, d) and (shells, n, d).
        data_points, void_points: where, (n, d) and (shells, n, d).
        data_grams, training_grams, void_grams: the metric itself at the first of these points, of the training latents
            and of each shell's points, (m, d, d) and (shells, m, d, d); in many dimensions not at all of them.
        scored_count: how many latents of a kind are scored at most: as many as are measured, or more where there are so
            many dimensions that few are measured.
        scored_points: calibration latents, (n, d); the first of them are ``data_points``.
        support_points: training latents and gaps (n, d) whose eigenvalues ``support`` also set the floor.
        training_count: how many of them are training latents; those come first.
        more, more_points, more_grams: eigenvalues, places and matrices of more points of the first shell, (n, d),
            (n, d) and (m, d, d).
        audited: how many latents an audit will judge by.
        spacing: the 95th percentile of held-out distances to the nearest training latent, in data radii.
        scales: the held-out latents' standard deviation along each axis, (d,).
        mismatch: how ill these suit the decoder; see :func:`~posthoc_metric.uncertainty.scales.mismatch`.
    """

    offsets: tuple[float, ...]
    beyond: str
    data: Tensor
    data_points: Tensor
    data_grams: Tensor
    scored_count: int
    scored_points: Tensor
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
        return _costliest(self.data)


def measure(decoder: SmoothMap, support: Support, *, seed: int = 0) -> Measured:
    """Eigenvalues of ``JᵀJ`` at points whose number a budget of Jacobian entries bounds.

    Raises:
        DecoderError: the derivative is not finite at some of the latents; ``rows`` are the caller's.
        FitError: it is finite there, but not between or around them.
    """
    dim = support.dim
    budget = min(_JACOBIAN_BUDGET / (dim * decoder.output_dim), _MATRIX_BUDGET / dim**2)
    most = int(min(max(budget, _FEWEST), _MOST))
    each = max(most // len(VOID_OFFSETS), 24)
    kept = _KEPT_ENTRIES // dim**2 + 1
    # a score costs no Jacobian, and a quantile of few scores is a guess
    scored = _MOST if _MOST * dim**2 > _MATRIX_BUDGET else most
    points, training = support.calibration[:most], support.training[:most]
    data = _on_latents(decoder, points, support.calibration_rows, kept)
    known = _on_latents(decoder, training, support.training_rows, kept)
    # the floor must also hold in the gaps between clusters, where the gate may still be shut
    gaps = support.gaps(most // 4, seed=seed)
    between = spectra(decoder, gaps, _first(0, len(gaps), gaps))
    if bool(between.bad.any()):
        raise _off_the_data(f"at {int(between.bad.sum())} of {len(gaps)} midpoints between latents")
    shells = [support.shell(offset, each, seed=seed + 1 + index) for index, offset in enumerate(VOID_OFFSETS)]
    # the addition climbs there from nothing to more than all else, so that a median of few points is a guess
    more = support.shell(VOID_OFFSETS[0], _MORE * most // len(VOID_OFFSETS), seed=seed + 1 + len(VOID_OFFSETS))
    held = _first(kept // len(VOID_OFFSETS) + 1, each, points).repeat(len(VOID_OFFSETS))
    around = spectra(decoder, torch.cat([*shells, more]), torch.cat([held, _first(kept, len(more), more)]))
    bad, more_bad = around.bad.split([len(held), len(more)])
    walls, more_values = around.values.split([len(held), len(more)])
    walls, bad = walls.view(len(shells), each, dim), bad.view(len(shells), each)
    if bool(more_bad.any()):
        raise _off_the_data(_where(more_bad, VOID_OFFSETS[0], support.radius))
    reach, beyond = _reach(walls, bad, _costliest(data.values), support.radius)
    grams, more_grams = around.grams.split([int(held.sum()), len(around.grams) - int(held.sum())])
    scales = support.calibration.std(0, correction=0)
    return Measured(
        offsets=VOID_OFFSETS[:reach],
        beyond=beyond,
        data=data.values,
        data_points=points,
        data_grams=data.grams,
        scored_count=scored,
        scored_points=support.calibration[:scored],
        support=torch.cat([known.values, between.values]),
        support_points=torch.cat([training, gaps]),
        training_count=len(training),
        training_grams=known.grams,
        void=walls[:reach],
        void_points=torch.stack(shells[:reach]),
        void_grams=grams.view(len(shells), -1, dim, dim)[:reach],
        more=more_values,
        more_points=more,
        more_grams=more_grams,
        audited=min(len(support.audit), AUDITED),
        spacing=support.spread / support.radius,
        scales=scales,
        mismatch=mismatch(data.grams, scales),
    )


def _on_latents(decoder: SmoothMap, points: Tensor, rows: Tensor, kept: int) -> Spectra:
    """At latents (n, d), of which ``rows`` (n or more,) says where the caller has them; the first ``kept`` in full."""
    found = spectra(decoder, points, _first(kept, len(points), points))
    if bool(found.bad.any()):
        named = rows[: len(points)][found.bad].sort().values.tolist()
        raise DecoderError(
            f"the decoder's output and derivative must be finite at the latents; {listed(named)} of `latents` "
            f"give{'s' if len(named) == 1 else ''} NaN or infinity. Leave those latents out, or look for sqrt, log or "
            "division in the decoder and add an epsilon inside.",
            rows=tuple(named),
        )
    return found


def _costliest(values: Tensor) -> float:
    """95th percentile of the largest of eigenvalues (n, d)."""
    return float(torch.quantile(values[:, -1], 0.95))


def _reach(walls: Tensor, bad: Tensor, costliest: float, radius: float) -> tuple[int, str]:
    """How many shells a repair can be held to, and what the decoder does at the first of the others.

    Args:
        walls: eigenvalues on all shells, (shells, n, d).
        bad: where they are not finite, (shells, n).
        costliest: the largest eigenvalue on the data.
        radius: of the data.
    """
    for index, (offset, values, failed) in enumerate(zip(VOID_OFFSETS, walls, bad, strict=True)):
        if bool(failed.any()):
            where = _where(failed, offset, radius)
            if offset <= _FULL:
                raise _off_the_data(where)
            return index, f"its output or derivative is NaN or infinite {where}"
        steep = _costliest(values) / max(costliest, 1e-300)
        if offset > _FULL and steep > _STEEPEST:
            away = f"{offset:g} data radii (of {radius:.3g}) away from the latents"
            return index, f"a step costs up to {steep**0.5:.1g} times as much {away} as on them"
    return len(VOID_OFFSETS), ""


def _where(bad: Tensor, offset: float, radius: float) -> str:
    tried = f"{int(bad.sum())} of {len(bad)} points tried"
    return f"at {tried} {offset:g} data radii (of {radius:.3g}) away from the latents"


def _first(some: int, count: int, like: Tensor) -> Tensor:
    """A mask (count,) of the first few."""
    return torch.arange(count, device=like.device) < some


def _off_the_data(where: str) -> FitError:
    return FitError(
        "the decoder's output and derivative must be finite around the latents too, where the repair takes over; they "
        f"are NaN or infinite {where}. If there is sqrt, log or a division in the decoder, add an epsilon inside, as "
        "in `torch.sqrt(p + 1e-6)`, or leave that last step out, as an exp that overflows; or clamp the latents before "
        "they are decoded, as in `lambda z: model(z.clamp(-10, 10))` with bounds beyond your latents."
    )
