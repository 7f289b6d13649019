"""Study 5: are distances stable over the seeds of training?

    python demos/stability.py --mnist FOLDER

Ten VAEs that differ in nothing but their seed; the same 100 pairs of images are encoded by each, and their distances
compared: the coefficient of variation over the ten, as in Syrota et al. (2024).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import LABELS, Study, Table, arguments, image_vae, metrics_of
from matplotlib.figure import Figure

import posthoc_metric as pm
from posthoc_metric import plots


@dataclass(frozen=True)
class Size:
    seeds: int = 10
    pairs: int = 100
    names: tuple[str, ...] = ("decoder", "rbf")


QUICK = Size(seeds=2, pairs=5)


def variation(distances: np.ndarray, *, scale_free: bool) -> np.ndarray:
    """Coefficient of variation over models (axis 0) of each pair's distance, (pairs,).

    ``scale_free`` first divides each model's distances by their mean, so that a mere change of unit does not count.
    """
    if scale_free:
        distances = distances / distances.mean(1, keepdims=True)
    return distances.std(0, ddof=1) / distances.mean(0)


def main(
    quick: bool = False, *, out: Path | None = None, mnist: Path | None = None, publish: bool = False
) -> list[Table]:
    study = Study("stability", quick, out, mnist, publish)
    size = QUICK if quick else Size()
    images = study.images().pooled()
    training, _ = images.split(len(images) // 2)
    drawn = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[: 2 * size.pairs]
    first, second = drawn[: size.pairs], drawn[size.pairs :]
    lengths: dict[str, list[np.ndarray]] = {}
    converged: dict[str, list[float]] = {}
    for seed in range(size.seeds):

        def compute(seed: int = seed) -> dict[str, Any]:
            vae = image_vae(study, training, seed=seed)
            latents = vae.encode(training.pixels)
            decoder = pm.Decoder(vae.decoder, latent_dim=2)
            start, end = latents[first].double(), latents[second].double()
            length = {"euclidean": (start - end).norm(dim=1).tolist()}
            share: dict[str, float] = {}
            for name, metric in metrics_of(study, decoder, latents, training.pixels, size.names, seed=seed).items():
                solution = metric.geodesic(start, end, rtol=1e-3)
                length[name] = solution.length.tolist()
                share[name] = float(solution.converged.double().mean())
            return {"lengths": length, "converged": share}

        part = study.remembered(f"seed{seed}", [asdict(size), images.source], compute)
        for name, values in part["lengths"].items():
            lengths.setdefault(name, []).append(np.array(values))
        for name, value in part["converged"].items():
            converged.setdefault(name, []).append(value)
        study.say(f"seed {seed}: {size.pairs} pairs in {len(size.names)} metrics")
    table = Table(
        f"Coefficient of variation of {size.pairs} distances over {size.seeds} VAEs (mean ± sd over pairs)",
        ["distance", "raw", "unit of each model removed", "geodesics converged"],
    )
    found: dict[tuple[str, bool], np.ndarray] = {}
    for name, values in lengths.items():
        stacked = np.stack(values)
        good = np.isfinite(stacked).all(0)
        for scale_free in (False, True):
            found[name, scale_free] = variation(stacked[:, good], scale_free=scale_free)
        cells = (f"{v.mean():.3f} ± {v.std(ddof=1):.3f}" for v in (found[name, False], found[name, True]))
        share = f"{np.mean(converged[name]):.3f}" if name in converged else "-"
        table.add("Euclidean" if name == "euclidean" else LABELS[name], *cells, share)
    for scale_free in (False, True):
        table.notes.append(verdict(found, scale_free))
    headline = f"Run on {images.source}: {size.seeds} VAEs with 2-D latents on the same {len(training)} images."
    study.finish(headline, [table], picture(found))
    return [table]


def verdict(found: dict[tuple[str, bool], np.ndarray], scale_free: bool) -> str:
    euclid, decoder, rbf = (found[name, scale_free].mean() for name in ("euclidean", "decoder", "rbf"))
    unit = "With each model's unit removed" if scale_free else "Raw"
    return (
        f"{unit}: repaired geodesic distances vary {rbf / euclid:.2f} times as much as Euclidean ones and "
        f"{rbf / decoder:.2f} times as much as the decoder's own."
    )


def picture(found: dict[tuple[str, bool], np.ndarray]) -> Figure:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for ax, scale_free in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
        names = [name for name, kind in found if kind == scale_free]
        values = [found[name, scale_free] for name in names]
        ax.boxplot(
            values, orientation="horizontal", showfliers=False, widths=0.55, medianprops={"color": plots.OFF_DATA}
        )
        ax.set_yticks(range(1, len(names) + 1), ["Euclidean" if n == "euclidean" else LABELS[n] for n in names])
        ax.set_xlabel("coefficient of variation over models")
        ax.set_title("unit of each model removed" if scale_free else "raw", loc="left", size=10)
        ax.set_xlim(0)
        plots.tidy(ax)
    ax.invert_yaxis()  # of both, which share it
    return figure


if __name__ == "__main__":
    main(**arguments(__doc__))
