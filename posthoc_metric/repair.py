"""The front door: ``repair(decoder, latents, data)`` gives a metric that can be trusted off the data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import saving
from ._arrays import ArrayLike, check_range, check_seed, describe, to_points
from ._rows import Rows
from ._warn import warn_caller
from .belonging import check_data
from .decoder import Decoder
from .errors import (
    CalibrationWarning,
    CheckpointError,
    DerivativeWarning,
    InvalidArgumentError,
)
from .metric import MetricParts, PullbackMetric, StructuredMetric
from .smooth_map import SmoothMap, StackedMap, check_smooth_map, device_of
from .support import Support
from .surroundings import lasting
from .uncertainty import PublishedRBF, UncertaintyModel, make_model, model_name
from .uncertainty.calibration import Knobs, calibrate
from .uncertainty.contract import check_contract, check_held_out
from .uncertainty.evened import Evened
from .uncertainty.gate import Gate, ShapedField
from .uncertainty.measurement import measure

if TYPE_CHECKING:
    from .diagnostics import Audit

#: latents whose outputs tell one decoder from another
PROBES = 4
#: below this many held-out latents, a quantile of their scores is too uncertain by itself
_FEW_HELD_OUT = 200


class RepairedMetric(StructuredMetric):
    """A decoder's pullback metric with the geometry of what is not known of it added.

    ``M(z) = J_fᵀJ_f + w(z) I`` for a model whose ignorance is the same in all directions, ``w`` being the
    calibrated :class:`~posthoc_metric.uncertainty.Gate`; ``J_fᵀJ_f + εI + (w(z) - ε) S(z)`` for one
    with a shape ``S``, evened as far as the bound on κ(J) needs; ``J_fᵀJ_f + J_σᵀJ_σ`` for ``"rbf-published"``,
    which is not calibrated.

    The first form is the expected metric ``J_fᵀJ_f + J_sᵀJ_s + (Σ_j s_j²)/ℓ² I`` of a decoder with correlated
    noise, at fixed ``w = Σ_j s_j²/ℓ²`` and small ``ℓ``: the rank-one term ``J_sᵀJ_s`` then vanishes, and with it
    the stiff wall that it builds around the data.

    Attributes:
        decoder: what was wrapped.
        decoder_metric: the unrepaired metric, with the same methods.
        model: the fitted uncertainty model.
        gate: the calibrated gate; ``None`` for ``"rbf-published"``.
        geometry: the latents, their held-out split, radius and offsets.
        knobs: what the repair was asked for.
        data: the training data's rows, if they were given and the metric was not loaded from a file.
    """

    def __init__(
        self,
        decoder_metric: PullbackMetric,
        model: UncertaintyModel | PublishedRBF,
        gate: Gate | None,
        geometry: Support,
        knobs: Knobs,
        data: Rows | None = None,
    ):
        self.decoder_metric = decoder_metric
        self.decoder_metric.support = geometry.training
        super().__init__(_parts(decoder_metric.embedding, model, gate), decoder_metric.dim)
        self.decoder = decoder_metric.decoder
        self.model = model
        self.gate = gate
        self.geometry = geometry
        self.knobs = knobs
        self.data = data
        self.support = geometry.training

    def __repr__(self) -> str:
        name, space = type(self.decoder).__name__, f"R^{self.dim} -> R^{self.decoder.output_dim}"
        first = (
            f"repaired metric of a {name} {space}: {model_name(self.model)} on {self.geometry.count} latents of radius "
            f"{self.geometry.radius:.4g}"
        )
        if self.gate is None:
            return first
        return (
            f"{first}; inflation {self.knobs.inflation:g}, support quantile {self.knobs.support_quantile:g}, "
            f"condition number at most {self.knobs.max_condition_number:g}"
        )

    def added(self, z: ArrayLike) -> Any:
        """What the repair adds to ``J_fᵀJ_f`` at z (B, d): (B, d, d)."""
        points, restore = to_points(z, "z", self.dim)
        parts = self.parts()
        noise = self.model.noise if isinstance(self.model, PublishedRBF) else None
        found = MetricParts(embedding=noise, weight=parts.weight, field=parts.field).tensor(points.double())
        return restore(found.to(points.dtype))

    def offset(self, z: ArrayLike) -> Any:
        """How far z (B, d) lies from the data, (B,): zero or below on them, one at a data radius beyond."""
        points, restore = to_points(z, "z", self.dim)
        return restore(self.geometry.offset(points).to(points.dtype))

    def audit(self, **options: Any) -> Audit:
        """The repair audit, before and after; see :func:`posthoc_metric.diagnostics.audit`."""
        from .diagnostics import audit

        return audit(self, **options)

    def save(self, path: str | Path) -> None:
        """Write everything but the decoder and the data to one safetensors file, whole or not at all.

        The graphs that geodesics have started from so far are written too, so that they are not built again.

        Raises:
            OutputError: the file cannot be written.
            CheckpointError: the uncertainty model has no ``state()``, or one that holds something else than tensors, or
                its ``settings()`` are no JSON.
        """
        # the solver comes later in the pipeline
        from .geodesic.starts.saved_graphs import graphs_state

        state = self.model.state()
        if not state:
            raise CheckpointError(
                f"{type(self.model).__name__} cannot be saved: its `state()` is empty. Return the tensors that "
                "rebuild it there, and give the class a `from_state(settings, state)`."
            )
        _check_savable(self.model, state)
        probes = self.geometry.training[:PROBES]
        tensors = {f"model.{key}": value for key, value in state.items()}
        if self.gate is not None:
            tensors |= {f"floor.{key}": value for key, value in self.gate.floor.state().items()}
        tensors["latents"] = self.geometry.latents
        tensors["probe_outputs"] = self.decoder(probes)
        graphs, starts = graphs_state(self)
        tensors |= {f"starts.{key}": value for key, value in graphs.items()}
        facts = {
            "uncertainty": model_name(self.model),
            "settings": self.model.settings(),
            "knobs": asdict(self.knobs),
            "gate": None if self.gate is None else self.gate.numbers(),
            "reach": None if self.gate is None else self.gate.reach,
            "seed": self.geometry.seed,
            "starts": starts,
        }
        saving.write(path, tensors, facts)


def repair(
    decoder: SmoothMap,
    latents: ArrayLike,
    data: Any = None,
    *,
    uncertainty: str | UncertaintyModel | PublishedRBF = "rbf",
    inflation: float = 10.0,
    support_quantile: float = 0.99,
    max_condition_number: float = 1e3,
    seed: int = 0,
) -> RepairedMetric:
    """Repair the pullback metric of a trained decoder away from its training latents.

    Args:
        decoder: a :class:`~posthoc_metric.Decoder`, or anything with its methods.
        latents: (N, d), what the encoder gives for the training data, or samples of a GAN's prior; at least 20.
        data: (N, D) or (N, ...), what the latents encode, row by row; a tensor, an array, a memory map or a sparse
            table of SciPy's, of which only the rows needed are read. Where the decoder's output is that of
            :func:`~posthoc_metric.fisher_rao`, observations: counts, classes as numbers or one-hot rows; they are
            brought into its coordinates as they are read. Without data the latents alone say where the support is.
        uncertainty: ``"rbf"``; ``"gp"``; ``"rbf-published"``, the uncalibrated baseline (needs ``data``); or an
            :class:`~posthoc_metric.UncertaintyModel` of your own, which is fitted unless its ``fitted`` is true.
        inflation: a unit latent step in the void (offset ≥ 1) costs at least this many times the costliest unit step on
            the data, the square root of the 95th percentile of the largest eigenvalue of the metric there.
        support_quantile: share of held-out latents that count as known: up to that quantile of the model's score
            the repair leaves the decoder's own log volume unchanged to 0.2 per dimension, to 0.1 for 90 % of them and
            to 0.02 for half, but for what ``max_condition_number`` needs. Those are the held-out latents measured,
            about a thousand at most: of others up to 3 % may change by more, up to 5 % with 200 distinct latents. With
            40 among 200 no share is promised: in 3 of 24 runs it was over 10 %, in 2 of these without a warning.
        max_condition_number: bound on κ(J) on the data, by a smooth addition of the size that the points
            around z need; chosen to hold on 98.5 % of sampled points, and zero if none of them needs any. Where
            the decoder loses a direction everywhere, more fresh latents exceed it: 3 to 6 % with one output in d = 2.
        seed: of the held-out split, of k-means and of everything else that is drawn.

    Raises:
        InvalidArgumentError: an argument has a wrong shape, length or range, or ``data`` are no observations.
        DecoderError: the decoder's output or derivative is not finite at some of the latents; ``rows`` says which.
        FitError: they are not finite between the latents or up to a data radius off, the derivative is zero on them, or
            the model cannot be fitted or, asked at a few points, breaks the contract of an UncertaintyModel.

    Warns:
        CalibrationWarning: ``data`` match the output no better than by chance, are far larger or have its axes
            in another order; or the support asked for reaches into the void, and a smaller one was taken; or the model
            cannot tell the data from the void, so the audit will not pass; or the latent axes are of very unequal
            scale, so that lengths across the void come out far too large; or the decoder overflows or grows beyond all
            bounds far from the data, as with an exponential at its end, so that the repair holds out to some offset
            only, ``gate.reach``.
        DerivativeWarning: the decoder's output jumps between latents, as an angle does that wraps around.

    Example:
        >>> import posthoc_metric as pm
        >>> from posthoc_metric.examples import digits, digits_vae
        >>> module, encoder = digits_vae()
        >>> data = digits().data
        >>> repaired = pm.repair(pm.Decoder(module), encoder(data), data)
        >>> repaired.offset([[0.0, 0.0], [100.0, 0.0]]) > 1  # farther than a data radius from the data?
        array([False,  True])
    """
    knobs = Knobs(
        inflation=check_range(inflation, "inflation", 0.0, 1e8, "the cost of a step in the void over one on the data"),
        support_quantile=check_range(support_quantile, "support_quantile", 0.0, 1.0, "a share of held-out latents"),
        max_condition_number=check_range(max_condition_number, "max_condition_number", 1.0, 1e8, "a bound on κ(J)"),
    )
    check_smooth_map(decoder)
    seed = check_seed(seed)
    with lasting():
        # everything is where the decoder is
        source = getattr(decoder, "latent_dim_source", "")
        points = to_points(latents, "latents", decoder.latent_dim, source=source)[0].to(device_of(decoder))
        decoder = acquainted(decoder, points)
        geometry = Support(points, seed=seed)
        if isinstance(decoder, Decoder) and (cuts := decoder.cuts(geometry.training)):
            warn_caller(cuts, DerivativeWarning)
        rows = None
        if data is not None:
            rows, doubt = check_data(decoder, data, points)
            rows = rows.subset(geometry.training_rows)
            if doubt:
                warn_caller(doubt, CalibrationWarning)
        model = make_model(uncertainty) if isinstance(uncertainty, str) else uncertainty
        if not isinstance(model, (UncertaintyModel, PublishedRBF)):
            raise InvalidArgumentError(
                f"`uncertainty` must be a name or an UncertaintyModel instance; got {describe(model)}. "
                "Make an instance of your class first."
            )
        ready = getattr(model, "fitted", False)
        if ready:
            _check_fitted(model, decoder.latent_dim)
        else:
            model.fit(decoder, geometry.training, rows, seed=seed)
        unrepaired, gate = PullbackMetric(decoder), None
        if isinstance(model, UncertaintyModel):
            check_contract(model, geometry)
            held_out = None
            if not ready and len(geometry.calibration) < _FEW_HELD_OUT:
                held_out = model.held_out_scores(decoder, geometry.training, rows, seed=seed)
                check_held_out(model, held_out, len(geometry.training))
            gate = calibrate(model, measure(unrepaired.embedding, geometry, seed=seed), knobs, held_out)
        return RepairedMetric(unrepaired, model, gate, geometry, knobs, rows)


def acquainted(decoder: SmoothMap, latents: Tensor) -> SmoothMap:
    """A wrapped decoder may have been probed at latents of another size; other maps need no probe."""
    return decoder.acquainted(latents) if isinstance(decoder, Decoder) else decoder


def _check_savable(model: UncertaintyModel | PublishedRBF, state: dict[str, Any]) -> None:
    """Raise where a model of the caller's own gives what a file cannot hold."""
    name = type(model).__name__
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name} cannot be saved: its `state()` must hold tensors; its {key!r} is {describe(value)}. Give "
                "plain numbers and words by `settings()`."
            )
    try:
        json.dumps(model.settings())
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name} cannot be saved: its `settings()` must be JSON, and are not ({error}). Convert NumPy's numbers by "
            "float() or int()."
        ) from None


def _check_fitted(model: UncertaintyModel | PublishedRBF, dim: int) -> None:
    """Raise where a fitted model of this library knows latents of another width; others have no place to ask."""
    if isinstance(model, PublishedRBF):
        known = model.noise.latent_dim
    elif model_name(model) in ("rbf", "gp"):
        known = len(model.state()["origin"])
    else:
        return
    if known != dim:
        raise InvalidArgumentError(
            f"`uncertainty` must be a model of {dim}-dimensional latents, as the decoder's are; got "
            f"{type(model).__name__} fitted on latents of dimension {known}. Pass an unfitted one, or the name of a "
            "kind, to have it fitted here."
        )


def _parts(embedding: SmoothMap, model: UncertaintyModel | PublishedRBF, gate: Gate | None) -> MetricParts:
    if isinstance(model, PublishedRBF):
        return MetricParts(embedding=StackedMap([embedding, model.noise]))
    assert gate is not None
    shape = model.shape()
    if shape is None:
        return MetricParts(embedding=embedding, weight=gate)
    return MetricParts(embedding=embedding, field=ShapedField(gate, Evened(shape, gate.even) if gate.even else shape))
