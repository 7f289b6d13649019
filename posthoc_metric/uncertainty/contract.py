"""Whether a fitted uncertainty model keeps its contract, asked at a few points before anything is built on it.

A model that breaks it would fail much later in words of another's, or not at all: scores of a wrong shape in the
calibration, a gradient that is none of the score's in geodesics that do not converge, a shape beyond the identity in
lengths that are far too large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import describe
from ..errors import FitError
from ..support import Support
from .base import UncertaintyModel

#: points near the data, points in each shell, and the shells' offsets
_NEAR, _EACH, _OFFSETS = 4, 3, (0.1, 1.0)
#: how far beside training latents, in data radii: on one of them a distance to the nearest has no gradient
_BESIDE = 1e-2
#: of these points every so many-th is asked for its shape, which may cost as much as all scores
_SPARSE = 3
#: half the length of differences, in data radii: long ones bear float32, short ones kinks that lie close
_STEPS = (1e-2, 1e-3, 1e-4)
_WAYS = 2
#: changes of the score below this, relative to the score, may be rounding of a model that computes in float32
_ROUNDING = 1e-5
#: by how much gradients and differences may differ in most points; kinks make single ones differ by more
_LOOSE = 0.1
#: by how much scores that should be one may differ, relative to the range of scores
_SAME = 1e-2
#: how far eigenvalues may lie outside [0, 1], and matrices be from symmetric
_SLACK = 1e-3

#: float64 is what the contract asks for; models of float32 networks are as good
_FLOATS = (torch.float32, torch.float64)


def check_contract(model: UncertaintyModel, geometry: Support) -> None:
    """Ask a fitted model for all that it will be asked for, at a few points near the data and off them.

    Scores that are not finite are left to the calibration, which asks at more points.

    Raises:
        FitError: a method does not give what :class:`UncertaintyModel` says that it gives.
    """
    points = _points(geometry)
    score = _numbers(model.score(points.clone()), (len(points),), f"{_named(model, 'score')} must return")
    differences = _Differences.of(model, points, score, geometry.radius)
    closed = model.score_and_gradient(points.clone())
    if closed is None:
        _check_autograd(model, points, differences)
    else:
        _check_closed(model, "score_and_gradient", closed, points, differences)
    curved = model.score_gradient_hessian(points.clone())
    if curved is not None:
        _check_closed(model, "score_gradient_hessian", curved, points, differences)
    _check_shape(model, points[::_SPARSE])


def check_held_out(model: UncertaintyModel, scores: Any, count: int) -> None:
    """Check what ``held_out_scores`` gave for the ``count`` latents of ``fit``.

    Raises:
        FitError: it is not what :class:`UncertaintyModel` says.
    """
    if scores is not None:
        _numbers(scores, (count,), f"{_named(model, 'held_out_scores')} must return None or")


def _points(geometry: Support) -> Tensor:
    """A few points (n, d) beside training latents and in the void; n is not d, so that no axis passes for another."""
    near = geometry.training[:_NEAR]
    beside = _unit((1, *near.shape), near)[0]
    shells = [geometry.shell(offset, _EACH) for offset in _OFFSETS]
    points = torch.cat([near + _BESIDE * geometry.radius * beside, *shells])
    return points[: len(points) - (len(points) == geometry.dim)]


def _unit(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Unit vectors along the last axis, the same every time."""
    ways = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu", dtype=like.dtype).to(
        like.device
    )
    return ways / ways.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class _Differences:
    """Central differences of the score at n points, for several steps and ways.

    Attributes:
        score: at the points themselves, (n,).
        moves: from one end to the other, (steps, ways, n, d).
        changes: of the score along them, (steps, ways, n).
    """

    score: Tensor
    moves: Tensor
    changes: Tensor

    @classmethod
    def of(cls, model: UncertaintyModel, points: Tensor, score: Tensor, radius: float) -> _Differences:
        ways = _unit((_WAYS, *points.shape), points)
        reach = torch.stack([step * radius * ways for step in _STEPS])
        ends = torch.stack([points + reach, points - reach])
        flat = ends.flatten(0, -2)
        scores = _numbers(model.score(flat.clone()), (len(flat),), f"{_named(model, 'score')} must return")
        ahead, behind = scores.view(ends.shape[:-1])
        # what the ends are after rounding: latents may lie far from zero
        return cls(score, ends[0] - ends[1], ahead - behind)

    def disagreement(self, gradient: Tensor) -> float:
        """By what share a gradient (n, d) misses the changes, at the median point and each with the step that suits it.

        Where nothing changes, as where a score no longer grows, nothing is missed.
        """
        expected = (self.moves * gradient).sum(-1)
        error, size = _rms(self.changes - expected), torch.maximum(_rms(self.changes), _rms(expected))
        finite = torch.isfinite(self.score)
        largest = self.score[finite].abs().max() if bool(finite.any()) else self.score.new_zeros(())
        usable = (size > _ROUNDING * largest) & torch.isfinite(self.changes).all(1)
        share = torch.where(usable, error / size, torch.inf).amin(0)
        share = share.masked_fill(~usable.any(0), 0.0)
        share = share.masked_fill(finite & ~torch.isfinite(gradient).all(1), torch.inf)
        # the lower of two medians: whoever is right at half of the points is taken to be
        return float(share.median())

    def same(self, score: Tensor) -> bool:
        """Whether scores (n,) are those of :meth:`UncertaintyModel.score`, at most points."""
        known = torch.isfinite(self.score) & torch.isfinite(score)
        if not bool(known.any()):
            return True
        own = self.score[known]
        allowed = _SAME * (own.max() - own.min()) + _ROUNDING * own.abs().max()
        return bool((own - score[known]).abs().median() <= allowed)


