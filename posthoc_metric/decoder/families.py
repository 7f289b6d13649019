"""Families of distributions: what their observations are, and where these stand in Fisher-Rao coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

#: rounding of probabilities that add up to one in single precision
_ROUNDING = 1e-3
#: families whose observations add up over the axis of classes
ADDED = ("Categorical", "Multinomial")


@dataclass(frozen=True)
class Family:
    """How observations of a family of distributions go into its coordinates.

    Attributes:
        words: what observations are.
        constant: what is the same for every latent, c.
        allowed: whether entries x are observations, given c.
        coordinates: of the distribution whose mean is x, given c.
        mean: of the distribution at coordinates y, given c.
        means: how those are observed who have means instead.
    """

    words: str
    constant: Callable[[Any], Any]
    allowed: Callable[[Tensor, Tensor], Tensor]
    coordinates: Callable[[Tensor, Tensor], Tensor]
    mean: Callable[[Tensor, Tensor], Tensor]
    means: str = ""


def _none(distribution: Any) -> float:
    return 1.0


def _trials(distribution: Any) -> Any:
    return distribution.total_count


def _dispersion(distribution: Any) -> Any:
    # by ``mu`` and ``theta``, as scvi-tools has it
    return distribution.theta if hasattr(distribution, "theta") else distribution.total_count


def _whole(x: Tensor, c: Tensor) -> Tensor:
    return (x >= 0) & (x == x.round())


def _arc(x: Tensor, c: Tensor) -> Tensor:
    return 2 * c.sqrt() * (x / c).sqrt().asin()


def _on_arc(y: Tensor, c: Tensor) -> Tensor:
    return c * (y / (2 * c.sqrt())).sin().square()


def _hyperbolic(x: Tensor, c: Tensor) -> Tensor:
    return 2 * c.sqrt() * (x / c).sqrt().asinh()


def _on_hyperbola(y: Tensor, c: Tensor) -> Tensor:
    return c * (y / (2 * c.sqrt())).sinh().square()


def _root(x: Tensor, c: Tensor) -> Tensor:
    return 2 * x.sqrt()


def _square(y: Tensor, c: Tensor) -> Tensor:
    return y.square() / 4


_COUNTS = "counts, whole numbers from 0"
_SCALED = " Counts scaled to a common total are means: `observe=lambda x: pm.fisher_rao({})`."
#: by the names of torch's distributions
FAMILIES: dict[str, Family] = {
    "Bernoulli": Family("numbers from 0 to 1", _none, lambda x, c: (x >= 0) & (x <= 1), _arc, _on_arc),
    "Binomial": Family(
        "whole numbers from 0 to that of the trials", _trials, lambda x, c: _whole(x, c) & (x <= c), _arc, _on_arc
    ),
    "Multinomial": Family(
        f"{_COUNTS} that add up to that of the trials over the axis of classes, the last one",
        _trials,
        lambda x, c: _whole(x, c) & ((x.sum(-1, keepdim=True) - c).abs() < 0.5),
        _root,
        _square,
    ),
    "Categorical": Family(
        "class numbers from 0, or one-hot rows or probabilities that add up to 1 over the axis of classes, the last "
        "one (a gap is a class of its own)",
        _none,
        lambda x, c: (x >= 0) & ((x.sum(-1, keepdim=True) - 1).abs() < _ROUNDING),
        _root,
        _square,
    ),
    "Poisson": Family(_COUNTS, _none, _whole, _root, _square, _SCALED.format("Poisson(x)")),
    "NegativeBinomial": Family(
        *(_COUNTS, _dispersion, _whole, _hyperbolic, _on_hyperbola),
        _SCALED.format("NegativeBinomial(r, logits=(x / r).log())"),
    ),
    "Geometric": Family(_COUNTS, _none, _whole, _hyperbolic, _on_hyperbola),
    "Exponential": Family("numbers above 0", _none, lambda x, c: x > 0, lambda x, c: -x.log(), lambda y, c: (-y).exp()),
    "Gamma": Family(
        "numbers above 0",
        lambda d: d.concentration,
        lambda x, c: x > 0,
        lambda x, c: c.sqrt() * (c / x).log(),
        lambda y, c: c * (-y / c.sqrt()).exp(),
    ),
}
