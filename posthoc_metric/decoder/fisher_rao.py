"""Decoders of distributions by the Fisher-Rao metric: coordinates in which it is the Euclidean one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    Exponential,
    Gamma,
    Geometric,
    Independent,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
    Poisson,
)

from .._arrays import describe
from ..errors import DecoderError

#: logits beyond are as good as certain; their exponentials stay in single precision's range
_CERTAIN = 80.0
#: rates below are as good as none; a root has no derivative at zero
_NONE = 1e-30
#: relative difference of numbers that are the same but for rounding
_ALIKE = 1e-5
_Calls = list[tuple[Distribution, Tensor]]
_NOTED: ContextVar[_Calls | None] = ContextVar("noted calls of fisher_rao", default=None)


@contextmanager
def noting() -> Iterator[_Calls]:
    """A list of the distributions and coordinates of every call of :func:`fisher_rao` inside the block."""
    calls: _Calls = []
    token = _NOTED.set(calls)
    try:
        yield calls
    finally:
        _NOTED.reset(token)


def fisher_rao(distribution: Any) -> Tensor:
    """Coordinates of a distribution in which the Fisher information metric is Euclidean.

    ``pm.Decoder(model, output=pm.fisher_rao)`` measures a step in latent space by how well what is decoded before and
    after it can be told apart, ``JᵀJ = Σ_x p(x|z) ∇log p ∇log pᵀ``, and not by how far the mean moves (Arvanitidis et
    al. 2022).  Where the model returns parameters, make the distribution first::

        pm.Decoder(model, output=lambda logits: pm.fisher_rao(Categorical(logits=logits, validate_args=False)))

    ==============================================  =================================================
    Bernoulli; Binomial of n                        ``2 arcsin √p``; times √n
    Categorical, OneHotCategorical; Multinomial     ``2 √p`` of every class; times √n
    Poisson                                         ``2 √rate``
    NegativeBinomial of dispersion r; Geometric     ``2 √r arcsinh √(mean / r)``; r = 1
    Exponential; Gamma of concentration a           ``log rate``; times √a
    ==============================================  =================================================

    They are the variance-stabilising transforms (Rao 1945; Anscombe 1948), taken from logits where there are any, so
    that probabilities that round to 0 or 1 keep a derivative.  n, r and a must be the same for every latent: where they
    are decoded, too, there are no such coordinates.

    The data that go with such a decoder are observations, as they are: counts, classes as numbers or one-hot rows,
    binary pixels.  :func:`posthoc_metric.repair` and :func:`posthoc_metric.invert` bring them into the same
    coordinates, each to those of the distribution whose mean it is, so a count x to ``2 √x``; what cannot be an
    observation is refused.  Data that are something else, as counts scaled to a common total, go through the
    decoder's ``observe=``::

        observe = lambda x: pm.fisher_rao(Poisson(1e4 * x / x.sum(1, keepdim=True)))
        pm.Decoder(model, output=pm.fisher_rao, observe=observe)

    So do data beside a compiled, exported or traced model that calls this function itself, which is not seen then.

    What is decoded along a geodesic is in these coordinates, too: ``(frames / 2) ** 2`` are the probabilities of
    classes, and the model itself gives its distributions at ``solution(t)``.

    Args:
        distribution: one of these, of batch shape (B, ...), perhaps within ``Independent``; or a negative binomial by
            ``mu`` and ``theta``, as scvi-tools has it.

    Returns:
        (B, ...), with an axis of classes last where there are classes.

    Raises:
        DecoderError: no distribution, or one that has no such coordinates, as a normal one of varying scale.
    """
    if not isinstance(distribution, Distribution):
        raise DecoderError(
            f"`distribution` must be a torch distribution; got {describe(distribution)}. Name the part that is one, "
            "`output=lambda r: pm.fisher_rao(r['px'])`, or make it of what the decoder returns, `output=lambda x: "
            "pm.fisher_rao(Categorical(logits=x))`."
        )
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    found = _coordinates(distribution)
    # a compiled model's calls are not Python's to note
    calls = None if torch.compiler.is_compiling() else _NOTED.get()
    if calls is not None:
        calls.append((distribution, found))
    return found


def family_of(distribution: Distribution) -> str:
    """The name in :data:`~posthoc_metric.decoder.families.FAMILIES` of a distribution that has coordinates."""
    found = next((kind.__name__ for kind in _COORDINATES if isinstance(distribution, kind)), "NegativeBinomial")
    return found.removeprefix("OneHot")


def _coordinates(distribution: Distribution) -> Tensor:
    for kind, coordinates in _COORDINATES.items():
        if isinstance(distribution, kind):
            return coordinates(distribution)
    mu, theta = getattr(distribution, "mu", None), getattr(distribution, "theta", None)
    if type(distribution).__name__ == "NegativeBinomial" and isinstance(mu, Tensor) and isinstance(theta, Tensor):
        return _of_counts(mu.clamp_min(_NONE).log() - theta.log(), theta.expand_as(mu))
    known = ", ".join(kind.__name__ for kind in _COORDINATES)
    advice = "With a scale that does not vary, `output=lambda d: d.loc / scale`; or take the parameters that matter."
    if isinstance(mu, Tensor) and isinstance(theta, Tensor):  # as zero-inflated counts, which scvi-tools has by default
        advice = (
            "Of counts by `mu` and `theta` take the negative binomial without what inflates its zeros: "
            "`output=lambda d: pm.fisher_rao(NegativeBinomial(d.theta, logits=(d.mu / d.theta).log()))`."
        )
    raise DecoderError(
        f"`distribution` must be one of {known}; got {type(distribution).__name__}. Others, such as a normal one of "
        f"varying scale, have no Euclidean coordinates. {advice}"
    )


def _of_probability(logits: Tensor) -> Tensor:
    return 2 * (logits.clamp(-_CERTAIN, _CERTAIN) / 2).exp().atan()


def _of_classes(log_probabilities: Tensor) -> Tensor:
    return 2 * (log_probabilities / 2).exp()


def _of_counts(log_ratio: Tensor, dispersion: Tensor) -> Tensor:
    """From the logarithm of mean / r, and r."""
    return 2 * _root(dispersion, "dispersion") * torch.asinh((log_ratio.clamp(-_CERTAIN, _CERTAIN) / 2).exp())


def _root(constant: Tensor, name: str) -> Tensor:
    """``√constant`` (B, ...), of what must be the same in every row.

    Raises:
        DecoderError: it is not.
    """
    # what was expanded over the rows is the same in memory
    if constant.ndim and len(constant) > 1 and constant.stride(0) != 0:
        try:
            varies = bool(((constant - constant[:1]).abs() > _ALIKE * constant.abs()).any())
        except RuntimeError:
            varies = False  # under a transform such as vmap, which a plain call came before
        if varies:
            raise DecoderError(
                f"the {name} must be the same for every latent, so that the Fisher-Rao metric has Euclidean "
                "coordinates; it differs from row to row. Give the distribution a constant one, or take its mean."
            )
    return constant.sqrt()


_COORDINATES: dict[type[Distribution], Callable[[Any], Tensor]] = {
    Bernoulli: lambda d: _of_probability(d.logits),
    Binomial: lambda d: _root(d.total_count, "number of trials") * _of_probability(d.logits),
    Categorical: lambda d: _of_classes(d.logits),
    OneHotCategorical: lambda d: _of_classes(d.logits),
    Multinomial: lambda d: d.total_count**0.5 * _of_classes(d.logits),
    Poisson: lambda d: 2 * d.rate.clamp_min(_NONE).sqrt(),
    NegativeBinomial: lambda d: _of_counts(d.logits, d.total_count),
    Geometric: lambda d: _of_counts(-d.logits, d.logits.new_ones(())),
    Exponential: lambda d: d.rate.clamp_min(_NONE).log(),
    Gamma: lambda d: _root(d.concentration, "concentration") * d.rate.clamp_min(_NONE).log(),
}
