"""The repair audit: the same quantities for the decoder, the published repair and ours, on the same points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._arrays import check_count, check_seed, describe
from .._rows import some_rows
from ..errors import FitError, InvalidArgumentError
from ..smooth_map import condition_numbers, gram, resolved_eigenvalues
from ..uncertainty import PublishedRBF
from ..uncertainty.measurement import AUDITED, measure
from .criteria import Criterion, faithfulness_criteria, fidelity, roughest, shell_criteria
from .faithfulness import Faithfulness, faithfulness
from .shells import Field, Shell, ShellRow, quantile, shells, statistics
from .smoothness import directions, smoothness

if TYPE_CHECKING:
    from ..repair import RepairedMetric

#: points on a shell at least, entries of Jacobians on all shells together, and entries of matrices on each: their
#: eigenvalues cost d times as much, from d = 205 on more than is spent on 200 points
_FEWEST_POINTS = 24
_BUDGET = 3e8
_MATRIX_BUDGET = 2**23
#: where the decoder's condition number is beyond the bound at most latents, fidelity is judged by few of them: more
#: are looked at until so many are within it, at most so many times the points of a shell
_FEWEST_SOUND, _MOST_SHELLS = 50, 8
#: condition numbers that eigenvalues of JᵀJ tell from larger ones as they are, without singular values of J
_TOLD = 1e4
#: steps of the central differences, in units of R.  A decoder in single precision needs the long one; one with kinks
#: has no derivative across them, and the long one would measure the jump over itself.  Both errors only ever add.
_DECODER_STEPS = (1e-2, 1e-4)
#: the addition is in double precision and without kinks
_ADDED_STEP = 5e-4
#: offsets between the shells at which the published baseline's wall may stand: in d = 10 it is thinner than they are
#: apart
_WALLS = tuple(1.25**power for power in range(1, 14))
_VARIANCE_ROWS = 1000
#: residuals, in standard deviations of the data, that leave the published baseline's noise, which in the void is a
#: thousand of these, a wall to hold others to
_MOST_MISSED = 30.0


@dataclass(frozen=True)
class Audit:
    """What the repair did, in numbers.

    Attributes:
        criteria: one line each, with bound and verdict.
        shells: the statistics behind them.
        faithfulness: where geodesics between held-out data run; ``None`` if no pairs were asked for.
        radius: R, in latent units.
    """

    criteria: tuple[Criterion, ...]
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
    """Measure a repair on held-out latents, in the gaps, and in the void as far as the repair reaches.

    Args:
        repaired: what :func:`posthoc_metric.repair` gave.
        points: on each shell; by default up to 200, fewer where Jacobians or matrices are large.
        pairs: pairs of held-out data whose geodesics are followed, before and after; 0 leaves them out.
        baseline: also measure the published RBF repair, whose peak bounds the smoothness; needs the data.
        seed: of shells, directions and pairs.

    Raises:
        InvalidArgumentError: ``repaired`` is no repaired metric, or a number is out of range.
    """
    if not hasattr(repaired, "geometry"):
        raise InvalidArgumentError(f"`repaired` must be what pm.repair or pm.load gives; got {describe(repaired)}.")
    seed, pairs = check_seed(seed), check_count(pairs, "pairs", 0, "how many geodesics to follow")
    if points is not None:
        points = check_count(points, "points", 2, "how many points of each shell to measure at")
    entries = repaired.dim * repaired.decoder_metric.embedding.output_dim * 10
    within = min(_BUDGET / entries, _MATRIX_BUDGET / repaired.dim**2)
    count = points or int(min(max(within, _FEWEST_POINTS), AUDITED))
    added: dict[str, Field] = {"decoder": lambda z: z.new_zeros(len(z)), "repaired": _added(repaired)}
    if isinstance(repaired.model, PublishedRBF):
        reason = "the published repair cannot be held to itself"
    elif not baseline:
        reason = "the published baseline was not asked for"
    elif repaired.data is None:
        reason = "the published baseline needs the training data"
    else:
        try:
            published = _baseline(repaired, seed)
        except FitError as error:
            reason = f"the published baseline has no fit: {error}"
        else:
            added["rbf-published"] = lambda z: gram(published.noise, z)
            # its peak then bounds nothing: it comes from the least residual that its fit allows
            exact = "the published baseline has no residuals to fit: the data are the decoder's own"
            reason = exact if published.exact else ""
    rows: list[ShellRow] = []
    on_data: dict[str, Tensor] = {}
    for shell in shells(repaired.geometry, count, reach=_reach(repaired), seed=seed):
        values, rough = _measure(repaired, shell, added, seed=seed)
        on_data = on_data or values
        rows.append(ShellRow(shell, {name: statistics(values[name], rough[name]) for name in added}))
    followed = faithfulness(repaired, pairs, seed=seed) if pairs else None
    bound = repaired.knobs.max_condition_number
    found = (
        *fidelity(_enough_on_data(repaired, on_data, added, bound), bound),
        *shell_criteria(
            rows,
            inflation=repaired.knobs.inflation,
            condition=bound,
            no_baseline=reason,
            walls=_walls(repaired, rows, added, count, seed=seed),
        ),
        *faithfulness_criteria(followed, asked=pairs),
    )
    return Audit(found, tuple(rows), followed, repaired.geometry.radius)


def _reach(repaired: RepairedMetric) -> float:
    """Out to which offset the decoder lets a repair be held to anything."""
    if repaired.gate is not None:
        return repaired.gate.reach
    return measure(repaired.decoder_metric.embedding, repaired.geometry, seed=repaired.geometry.seed).offsets[-1]


def _baseline(repaired: RepairedMetric, seed: int) -> PublishedRBF:
    """The published repair; the precision that it keeps in the void is for data of unit variance, whatever theirs."""
    assert repaired.data is not None
    rows = some_rows(len(repaired.data), _VARIANCE_ROWS, seed)
    sample = repaired.data[rows].double()
    variance = float(sample.var(0, correction=0).mean())
    outputs = repaired.decoder(repaired.geometry.training[rows.to(repaired.geometry.training.device)])
    missed = float((outputs.to(sample) - sample).square().mean())
    # of data that do not vary the fit itself tells
    if missed > _MOST_MISSED**2 * variance > 0:
        raise FitError(
            f"the decoder's output misses the data by {math.sqrt(missed / variance):.3g} of their standard deviations. "
            "Bring them into the form that the decoder reconstructs."
        )
    published = PublishedRBF(floor=PublishedRBF().floor / max(variance, 1e-290))
    return published.fit(repaired.decoder, repaired.geometry.training, repaired.data, seed=seed)


def _walls(
    repaired: RepairedMetric, rows: list[ShellRow], added: dict[str, Field], count: int, *, seed: int
) -> list[float]:
    """Smoothness of the published repair between the shells, if they have missed a peak that matters."""
    if "rbf-published" not in added or roughest(rows, "repaired") <= roughest(rows, "rbf-published"):
        return []
    found = []
    reach = _reach(repaired)
    for offset in (offset for offset in _WALLS if offset <= reach):
        wall = Shell("wall", offset, repaired.geometry.shell(offset, count, seed=seed))
        _, rough = _measure(repaired, wall, {name: added[name] for name in ("decoder", "rbf-published")}, seed=seed)
        found.append(quantile(rough["rbf-published"], 0.95))
    return found


def _added(repaired: RepairedMetric) -> Field:
    """What the repair adds: matrices (n, d, d), or (n,) where these are multiples of the identity."""
    parts = repaired.parts()
    if isinstance(repaired.model, PublishedRBF) or parts.weight is None or parts.field is not None:
        return repaired.added
    return parts.weight


def _enough_on_data(
    repaired: RepairedMetric, values: dict[str, Tensor], added: dict[str, Field], bound: float
) -> dict[str, Tensor]:
    """Eigenvalues (m, d) of each metric on the held-out data, at more than those of (n, d) if these say too little.

    Of the others only those where the decoder's condition number is within ``bound`` are looked for; the rest is NaN.
    """
    count, embedding = len(values["decoder"]), repaired.decoder_metric.embedding
    for z in repaired.geometry.audit[count : _MOST_SHELLS * count].split(count):
        if int((condition_numbers(values["decoder"]) <= bound).sum()) >= _FEWEST_SOUND:
            break
        base = gram(embedding, z)
        own = torch.linalg.eigvalsh(base).clamp_min(0)
        if bound > _TOLD:
            own = resolved_eigenvalues(own, embedding, z)
        sound = condition_numbers(own) <= bound
        more = {name: torch.full_like(own, torch.nan) for name in added}
        for name, extra in added.items() if bool(sound.any()) else ():
            more[name][sound] = torch.linalg.eigvalsh(base[sound] + _matrices(extra(z), base)[sound]).clamp_min(0)
        values = {name: torch.cat([found, {**more, "decoder": own}[name]]) for name, found in values.items()}
    return values


def _matrices(extra: Tensor, base: Tensor) -> Tensor:
    """An addition (n,) or (n, d, d) as matrices like ``base`` (n, d, d)."""
    if extra.ndim != 1:
        return extra
    return extra[:, None, None] * torch.eye(base.shape[1], dtype=base.dtype, device=base.device)


def _measure(
    repaired: RepairedMetric, shell: Shell, added: dict[str, Field], *, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Eigenvalues (n, d) and smoothness (n/2,) of each metric.

    The decoder is evaluated once for all of them, and decomposed once for those that add a multiple of the identity.
    """
    radius = repaired.geometry.radius
    z = shell.points
    embedding = repaired.decoder_metric.embedding
    base = gram(embedding, z)
    few = z[: max(len(z) // 2, 1)]
    u = directions(few, seed=seed)
    changes = torch.stack(
        [
            (gram(embedding, few + step * u) - gram(embedding, few - step * u)) / (2 * step)
            for step in (share * radius for share in _DECODER_STEPS)
        ]
    )
    plain = _decomposed(base, changes)
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    step = _ADDED_STEP * radius
    values, rough = {}, {}
    for name, extra in added.items():
        here, slope = extra(z), (extra(few + step * u) - extra(few - step * u)) / (2 * step)
        if here.ndim == 1:
            own, turned = plain[0] + here[:, None], plain[1] + slope[:, None, None] * eye
        else:
            own, turned = _decomposed(base + here, changes + slope)
        values[name], rough[name] = own.clamp_min(0), smoothness(own[: len(few)], turned, radius).amin(0)
    values["decoder"] = resolved_eigenvalues(values["decoder"], embedding, z)
    return values, rough


def _decomposed(tensor: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues (n, d) of M (n, d, d), and changes (s, m, d, d) at the first m in the axes of M there."""
    few = changes.shape[1]
    first, axes = torch.linalg.eigh(tensor[:few])
    return torch.cat([first, torch.linalg.eigvalsh(tensor[few:])]), axes.mT @ changes @ axes
