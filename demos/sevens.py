"""Study 2: geodesics between sevens in a VAE's latent space, and what is decoded along them.

    python demos/sevens.py --mnist FOLDER

After figure 3 of Ramirez, Gallego & Puerta (2019): the straight line, the unrepaired decoder, the published RBF and the
default repair; then pairs of sevens at random, and how many decoded frames an independently trained classifier
still calls a seven.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import (
    LABELS,
    Classifier,
    Images,
    Study,
    Table,
    arguments,
    classifier,
    image_vae,
    mean_spread,
    metrics_of,
)
from matplotlib.figure import Figure
from torch import Tensor

import posthoc_metric as pm
from posthoc_metric import plots

DIGIT = 7


@dataclass(frozen=True)
class Size:
    seeds: int = 3
    pairs: int = 100
    frames: int = 25
    names: tuple[str, ...] = ("decoder", "rbf-published", "rbf")
    resolution: int = 110
    divergences: tuple[float, ...] = (1.0, 0.05)


QUICK = Size(seeds=1, pairs=4, frames=7, resolution=24, divergences=(1.0,))


@dataclass(frozen=True)
class Paths:
    """Curves (B, frames, d) at constant speed, what they decode to (B, frames, D), and whether they converged."""

    points: Tensor
    frames: Tensor
    converged: float


def paths_between(metrics: dict, decoder: pm.Decoder, start: Tensor, end: Tensor, frames: int) -> dict[str, Paths]:
    """The straight line and each metric's geodesics, at constant speed."""
    t = torch.linspace(0, 1, frames, dtype=torch.float64)
    line = start[:, None] + t[None, :, None] * (end - start)[:, None]
    found = {"straight": Paths(line, _decode(decoder, line), 1.0)}
    for name, metric in metrics.items():
        solution = metric.geodesic(start, end, rtol=1e-3)
        points = solution(t)
        found[name] = Paths(points, _decode(decoder, points), float(solution.converged.double().mean()))
    return found


def _decode(decoder: pm.Decoder, points: Tensor) -> Tensor:
    return decoder(points.flatten(0, 1)).view(*points.shape[:2], -1)


def judge(paths: Paths, judge_by: Classifier, offset: Tensor) -> dict[str, float]:
    """Shares over all frames but the ends, which every path shares."""
    inner = paths.frames[:, 1:-1]
    probabilities = judge_by.probabilities(inner.flatten(0, 1))
    right = (probabilities.argmax(1) == DIGIT).double().view(inner.shape[:2])
    return {
        "sevens": float(right.mean()),
        "all": float((right.mean(1) == 1).double().mean()),
        "confidence": float(probabilities[:, DIGIT].mean()),
        "off": float((offset[:, 1:-1] > 0).double().mean()),
        "converged": paths.converged,
    }


