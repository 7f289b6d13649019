"""Latents for data when there is no encoder: batched non-linear least squares from many starts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._arrays import ArrayLike, check_count, check_range, check_seed, describe, to_points, to_tensor
from .decoder.observation import observer_of
from .errors import InvalidArgumentError
from .geodesic.guard import GuardedMap
from .inversion import Inversion, InversionStatus
from .smooth_map import SmoothMap, check_smooth_map

#: entries of Jacobians, outputs or d x d matrices that are held at once
_ENTRIES = 2**24
#: a row is stationary when a step predicts or brings a smaller relative decrease of the squared residual
_STATIONARY = 1e-8
#: refinement ends here whatever the tolerance: float32 decoders are no more exact
_EXACT = 1e-6
_FIRST_DAMPING = 1e-3
_LEAST_DAMPING, _MOST_DAMPING = 1e-12, 1e12


def invert(
    decoder: SmoothMap,
    data: ArrayLike,
    *,
    prior: ArrayLike | None = None,
    starts: int = 2048,
    tries: int = 8,
    max_steps: int = 60,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> Inversion:
    """Find latents whose outputs are closest to the data.

    Many random starts are compared with each row by the distance of their outputs, and the best few are refined,
    the best first, by Levenberg-Marquardt (Gauss-Newton with a damping of each row's own, updated after Nielsen
    1999) until one of them reproduces the row.  Rows are independent of each other.  Least squares have local minima:
    a row that lies in the decoder's range may still be missed, and ``residual`` says so.

    Args:
        decoder: a :class:`~posthoc_metric.Decoder`, or anything with its methods.
        data: (B, D) or (B, ...), in the form that the decoder gives; observations, where its output is that of
            :func:`~posthoc_metric.fisher_rao`.
        prior: latents (S, d) that starts are drawn from; by default standard normal samples.
        starts: how many starts are compared with every row.
        tries: how many of them are refined, at most, for a row that is not yet reproduced.
        max_steps: Levenberg-Marquardt steps from one start, at most.
        tolerance: relative residual at which a row counts as reproduced and no further start is tried.  Each start is
            refined until it is stationary or falls too slowly, whatever the tolerance.
        seed: of the starts.

    Raises:
        InvalidArgumentError: an argument has a wrong shape or range, or rows of the data or their squares are not
            finite.

    References:
        Madsen, Nielsen, Tingleff: Methods for Non-Linear Least Squares Problems, 2004, section 3.2.

    Example:
        >>> import posthoc_metric as pm
        >>> from posthoc_metric.examples import digits_vae
        >>> decoder = pm.Decoder(digits_vae()[0])
        >>> found = pm.invert(decoder, decoder([[0.3, -1.0], [2.0, 0.5]]), starts=64)
        >>> found.latents.round(2)
        array([[ 0.3, -1. ],
               [ 2. ,  0.5]])
    """
    check_smooth_map(decoder, ("value_and_jacobian",))
    seed = check_seed(seed)
    starts = check_count(starts, "starts", 1, "how many starts are compared with every row")
    tries = check_count(tries, "tries", 1, "how many starts are refined for a row")
    max_steps = check_count(max_steps, "max_steps", 1, "the step limit of a refinement")
    tolerance = check_range(tolerance, "tolerance", 0.0, 1.0, "the relative residual of a reproduced row")
    rows, restore = to_tensor(data, "data")
    observer = observer_of(decoder)
    dtype = rows.dtype
    if observer is not None and rows.ndim:
        observer.check(tuple(rows.shape[1:]))
        to_points(rows.reshape(len(rows), math.prod(rows.shape[1:])), "data")
        rows = observer(rows, torch.arange(len(rows), device="cpu"))
    if rows.ndim < 2:
        raise InvalidArgumentError(f"`data` must have shape (B, D) or (B, ...); got {describe(data)}. Add an axis.")
    rows, _ = to_points(rows.flatten(1), "data")
    # squares that starts are ranked by leave the range of half precision
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if rows.shape[1] != decoder.output_dim:
        raise InvalidArgumentError(
            f"`data` must have {decoder.output_dim} values a row, as the decoder's output; got {rows.shape[1]}. "
            "Bring the data into the form that the decoder gives."
        )
    candidates = _starts(decoder.latent_dim, prior, starts, seed).to(rows.device)
    norm = rows.double().norm(dim=1)
    if not bool(torch.isfinite(norm).all()):
        raise InvalidArgumentError(
            "`data` must have rows whose squares are numbers of float64; the largest value is "
            f"{float(rows.abs().max()):.3g}. Measure data and the decoder's output in another unit."
        )
    norm = torch.where(norm > 0, norm, norm.square().mean().sqrt()).clamp_min(1e-300)
    # rows that it refuses do not take the others with them
    guarded = GuardedMap(decoder)
    order = _screen(guarded, candidates, rows, min(tries, len(candidates)))
    block = max(1, _ENTRIES // (decoder.latent_dim**2 + decoder.output_dim))
    pieces = [
        _best_of(guarded, rows[part], candidates[order[part]], norm[part], tolerance, max_steps)
        for part in torch.arange(len(rows), device=rows.device).split(block)
    ]
    latents, square, state, steps, used = (torch.cat(column) for column in zip(*pieces, strict=True))
    kinds = tuple(InversionStatus)
    status = tuple(kinds[code] for code in state.tolist())
    residual = torch.where(square.isfinite(), square.sqrt() / norm, torch.nan)
    return Inversion(
        latents=restore(latents.to(dtype)),
        residual=restore(residual.to(dtype)),
        status=status,
        converged=restore(state <= kinds.index(InversionStatus.BEST_FIT)),
        steps=restore(steps),
        starts=restore(used),
    )


_REPRODUCED, _BEST_FIT, _UNFINISHED, _NOT_FINITE = range(len(InversionStatus))


def _starts(dim: int, prior: ArrayLike | None, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if prior is None:
        return torch.randn(count, dim, generator=generator, device="cpu", dtype=torch.float64)
    points, _ = to_points(prior, "prior", dim)
    if not len(points):
        raise InvalidArgumentError(f"`prior` must hold at least one latent; got {describe(prior)}.")
    return points[torch.randperm(len(points), generator=generator, device="cpu")[:count].to(points.device)].double()


def _screen(decoder: SmoothMap, candidates: Tensor, rows: Tensor, keep: int) -> Tensor:
    """For each row the ``keep`` candidates (B, keep) whose outputs are nearest, nearest first."""
    best = rows.new_full((len(rows), keep), torch.inf, dtype=torch.float64)
    index = torch.zeros_like(best, dtype=torch.long)
    for part in torch.arange(len(candidates), device=rows.device).split(max(1, _ENTRIES // decoder.output_dim)):
        outputs = decoder(candidates[part]).to(rows)
        size = outputs.square().sum(1)
        for block in torch.arange(len(rows), device=rows.device).split(max(1, _ENTRIES // len(part))):
            # the row's own norm is left out: it ranks nothing
            distance = (size - 2 * rows[block] @ outputs.T).double().nan_to_num_(torch.inf, torch.inf, torch.inf)
            merged = torch.cat([best[block], distance], dim=1)
            ranked = merged.topk(keep, dim=1, largest=False)
            names = torch.cat([index[block], part.expand(len(block), -1)], dim=1)
            best[block], index[block] = ranked.values, names.gather(1, ranked.indices)
    return index


def _best_of(
    decoder: SmoothMap, target: Tensor, starts: Tensor, norm: Tensor, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Refine each row's starts (B, tries, d) in turn until its residual is below ``tolerance`` of its ``norm``."""
    latents = torch.full_like(starts[:, 0], torch.nan)
    square = torch.full_like(norm, torch.inf)
    enough = (tolerance * norm).square()
    state = torch.full_like(norm, _NOT_FINITE, dtype=torch.long)
    steps, used = torch.zeros_like(state), torch.zeros_like(state)
    for attempt in range(starts.shape[1]):
        open_rows = torch.nonzero(state != _REPRODUCED).flatten()
        if not len(open_rows):
            break
        exact = (_EXACT * norm[open_rows]).square()
        found = _refine(decoder, target[open_rows], starts[open_rows, attempt], exact, max_steps)
        steps[open_rows] += found[3]
        used[open_rows] += 1
        better = found[1] < square[open_rows]
        chosen = open_rows[better]
        latents[chosen], square[chosen], state[chosen] = found[0][better], found[1][better], found[2][better]
        state[square <= enough] = _REPRODUCED
    return latents, square, state, steps, used


