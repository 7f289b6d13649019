"""Supervised data from paths: a mixup whose mixtures are decoded along geodesics between labelled latents."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._arrays import ArrayLike, check_count, check_range, check_seed, describe, refuse_tensor, to_points
from ._draws import Draws
from ._warn import warn_caller
from .decoder.observation import observer_of
from .errors import ConvergenceWarning, InvalidArgumentError, NumericalError
from .geodesic import Status
from .geodesic.guard import GuardedMap
from .labels import soft_labels
from .metric import Metric
from .smooth_map import SmoothMap

_CURVES = ("geodesic", "straight")
_PARTNERS = ("any", "same", "other")
#: places on each curve, ends included, where the decoder is asked whether it has values there
_ASKED = 33
#: entries of its output that are held at once
_ENTRIES = 2**24


@dataclass(frozen=True)
class GeodesicMixup:
    """A transform for a training loop; made by :func:`geodesic_mixup`.

    Attributes:
        curves: (P, T, d) float64, at equal steps of Riemannian length.
        start_labels, end_labels: soft labels at the two ends, (P, C).
        status: how the work on each of these curves ended, P of them; empty for straight lines.
        dropped: how many of the pairs drawn have no curve that can be decoded and are not here.
        alpha: of the Beta(alpha, alpha) that positions along the curves are drawn from.
        share: share of a batch that a call replaces.
    """

    decoder: Any = field(repr=False)
    curves: Tensor = field(repr=False)
    start_labels: Tensor = field(repr=False)
    end_labels: Tensor = field(repr=False)
    status: tuple[Status, ...] = field(repr=False)
    dropped: int
    alpha: float
    share: float
    _draws: Draws = field(repr=False)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Fresh decoded points and their labels, ``(1 - t) y_start + t y_end`` with ``t ~ Beta(alpha, alpha)``.

        Returns:
            (count, D) in the decoder's dtype, where the latents were, and (count, C) float32 beside it.
        """
        count = check_count(count, "count", 1, "the number of points to draw")
        generator = self._draws.generator
        rows = torch.from_numpy(generator.integers(len(self.curves), size=count)).to(self.curves.device)
        t = torch.from_numpy(generator.beta(self.alpha, self.alpha, size=count)).to(self.curves)
        left, between = _places(t, self.curves.shape[1])
        z = (1 - between) * self.curves[rows, left] + between * self.curves[rows, left + 1]
        dtype = getattr(self.decoder, "dtype", None) or torch.get_default_dtype()
        x = self.decoder(z.to(dtype))
        weight = t[:, None].to(self.start_labels)
        return x, (1 - weight) * self.start_labels[rows] + weight * self.end_labels[rows]

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A batch of which ``share`` of the rows, drawn at random, are replaced by path samples.

        Args:
            x: (B, ...) floating point, whose trailing axes hold D numbers; observations (B, ...), where the decoder's
                output is that of :func:`~posthoc_metric.fisher_rao`, which come out in its coordinates (B, D).
            y: class indices (B,) or soft labels (B, C).

        Returns:
            x in its own shape, dtype and device, or in coordinates, which have the decoder's dtype; and soft labels
            (B, C), fit for ``cross_entropy``; of no rows where the batch has none.

        Raises:
            InvalidArgumentError: ``x`` is neither floating point nor observations, its rows do not hold D numbers, or
                ``y`` does not fit it.
        """
        observer = observer_of(self.decoder)
        if isinstance(x, Tensor):
            refuse_tensor(x, "x", booleans=True)
        if observer is not None and isinstance(x, Tensor) and x.ndim:
            observer.check(tuple(x.shape[1:]), "x")
            whole = x if x.is_floating_point() else x.double()
            coordinates = observer(whole, torch.arange(len(x), device="cpu"), "x")
            x = coordinates.to(getattr(self.decoder, "dtype", torch.float64))
        if not isinstance(x, Tensor) or x.ndim < 2 or prod(x.shape[1:]) != self.decoder.output_dim:
            raise InvalidArgumentError(
                f"`x` must be a tensor whose rows hold {self.decoder.output_dim} numbers, as the decoder gives them; "
                f"got {describe(x)}. Transform the batch before anything that changes its size."
            )
        if not x.is_floating_point():
            raise InvalidArgumentError(
                f"`x` must be floating point, as what is decoded is no whole number; got {describe(x)}. Convert it "
                "first, to the scale of the decoder's output: bytes become x.float() / 255 where that is from 0 to 1."
            )
        classes = self.start_labels.shape[1]
        soft = soft_labels(y, classes, "y").to(x.device)
        if len(soft) != len(x):
            raise InvalidArgumentError(
                f"`y` must have one label for each of the {len(x)} rows of `x`; got {describe(y)}."
            )
        if not len(x):
            return x, soft
        count = max(round(self.share * len(x)), 1)
        rows = torch.from_numpy(self._draws.generator.permutation(len(x))[:count]).to(x.device)
        mixed, labels = self.sample(count)
        x, soft = x.clone(), soft.clone()
        x[rows] = mixed.view(count, *x.shape[1:]).to(x)
        soft[rows] = labels.to(soft)
        return x, soft


def geodesic_mixup(
    metric: Metric,
    latents: ArrayLike,
    labels: ArrayLike,
    *,
    curve: str = "geodesic",
    partners: str = "any",
    pairs: int = 256,
    alpha: float = 1.0,
    share: float = 0.5,
    num_classes: int | None = None,
    seed: int = 0,
    **options: Any,
) -> GeodesicMixup:
    """A mixup transform whose mixtures lie on curves between labelled latents.

    Mixup (Zhang et al. 2018) mixes inputs along straight lines of pixels, manifold mixup (Verma et al. 2019) hidden
    states along straight lines of a layer; this one decodes points of latent geodesics.  The curves are solved once,
    here; positions along them are drawn anew in every batch::

        mix = pm.geodesic_mixup(repaired, latents, labels)
        for x, y in loader:
            x, y = mix(x, y)                       # y are soft labels now
            loss = cross_entropy(classifier(x), y)

    Args:
        metric: one with a decoder: a repaired or a pullback metric.
        latents: (N, d), of the labelled data.
        labels: classes (N,), integers from 0, or soft labels (N, C).
        curve: "geodesic", or "straight" for straight latent lines, decoded in the same way.
        partners: which two latents make a pair: "any" two, two of the "same" class or each of an "other" class.
        pairs: how many curves are solved.
        alpha: positions are drawn from Beta(alpha, alpha): 1 is uniform, small values stay near the ends.
        share: share of each batch that is replaced.
        num_classes: C, where the labels do not name every class.
        seed: of pairs and positions.
        **options: for the geodesic solver; see :func:`posthoc_metric.geodesic`.

    Raises:
        InvalidArgumentError: an argument has a wrong shape or value, or no pair of the wanted kind exists.
        NumericalError: no pair has a curve that can be decoded.

    Warns:
        ConvergenceWarning: some curves did not converge; pairs without any finite curve, or whose curve has places
            that the decoder has no finite value for, are left out.  ``dropped`` and ``status`` of the transform say
            how many and why.
    """
    decoder = getattr(metric, "decoder", None)
    if not isinstance(metric, Metric) or decoder is None:
        raise InvalidArgumentError(
            f"`metric` must be a metric with a decoder; got {describe(metric)}. "
            "Pass what pm.repair returned, or pm.PullbackMetric(decoder)."
        )
    _check_decoder(decoder, metric.dim)
    points, _ = to_points(latents, "latents", metric.dim)
    seed = check_seed(seed)
    if num_classes is not None:
        num_classes = check_count(num_classes, "num_classes", 1, "the number of classes")
    soft = soft_labels(labels, num_classes, "labels")
    if len(soft) != len(points):
        raise InvalidArgumentError(
            f"`labels` must have one entry for each of the {len(points)} latents; got {describe(labels)}."
        )
    for value, name, known in ((curve, "curve", _CURVES), (partners, "partners", _PARTNERS)):
        if value not in known:
            raise InvalidArgumentError(f"`{name}` must be one of {', '.join(known)}; got {describe(value)}.")
    pairs = check_count(pairs, "pairs", 1, "the number of curves to solve")
    if curve == "straight" and options:
        raise InvalidArgumentError(f"straight lines take no solver options; got {', '.join(options)}.")
    alpha = check_range(alpha, "alpha", 0.0, float("inf"), "the parameter of a Beta distribution")
    try:
        share = min(check_range(share, "share", 0.0, 1.0 + 1e-12, ""), 1.0)
    except InvalidArgumentError:
        raise InvalidArgumentError(
            "`share` is the share of a batch that is replaced and must be above 0 and at most 1, which is all of it; "
            f"got {describe(share)}."
        ) from None
    draws = Draws(seed)
    first, second = _draw_pairs(soft, partners, pairs, draws.generator)
    start, end = points[first.to(points.device)].double(), points[second.to(points.device)].double()
    status: tuple[Status, ...] = ()
    if curve == "straight":
        curves = torch.stack([start, end], dim=1)
    else:
        solution = metric.geodesic(start, end, **options)
        curves, status = solution.points, solution.status
    finite = torch.isfinite(curves).flatten(1).all(1)
    finite[finite.clone()] = _decoded(decoder, curves[finite])
    if not bool(finite.all()) or any(found is not Status.CONVERGED for found in status):
        _report(status, finite)
    kept = torch.nonzero(finite).flatten()
    return GeodesicMixup(
        decoder=decoder,
        curves=curves[kept],
        start_labels=soft[first].to(points.device)[kept],
        end_labels=soft[second].to(points.device)[kept],
        status=tuple(status[int(row)] for row in kept) if status else (),
        dropped=len(curves) - len(kept),
        alpha=alpha,
        share=share,
        _draws=draws,
    )


def _check_decoder(decoder: Any, dim: int) -> None:
    """A metric of the caller's own may have been given anything under that name."""
    if not callable(decoder) or not all(hasattr(decoder, name) for name in ("latent_dim", "output_dim")):
        raise InvalidArgumentError(
            f"`metric.decoder` must be a wrapped decoder; got {describe(decoder)}. "
            "Wrap it first: metric.decoder = pm.Decoder(module)."
        )
    if decoder.latent_dim != dim:
        raise InvalidArgumentError(
            f"`metric.decoder` must take latents of dimension {dim}, as `metric` does; it takes {decoder.latent_dim}. "
            "Give the metric its own decoder."
        )


