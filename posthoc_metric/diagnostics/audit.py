"""The repair audit: the same quantities for the decoder, the published repair and ours, on the same points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..uncertainty import PublishedRBF
from . import criteria as c
from .faithfulness import FAR, Faithfulness, faithfulness
from .shells import Field, Shell, Statistics, condition_numbers, log_volumes, quantile, shells, statistics
from .smoothness import directions, smoothness

if TYPE_CHECKING:
    from ..repair import RepairedMetric

#: points on a shell at most, and entries of Jacobians on all shells together
_MOST_POINTS = 200
_FEWEST_POINTS = 24
_BUDGET = 3e8
_CHUNK_BYTES = 2**27
#: steps of the central differences, in units of R: the decoder's exceeds float32 rounding, the addition is float64
_DECODER_STEP = 1e-2
_ADDED_STEP = 5e-4


@dataclass(frozen=True)
class ShellRow:
    """One shell and what each metric is like there, by the metric's name."""

    shell: Shell
    metrics: dict[str, Statistics]

    @property
    def name(self) -> str:
        return self.shell.name

    @property
    def offset(self) -> float:
        return self.shell.offset

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "offset": self.offset,
            "points": len(self.shell.points),
            "metrics": {name: found.as_dict() for name, found in self.metrics.items()},
        }


@dataclass(frozen=True)
class Audit:
    """What the repair did, in numbers.

    Attributes:
        criteria: one line each, with bound and verdict.
        shells: the statistics behind them.
        faithfulness: where geodesics between held-out data run; ``None`` if no pairs were asked for.
        radius: R, in latent units.
    """

    criteria: tuple[c.Criterion, ...]
    shells: tuple[ShellRow, ...]
    faithfulness: Faithfulness | None
    radius: float

    @property
    def passed(self) -> bool:
        """Whether every criterion that could be judged is met."""
        return all(criterion.passed is not False for criterion in self.criteria)

    def as_dict(self) -> dict[str, Any]:
        """JSON-compatible, with NaN and infinities as ``None`` and strings left to the writer."""
        return {
            "passed": self.passed,
            "radius": self.radius,
            "criteria": [criterion.as_dict() for criterion in self.criteria],
            "shells": [row.as_dict() for row in self.shells],
            "faithfulness": None if self.faithfulness is None else self.faithfulness.as_dict(),
        }

    def plot(self, ax: Any = None) -> Any:
        """Log volume against offset, before and after; see :func:`posthoc_metric.plots.log_volume_by_offset`."""
        from ..plots import log_volume_by_offset

        return log_volume_by_offset(self, ax=ax)

    def __str__(self) -> str:
        lines = [f"repair audit: {'passed' if self.passed else 'NOT passed'}"]
        for line in self.criteria:
            verdict = {True: "pass", False: "FAIL", None: "not judged"}[line.passed]
            bound = f"{line.relation} {line.bound:.4g}" if line.passed is not None else line.reason
            lines.append(f"  {verdict:10s} {line.name:28s} {line.before:12.4g} -> {line.after:<12.4g} ({bound})")
        return "\n".join(lines)


def audit(
    repaired: RepairedMetric, *, points: int | None = None, pairs: int = 30, baseline: bool = True, seed: int = 0
) -> Audit:
    """Measure a repair on held-out latents, in the void around them and in the gaps.

    Args:
        repaired: what :func:`posthoc_metric.repair` gave.
        points: on each shell; by default up to 200, fewer where Jacobians are large.
        pairs: pairs of held-out data whose geodesics are followed, before and after; 0 leaves them out.
        baseline: also measure the published RBF repair, whose peak bounds the smoothness; needs the data.
        seed: of shells, directions and pairs.
    """
    entries = repaired.dim * repaired.decoder.output_dim * 10
    count = points or int(min(max(_BUDGET / entries, _FEWEST_POINTS), _MOST_POINTS))
    added: dict[str, Field] = {"decoder": lambda z: z.new_zeros(len(z), z.shape[1], z.shape[1])}
    added["repaired"] = repaired.added
    if isinstance(repaired.model, PublishedRBF):
        reason = "the published repair cannot be held to itself"
    elif not baseline:
        reason = "the published baseline was not asked for"
    elif repaired.data is None:
        reason = "the published baseline needs the training data"
    else:
        published = PublishedRBF().fit(repaired.decoder, repaired.geometry.training, repaired.data, seed=seed)
        added["rbf-published"] = lambda z: _gram(published.noise, z)
        reason = ""
    rows, eigenvalues = [], {}
    for shell in shells(repaired.geometry, count, seed=seed):
        values, rough = _measure(repaired, shell, added, seed=seed)
        eigenvalues[shell.name] = values
        rows.append(ShellRow(shell, {name: statistics(values[name], rough[name]) for name in added}))
    followed = faithfulness(repaired, pairs, seed=seed) if pairs else None
    found = [
        *_fidelity(eigenvalues["data"], repaired.knobs.max_condition_number),
        _inflation(rows, repaired.knobs.inflation),
        _persistence(rows),
        *_conditioning(rows),
        _smoothness(rows, reason),
        *_faithfulness(followed),
    ]
    return Audit(tuple(found), tuple(rows), followed, repaired.geometry.radius)