def _rms(values: Tensor) -> Tensor:
    """Over the ways, (steps, ways, n) -> (steps, n)."""
    return values.square().mean(1).sqrt()


def _check_autograd(model: UncertaintyModel, points: Tensor, differences: _Differences) -> None:
    wanted = (
        f"{_named(model, 'score')} must be differentiable by autograd, as there is no `score_and_gradient`; "
        "{}. Compute it with torch operations from `z` itself, without `.detach()`, `.numpy()` or `torch.no_grad()`; "
        "or give `score_and_gradient` in closed form."
    )
    point = points.clone().requires_grad_()
    try:
        with torch.enable_grad():
            score = model.score(point)
            # weights that still require a gradient do not make the score depend on z
            gradient = torch.autograd.grad(score.sum(), point, allow_unused=True)[0] if score.requires_grad else None
    except RuntimeError as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise FitError(wanted.format(f"for latents that require a gradient torch says: {first}")) from error
    if gradient is None:
        raise FitError(wanted.format("its result does not lead back to `z`"))
    if not differences.same(score.detach().to(differences.score)):
        raise FitError(
            f"{_named(model, 'score')} must give equal scores for equal latents; two calls differ. Draw what is random "
            "once, in `fit`, and leave out what changes from call to call, such as dropout."
        )
    _check_gradient(
        differences.disagreement(gradient),
        f"the gradient that autograd finds for {_named(model, 'score')}",
        "Look in it for `.detach()`, `torch.no_grad()` or rounding of a part; or give `score_and_gradient`",
    )


