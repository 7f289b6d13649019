"""Closed-form spaces: this solver at its defaults beside stochman's default batched solver, same process and pairs.

Run ``python tests/benchmarks/closed_forms.py [pairs] [runs]``; needs ``pip install stochman``.  Times are CPU time of
this process, medians over runs; every curve is judged by the closed-form distance, stochman's by the
length of its own curve at 1,000 points under the same metric.  The torus, which has no closed form, is judged by this
solver's own curves of 256 spans, relaxed to 1e-8.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from posthoc_metric.geodesic import geodesic
from posthoc_metric.metric import Metric
from posthoc_metric.spaces import HalfPlane, Sphere, SwissRoll, Torus

Pairs = tuple[Tensor, Tensor]


def spaces(count: int, seed: int) -> dict[str, tuple[Metric, Pairs]]:
    """The spaces with ``count`` pairs of points each."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return 0.5 * torch.randn(count, 2, generator=generator, dtype=torch.float64)

    def upper() -> Tensor:
        z = draw()
        return torch.stack([z[:, 0], z[:, 1].exp()], dim=1)

    return {
        "sphere": (Sphere(), (draw(), draw())),
        "half-plane": (HalfPlane(), (upper(), upper())),
        "Swiss roll": (SwissRoll(), (6 + draw(), 8 + draw())),
        "torus": (Torus(), (draw(), 1 + draw())),
    }


def exact_lengths(metric: Metric, a: Tensor, b: Tensor) -> Tensor:
    """Closed-form distances, or lengths of curves far finer than the default ones."""
    if hasattr(metric, "distance"):
        return metric.distance(a, b)
    return geodesic(metric, a, b, spans=256, max_spans=256, tol=1e-8, rtol=1e-12).length


def stochman_solver(metric: Metric) -> Callable[[Tensor, Tensor], Tensor]:
    """``(a, b) -> lengths`` by stochman's ``connecting_geodesic`` at its defaults."""
    try:
        from stochman.manifold import EmbeddedManifold, Manifold
    except ImportError as error:
        raise SystemExit(f"this benchmark compares with stochman ({error}): pip install stochman") from None
    embedding = metric.parts().embedding
    manifold: Manifold
    if embedding is not None:

        class Embedded(EmbeddedManifold):
            def embed(self, points: Tensor, jacobian: bool = False) -> Tensor:
                flat = embedding.value(points.reshape(-1, points.shape[-1]))  # type: ignore[union-attr]
                return flat.view(*points.shape[:-1], -1)

        manifold = Embedded()
    else:

        class Plain(Manifold):
            def metric(self, points: Tensor) -> Tensor:
                # _tensor: the public method detaches NumPy-style input, and stochman differentiates through it
                return metric._tensor(points)  # type: ignore[attr-defined]

        manifold = Plain()

    def solve(a: Tensor, b: Tensor) -> Tensor:
        curve, _ = manifold.connecting_geodesic(a.float(), b.float())
        with torch.no_grad():
            points = curve(torch.linspace(0, 1, 1000)).double().view(len(a), 1000, -1)
        points[:, 0], points[:, -1] = a, b
        step, middle = points.diff(dim=1), (points[:, 1:] + points[:, :-1]) / 2
        flat = step.reshape(-1, a.shape[1])
        return metric.norm(middle.reshape(-1, a.shape[1]), flat).view(len(a), -1).sum(1)

    return solve


def timed(solve: Callable[[], object]) -> tuple[float, object]:
    before = time.process_time()
    result = solve()
    return time.process_time() - before, result


def main(count: int = 100, runs: int = 3) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{count} pairs, medians of {runs} runs (other pairs each), CPU ms a pair, the worst pair's error")
    print("space       converged  ms/pair  error     evaluations | stochman: ms/pair  error     | time ratio")
    for name in spaces(1, 0):
        rows = []
        for run in range(runs):
            metric, (a, b) = spaces(count, run)[name]
            exact = exact_lengths(metric, a, b)
            ours, solution = timed(lambda metric=metric, a=a, b=b: geodesic(metric, a, b))  # type: ignore[misc]
            solver = stochman_solver(metric)
            theirs, lengths = timed(lambda solver=solver, a=a, b=b: solver(a, b))  # type: ignore[misc]
            rows.append(
                (
                    float(solution.converged.double().mean()),  # type: ignore[attr-defined]
                    1e3 * ours / count,
                    float((solution.length / exact - 1).abs().max()),  # type: ignore[attr-defined]
                    float(solution.evaluations.double().median()),  # type: ignore[attr-defined]
                    1e3 * theirs / count,
                    float((lengths / exact - 1).abs().max()),  # type: ignore[operator]
                    theirs / ours,
                )
            )
        share, ms, error, evaluations, other_ms, other_error, ratio = (
            statistics.median(column) for column in zip(*rows, strict=True)
        )
        print(
            f"{name:11} {share:9.0%}  {ms:7.2f}  {error:.1e}  {evaluations:11.0f} |"
            f" {other_ms:17.2f}  {other_error:.1e}  | {ratio:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
