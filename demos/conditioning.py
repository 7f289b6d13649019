"""Study 1: conditioning and smoothness of GANs, DAEs and VAEs, before and after repair.

    python demos/conditioning.py --mnist FOLDER

After Ramirez, Gallego & Puerta (2019), who train the three families on MNIST with 2-D latents, hidden widths 128 and
32, tanh and sigmoid, look at maps of the magnification factor and of the Jacobian's condition number, and
sum up in words: GAN unsmooth and poor, DAE adequate and adequate, VAE adequate and great.  Here the words get numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import VAE, Fit, Images, Study, Table, arguments, fit_autoencoder, fit_gan, fit_vae, mean_spread, mlp
from matplotlib.figure import Figure
from torch import Tensor, nn

import posthoc_metric as pm
from posthoc_metric import plots

FAMILIES = ("GAN", "DAE", "VAE")
WORDS = {"GAN": ("unsmooth", "poor"), "DAE": ("adequate", "adequate"), "VAE": ("adequate", "great")}


@dataclass(frozen=True)
class Size:
    """How much of the study is run."""

    widths: tuple[int, ...] = (128, 32)
    activations: tuple[str, ...] = ("tanh", "sigmoid")
    seeds: int = 3
    images: int = 3000
    epochs: int = 40
    points: int = 100
    resolution: int = 80


QUICK = Size(widths=(16,), activations=("tanh",), seeds=2, images=500, epochs=15, points=24, resolution=24)


@dataclass(frozen=True)
class Trained:
    """A decoder with its latents; a GAN has no data that belong to them."""

    decoder: pm.Decoder
    latents: Tensor
    data: Tensor | None


class Autoencoder(nn.Module):
    """Encoder and decoder in one, so that they are cached as one."""

    def __init__(self, data_dim: int, width: int, activation: str):
        super().__init__()
        self.encoder = mlp([data_dim, width, width, 2], activation=activation)
        self.decoder = mlp([2, width, width, data_dim], activation=activation, last="sigmoid")


class Adversaries(nn.Module):
    """Generator and critic in one."""

    def __init__(self, data_dim: int, width: int, activation: str):
        super().__init__()
        self.decoder = mlp([2, width, width, data_dim], activation=activation, last="sigmoid")
        self.critic = mlp([data_dim, max(width, 64), max(width, 64), 1], activation="leaky")


def train(study: Study, family: str, images: Images, width: int, activation: str, seed: int, epochs: int) -> Trained:
    data, dim = images.pixels, images.pixels.shape[1]
    rate = 1e-3 if family == "GAN" else 3e-3
    fit = Fit(epochs=epochs * (2 if family == "GAN" else 1), learning_rate=rate, seed=seed)
    settings = {"data": images.source, "count": len(data), "width": width, "activation": activation, **asdict(fit)}
    name = f"{family.lower()}-{width}-{activation}-seed{seed}"
    model: Any
    if family == "VAE":
        model = study.cached(
            name,
            settings,
            lambda: VAE(dim, hidden=(width, width), activation=activation),
            lambda m: fit_vae(m, data, fit),
        )
        return Trained(pm.Decoder(model.decoder, latent_dim=2), model.encode(data), data)
    if family == "DAE":
        model = study.cached(
            name,
            settings,
            lambda: Autoencoder(dim, width, activation),
            lambda m: fit_autoencoder(m.encoder, m.decoder, data, fit, noise=0.3),
        )
        with torch.no_grad():
            latents = model.encoder(data)
        return Trained(pm.Decoder(model.decoder, latent_dim=2), latents, data)
    model = study.cached(
        name,
        settings,
        lambda: Adversaries(dim, width, activation),
        lambda m: fit_gan(m.decoder, m.critic, data, fit),
    )
    latents = torch.randn(len(data), 2, generator=torch.Generator().manual_seed(seed))
    return Trained(pm.Decoder(model.decoder, latent_dim=2), latents, None)


def measure(study: Study, trained: Trained, points: int, seed: int) -> dict[str, dict[str, float]]:
    """Conditioning and smoothness of each metric on the data, within a data radius of them, and far beyond."""
    repaired = study.repair(trained.decoder, trained.latents, trained.data, seed=seed)
    audit = repaired.audit(points=points, pairs=0, seed=seed)
    near = [row for row in audit.shells if row.name != "gaps" and 0 < row.offset <= 1]
    far = [row for row in audit.shells if row.offset >= 10]
    found: dict[str, dict[str, float]] = {}
    for name in audit.shells[0].metrics:
        data = audit.shells[0].metrics[name]
        found[name] = {
            "κ on data": data.condition_number_q50,
            "κ on data, q95": data.condition_number_q95,
            "κ near": float(np.median([row.metrics[name].condition_number_q50 for row in near])),
            "κ far": max(row.metrics[name].condition_number_q95 for row in far),
            "smooth on data": data.smoothness_q95,
            "smooth near": max(row.metrics[name].smoothness_q95 for row in near),
        }
    return found


def geometric(values: list[float], most: float = 1e6) -> str:
    """Geometric mean and the factor of one standard deviation around it."""
    if max(values) > most:
        return f"> {most:.0e}"
    logs = np.log(values)
    spread = f" ×/÷ {np.exp(logs.std(ddof=1)):.2f}" if len(logs) > 1 else ""
    return f"{np.exp(logs.mean()):.3g}{spread}"


def tables(results: dict[tuple, dict[str, dict[str, float]]], size: Size) -> list[Table]:
    columns = ["κ on data", "κ on data, q95", "κ near", "κ far", "smooth on data", "smooth near"]
    names = {"decoder": "decoder alone", "rbf-published": "RBF as published", "repaired": "repaired (default)"}
    summary = Table("Before and after, all widths, activations and seeds", ["family", "metric", *columns])
    for family in FAMILIES:
        runs = [found for key, found in results.items() if key[0] == family]
        for name, label in names.items():
            if name in runs[0]:
                summary.add(family, label, *(geometric([run[name][c] for run in runs]) for c in columns))
            else:
                summary.add(family, label, *["needs data with latents"] * len(columns))
    summary.notes += [
        "κ: condition number of the Jacobian, median over points unless it says q95 (95th percentile); near: within "
        "one data radius of the data; far: 10 to 1,000 data radii, 95th percentile, worst shell.",
        "smooth: relative change of the metric over a data radius, 95th percentile (smaller is smoother).",
        "Geometric mean over runs, and the factor of one standard deviation.",
    ]
    each = Table(
        "Decoder alone, by width and activation (spread over seeds)",
        ["family", "width", "activation", "κ on data", "κ near", "smooth on data"],
    )
    for family in FAMILIES:
        for width in size.widths:
            for activation in size.activations:
                runs = [v["decoder"] for k, v in results.items() if k[:3] == (family, width, activation)]
                cells = (geometric([run[c] for run in runs]) for c in ("κ on data", "κ near", "smooth on data"))
                each.add(family, width, activation, *cells)
    return [summary, words(results), each]


def words(results: dict[tuple, dict[str, dict[str, float]]]) -> Table:
    """The study's words beside our numbers, and whether the orders agree."""
    table = Table("The study's words and our numbers (decoder alone)", ["family", "its words", "smooth near", "κ near"])
    rank: dict[str, dict[str, float]] = {}
    for family in FAMILIES:
        runs = [found["decoder"] for key, found in results.items() if key[0] == family]
        rank[family] = {c: float(np.median([run[c] for run in runs])) for c in ("smooth near", "κ near")}
        smooth, conditioned = WORDS[family]
        cells = [mean_spread([np.log10(run[c]) for run in runs], 2) for c in ("smooth near", "κ near")]
        table.add(family, f"tensor {smooth}, Jacobian {conditioned}", *(f"10^({cell})" for cell in cells))
    order = {c: sorted(FAMILIES, key=lambda f: rank[f][c]) for c in ("smooth near", "κ near")}
    table.notes += [
        f"Conditioning, best to worst by our medians: {', '.join(order['κ near'])}; by its words: VAE, DAE, GAN. "
        + ("The orders agree." if order["κ near"] == ["VAE", "DAE", "GAN"] else "The orders do not agree."),
        f"Smoothness, best to worst by our medians: {', '.join(order['smooth near'])}; by its words the GAN is last. "
        + ("That agrees." if order["smooth near"][-1] == "GAN" else "That does not agree."),
    ]
    return table


