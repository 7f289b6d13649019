"""Which uncertainty repairs which decoder: the audit of every model on eleven trained decoders.

    python demos/uncertainty_table.py --mnist FOLDER

VAEs, plain and denoising autoencoders and GAN generators, d = 2, 10 and 64, multilayer perceptrons and transposed
convolutions; each measured before repair, with the published RBF network, with our RBF and with our GP.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import VAE, Fit, Images, Study, Table, arguments, fit_autoencoder, fit_gan, fit_vae, mlp
from matplotlib.figure import Figure
from torch import Tensor, nn

import posthoc_metric as pm
from posthoc_metric.diagnostics import Audit

METHODS = ("rbf", "rbf-published", "gp")
#: geodesics that each audit follows: the shares of two or four hang on which pairs were drawn
PAIRS = 10
SHOWN = ("decoder", "rbf-published", "rbf", "gp")
COLOURS = {"decoder": "#8a8a8a", "rbf-published": "#d55e00", "rbf": "#0072b2", "gp": "#009e73"}


@dataclass(frozen=True)
class Subject:
    """A trained decoder, its latents (N, d) and, where there are any, data (N, D)."""

    name: str
    decoder: nn.Module
    latents: Tensor
    data: Tensor | None


def convolutional(latent_dim: int, shape: tuple[int, int], last: type[nn.Module] = nn.Sigmoid) -> nn.Sequential:
    """Latent -> image by two transposed convolutions."""
    height, width = shape[0] // 4, shape[1] // 4
    return nn.Sequential(
        nn.Linear(latent_dim, 32 * height * width),
        nn.ReLU(),
        nn.Unflatten(1, (32, height, width)),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1),
        last(),
        nn.Flatten(),
    )


class Pair(nn.Module):
    """An autoencoder, or a generator with its critic in the encoder's place."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder


def vae(study: Study, images: Images, fit: Fit, latent_dim: int, conv: bool = False) -> Subject:
    pixels = images.pixels

    def build() -> VAE:
        model = VAE(pixels.shape[1], latent_dim, hidden=(128, 128))
        if conv:
            model.decoder = convolutional(latent_dim, images.shape)
        return model

    kind = "conv" if conv else "mlp"
    model = study.cached(
        f"table-vae{latent_dim}-{kind}",
        {"count": len(images), "source": images.source, **vars(fit)},
        build,
        lambda built: fit_vae(built, pixels, fit),
    )
    return Subject(f"VAE, {kind}, d={latent_dim}", model.decoder, model.encode(pixels), pixels)


def autoencoder(
    study: Study, images: Images, fit: Fit, latent_dim: int, noise: float = 0.0, activation: str = "tanh"
) -> Subject:
    pixels = images.pixels
    size = pixels.shape[1]
    name = "DAE" if noise else "AE"
    model = study.cached(
        f"table-{name.lower()}{latent_dim}-{activation}",
        {"count": len(images), "source": images.source, "noise": noise, **vars(fit)},
        lambda: Pair(
            mlp([size, 128, latent_dim], activation=activation),
            mlp([latent_dim, 128, size], activation=activation, last="sigmoid"),
        ),
        lambda built: fit_autoencoder(built.encoder, built.decoder, pixels, fit, noise=noise),
    )
    return Subject(f"{name}, mlp ({activation}), d={latent_dim}", model.decoder, model.encoder(pixels), pixels)


def gan(study: Study, images: Images, fit: Fit, latent_dim: int, conv: bool = False) -> Subject:
    pixels = images.pixels
    size = pixels.shape[1]
    kind = "conv" if conv else "mlp"
    model = study.cached(
        f"table-gan{latent_dim}-{kind}",
        {"count": len(images), "source": images.source, **vars(fit)},
        lambda: Pair(
            mlp([size, 128, 1], activation="leaky"),
            convolutional(latent_dim, images.shape)
            if conv
            else mlp([latent_dim, 128, 256, size], activation="relu", last="sigmoid"),
        ),
        lambda built: fit_gan(built.decoder, built.encoder, pixels, fit, latent_dim=latent_dim),
    )
    prior = torch.randn(len(pixels), latent_dim, generator=torch.Generator().manual_seed(0))
    return Subject(f"GAN, {kind}, d={latent_dim}, no data", model.decoder, prior, None)


