"""Hard pairs counted: what converged, what was admitted to have failed, and what was claimed falsely.

Run ``python tests/benchmarks/hard_pairs.py [pairs] [share]``: so many pairs over the metrics below, a share of which
(default 0.05) is checked for shorter curves.  Nothing here believes the solver:

- every pair must end in a status, with facts that are finite unless the status says that there is no curve;
- ``length`` of every CONVERGED pair is held against the length of the returned curve by thousands of chords under a
  float64 metric (or, where there is one, against the closed-form distance): it is *off* where it errs by more than
  ``length_error``, and a *false length* where by more than three times that and by more than ``rough_rtol``;
- the returned curve of a CONVERGED pair of the sample is shortened by L-BFGS over sine modes: where that succeeds by
  more than three times ``length_error`` and ``rough_rtol`` without climbing, the claim of being shortest nearby was
  *false*; where it climbed on its way, or started from a shortest path on a grid, it found *another valley*, which no
  status denies.
"""

from __future__ import annotations

import copy
import functools
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from independent import bounds, descend, grid_paths, measured_lengths, resample
from peers import table, timed
from torch import Tensor, nn

import posthoc_metric as pm
from posthoc_metric.geodesic import Status
from posthoc_metric.geodesic.options import RelaxationOptions
from posthoc_metric.metric import FunctionMetric, Metric
from posthoc_metric.spaces import HalfPlane, Sphere

_ROUGH = RelaxationOptions().rough_rtol
#: energy on the way to a shorter curve, over that at its start, above which it lies in another valley
_CLIMBED = 1 + 1e-6


@dataclass
class Hard:
    """Pairs under a metric, and the metric that they are judged by.

    Attributes:
        truth: the metric of the checks; in float64 throughout.
        exact: closed-form distances (B,), where there are any.
        pieces: chords by which a curve is measured first; few for pairs so near that rounding spoils many.
    """

    name: str
    metric: Metric
    a: Tensor
    b: Tensor
    truth: Metric
    exact: Tensor | None = None
    pieces: int = 1024
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Tally:
    """What came of one metric's pairs; ``claims`` lists (what, pair, excess) of each false claim."""

    name: str
    count: int
    seconds: float
    statuses: Counter[str]
    without: int
    off: int
    worst_off: float
    sampled: int
    valleys: int
    worst_valley: float
    claims: list[tuple[str, int, float]]

    @property
    def false(self) -> int:
        return len({pair for _, pair, _ in self.claims})