def _gram(embedding: Any, z: Tensor) -> Tensor:
    """``JᵀJ`` (B, d, d), in chunks of bounded memory."""
    chunk = max(int(_CHUNK_BYTES / (8 * embedding.output_dim * z.shape[1])), 1)
    found = []
    for part in z.split(chunk):
        _, jacobian = embedding.value_and_jacobian(part)
        found.append(jacobian.mT @ jacobian)
    return torch.cat(found)


def _measure(
    repaired: RepairedMetric, shell: Shell, added: dict[str, Field], *, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Eigenvalues (n, d) and smoothness (n/2,) of each metric; the decoder is evaluated once for all of them."""
    radius = repaired.geometry.radius
    z = shell.points
    base = _gram(repaired.decoder, z)
    values = {name: torch.linalg.eigvalsh(base + extra(z)).clamp_min(0) for name, extra in added.items()}
    few = z[: max(len(z) // 2, 1)]
    u = directions(few, seed=seed)
    wide, narrow = _DECODER_STEP * radius, _ADDED_STEP * radius
    change = (_gram(repaired.decoder, few + wide * u) - _gram(repaired.decoder, few - wide * u)) / (2 * wide)
    rough = {}
    for name, extra in added.items():
        slope = change + (extra(few + narrow * u) - extra(few - narrow * u)) / (2 * narrow)
        rough[name] = smoothness(base[: len(few)] + extra(few), slope, radius)
    return values, rough


def _fidelity(values: dict[str, Tensor], bound: float) -> list[c.Criterion]:
    sound = condition_numbers(values["decoder"]) <= bound
    what = "|log volume repaired - decoder| per dimension on held-out data"
    if not bool(sound.any()):
        reason = "the decoder's own condition number is beyond the bound at every held-out latent"
        return [
            c.not_judged("fidelity, median", what, "at most", reason),
            c.not_judged("fidelity, 90th percentile", what, "at most", reason),
        ]
    change = (log_volumes(values["repaired"]) - log_volumes(values["decoder"]))[sound].abs()
    return [
        c.at_most("fidelity, median", what, 0.0, quantile(change, 0.5), c.FIDELITY_MEDIAN),
        c.at_most("fidelity, 90th percentile", what, 0.0, quantile(change, 0.9), c.FIDELITY_Q90),
    ]


def _inflation(rows: list[ShellRow], asked: float) -> c.Criterion:
    data = rows[0].metrics
    void = [row.metrics for row in rows if row.shell.is_void]

    def least(name: str) -> float:
        return min(found[name].smallest_eigenvalue_q05 for found in void) / data["decoder"].largest_eigenvalue_q95

    return c.at_least(
        "inflation",
        "smallest eigenvalue at offset 1 and beyond (5th percentile) over the largest on held-out data (95th)",
        least("decoder"),
        least("repaired"),
        asked**2 / c.INFLATION_SLACK,
    )


def _persistence(rows: list[ShellRow]) -> c.Criterion:
    ordered = [row.metrics for row in rows if row.name != "gaps"]
    return c.at_most(
        "persistence",
        "largest fall of the median log volume per dimension, from the data out to offset 1000",
        c.largest_fall([found["decoder"].log_volume_q50 for found in ordered]),
        c.largest_fall([found["repaired"].log_volume_q50 for found in ordered]),
        c.PERSISTENCE,
    )


def _conditioning(rows: list[ShellRow]) -> list[c.Criterion]:
    def worst(name: str, chosen: list[ShellRow]) -> float:
        return max(row.metrics[name].condition_number_q95 for row in chosen)

    near = [row for row in rows if not row.shell.is_void]
    void = [row for row in rows if row.shell.is_void]
    what = "95th percentile of κ(J), "
    return [
        c.at_most(
            "conditioning near the data",
            what + "worst of data, gaps and offsets below 1",
            worst("decoder", near),
            worst("repaired", near),
            c.CONDITION_ON_DATA,
        ),
        c.at_most(
            "conditioning in the void",
            what + "worst of the offsets from 1",
            worst("decoder", void),
            worst("repaired", void),
            c.CONDITION_IN_VOID,
        ),
    ]


def _smoothness(rows: list[ShellRow], reason: str) -> c.Criterion:
    def peak(name: str) -> float:
        return max(row.metrics[name].smoothness_q95 for row in rows)

    what = "relative change of the metric over a data radius (95th percentile), worst shell; bound: the published RBF's"
    if reason:
        return c.not_judged("smoothness", what, "at most", reason, peak("repaired"))
    return c.at_most("smoothness", what, peak("decoder"), peak("repaired"), peak("rbf-published"))


def _faithfulness(found: Faithfulness | None) -> list[c.Criterion]:
    what = "share of the latent length of geodesics at offset > {}, mean over pairs that the data connect"
    names = ("faithfulness", "faithfulness, edge")
    if found is None:
        reason = "no pairs that the data connect were followed"
        beyond = (f"{FAR:g}", "0")
        return [c.not_judged(name, what.format(at), "at most", reason) for name, at in zip(names, beyond, strict=True)]
    before, after = found.before, found.after
    # at offset > 0 lie 5 % of the data themselves, most of which the repair promises to leave as they are: curves
    # may go there as they did, not more
    bound = max(c.FAITHFULNESS_SLACK * before.off_data, c.FAITHFULNESS_NEAR_ZERO)
    return [
        c.at_most(names[0], what.format(f"{FAR:g}"), before.far, after.far, c.FAITHFULNESS_NEAR_ZERO),
        c.at_most(names[1], what.format("0"), before.off_data, after.off_data, bound),
    ]
