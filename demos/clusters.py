"""Study 3: clusters and neighbours of digits under Euclidean and geodesic distance.

    python demos/clusters.py --mnist FOLDER

VAEs with 2-D latents on the digits {0, 1, 2}, {3, 4, 7} and {5, 6, 9}; images that they have not seen are encoded and
clustered by k-medoids, in Euclidean distance and in the geodesic distance of the unrepaired decoder, the published
RBF, the default repair and the GP.  k-NN classification in the same distances.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    LABELS,
    METRICS,
    VAE,
    Fit,
    Images,
    Study,
    Table,
    arguments,
    fit_vae,
    grid_distances,
    mean_spread,
    metrics_of,
)
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.neighbors import KNeighborsClassifier

import posthoc_metric as pm
from posthoc_metric import plots

SUBSETS = ((0, 1, 2), (3, 4, 7), (5, 6, 9))
NEIGHBOURS = 5


@dataclass(frozen=True)
class Size:
    subsets: tuple[tuple[int, ...], ...] = SUBSETS
    seeds: int = 3
    points: int = 150
    epochs: int = 40
    names: tuple[str, ...] = METRICS
    resolution: int = 80
    checked_pairs: int = 10


QUICK = Size(SUBSETS[:1], 1, 30, 60, ("decoder", "rbf"), 30, 2)


def k_medoids(distances: np.ndarray, count: int, *, seed: int, restarts: int = 20) -> np.ndarray:
    """Labels (n,) of the best of several Voronoi iterations, each seeded as k-means++ is."""
    generator = np.random.default_rng(seed)
    best, labels = np.inf, np.zeros(len(distances), int)
    for _ in range(restarts):
        medoids = [int(generator.integers(len(distances)))]
        while len(medoids) < count:
            weight = distances[:, medoids].min(1) ** 2
            medoids.append(int(generator.choice(len(distances), p=weight / weight.sum())))
        for _ in range(100):
            owner = distances[:, medoids].argmin(1)
            moved = []
            for k in range(count):
                rows = np.flatnonzero(owner == k)
                inertia = (distances[np.ix_(rows, rows)] ** 2).sum(1)
                moved.append(int(rows[inertia.argmin()]) if len(rows) else medoids[k])
            if moved == medoids:
                break
            medoids = moved
        owner = distances[:, medoids].argmin(1)
        cost = float((distances[np.arange(len(owner)), np.asarray(medoids)[owner]] ** 2).sum())
        if cost < best:
            best, labels = cost, owner
    return labels


def named(truth: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (n,) of classes, and of those after which clusters are named so that the most points agree."""
    classes, own = np.unique(truth, return_inverse=True)
    _, names = linear_sum_assignment(-confusion_matrix(labels, own, labels=range(len(classes))))
    return own, names[labels]


def f_measure(truth: np.ndarray, labels: np.ndarray) -> float:
    """Macro F-measure of clusters, named after classes."""
    return float(f1_score(*named(truth, labels), average="macro"))


def k_nn(distances: np.ndarray, truth: np.ndarray) -> float:
    """Leave-one-out accuracy."""
    apart = distances + np.diag(np.full(len(distances), distances.max() * 1e3))
    model = KNeighborsClassifier(NEIGHBOURS, metric="precomputed").fit(apart, truth)
    return float((model.predict(apart) == truth).mean())


def agreement(metric: Any, points: torch.Tensor, distances: np.ndarray, pairs: int) -> list[float]:
    """The library's solver over the grid's distance on some pairs of points."""
    half = len(points) // 2
    pairs = min(pairs, half)
    solution = metric.geodesic(points[:pairs], points[half : half + pairs], rtol=1e-3)
    return (solution.length.numpy() / distances[np.arange(pairs), half + np.arange(pairs)]).tolist()


def vae_on(study: Study, images: Images, digits: tuple[int, ...], seed: int, epochs: int) -> VAE:
    fit = Fit(epochs=epochs, batch_size=64 if study.quick else 128, seed=seed)
    width = 32 if study.quick else 128
    name = "".join(map(str, digits))
    dim = images.pixels.shape[1]
    return study.cached(
        f"vae-digits{name}-seed{seed}",
        {"data": images.source, "digits": name, "count": len(images), "width": width, **asdict(fit)},
        lambda: VAE(dim, hidden=(width, width)),
        lambda model: fit_vae(model, images.pixels, fit),
    )


def picture(
    clustered: dict[str, np.ndarray], points: torch.Tensor, truth: np.ndarray, fields: dict[str, Any]
) -> Figure:
    """Latents coloured by cluster over each metric's magnification factor; the first panel by true digit."""
    figure = Figure(figsize=(3.1 * (len(clustered) + 1), 3.4), layout="constrained")
    axes = figure.subplots(1, len(clustered) + 1)
    plane = plots.latent_plane(points, margin=0.25)
    colours = np.array(["#D55E00", "#0072B2", "#009E73"])
    for ax, (name, labels) in zip(
        axes, {"truth": np.unique(truth, return_inverse=True)[1], **clustered}.items(), strict=True
    ):
        if name in fields:
            field = plots.evaluate(fields[name], plane, "log_volume", 80)
            ax.imshow(field, origin="lower", extent=plane.window, cmap="Greys", alpha=0.55)
        ax.scatter(*points.T.numpy(), s=9, c=colours[named(truth, labels)[1]], linewidths=0)
        ax.set(xlim=plane.window[:2], ylim=plane.window[2:], aspect="equal", xticks=[], yticks=[])
        title = {"truth": "the digits", "euclidean": "k-medoids, Euclidean"}.get(name, LABELS.get(name, name))
        ax.set_title(title if name == "truth" else f"{title}\nF = {f_measure(truth, labels):.3f}", size=9.5)
    return figure


