"""What the geodesic benchmarks share: CPU time, honest lengths of anybody's curves, and stochman as a peer."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from posthoc_metric.geodesic.curves.spline import interpolate
from posthoc_metric.metric import Metric
from posthoc_metric.smooth_map import StackedMap

Solve = Callable[[Tensor, Tensor], Tensor]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    before = time.process_time()
    result = call()
    return time.process_time() - before, result


def curve_lengths(metric: Metric, nodes: Tensor, pieces: int = 1000) -> Tensor:
    """Lengths (B,) of the cubic splines through ``nodes`` (B, n+1, d), by the midpoint rule on many short pieces."""
    count, total, dim = nodes.shape
    if total <= pieces:
        knots = torch.linspace(0, 1, total, dtype=torch.float64).expand(count, -1).contiguous()
        times = torch.linspace(0, 1, pieces + 1, dtype=torch.float64).expand(count, -1)
        nodes = interpolate(knots, nodes.double()).at(times)[0]
    step, middle = nodes.diff(dim=1), (nodes[:, 1:] + nodes[:, :-1]) / 2
    return metric.norm(middle.reshape(-1, dim), step.reshape(-1, dim)).view(count, -1).sum(1)


class _ByPullback(torch.autograd.Function):
    """A smooth map for autograd, by the map's own pull-back."""

    @staticmethod
    def forward(context: Any, z: Tensor, mapping: Any) -> Tensor:
        context.mapping = mapping
        context.save_for_backward(z)
        return mapping(z.detach())

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (z,) = context.saved_tensors
        return context.mapping.vjp(z, grads[0])[1].to(z), None


class _ByGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, z: Tensor, weight: Any) -> Tensor:
        value, gradient = weight.value_and_gradient(z.detach().double())
        context.save_for_backward(gradient.to(z))
        return value.to(z)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][:, None] * context.saved_tensors[0], None


def have_stochman() -> bool:
    """Whether stochman is installed; says what to do where it is not."""
    if importlib.util.find_spec("stochman") is not None:
        return True
    print("stochman is not installed and left out of the comparison: pip install stochman")
    return False


def stochman_curves(
    metric: Metric, module: torch.nn.Module | None = None, *, nodes: int = 5, steps: int = 150, grid: int = 20
) -> Solve:
    """``(a, b) -> points (B, 1001, d)`` by stochman's batched energy minimisation, by default at its own defaults.

    Args:
        module: the network behind ``metric.decoder``, so that stochman differentiates it as its users do.
    """
    from stochman.curves import CubicSpline
    from stochman.geodesic import geodesic_minimizing_energy
    from stochman.manifold import EmbeddedManifold, Manifold

    parts = metric.parts()
    maps = parts.embedding.maps if isinstance(parts.embedding, StackedMap) else (parts.embedding,)

    def value(z: Tensor) -> Tensor:
        found = []
        for mapping in maps:
            if module is not None and mapping is getattr(metric, "decoder", None):
                found.append(module(z))
            elif hasattr(mapping, "value"):
                found.append(mapping.value(z))
            else:
                found.append(_ByPullback.apply(z, mapping))
        return torch.cat(found, dim=-1)

    class Embedded(EmbeddedManifold):
        def embed(self, points: Tensor, jacobian: bool = False) -> Tensor:
            return value(points.reshape(-1, points.shape[-1])).view(*points.shape[:-1], -1)

        def curve_energy(self, curve: Tensor, reduction: str = "sum", dt: float | None = None) -> Tensor:
            energy = super().curve_energy(curve, reduction, dt)
            if parts.weight is not None:
                step, middle = curve.diff(dim=1), (curve[:, 1:] + curve[:, :-1]) / 2
                weight = _ByGradient.apply(middle.reshape(-1, middle.shape[-1]), parts.weight)
                energy = energy + (weight * step.square().sum(-1).flatten()).sum() * step.shape[1]
            return energy

    class Plain(Manifold):
        def metric(self, points: Tensor) -> Tensor:
            # _tensor: the public method detaches NumPy-style input, and stochman differentiates through it
            return metric._tensor(points)  # type: ignore[attr-defined]

    manifold = Plain() if parts.embedding is None else Embedded()

    def solve(a: Tensor, b: Tensor) -> Tensor:
        curve = CubicSpline(a.float(), b.float(), num_nodes=nodes)
        geodesic_minimizing_energy(curve, manifold, max_iter=steps, eval_grid=grid)
        with torch.no_grad():
            points = curve(torch.linspace(0, 1, 1001)).double().view(len(a), 1001, -1)
        points[:, 0], points[:, -1] = a, b
        return points

    return solve


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns of one width each, numbers to three digits."""
    texts = [[_text(entry) for entry in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in texts)


def _text(entry: Any) -> str:
    return f"{entry:.3g}" if isinstance(entry, float) else str(entry)