def _refine(
    decoder: SmoothMap, target: Tensor, start: Tensor, exact: Tensor, max_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Levenberg-Marquardt from one start a row: latents, squared residual, state, Jacobians evaluated."""
    count, dim = start.shape
    latents = start.clone()
    normal = start.new_zeros(count, dim, dim)
    slope = torch.zeros_like(start)
    square, size = exact.new_full((count,), torch.inf), torch.zeros_like(exact)
    damping, growth = torch.full_like(exact, _FIRST_DAMPING), torch.full_like(exact, 2.0)
    state = torch.full_like(exact, _UNFINISHED, dtype=torch.long)
    steps = torch.zeros_like(state)
    moved = torch.ones_like(state, dtype=torch.bool)
    slow = torch.zeros_like(moved)
    window, mark = max(max_steps // 6, 1), square.clone()
    for index in range(max_steps):
        stale = torch.nonzero(moved & (state == _UNFINISHED) & ~slow).flatten()
        # an empty tensor splits into one empty part
        for part in stale.split(max(1, _ENTRIES // (decoder.output_dim * dim))) if len(stale) else ():
            normal[part], slope[part], reached = _normal_equations(decoder, latents[part], target[part])
            square[part] = torch.where(reached.isfinite(), reached, square[part])
            steps[part] += 1
        size[stale] = normal[stale].diagonal(dim1=1, dim2=2).amax(1)
        broken = stale[~(square[stale] + size[stale] + slope[stale].sum(1)).isfinite()]
        # past the first step there is a finite latent to keep, only no way on from it
        slow[broken] = True
        if index == 0:
            state[broken] = _NOT_FINITE
        state[stale[square[stale] <= exact[stale]]] = _REPRODUCED
        if index % window == window - 1:
            slow |= square > 0.8 * mark
            mark = square.clone()
        running = torch.nonzero((state == _UNFINISHED) & ~slow).flatten()
        if not len(running):
            break
        step, predicted = _solve(normal[running], slope[running], damping[running] * size[running])
        small = predicted <= _STATIONARY * square[running]
        # a tiny step under a heavy damping says nothing of the slope
        state[running[small & (damping[running] <= 1)]] = _BEST_FIT
        trial = latents[running] + step
        reached = _residual(decoder, trial, target[running])
        gain = (square[running] - reached) / predicted.clamp_min(1e-300)
        accepted = gain > 0
        taken, refused = running[accepted], running[~accepted]
        flat = square[taken] - reached[accepted] <= _STATIONARY * square[taken]
        latents[taken], square[taken] = trial[accepted], reached[accepted]
        state[taken[flat & (damping[taken] <= 1)]] = _BEST_FIT
        shrink = (1 - (2 * gain[accepted] - 1).pow(3)).clamp(1 / 3, 2)
        damping[taken] = (damping[taken] * shrink).clamp_min(_LEAST_DAMPING)
        growth[taken] = 2.0
        damping[refused] *= growth[refused]
        growth[refused] *= 2
        state[refused[damping[refused] > _MOST_DAMPING]] = _BEST_FIT
        moved[:] = False
        moved[taken] = True
    return latents, torch.where(state == _NOT_FINITE, torch.inf, square), state, steps


def _normal_equations(decoder: SmoothMap, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``JᵀJ`` (B, d, d), ``Jᵀr`` (B, d) and ``‖r‖²`` (B,) of the residual ``r = f(z) - x``."""
    value, jacobian = decoder.value_and_jacobian(z)
    residual = value - target.to(value)
    return (
        jacobian.mT @ jacobian,
        (residual[:, None] @ jacobian).squeeze(1),
        residual.square().sum(1),
    )


def _residual(decoder: SmoothMap, z: Tensor, target: Tensor) -> Tensor:
    """``‖f(z) - x‖²`` (B,), infinite where the decoder is not finite."""
    size = max(1, _ENTRIES // decoder.output_dim)
    found = []
    for part, wanted in zip(z.split(size), target.split(size), strict=True):
        value = decoder(part)
        found.append((value - wanted.to(value)).square().sum(1).nan_to_num_(torch.inf, torch.inf))
    return torch.cat(found)


def _solve(normal: Tensor, slope: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """The damped step (B, d) and the decrease of ``‖r‖²`` (B,) that the linear model predicts for it."""
    eye = torch.eye(normal.shape[1], dtype=normal.dtype, device=normal.device)
    # a saturated decoder has JᵀJ = 0, whose step is zero whatever the damping
    root, failed = torch.linalg.cholesky_ex(normal + damping.clamp_min(1e-300)[:, None, None] * eye)
    step = -torch.cholesky_solve(slope[:, :, None], root).squeeze(2)
    step[failed > 0] = 0
    predicted = (step * (damping[:, None] * step - slope)).sum(1)
    # where rounding beat the damping, refuse the step so that the damping grows
    return step, torch.where(failed > 0, torch.inf, predicted)
