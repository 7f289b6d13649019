"""Where a decoder is probed, and how long a step is short there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .call import Call
from .finite import best_difference
from .settle import ROWS, probe_latents

#: latents at which a derivative that is not finite somewhere is tried, and single outputs are watched for jumps
_MORE_ROWS = 64
#: scales of latents at which a decoder of unknown scale is tried, once standard normal ones turn out too far apart
_UNITS = tuple(10.0**-k for k in range(9))
#: finite differences of two lengths that differ by more than this say nothing
_ROUGHEST = 0.1
#: latents this many times wider or narrower than those probed at, or this many units away, are probed at anew
_FAR = 8.0
#: latents so many times as far out as half of them lie are left out of what sets a scale
_OUTLYING = 10.0


@dataclass(frozen=True)
class Place:
    """Latents to probe at.

    Attributes:
        few: (n, d), n ≤ 4, what the exam is sat at.
        wider: (n, d), n ≤ 64, others of the same kind and, where they were drawn, further out.
        others: (4, d), far from all of them.
        unit: the root mean square deviation of one coordinate: lengths of steps are counted in it.
        centre: (d,), their mean.
        drawn: whether they were drawn; else they are some of a caller's.
    """

    few: Tensor
    wider: Tensor
    others: Tensor
    unit: float
    centre: Tensor
    drawn: bool

    def holds(self, latents: Tensor) -> bool:
        """Whether ``latents`` (n, d) are of about the same size and place."""
        sample = _typical(latents)
        unit, centre = _unit(sample), sample.mean(dim=0).to(self.centre)
        apart = float((centre - self.centre).square().mean().sqrt())
        return self.unit / _FAR <= unit <= self.unit * _FAR and apart <= _FAR * self.unit


def standard(call: Call, latent_dim: int, unit: float = 1.0) -> Place:
    """Normal latents around zero, of deviation ``unit``."""
    spread = unit * torch.linspace(1.0, 3.0, _MORE_ROWS, dtype=torch.float64, device="cpu").to(call.device, call.dtype)
    return Place(
        few=unit * probe_latents(ROWS, latent_dim, call),
        wider=spread[:, None] * probe_latents(_MORE_ROWS, latent_dim, call, seed=5),
        others=3 * unit * probe_latents(ROWS, latent_dim, call, seed=2),
        unit=unit,
        centre=torch.zeros(latent_dim, dtype=torch.float64, device="cpu"),
        drawn=True,
    )


def given(call: Call, latents: Tensor) -> Place:
    """A caller's latents (n, d), those first at which the output is another than at most, if it is mostly one."""
    sample = _typical(latents)
    centre, unit = sample.double().mean(dim=0), _unit(sample)
    wider = _varied_first(call, sample.to(call.device, call.dtype))
    drawn = probe_latents(ROWS, latents.shape[1], call, seed=2).double()
    others = (centre.to(drawn) + 3 * unit * drawn).to(call.dtype)
    return Place(wider[:ROWS], wider, others, unit, centre.cpu(), drawn=False)


def _varied_first(call: Call, latents: Tensor) -> Tensor:
    """``latents`` (n, d) as they are where the output differs among the first few, which it mostly does."""
    with torch.no_grad():
        outputs = call(latents[:ROWS])
        if bool((outputs != outputs[:1]).any()):
            return latents
        other = torch.cat([(call(part) != outputs[:1]).flatten(1).any(1) for part in latents.split(ROWS)])
    return torch.cat([latents[other], latents[~other]])


def _typical(latents: Tensor) -> Tensor:
    """Some of the latents (N, d), without those so far out that one alone would set the scale of all steps."""
    sample = latents[:: max(1, len(latents) // _MORE_ROWS)][:_MORE_ROWS]
    points = sample.double()
    apart = (points - points.median(dim=0).values).norm(dim=1)
    near = apart <= _OUTLYING * apart.median()
    return sample[near] if bool(apart.median() > 0) else sample


def _unit(latents: Tensor) -> float:
    """The deviation of a coordinate; that from zero where the latents are one, and 1 where that is zero too."""
    points = latents.double()
    centred = float((points - points.mean(dim=0)).square().mean().sqrt())
    size = float(points.square().mean().sqrt())
    return centred if centred > 1e-13 * size else (size or 1.0)


def own_unit(call: Call, latent_dim: int) -> float | None:
    """The largest scale, 1 or below, of normal latents around which ``call`` changes smoothly, if there is any.

    A decoder whose latents are tiny is flat between jumps at standard normal ones, as a rounding one is everywhere.
    """
    z = probe_latents(ROWS, latent_dim, call)
    v = probe_latents(ROWS, latent_dim, call, seed=1)
    v = v / v.norm(dim=1, keepdim=True)
    for unit in _UNITS:
        with torch.no_grad():
            found = best_difference(call, unit * z, v, unit)[1]
        if not bool(torch.isfinite(found.value).all()):
            return None
        if found.relative_error < _ROUGHEST:
            return unit
    return None


def smaller_units(unit: float) -> tuple[float, ...]:
    """Those that :func:`own_unit` would have tried after ``unit``."""
    return tuple(smaller for smaller in _UNITS if smaller < unit)
