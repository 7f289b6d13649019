"""Routes: one choice of how values are pushed forward, pulled back and gathered into a Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import derivatives, kernels
from .finite import difference
from .turns import ONE_AT_A_TIME

Function = Callable[[Tensor], Tensor]

#: what `describe` says of each way to push a tangent forward, best first
FORWARD_WAYS = {
    "forward": "forward-mode AD of the batch",
    "per row": "forward-mode AD of one row at a time (vmap)",
    "double backward": "reverse-mode AD twice",
    "differences": "finite differences",
}
REVERSE_WAYS = {
    "reverse": "reverse-mode AD",
    "columns": "d forward columns",
}


@dataclass(frozen=True)
class Route:
    """How derivatives are taken.

    Attributes:
        forward: a key of :data:`FORWARD_WAYS`.
        reverse: a key of :data:`REVERSE_WAYS`.
        mapped: columns of the Jacobian share one evaluation of the function under ``vmap``.
        kernels: see :data:`~posthoc_metric.decoder.kernels.KERNELS`; for ``forward`` and ``reverse``.
        reverse_kernels: the same for ``reverse``.
        plain_kernels: the same for values alone; of those that are in force for one thread.
        one_pass: what reverse mode evaluates on its way is, bit for bit, what a plain call gives.
        shrink: divides the step of finite differences.
        unit: the scale of the latents, which the step is a share of.
    """

    forward: str = "forward"
    reverse: str = "reverse"
    mapped: bool = False
    kernels: tuple[str, ...] = ()
    reverse_kernels: tuple[str, ...] = ()
    plain_kernels: tuple[str, ...] = ()
    one_pass: bool = False
    shrink: float = 1.0
    unit: float = 1.0

    def value(self, function: Function, z: Tensor) -> Tensor:
        """``f(z)`` (B, D) by a plain call, of which no graph is kept."""
        with torch.no_grad(), kernels.in_force(self.plain_kernels):
            return function(z)

    def jvp(self, function: Function, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``f(z)`` and ``J(z) v``, each (B, D)."""
        with self._alone(), kernels.in_force(self.kernels):
            return self._push(function, z, v)

    def _alone(self) -> AbstractContextManager[Any]:
        return ONE_AT_A_TIME if self.kernels or self.forward in ("forward", "per row") else nullcontext()

    def _push(self, function: Function, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.forward == "forward":
            return derivatives.forward(function, z, v)
        if self.forward == "per row":
            return derivatives.per_row(function, z, v)
        if self.forward == "double backward":
            return derivatives.double_backward(function, z, v)
        with torch.no_grad():
            return function(z), difference(function, z, v, self.shrink, self.unit).value

    def columns(self, function: Function, z: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """``f(z)`` (B, D) and columns ``first`` to ``last`` of ``J(z)``, (last - first, B, D)."""
        with self._alone(), kernels.in_force(self.kernels):
            if self.mapped:
                return derivatives.columns_by_vmap(function, z, first, last)
            if self.forward == "differences":
                push = partial(_difference_only, shrink=self.shrink, unit=self.unit)
                with torch.no_grad():
                    value = function(z)
                return value, derivatives.columns_by_tiling(push, function, z, first, last)[1]
            return derivatives.columns_by_tiling(self._push, function, z, first, last)

    def vjp(self, function: Function, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """``f(z)`` (B, D) and ``J(z)ᵀ u`` (B, d) by reverse mode."""
        with ONE_AT_A_TIME if self.reverse_kernels else nullcontext(), kernels.in_force(self.reverse_kernels):
            return derivatives.reverse(function, z, u)

    @property
    def evaluations(self) -> int:
        """Rows of ``f`` that one forward derivative costs beside its own; counted as values."""
        return 4 if self.forward == "differences" else 0


def _difference_only(function: Function, z: Tensor, v: Tensor, shrink: float, unit: float) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        pushed = difference(function, z, v, shrink, unit).value
    return pushed, pushed