def _decoded(decoder: SmoothMap, curves: Tensor) -> Tensor:
    """Whether the decoder has finite values all along each of the finite curves (P, T, d): (P,)."""
    left, between = _places(torch.linspace(0, 1, _ASKED, dtype=curves.dtype, device=curves.device), curves.shape[1])
    dtype = getattr(decoder, "dtype", None) or torch.get_default_dtype()
    guarded, good = GuardedMap(decoder), []
    for some in curves.split(max(1, _ENTRIES // (_ASKED * decoder.output_dim))):
        z = (1 - between) * some[:, left] + between * some[:, left + 1]
        values = guarded(z.flatten(0, 1).to(dtype))
        good.append(torch.isfinite(values).view(len(some), values.shape[1] * _ASKED).all(1).to(curves.device))
    return torch.cat(good)


def _places(t: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which of ``count`` points on a curve lies before the time t (n,), and how far it is from there to the next."""
    place = t * (count - 1)
    left = place.floor().clamp_max(count - 2)
    return left.long(), (place - left)[:, None]


def _report(status: tuple[Status, ...], finite: Tensor) -> None:
    lost = int((~finite).sum())
    if lost == len(finite):
        raise NumericalError(
            f"none of the {lost} pairs has a curve all along which metric and decoder are finite. "
            "Check the decoder at these latents and between them."
        )
    left_out = f"{lost} are not finite, or not decoded to finite values, and are left out"
    if not status:
        words = f"of {len(finite)} straight lines {left_out}. Check the decoder between these latents."
    else:
        kept = finite.tolist()
        unsure = sum(found is not Status.CONVERGED and use for found, use in zip(status, kept, strict=True))
        words = (
            f"of {len(finite)} curves {unsure} did not converge and are used as they are, {left_out}; see `status`, "
            "and raise `max_spans` or `max_steps`."
        )
    warn_caller(words, ConvergenceWarning)


def _draw_pairs(soft: Tensor, partners: str, pairs: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Rows of the two ends: anchors at random among those with a partner, partners at random among theirs."""
    classes = soft.argmax(1).cpu().numpy()
    rows = np.arange(len(classes))
    if partners == "any":
        choices = dict.fromkeys(np.unique(classes), rows)
    else:
        choices = {k: rows[(classes == k) if partners == "same" else (classes != k)] for k in np.unique(classes)}
    fewest = 1 if partners == "other" else 2
    anchors = rows[[len(choices[k]) >= fewest for k in classes]]
    if not len(anchors):
        raise InvalidArgumentError(
            f"`labels` must hold a pair of the kind partners={partners!r}, and there is none. "
            "Add labelled data, or choose other `partners`."
        )
    first = generator.choice(anchors, size=pairs)
    second = np.array([_other(choices[classes[row]], row, generator) for row in first])
    return torch.from_numpy(first), torch.from_numpy(second)


def _other(choices: np.ndarray, row: int, generator: np.random.Generator) -> int:
    """One of the choices that is not the row itself."""
    while True:
        found = int(generator.choice(choices))
        if found != row:
            return found