Maker = Callable[[Study, Images, Fit], Subject]
SUBJECTS: tuple[Maker, ...] = (
    lambda study, images, fit: vae(study, images, fit, 2),
    lambda study, images, fit: vae(study, images, fit, 10),
    lambda study, images, fit: vae(study, images, fit, 10, conv=True),
    lambda study, images, fit: vae(study, images, fit, 64),
    lambda study, images, fit: autoencoder(study, images, fit, 2, noise=0.3),
    lambda study, images, fit: autoencoder(study, images, fit, 10, noise=0.3),
    lambda study, images, fit: autoencoder(study, images, fit, 10, activation="relu"),
    lambda study, images, fit: autoencoder(study, images, fit, 64),
    lambda study, images, fit: gan(study, images, fit, 2),
    lambda study, images, fit: gan(study, images, fit, 10),
    lambda study, images, fit: gan(study, images, fit, 64, conv=True),
)
QUICK = (SUBJECTS[0], SUBJECTS[9])


def evaluation_ratio(metric: pm.RepairedMetric, *, count: int = 512, runs: int = 7) -> float:
    """Processor time of the repaired tensor over that of the decoder's own at ``count`` points, median of runs.

    Each run times both, so that what else the machine does meets the two alike.
    """
    z = metric.geometry.training[:count]

    def seconds(function: Callable[[Tensor], Tensor]) -> float:
        started = time.process_time()
        function(z)
        return time.process_time() - started

    ratios = [seconds(metric.tensor) / seconds(metric.decoder_metric.tensor) for _ in range(runs + 1)][1:]
    return sorted(ratios)[runs // 2]


def number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "∞" if value > 1e300 else f"{value:.2g}"


def add_row(table: Table, subject: str, method: str, audit: Audit, column: str, fit: str, evaluation: str) -> None:
    """One line of the table: ``column`` of the audit's criteria is what is shown, before or after."""
    found = {line.name: line for line in audit.criteria}
    values = [found[name] for name in CRITERIA]
    if column == "before":
        verdict = "-"
    else:
        failed = [line.name for line in audit.criteria if line.passed is False]
        verdict = "fails: " + ", ".join(failed) if failed else "passes"
    table.add(subject, method, *(number(getattr(line, column)) for line in values), fit, evaluation, verdict)


CRITERIA = (
    "fidelity, median",
    "fidelity, 90th percentile",
    "inflation",
    "persistence",
    "conditioning near the data",
    "conditioning in the void",
    "smoothness",
    "faithfulness",
    "faithfulness, edge",
)


def main(
    quick: bool = False, *, out: Path | None = None, mnist: Path | None = None, publish: bool = False
) -> list[Table]:
    study = Study("uncertainty_table", quick, out, mnist, publish)
    images = study.images()
    images, _ = images.split(600 if quick else 4000)
    fit = Fit(epochs=15 if quick else 60)
    table = Table(
        f"The repair audit, {images.source}",
        (
            *(
                "decoder",
                "model",
                "fidelity",
                "90 %",
                "inflation",
                "fall",
                "κ near",
                "κ void",
                "roughness",
                "off",
                "edge",
            ),
            *("fit, s", "evaluation", "audit"),
        ),
    )
    volumes: dict[str, dict[str, list[float]]] = {}
    for make in QUICK if quick else SUBJECTS:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with torch.enable_grad():
                subject = make(study, images, fit)
            latents = subject.latents.detach()
        decoder = pm.Decoder(subject.decoder, latent_dim=latents.shape[1])
        shown = volumes.setdefault(subject.name, {})
        for method in METHODS:
            if method == "rbf-published" and subject.data is None:
                continue
            started = time.process_time()
            metric = study.repair(decoder, latents, subject.data, uncertainty=method)
            taken = time.process_time() - started
            quick_pairs = 2 if latents.shape[1] == 2 else 0
            pairs = 0 if method == "rbf-published" else quick_pairs if quick else PAIRS
            audit = metric.audit(pairs=pairs, baseline=method != "rbf-published", points=40 if quick else None)
            rows = [row for row in audit.shells if row.name != "gaps"]
            if "decoder" not in shown:
                add_row(table, subject.name, "none", audit, "before", "-", "-")
                shown["decoder"] = [row.metrics["decoder"].log_volume_q50 for row in rows]
            shown[method] = [row.metrics["repaired"].log_volume_q50 for row in rows]
            add_row(table, "", method, audit, "after", f"{taken:.1f}", f"x {evaluation_ratio(metric):.2f}")
        study.say(subject.name)
    table.notes += [
        "fidelity and 90 %: change of log volume per dimension on held-out data; inflation: smallest eigenvalue in the "
        "void over the largest on the data; fall: of the median log volume from the data outwards; κ near and κ void: "
        "95th percentile of the condition number on and off the data; roughness: relative change of the metric over a "
        "data radius, bounded by the published model's; off and edge: share of the length of geodesics between "
        f"held-out data at offset > 0.25 and > 0, mean over {PAIRS} pairs that the data connect, not followed for the "
        "published model; a dash: not judged.",
        "fit: seconds for the whole repair, calibration included; evaluation: time of the repaired metric tensor over "
        "the decoder's own, median of runs; both in processor time.",
        "the GANs come without data, so the published model, which needs residuals, cannot be fitted to them.",
    ]
    ours = [row for row in table.rows if row[1] == "rbf"]
    passed = sum(row[-1] == "passes" for row in ours)
    gp = [row for row in table.rows if row[1] == "gp"]
    gp_passed = sum(row[-1] == "passes" for row in gp)
    published = [row for row in table.rows if row[1] == "rbf-published"]
    published_passed = sum(row[-1] == "passes" for row in published)
    headline = (
        f"The default repair passes the audit on {passed} of {len(ours)} trained decoders, the GP on {gp_passed} of "
        f"{len(gp)}, the published RBF network on {published_passed} of {len(published)}."
    )
    study.finish(headline, [table], draw(volumes))
    return [table]


def draw(volumes: dict[str, dict[str, list[float]]]) -> Figure:
    """Median log volume per dimension against the offset, relative to the data, one panel a decoder."""
    columns = min(len(volumes), 4)
    lines = -(-len(volumes) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.3 * lines + 0.3), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for ax in grid.flat[len(volumes) :]:
        ax.axis("off")
    ticks = ("data", "¼", "½", "1", "2", "5", "10", "100", "1000")
    for ax, (name, found) in zip(grid.flat, volumes.items(), strict=False):
        for method in SHOWN:
            if method in found:
                level = found["decoder"][0] if found["decoder"][0] > -50 else found["rbf"][0]
                relative = [max(value - level, -8.0) for value in found[method]]
                ax.plot(range(len(relative)), relative, color=COLOURS[method], label=method, lw=1.6, marker=".", ms=4)
        ax.set_title(name, fontsize=8)
        ax.set_xticks(range(len(ticks)), ticks, fontsize=6)
        ax.tick_params(axis="y", labelsize=7)
        ax.axhline(0, color="#cccccc", lw=0.8, zorder=0)
        ax.set_ylim(-8.4, None)
        ax.spines[["top", "right"]].set_visible(False)
    grid[0][0].legend(fontsize=7, frameon=False)
    figure.supxlabel("offset from the data, in data radii", fontsize=9)
    figure.supylabel("log volume per dimension, against the data", fontsize=9)
    return figure


if __name__ == "__main__":
    main(**arguments(__doc__))