def main(
    quick: bool = False, *, out: Path | None = None, mnist: Path | None = None, publish: bool = False
) -> list[Table]:
    study = Study("clusters", quick, out, mnist, publish)
    size = QUICK if quick else Size()
    images = study.images().pooled()
    rows = ["k-means", "euclidean", *size.names]
    scores: dict[tuple, list[tuple[float, float]]] = {}
    ratios: dict[str, list[float]] = {}
    figures: list[Figure] = []
    for digits in size.subsets:
        for seed in range(size.seeds):
            pictured = digits == size.subsets[0] and seed == 0

            def compute(
                digits: tuple[int, ...] = digits, seed: int = seed, pictured: bool = pictured
            ) -> dict[str, Any]:
                subset = images.only(*digits)
                unseen, training = subset.split(size.points, seed)
                vae = vae_on(study, training, digits, seed, size.epochs)
                decoder = pm.Decoder(vae.decoder, latent_dim=2)
                points, truth = vae.encode(unseen.pixels), unseen.labels.numpy()
                latents = vae.encode(training.pixels)
                metrics = metrics_of(study, decoder, latents, training.pixels, size.names, seed=seed)
                distances = {"euclidean": cdist(points.double(), points.double())}
                ratio: dict[str, list[float]] = {}
                for name, metric in metrics.items():
                    distances[name] = grid_distances(metric, points, resolution=size.resolution)
                    if seed == 0:
                        ratio[name] = agreement(metric, points, distances[name], size.checked_pairs)
                labels = {name: k_medoids(matrix, len(digits), seed=seed) for name, matrix in distances.items()}
                if pictured:
                    figures.append(picture(labels, points, truth, metrics))
                means = KMeans(len(digits), n_init=20, random_state=seed).fit_predict(points.numpy())
                score = {"k-means": [f_measure(truth, means), float("nan")]}
                for name, matrix in distances.items():
                    score[name] = [f_measure(truth, labels[name]), k_nn(matrix, truth)]
                return {"scores": score, "ratios": ratio}

            key = "".join(map(str, digits))
            part = study.remembered(f"{key}-{seed}", [asdict(size), images.source], compute, live=pictured)
            for name, (clustered, neighbours) in part["scores"].items():
                scores.setdefault((digits, name), []).append((clustered, neighbours))
            for name, values in part["ratios"].items():
                ratios.setdefault(name, []).extend(values)
            study.say(f"{digits}, seed {seed}: clustered")
    tables = [_table(scores, rows, size, part) for part in (0, 1)]
    tables[0].notes.append(_agreement_note(ratios))
    headline = (
        f"Run on {images.source}: VAEs with 2-D latents on each subset, {size.points} unseen images encoded and "
        f"clustered, {size.seeds} seeds."
    )
    study.finish(headline, tables, figures[0])
    return tables


def _table(scores: dict[tuple, list[tuple[float, float]]], rows: list[str], size: Size, part: int) -> Table:
    what = ("F-measure of clusters", f"k-NN accuracy, leave one out, k = {NEIGHBOURS}")[part]
    named = {"k-means": "k-means, Euclidean", "euclidean": "k-medoids, Euclidean" if part == 0 else "Euclidean"}
    table = Table(what, ["distance", *("{" + ", ".join(map(str, digits)) + "}" for digits in size.subsets), "mean"])
    means: dict[str, np.ndarray] = {}
    for name in rows[part:]:
        per_seed = np.array([[score[part] for score in scores[digits, name]] for digits in size.subsets])
        means[name] = per_seed.mean(0)
        label = named.get(name, LABELS.get(name, name))
        table.add(label, *(mean_spread(values) for values in per_seed), mean_spread(means[name]))
    table.notes.append(f"Mean ± standard deviation over {size.seeds} seeds (model, split and clustering).")
    for other, label in (("euclidean", "Euclidean distance"), ("decoder", "the decoder alone")):
        gain = means["rbf"] - means[other]
        if gain.min() > 0:
            word = "a gain with every seed"
        elif gain.max() < 0:
            word = "a loss with every seed"
        else:
            word = "no gain that holds for every seed"
        table.notes.append(f"The default repair against {label}, mean of the subsets: {mean_spread(gain)}, {word}.")
    return table


def _agreement_note(ratios: dict[str, list[float]]) -> str:
    parts = [f"{LABELS[name]} {np.nanmedian(v):.3f} ({np.nanmax(v):.2f})" for name, v in ratios.items()]
    return (
        "Distances are shortest paths through a fine grid of the latent plane. Length found by the library's solver "
        f"over the grid's, median (largest) over {len(next(iter(ratios.values())))} pairs: " + ", ".join(parts) + "."
    )


if __name__ == "__main__":
    main(**arguments(__doc__))