def sevens_of(images: Images, latents: Tensor, pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents of random pairs of sevens."""
    rows = torch.nonzero(images.labels == DIGIT).flatten()
    generator = torch.Generator().manual_seed(seed)
    first, second = (rows[torch.randint(len(rows), (pairs,), generator=generator)] for _ in range(2))
    return latents[first].double(), latents[second].double()


def longest(line: Paths, judge_by: Classifier) -> int:
    """Of the pairs whose both ends are plainly sevens, the one farthest apart."""
    ends = line.frames[:, [0, -1]]
    probability = judge_by.probabilities(ends.flatten(0, 1))[:, DIGIT].view(-1, 2).amin(1)
    apart = (line.points[:, -1] - line.points[:, 0]).norm(dim=1)
    return int((apart * (probability > 0.8)).argmax())


def picture(repaired: pm.RepairedMetric, found: dict[str, Paths], pair: int, images: Images, size: Size) -> Figure:
    """The latent plane with the curves of one pair, and a strip of decoded frames for each."""
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.9))
    latents = repaired.geometry.latents
    plane = plots.latent_plane(latents, margin=0.3)
    ax = left.add_subplot()
    field = plots.evaluate(repaired, plane, "log_volume", size.resolution)
    offset = repaired.offset(plane.grid(size.resolution)).reshape(field.shape).numpy()
    ax.imshow(field, origin="lower", extent=plane.window, cmap="Greys", alpha=0.6)
    ax.contour(*plane.ticks(len(offset)), offset, [0.0], colors="#888888", linewidths=0.8)
    ax.scatter(*latents[images.labels == DIGIT].T.numpy(), s=3, c="#009E73", linewidths=0)
    colours = {"straight": "black", "decoder": "#D55E00", "rbf-published": "#CC79A7", "rbf": "#0072B2"}
    for name, paths in found.items():
        ax.plot(*paths.points[pair].T.numpy(), color=colours[name], linewidth=2, label=LABELS[name])
    ends = found["straight"].points[pair][[0, -1]].numpy()
    ax.scatter(*ends.T, s=30, c="white", edgecolors="black", zorder=5)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, fontsize=8, frameon=False)
    ax.set(xlim=plane.window[:2], ylim=plane.window[2:], xticks=[], yticks=[])
    ax.set_title("latents of sevens over the repaired\nmagnification factor; line: edge of the data", size=9)
    shown = list(range(0, size.frames, max(size.frames // 12, 1)))
    axes = right.subplots(len(found), len(shown))
    for row, (name, paths) in enumerate(found.items()):
        strip = paths.frames[pair][shown].view(-1, *images.shape).float().numpy()
        away = (repaired.offset(paths.points[pair][shown]) > 0).tolist()
        plots.draw_frames(axes[row], strip, label=LABELS[name], off_data=away)
    right.suptitle("decoded at constant speed; orange: off the data", size=10)
    return figure


def main(
    quick: bool = False, *, out: Path | None = None, mnist: Path | None = None, publish: bool = False
) -> list[Table]:
    study = Study("sevens", quick, out, mnist, publish)
    size = QUICK if quick else Size()
    images = study.images().pooled()
    training, rest = images.split(len(images) // 2)
    judge_by = classifier(study, rest)
    tables: list[Table] = []
    figures: list[Figure] = []
    for divergence in size.divergences:
        runs: dict[str, list[dict[str, float]]] = {}
        for seed in range(size.seeds):
            pictured = divergence == size.divergences[-1] and seed == 0

            def compute(divergence: float = divergence, seed: int = seed, pictured: bool = pictured) -> dict[str, Any]:
                vae = image_vae(study, training, seed=seed, divergence=divergence)
                latents = vae.encode(training.pixels)
                decoder = pm.Decoder(vae.decoder, latent_dim=2)
                metrics = metrics_of(study, decoder, latents, training.pixels, size.names, seed=seed)
                start, end = sevens_of(training, latents, size.pairs, seed)
                found = paths_between(metrics, decoder, start, end, size.frames)
                support = metrics["rbf"]
                if pictured:
                    pair = longest(found["straight"], judge_by)
                    figures.append(picture(support, found, pair, training, size))
                judged = {}
                for name, paths in found.items():
                    offset = support.offset(paths.points.flatten(0, 1)).view(paths.points.shape[:2])
                    judged[name] = judge(paths, judge_by, offset)
                return judged

            settings = [asdict(size), images.source]
            part = study.remembered(f"weight{divergence:g}-{seed}", settings, compute, live=pictured)
            for name, values in part.items():
                runs.setdefault(name, []).append(values)
            study.say(f"divergence weight {divergence:g}, seed {seed}: {size.pairs} pairs followed")
        tables.append(_table(runs, divergence, size))
    tables[0].notes.append(
        f"The classifier saw none of the VAEs' images; on those it is right for {judge_by.accuracy(training):.1%}."
    )
    headline = (
        f"Run on {images.source}: VAEs with 2-D latents on {len(training)} images, {size.seeds} seeds, the classifier "
        f"on the others. The picture: of the first VAE {'with spread latents ' if len(tables) > 1 else ''}the pair "
        "farthest apart whose ends are plainly sevens."
    )
    study.finish(headline, tables, figures[0])
    return tables


def _table(runs: dict[str, list[dict[str, float]]], divergence: float, size: Size) -> Table:
    kind = "Plain VAE" if divergence == 1 else f"VAE with divergence weight {divergence:g} (spread latents, with holes)"
    table = Table(
        f"{kind}: frames along paths between sevens ({size.pairs} pairs, {size.frames - 2} inner frames each)",
        ["path", "called a seven", "paths wholly sevens", "mean probability of 7", "frames off the data", "converged"],
    )
    for name, values in runs.items():
        cells = (mean_spread([v[key] for v in values]) for key in ("sevens", "all", "confidence", "off", "converged"))
        table.add(LABELS[name], *cells)
    table.notes += [f"Mean ± standard deviation over {size.seeds} VAEs.", verdict(runs)]
    return table


def verdict(runs: dict[str, list[dict[str, float]]]) -> str:
    """What the default repair gained over the decoder alone and over straight lines, in the table's own numbers."""
    parts = []
    for other, label in (("decoder", "the decoder alone"), ("straight", "straight lines")):
        gains = [after["sevens"] - before["sevens"] for before, after in zip(runs[other], runs["rbf"], strict=True)]
        if max(abs(gain) for gain in gains) < 0.005:
            word = "no difference"
        elif min(gains) > 0:
            word = "a gain in every VAE"
        elif max(gains) < 0:
            word = "a loss in every VAE"
        else:
            word = "no gain that holds in every VAE"
        parts.append(f"against {label} {mean_spread(gains)} ({word})")
    return "Share of frames called a seven, default repair " + ", ".join(parts) + "."


if __name__ == "__main__":
    main(**arguments(__doc__))