def picture(study: Study, chosen: dict[str, Trained], resolution: int) -> Figure:
    """Maps of both quantities, before and after, one family a column pair."""
    figure = Figure(figsize=(13, 5.4), layout="constrained")
    titles = {"log_volume": "magnification factor ½ log det M (nats)", "condition_number": "condition number κ(J)"}
    for part, (quantity, title) in zip(figure.subfigures(2, 1), titles.items(), strict=True):
        axes = part.subplots(1, 6)
        part.suptitle(title, size=10)
        for column, (family, trained) in enumerate(chosen.items()):
            repaired = study.repair(trained.decoder, trained.latents, trained.data)
            plane = plots.latent_plane(trained.latents, margin=1.0)
            offset = repaired.offset(plane.grid(resolution)).reshape(resolution, resolution).numpy()
            pair = (repaired.decoder_metric, repaired)
            fields = [plots.evaluate(metric, plane, quantity, resolution) for metric in pair]
            norm = plots.shared_norm(fields, quantity)
            for side, field in enumerate(fields):
                ax = axes[2 * column + side]
                plots.draw_field(ax, field, plane, quantity=quantity, norm=norm, offset=offset)
                ax.set(xlabel="", ylabel="", xticks=[], yticks=[])
                ax.set_title(f"{family}, {'repaired' if side else 'decoder alone'}", size=9)
            bar = part.colorbar(ax.images[0], ax=list(axes[2 * column : 2 * column + 2]), shrink=0.7, aspect=18)
            bar.ax.tick_params(labelsize=7, which="both")
    figure.suptitle("lines: edge of the data (solid), one data radius beyond (dashed)", size=9)
    return figure


def main(
    quick: bool = False, *, out: Path | None = None, mnist: Path | None = None, publish: bool = False
) -> list[Table]:
    study = Study("conditioning", quick, out, mnist, publish)
    size = QUICK if quick else Size()
    images = study.images().pooled()
    images, _ = images.split(min(size.images, len(images)))
    results: dict[tuple, dict[str, dict[str, float]]] = {}
    chosen: dict[str, Trained] = {}
    for family in FAMILIES:
        for width in size.widths:
            for activation in size.activations:
                for seed in range(size.seeds):
                    trained = train(study, family, images, width, activation, seed, size.epochs)
                    results[family, width, activation, seed] = study.remembered(
                        f"{family}-{width}-{activation}-{seed}",
                        asdict(size),
                        lambda trained=trained, seed=seed: measure(study, trained, size.points, seed),
                    )
                    chosen.setdefault(family, trained)
                study.say(f"{family}, width {width}, {activation}: measured")
    found = tables(results, size)
    headline = (
        f"Run on {len(images)} of {images.source}: 2-D latents, two hidden layers of "
        f"{' or '.join(map(str, size.widths))} units, {' or '.join(size.activations)}, {size.seeds} seeds each, "
        f"{len(results)} decoders."
    )
    study.finish(headline, found, picture(study, chosen, size.resolution))
    return found


if __name__ == "__main__":
    main(**arguments(__doc__))
