"""The contract of an uncertainty model: thirty lines of your own satisfy it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .._rows import Rows
from ..smooth_map import SmoothMap


class UncertaintyModel(ABC):
    """How little is known of a decoder at a latent.

    A model answers with a *score*, not with a variance in any unit: a smooth scalar that grows as
    less is known.  The calibration of :func:`posthoc_metric.repair` maps scores to a metric, so
    a monotone change of the score changes nothing but the shape of the transition.
    Models see float64 latents and answer in float64.  Once a model is fitted, :func:`posthoc_metric.repair` asks it at
    a few points whether it keeps to what is said here.

    Attributes:
        fitted: whether :func:`posthoc_metric.repair` may use the model as it is; :meth:`fit` sets it.

    Example, the distance to the mean of the latents in their own spread:
        >>> import posthoc_metric as pm
        >>> class Mahalanobis(pm.UncertaintyModel):
        ...     def fit(self, decoder, latents, data=None, *, seed=0):
        ...         self.mean, self.precision, self.fitted = latents.mean(0), latents.T.cov().inverse(), True
        ...         return self
        ...     def score(self, z):
        ...         away = z - self.mean
        ...         return (1 + ((away @ self.precision) * away).sum(1)).sqrt()
        >>> from posthoc_metric.examples import digits, digits_vae
        >>> module, encoder = digits_vae()
        >>> latents = encoder(digits().data).double()
        >>> pm.repair(pm.Decoder(module), latents, uncertainty=Mahalanobis()).gate.ceiling > 0
        True
    """

    fitted: bool = False

    @abstractmethod
    def fit(self, decoder: SmoothMap, latents: Tensor, data: Rows | None = None, *, seed: int = 0) -> UncertaintyModel:
        """Learn from latents (N, d) and, where there are any, data (N, D); return ``self``.

        ``data`` are rows that are read when asked for: ``data[:]`` is all of them as a tensor, ``data[rows]`` some.
        """

    @abstractmethod
    def score(self, z: Tensor) -> Tensor:
        """(B, d) -> (B,), larger where less is known; differentiable by autograd unless
        :meth:`score_and_gradient` is given."""

    def score_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """The score (B,) and its gradient (B, d) in closed form; ``None`` leaves it to autograd."""
        return None

    def score_gradient_hessian(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """The score (B,), its gradient (B, d) and its second derivatives (B, d, d) in closed form; ``None`` where that
        is not to be had, and the geodesic solver takes more steps."""
        return None

    def held_out_scores(
        self, decoder: SmoothMap, latents: Tensor, data: Rows | None = None, *, seed: int = 0
    ) -> Tensor | None:
        """Scores (N,) that the latents (N, d) of :meth:`fit` would have had, had they been held out of it.

        They are asked for where few latents are held out, so that calibration rests on all; ``None`` does without.
        """
        return None

    def shape(self) -> Callable[[Tensor], Tensor] | None:
        """What is unknown in each direction: z -> (B, d, d), symmetric, eigenvalues in [0, 1], tending to
        the identity far from the data; ``None`` where ignorance is the same in every direction.

        In many dimensions geodesics ask for single directions only, and take far less where the answer is a
        :class:`~posthoc_metric.matrix_field.DirectedField`; in any they take less where it is a
        :class:`~posthoc_metric.matrix_field.SlopedField` and :meth:`score_and_gradient` is given.
        """
        return None

    def held_out_shapes(self, latents: Tensor) -> Tensor | None:
        """Shapes (n, d, d) that ``latents`` (n, d), the first of those of :meth:`fit`, would have had, had each been
        held out of it; asked for beside :meth:`held_out_scores`.  ``None`` takes the identity there."""
        return None

    def state(self) -> dict[str, Tensor]:
        """Tensors that, with :meth:`settings`, rebuild the fitted model; an empty dict means it cannot be saved."""
        return {}

    def settings(self) -> dict[str, Any]:
        """JSON-compatible options the model was made with."""
        return {}