def _check_closed(model: UncertaintyModel, name: str, found: Any, points: Tensor, differences: _Differences) -> None:
    """Check what a closed form gave: score and gradient, and second derivatives where ``name`` says so."""
    count, dim = points.shape
    parts = [("score", (count,)), ("gradient", (count, dim)), ("second derivatives", (count, dim, dim))]
    if name == "score_and_gradient":
        parts.pop()
    method = _named(model, name)
    if not isinstance(found, (tuple, list)) or len(found) != len(parts):
        came = f"a {type(found).__name__} of {len(found)}" if isinstance(found, (tuple, list)) else describe(found)
        names = ", ".join(part for part, _ in parts)
        raise FitError(
            f"{method} must return None or a tuple of {len(parts)} tensors ({names}); got {came}. Return all of them."
        )
    score, gradient, *_ = [
        _numbers(value, shape, f"{method} must return as its {part}")
        for value, (part, shape) in zip(found, parts, strict=True)
    ]
    if not differences.same(score):
        raise FitError(
            f"{method} must return the score that `score` returns; at half of {count} points or more they differ. "
            "Give both the same formula, with the same logarithms, roots and units."
        )
    _check_gradient(
        differences.disagreement(gradient),
        f"the gradient of {method}",
        "Derive it anew, in the units of `z`; or leave the method out",
    )


def _check_gradient(share: float, what: str, advice: str) -> None:
    if share > _LOOSE:
        came = f"it differs from them by {share:.0%} in the median" if share < torch.inf else "it is NaN or infinite"
        raise FitError(
            f"{what} must be the score's, which central differences of `score` show to {_LOOSE:.0%} or better; at a "
            f"few points on and off the data {came}. {advice}."
        )


def _check_shape(model: UncertaintyModel, points: Tensor) -> None:
    field = model.shape()
    if field is None:
        return
    method, dim = _named(model, "shape"), points.shape[1]
    if not callable(field):
        raise FitError(
            f"{method} must return None or a function of latents, z -> (B, d, d); got {describe(field)}. "
            "Return the function, not its matrices."
        )
    wanted = f"the function that {method} returns must give"
    # lengths and calibration multiply them with float64 matrices
    found = _numbers(field(points.clone()), (len(points), dim, dim), wanted, (torch.float64,))
    if not bool(torch.isfinite(found).all()):
        raise FitError(f"{wanted} finite matrices; some are NaN or infinite. Check it near the data and far from them.")
    skew = float((found - found.mT).abs().max())
    if skew > _SLACK * float(found.abs().max()):
        raise FitError(
            f"{wanted} symmetric matrices; entries differ from those across the diagonal by up to {skew:.3g}. "
            "Return 0.5 * (S + S.mT)."
        )
    values = torch.linalg.eigvalsh(0.5 * (found + found.mT))
    low, high = float(values.min()), float(values.max())
    if low < -_SLACK or high > 1 + _SLACK:
        raise FitError(
            f"{wanted} matrices of eigenvalues in [0, 1]; they reach from {low:.3g} to {high:.3g}. Return the share "
            "that is unknown in each direction, the identity far from the data: what a step costs there, `inflation` "
            "says."
        )


def _named(model: UncertaintyModel, method: str) -> str:
    return f"`{method}` of {type(model).__name__}"


def _numbers(found: Any, shape: tuple[int, ...], wanted: str, dtypes: tuple[torch.dtype, ...] = _FLOATS) -> Tensor:
    """``found`` in float64 and without its graph, if it is a tensor of real numbers of that shape.

    Raises:
        FitError: it is not.
    """
    if not isinstance(found, Tensor):
        advice = "Compute with torch, so that it can be differentiated, and return its tensor."
    elif found.layout is not torch.strided or found.dtype not in dtypes:
        advice = "Return a dense tensor, with .double() where that is what is missing."
    elif found.shape != shape:
        advice = _reshaped(tuple(found.shape), shape)
    else:
        return found.detach().double()
    raise FitError(
        f"{wanted} a float64 tensor of shape {shape} for {shape[0]} latents; got {describe(found)}. {advice}"
    )


def _reshaped(came: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if came == (*wanted, 1):
        return "Leave out its last axis: `[..., 0]`."
    if not came:
        return "Do not sum or average over the latents of a batch: each has a number of its own."
    return "Keep the batch axis first, and a row for each latent."
