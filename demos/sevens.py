"""Study 2: geodesics between sevens in a VAE's latent space, and what is decoded along them.

    python demos/sevens.py --mnist FOLDER

After figure 3 of Ramirez, Gallego & Puerta (2019): the straight line, the unrepaired decoder, the published RBF and the
default repair; then pairs of sevens at random, and how many decoded frames an independently trained classifier
still calls a seven.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


QUICK = Size(seeds=2, pairs=4, frames=7, resolution=24)


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


def sevens_of(
    images: Images, latents: Tensor, judge_by: Classifier, decoder: pm.Decoder, pairs: int, seed: int
) -> tuple:
    """Random pairs of sevens whose own reconstructions the classifier calls sevens, so that both ends are right."""
    rows = torch.nonzero(images.labels == DIGIT).flatten()
    kept = rows[judge_by.probabilities(decoder(latents[rows])).argmax(1) == DIGIT]
    if len(kept) < 2:
        raise SystemExit("the VAE reconstructs fewer than two sevens that the classifier calls a seven")
    generator = torch.Generator().manual_seed(seed)
    first = kept[torch.randint(len(kept), (pairs,), generator=generator)]
    second = kept[torch.randint(len(kept), (pairs,), generator=generator)]
    return latents[first].double(), latents[second].double()


def picture(repaired: pm.RepairedMetric, found: dict[str, Paths], pair: int, images: Images, size: Size) -> Figure:
    """The latent plane with the curves of one pair, and a strip of decoded frames for each."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.75))
    latents = repaired.geometry.latents
    plane = plots.latent_plane(latents, margin=0.3)
    ax = left.add_subplot()
    field = plots.evaluate(repaired, plane, "log_volume", size.resolution)
    offset = repaired.offset(plane.grid(size.resolution)).reshape(field.shape).numpy()
    plots.draw_field(ax, field, plane, latents=latents[images.labels == DIGIT], offset=offset)
    colours = {"straight": "#ffffff", "decoder": "#D55E00", "rbf-published": "#E69F00", "rbf": "#56B4E9"}
    for name, paths in found.items():
        ax.plot(*paths.points[pair].T.numpy(), color=colours[name], linewidth=2.2, label=LABELS[name])
    ends = found["straight"].points[pair][[0, -1]].numpy()
    ax.scatter(*ends.T, s=30, c="white", edgecolors="black", zorder=5)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8, frameon=False)
    ax.set_title("magnification factor, repaired; dots: sevens", size=10)
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
    images = study.images()
    training, rest = images.split(len(images) // 2)
    judge_by = classifier(study, rest)
    runs: dict[str, list[dict[str, float]]] = {}
    figure: Figure | None = None
    for seed in range(size.seeds):
        vae = image_vae(study, training, seed=seed)
        latents = vae.encode(training.pixels)
        decoder = pm.Decoder(vae.decoder, latent_dim=2)
        metrics = metrics_of(study, decoder, latents, training.pixels, size.names, seed=seed)
        start, end = sevens_of(training, latents, judge_by, decoder, size.pairs, seed)
        found = paths_between(metrics, decoder, start, end, size.frames)
        support = metrics["rbf"]
        for name, paths in found.items():
            offset = support.offset(paths.points.flatten(0, 1)).view(paths.points.shape[:2])
            runs.setdefault(name, []).append(judge(paths, judge_by, offset))
        study.say(f"seed {seed}: {size.pairs} pairs followed")
        if figure is None:
            # the pair whose straight line is called a seven least often
            inner = found["straight"].frames[:, 1:-1]
            lost = judge_by.probabilities(inner.flatten(0, 1))[:, DIGIT].view(inner.shape[:2]).mean(1).argmin()
            figure = picture(support, found, int(lost), training, size)
    table = Table(
        f"Frames along paths between sevens ({size.pairs} pairs, {size.frames - 2} inner frames each)",
        ["path", "called a seven", "paths wholly sevens", "mean probability of 7", "frames off the data", "converged"],
    )
    for name, values in runs.items():
        cells = (mean_spread([v[key] for v in values]) for key in ("sevens", "all", "confidence", "off", "converged"))
        table.add(LABELS[name], *cells)
    accuracy = judge_by.accuracy(training)
    table.notes += [
        f"Mean ± standard deviation over {size.seeds} VAEs; the pairs are training sevens whose reconstruction the "
        "classifier calls a seven.",
        f"The classifier saw none of the VAEs' images; on those it is right for {accuracy:.1%}.",
        verdict(runs),
    ]
    headline = f"Run on {images.source}: VAEs with 2-D latents on {len(training)} images, classifier on the others."
    assert figure is not None
    study.finish(headline, [table], figure)
    return [table]


def verdict(runs: dict[str, list[dict[str, float]]]) -> str:
    """What the default repair gained over the decoder alone, in the tables' own numbers."""
    gains = [after["sevens"] - before["sevens"] for before, after in zip(runs["decoder"], runs["rbf"], strict=True)]
    mean = sum(gains) / len(gains)
    if all(gain > 0.005 for gain in gains):
        return f"The repair raises the share of sevens over the decoder alone in every VAE, by {mean:.3f} on average."
    if all(abs(gain) <= 0.02 for gain in gains):
        return f"The repair changes the share of sevens over the decoder alone by {mean:+.3f}: no gain on this data."
    return f"Against the decoder alone the repair changes the share of sevens by {mean:+.3f}; the sign differs by VAE."


if __name__ == "__main__":
    main(**arguments(__doc__))