def _draw(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal


def random_mlp(sizes: list[int], bend: type[nn.Module], seed: int = 0, gain: float = 1.5) -> nn.Sequential:
    """An untrained float64 MLP with weights of variance ``gain²`` over the width."""
    normal = _draw(seed)
    layers: list[nn.Module] = []
    for one, other in zip(sizes[:-1], sizes[1:], strict=True):
        linear = nn.Linear(one, other, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(normal(other, one, scale=gain / one**0.5))
            linear.bias.copy_(normal(other, scale=0.5))
        layers += [linear, bend()]
    return nn.Sequential(*layers[:-1])


def trained(steps: int = 400) -> tuple[nn.Module, Tensor, Tensor]:
    """A float64 decoder ``R² -> R⁶⁴`` of a small VAE of scikit-learn's digits, with its latents and data."""
    from sklearn.datasets import load_digits

    data = torch.tensor(load_digits().data / 16.0, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)).double()
        decoder = nn.Sequential(nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 64), nn.Sigmoid()).double()
        optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 4e-3)
        for _ in range(steps):
            x = data[torch.randint(len(data), (128,))]
            mean, log_std = encoder(x).chunk(2, 1)
            z = mean + log_std.exp() * torch.randn_like(mean)
            fit = nn.functional.binary_cross_entropy(decoder(z), x, reduction="none").sum(1)
            loss = (fit + 0.1 * (mean**2 + (2 * log_std).exp() - 2 * log_std - 1).sum(1)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        latents = encoder(data)[:, :2].detach()
    return decoder.requires_grad_(False).eval(), latents, data


def _conformal(weight: Callable[[Tensor], Tensor]) -> FunctionMetric:
    return FunctionMetric(lambda z: weight(z)[:, None, None] * torch.eye(2, dtype=z.dtype), 2)


def hard_metrics(count: int, steps: int = 400, seed: int = 0) -> list[Callable[[], Hard]]:
    """Makers of the metrics, ``count`` pairs each."""
    kept: dict[str, Any] = {}

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        # each maker resets the generator, so that its pairs are the same whichever were made before
        return kept["draw"](*shape, scale=scale)

    def data_pairs(latents: Tensor, number: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed + 1)
        a, b = torch.randint(len(latents), (2, number), generator=generator)
        return latents[a], latents[b]

    def decoder() -> tuple[pm.Decoder, Tensor, Tensor]:
        if "decoder" not in kept:
            module, latents, data = trained(steps)
            kept["decoder"] = pm.Decoder(module, latent_dim=2), latents, data
        return kept["decoder"]

    def repaired(kind: str) -> pm.RepairedMetric:
        if kind not in kept:
            kept[kind] = pm.repair(*decoder(), uncertainty=kind)
        return kept[kind]

    def wall() -> Hard:
        metric = repaired("rbf-published")
        a, b = data_pairs(decoder()[1], count)
        # every second pair ends in the wall or beyond it
        out = torch.arange(count) % 2 == 1
        b = torch.where(out[:, None], b + normal(count, 2, scale=float(b.std())), b)
        return Hard("published RBF's wall", metric, a, b, metric)

    def void() -> Hard:
        metric, latents = repaired("rbf"), decoder()[1]
        a, b = data_pairs(latents, count)
        middle, size = latents.mean(0), latents.std()
        # to the other side of the data, or an end far out
        out = torch.arange(count) % 2 == 1
        b = torch.where(out[:, None], middle + normal(count, 2, scale=3 * float(size)), 2 * middle - a)
        return Hard("void, default repair", metric, a, b, metric)

    def unrepaired() -> Hard:
        size = float(decoder()[1].std())
        metric = pm.PullbackMetric(decoder()[0])
        a, b = normal(count, 2, scale=3 * size), normal(count, 2, scale=3 * size)
        return Hard("unrepaired decoder, off the data", metric, a, b, metric)

    def ignored() -> Hard:
        module = random_mlp([2, 32, 20], nn.Tanh, 3)
        with torch.no_grad():
            module[0].weight[:, 1] *= 1e-4
        metric = pm.PullbackMetric(pm.Decoder(module, latent_dim=2))
        return Hard("decoder that nearly ignores a direction", metric, normal(count, 2), normal(count, 2), metric)

    def rank_one() -> Hard:
        module = nn.Sequential(nn.Linear(2, 1, dtype=torch.float64), random_mlp([1, 16, 10], nn.Tanh, 4))
        metric = pm.PullbackMetric(pm.Decoder(module.requires_grad_(False), latent_dim=2))
        return Hard("rank one", metric, normal(count, 2), normal(count, 2), metric)

    def relu() -> Hard:
        metric = pm.PullbackMetric(pm.Decoder(random_mlp([2, 32, 32, 20], nn.ReLU, 5), latent_dim=2))
        return Hard("ReLU, d = 2", metric, normal(count, 2), normal(count, 2), metric)

    def relu_more() -> Hard:
        metric = pm.PullbackMetric(pm.Decoder(random_mlp([6, 48, 48, 30], nn.ReLU, 6), latent_dim=6))
        return Hard("ReLU, d = 6", metric, normal(count, 6), normal(count, 6), metric)

    def single() -> Hard:
        module = random_mlp([2, 32, 32, 20], nn.Tanh, 7)
        low = pm.PullbackMetric(pm.Decoder(copy.deepcopy(module).float(), latent_dim=2))
        # the weights of the float32 copy, exactly, in float64
        truth = pm.PullbackMetric(pm.Decoder(copy.deepcopy(module).float().double(), latent_dim=2))
        return Hard("float32 decoder", low, normal(count, 2), normal(count, 2), truth)

    def coincident() -> Hard:
        metric, latents = repaired("rbf"), decoder()[1]
        a, _ = data_pairs(latents, count)
        return Hard("coincident", metric, a, a.clone(), metric, torch.zeros(count, dtype=torch.float64), pieces=16)

    def near() -> Hard:
        metric, latents = repaired("rbf"), decoder()[1]
        a, _ = data_pairs(latents, count)
        return Hard("1e-9 apart", metric, a, a + normal(count, 2, scale=1e-9), metric, pieces=8)

    def near_single() -> Hard:
        module = random_mlp([2, 32, 20], nn.Tanh, 8).float()
        metric = pm.PullbackMetric(pm.Decoder(module, latent_dim=2))
        truth = pm.PullbackMetric(pm.Decoder(copy.deepcopy(module).double(), latent_dim=2))
        a = normal(count, 2)
        return Hard("1e-9 apart, float32 decoder", metric, a, a + normal(count, 2, scale=1e-9), truth, pieces=8)

    def far() -> Hard:
        metric, latents = repaired("rbf"), decoder()[1]
        a, _ = data_pairs(latents, count)
        b = normal(count, 2)
        return Hard("1e6 apart", metric, a, a + 1e6 * b / b.norm(dim=1, keepdim=True), metric)

    def hole() -> Hard:
        def fn(z: Tensor) -> Tensor:
            inside = z.square().sum(1) < 0.49
            return torch.where(inside, float("nan"), 1 + 0.3 * z[:, 0].sin())[:, None, None] * torch.eye(
                2, dtype=z.dtype
            )

        metric = FunctionMetric(fn, 2)
        return Hard("NaN in the middle", metric, normal(count, 2), normal(count, 2), metric)

    def antipodal() -> Hard:
        sphere = Sphere()
        a = normal(count, 2)
        a = a / a.norm(dim=1, keepdim=True) * (0.5 + normal(count, 1).abs())
        b = -a / a.square().sum(1, keepdim=True) + 10 ** (-torch.arange(count, dtype=torch.float64) % 6)[
            :, None
        ] * normal(count, 2, scale=0.3)
        return Hard("near-antipodal on the sphere", sphere, a, b, sphere, sphere.distance(a, b))

    def edge() -> Hard:
        space = HalfPlane()
        a, b = normal(count, 2), normal(count, 2)
        a[:, 1], b[:, 1] = (3 * a[:, 1]).exp(), (3 * b[:, 1] - 3).exp()
        return Hard("half-plane near its edge", space, a, b, space, space.distance(a, b))

    def ridge() -> Hard:
        metric = _conformal(lambda z: 1 + 1e6 * torch.exp(-((z[:, 0] - 0.1 * (3 * z[:, 1]).sin()) ** 2) / 2e-4))
        a, b = normal(count, 2), normal(count, 2)
        a[:, 0], b[:, 0] = -a[:, 0].abs() - 0.2, b[:, 0].abs() + 0.2
        return Hard("thin ridge", metric, a, b, metric)

    def collapse() -> Hard:
        metric = _conformal(lambda z: torch.exp(-z.square().sum(1)))
        a, b = normal(count, 2, scale=1.5), normal(count, 2, scale=1.5)
        return Hard("metric that collapses far out", metric, a, b, metric)

    def alone(make: Callable[[], Hard]) -> Callable[[], Hard]:
        @functools.wraps(make)
        def made() -> Hard:
            kept["draw"] = _draw(seed + 2)
            return make()

        return made

    makers = [
        wall,
        void,
        unrepaired,
        ignored,
        rank_one,
        relu,
        relu_more,
        single,
        coincident,
        near,
        near_single,
        far,
        hole,
        antipodal,
        edge,
        ridge,
        collapse,
    ]
    return [alone(make) for make in makers]


def examine(hard: Hard, share: float = 0.05, pieces: int = 512, side: int = 100) -> Tally:
    """Solve the pairs of one metric and check what is said of them."""
    count = len(hard.a)
    seconds, solution = timed(lambda: pm.geodesic(hard.metric, hard.a, hard.b, **hard.options))
    statuses = Counter(status.name for status in solution.status)
    lost = torch.tensor([status is Status.NOT_FINITE for status in solution.status])
    facts = torch.stack([solution.length, solution.energy, solution.length_error, solution.residual], dim=1)
    whole = torch.isfinite(facts[:, :2]).all(1) & torch.isfinite(solution.points).flatten(1).all(1)
    claimed = solution.converged & torch.isfinite(facts).all(1)
    # a status, and facts to it
    without = count - len(solution.status) + int((~lost & ~whole).sum()) + int((solution.converged & ~claimed).sum())

    claims: list[tuple[str, int, float]] = []
    length, doubt = measured_lengths(hard.truth, solution, hard.pieces)
    error = (solution.length - length).abs() - doubt
    rounding = 1e-9 * length if hard.pieces > 16 else 1e-5 * length
    off = solution.converged & ~(error <= solution.length_error + rounding)
    allowed = torch.maximum(3 * solution.length_error, _ROUGH * length)
    for pair in (solution.converged & ~(error <= allowed)).nonzero().flatten().tolist():
        claims.append(("length", pair, float(error[pair] / length[pair])))
    looked_at = (claimed & (solution.length > 0)).nonzero().flatten()[:: max(1, round(1 / max(share, 1e-9)))]
    if hard.exact is not None:
        excess = solution.length - hard.exact
        for pair in (solution.converged & ~(-excess <= allowed)).nonzero().flatten().tolist():
            claims.append(("shorter than can be", pair, float(-excess[pair] / hard.exact[pair])))
        # whatever is longer than the distance is looked at, not a sample of it
        longer = (claimed & (excess > allowed)).nonzero().flatten()
        looked_at = torch.cat([looked_at, longer]).unique()
    if hard.pieces <= 16:
        looked_at = looked_at[:0]

    valleys, worst_valley = 0, 0.0
    polygons = solution(torch.linspace(0, 1, pieces + 1, dtype=torch.float64))
    paths: list[Tensor | None] = [None] * len(looked_at)
    if hard.a.shape[1] == 2 and len(looked_at):
        ends = torch.cat([hard.a[looked_at], hard.b[looked_at]])
        low, high = ends.amin(0), ends.amax(0)
        margin = 0.3 * (high - low) + 1e-3
        box = torch.stack([low - margin, high + margin])
        paths = list(grid_paths(hard.truth, hard.a[looked_at], hard.b[looked_at], box, side))
    for pair, path in zip(looked_at.tolist(), paths, strict=True):
        mine = float(solution.length[pair])
        found = descend(hard.truth, polygons[pair])
        gain = found.before - found.length
        elsewhere = gain if found.barrier > _CLIMBED else 0.0
        if gain > allowed[pair] and found.barrier <= _CLIMBED:
            claims.append(("not shortest nearby", pair, gain / mine))
        if path is not None and len(path) > 2:
            way = descend(hard.truth, resample(path, pieces))
            elsewhere = max(elsewhere, mine - min(way.length, float(bounds(hard.truth, path[None]))))
        if elsewhere > allowed[pair] and not any(claim[1] == pair for claim in claims):
            valleys += 1
            worst_valley = max(worst_valley, elsewhere / mine)
    return Tally(
        hard.name,
        count,
        seconds,
        statuses,
        without,
        int(off.sum()),
        float((error / length)[off].max()) if bool(off.any()) else 0.0,
        len(looked_at),
        valleys,
        worst_valley,
        claims,
    )


def main(
    count: int = 10_000, share: float = 0.05, steps: int = 400, most: int = 5, pieces: int = 512, side: int = 100
) -> list[Tally]:
    """Print the table, and the first ``most`` false claims of each metric; returns what it shows."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    makers = hard_metrics(1, steps)
    each = [count // len(makers) + (number < count % len(makers)) for number in range(len(makers))]
    makers = hard_metrics(max(each), steps)
    tallies, rows = [], []
    for number, make in zip(each, makers, strict=True):
        hard = make()
        hard.a, hard.b = hard.a[:number], hard.b[:number]
        hard.exact = None if hard.exact is None else hard.exact[:number]
        tally = examine(hard, share, pieces, side)
        tallies.append(tally)
        admitted = {name: had for name, had in tally.statuses.items() if name != "CONVERGED"}
        shown = ", ".join(f"{had} {name}" for name, had in sorted(admitted.items())) or "-"
        print(f"{tally.name}: {1e3 * tally.seconds / number:.1f} ms a pair; admitted failures: {shown}", flush=True)
        for what, pair, excess in sorted(tally.claims, key=lambda claim: -claim[2])[:most]:
            print(f"    FALSE {what}: pair {pair}, by {excess:.2e} of its length", flush=True)
        rows.append(
            (
                tally.name,
                tally.count,
                tally.statuses["CONVERGED"],
                sum(admitted.values()),
                tally.without,
                tally.off,
                tally.worst_off,
                tally.sampled,
                tally.valleys,
                tally.worst_valley,
                tally.false,
                max((excess for _, _, excess in tally.claims), default=0.0),
            )
        )
    totals = [sum(row[i] for row in rows) if i not in (6, 9, 11) else max(row[i] for row in rows) for i in range(1, 12)]
    header = ("metric", "pairs", "converged", "admitted", "no status", "length off", "worst", "sample", "other valley")
    print(table((*header, "worst", "false claims", "worst"), [*rows, ("all", *totals)]), flush=True)
    return tallies


if __name__ == "__main__":
    main(*(kind(argument) for kind, argument in zip((int, float), sys.argv[1:3], strict=False)))
