"""What a geodesic solver hands back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, Restore, describe, to_tensor
from ..errors import InvalidArgumentError
from ..metric_parts import MetricParts
from ..outcome import advice, tally
from .curves.placement import Clock
from .curves.spline import Spline
from .guard import GuardedMap, filled, guard
from .options import check_integer
from .status import Status


@dataclass(frozen=True, repr=False)
class Solution:
    """Geodesics of B pairs, with what is needed to believe them.  All facts are of the returned curves.

    ``print(solution)`` counts the statuses and says of those that did not converge which they are and what to do.

    Attributes:
        points: (B, T, d), equally spaced in Riemannian length, the ends included.
        length: Riemannian length, integrated inside the spans (B,); where an end requires grad its gradient is that of
            a geodesic, from the first variation, and backward asks for 65 points or more, or two where d = 1. The rest
            carries none.
        energy: ``∫ ‖ż‖² dt`` over [0, 1] (B,); ``length²`` at constant speed.
        residual: of the discrete geodesic equation (B,): the square root of the share of its energy that the
            discrete curve could still lose.  Zero is a geodesic.
        length_error: estimated absolute error of ``length`` (B,): quadrature, spacing of the nodes and residual; where
            a decoder has kinks a few in a hundred err by more.
        speed_variation: ``(fastest - slowest) / mean`` Riemannian speed (B,) of the relaxed curve in its own time,
            which nothing but its energy made constant; ``solution(t)`` is timed by length on top of that.
        steps: steps taken, over all starts and refinements (B,).
        evaluations: points at which the metric or its derivative was asked for, starts included (B,); beyond d = 8 a
            decoder's calls may be filled up with others, which are not counted.
        spans: cubic spans of the curve (B,).
        start: name of the start curve that won, B of them.
        status: B of them; ``str(status)`` is advice.
        converged: ``status is Status.CONVERGED`` (B,), bool.
    """

    points: Any
    length: Any
    energy: Any
    residual: Any
    length_error: Any
    speed_variation: Any
    steps: Any
    evaluations: Any
    spans: Any
    start: tuple[str, ...]
    status: tuple[Status, ...]
    converged: Any
    _spline: Spline
    _clock: Clock
    #: lengths (B,) as a float64 tensor, whatever came in
    double_length: Tensor
    #: whose lengths converge as at kinks, which few curves under a smooth metric do and most under ReLU (B,)
    rough: Tensor
    _metric: Any
    _restore: Restore
    _dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        known = self.double_length[torch.isfinite(self.double_length)]
        lengths = f"; lengths {float(known.min()):.4g} to {float(known.max()):.4g}" if len(known) else ""
        many, dim = "" if len(self) == 1 else "s", self._spline.nodes.shape[2]
        first = f"{len(self)} geodesic{many}, d = {dim}: {tally(self.status) or 'nothing to solve'}{lengths}"
        return "\n".join([first, *advice(self.status, Status.CONVERGED)])

    def __call__(self, t: ArrayLike | float) -> Any:
        """Points at times ``t`` in [0, 1], at constant Riemannian speed.

        Args:
            t: a number, or n numbers (n,).

        Returns:
            (B, d) for a number, (B, n, d) for n of them.

        Raises:
            InvalidArgumentError: a time outside [0, 1].
        """
        times, scalar = self._times(t)
        points, _ = self._spline.at(self._clock.at(times))
        return self._restore(self._cast(points[:, 0] if scalar else points))

    def velocity(self, t: ArrayLike | float) -> Any:
        """Latent velocities at times ``t``, shaped like ``solution(t)``, of Riemannian norm ``length``."""
        times, scalar = self._times(t)
        velocities = self._velocities(times)
        return self._restore(self._cast(velocities[:, 0] if scalar else velocities))

    def double_velocity(self, t: float) -> Tensor:
        """Velocities (B, d) at time ``t`` as a float64 tensor, whatever came in."""
        return self._velocities(self._times(t)[0])[:, 0]

    @property
    def curve(self) -> tuple[Spline, Clock]:
        """The curves through the nodes that were relaxed, and the clocks that time them by length."""
        return self._spline, self._clock

    @property
    def parts(self) -> MetricParts:
        """The structure of the metric that the curves are of."""
        return self._metric.parts()

    def _velocities(self, times: Tensor) -> Tensor:
        points, velocities = self._spline.at(self._clock.at(times))
        count, moments, dim = points.shape
        places, flat = points.reshape(-1, dim), velocities.reshape(-1, dim)
        lost = ~torch.isfinite(torch.cat([places, flat], dim=1)).all(1)
        speed = torch.full_like(flat[:, 0], float("nan"))
        if not bool(lost.all()):
            ways = filled(flat, lost)
            speed = guard(self._metric.parts()).inner(filled(places, lost), ways, ways).clamp_min(0).sqrt()
        length = self.double_length.repeat_interleave(moments)
        scale = torch.where(speed > 0, length / speed, torch.ones_like(speed))
        return (flat * scale[:, None]).view(count, moments, dim)

    def _times(self, t: ArrayLike | float) -> tuple[Tensor, bool]:
        number = isinstance(t, (int, float))
        times, _ = to_tensor([t] if number else t, "t")  # type: ignore[list-item, arg-type]
        if times.ndim > 1 or not bool(((times >= 0) & (times <= 1)).all()):
            raise InvalidArgumentError(f"`t` must be a number or n numbers in [0, 1]; got {describe(t)}.")
        return times.reshape(-1).to(self._spline.nodes).expand(len(self), -1), number or times.ndim == 0

    def decode(self, num: int) -> Any:
        """Decoded frames at ``num`` equal steps of Riemannian length, (B, num, D).

        Raises:
            InvalidArgumentError: the metric has no decoder.
        """
        check_integer(num, "num", 2)
        decoder = getattr(self._metric, "decoder", None) or self._metric.parts().embedding
        if decoder is None:
            raise InvalidArgumentError(
                "`decode` needs a metric that comes from a decoder; this one has neither a `decoder` nor an embedding. "
                "Call your own decoder on `solution(t)`."
            )
        times = torch.linspace(0, 1, num, dtype=torch.float64, device=self._spline.nodes.device)
        points, _ = self._spline.at(self._clock.at(times.expand(len(self), -1)))
        flat = points.reshape(-1, points.shape[-1])
        if hasattr(decoder, "output_dim"):
            frames = GuardedMap(decoder)(flat)
        else:
            # a module of one's own takes its own precision, and makes what it likes of rows that are not finite
            weights = decoder.parameters() if isinstance(decoder, torch.nn.Module) else ()
            with torch.no_grad():
                frames = decoder(flat.to(next(iter(weights), flat)))
        # one number a row may come without an axis of its own
        return self._restore(self._cast(frames.reshape(len(self), num, math.prod(frames.shape[1:]))))

    def plot(self, ax: Any = None) -> Any:
        """The curves over the first two latent coordinates; curves that did not converge are dashed.

        Args:
            ax: Matplotlib axes; the current figure's if it is not given.

        Returns:
            The axes.
        """
        import matplotlib.pyplot as plt

        if ax is None:
            ax = plt.gca()
        curves = self._spline.at(
            torch.linspace(0, 1, 201, dtype=torch.float64, device=self._spline.nodes.device).expand(len(self), -1)
        )[0].cpu()
        for curve, status in zip(curves, self.status, strict=True):
            across = curve[:, 0]
            up = curve[:, 1] if curve.shape[1] > 1 else torch.linspace(0, 1, len(curve), device="cpu")
            ax.plot(across, up, "-" if status is Status.CONVERGED else "--", linewidth=1)
        ax.set_xlabel("$z_1$")
        ax.set_ylabel("$z_2$" if curves.shape[-1] > 1 else "$t$")
        return ax

    def _cast(self, values: Tensor) -> Tensor:
        return values.to(self._dtype)
