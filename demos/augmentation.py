"""Study 6: labelled data from paths: decoded points between labelled digits as training data for a classifier.

    python demos/augmentation.py --mnist FOLDER

A VAE sees all images without labels; 100 to 1,000 of them have labels.  A classifier is trained on those alone, with
mixup of pixels, and with decoded points along straight latent lines and along geodesics of the repaired metric,
within a class and between any two (``pm.geodesic_mixup``).  After Verma et al. (2019), who mix hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from common import Classifier, Images, Study, Table, arguments, image_vae, mean_spread, step_down
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

import posthoc_metric as pm
from posthoc_metric import plots

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
CLASSES = 10
ROWS = {
    "none": "labelled images alone",
    "pixels": "mixup of pixels",
    "ends": "decoded labelled points, no path",
    "straight-same": "straight latent lines, within class",
    "geodesic-same": "repaired geodesics, within class",
    "straight-any": "straight latent lines, mixed labels",
    "geodesic-any": "repaired geodesics, mixed labels",
}


@dataclass(frozen=True)
class Size:
    labelled: tuple[int, ...] = (100, 300, 1000)
    seeds: int = 3
    latent_dim: int = 8
    pairs: int = 60
    steps: int = 250
    tested: int = 2000


QUICK = Size((60,), 1, 2, 6, 30, 200)


@dataclass(frozen=True)
class PixelMixup:
    """Mixup of inputs (Zhang et al. 2018), of the same share of each batch as the others'."""

    generator: np.random.Generator
    share: float = 0.5

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        soft = one_hot(y, CLASSES).float()
        count = round(self.share * len(x))
        order = torch.from_numpy(self.generator.permutation(len(x)))
        weight = torch.ones(len(x), 1)
        weight[:count, 0] = torch.from_numpy(self.generator.uniform(size=count)).float()
        return weight * x + (1 - weight) * x[order], weight * soft + (1 - weight) * soft[order]


def transforms(
    repaired: pm.RepairedMetric, latents: Tensor, labels: Tensor, pairs: int, seed: int
) -> dict[str, Transform]:
    """Each way to augment; all leave half of every batch as it is."""

    def mix(curve: str, partners: str, **options: float) -> pm.GeodesicMixup:
        return pm.geodesic_mixup(
            repaired,
            latents,
            labels,
            curve=curve,
            partners=partners,
            pairs=pairs if curve == "geodesic" else 20 * pairs,
            num_classes=CLASSES,
            seed=seed,
            **options,
        )

    found: dict[str, Transform] = {
        "none": lambda x, y: (x, one_hot(y, CLASSES).float()),
        "pixels": PixelMixup(np.random.default_rng(seed)),
        # Beta(α, α) with a tiny α puts all draws at the ends of the lines
        "ends": mix("straight", "same", alpha=1e-3),
    }
    for partners in ("same", "any"):
        for curve in ("straight", "geodesic"):
            found[f"{curve}-{partners}"] = mix(curve, partners, **({"rtol": 1e-2} if curve == "geodesic" else {}))
    return found


def train(images: Images, transform: Transform, steps: int, seed: int) -> Classifier:
    """A classifier after a fixed number of steps, the same for every transform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(images.shape, CLASSES)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-4)
        for _ in range(steps):
            rows = torch.randint(len(images), (min(64, len(images)),))
            x, y = transform(images.pixels[rows], images.labels[rows])
            step_down(optimizer, cross_entropy(model(x), y))
            schedule.step()
    return model.eval()


def balanced(images: Images, count: int, seed: int) -> Tensor:
    """Rows with as many of each digit as of the others."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    each = count // CLASSES
    return torch.cat([order[images.labels[order] == digit][:each] for digit in range(CLASSES)])


def main(
    quick: bool = False, *, out: Path | None = None, mnist: Path | None = None, publish: bool = False
) -> list[Table]:
    study = Study("augmentation", quick, out, mnist, publish)
    size = QUICK if quick else Size()
    images = study.images().pooled()
    training, rest = images.split(len(images) // 2)
    tested = rest.part(slice(size.tested))
    accuracy: dict[tuple[int, str], list[float]] = {}
    figures: list[Figure] = []
    for seed in range(size.seeds):
        for count in size.labelled:
            pictured = seed == 0 and count == size.labelled[0]

            def compute(seed: int = seed, count: int = count, pictured: bool = pictured) -> dict[str, float]:
                vae = image_vae(study, training, seed=seed, latent_dim=size.latent_dim)
                latents = vae.encode(training.pixels)
                decoder = pm.Decoder(vae.decoder, latent_dim=size.latent_dim)
                repaired = study.repair(decoder, latents, training.pixels, seed=seed)
                rows = balanced(training, count, seed)
                labelled = training.part(rows)
                ways = transforms(repaired, latents[rows], labelled.labels, size.pairs, seed)
                if pictured:
                    figures.append(picture(repaired, ways, images.shape))
                return {name: train(labelled, way, size.steps, seed).accuracy(tested) for name, way in ways.items()}

            settings = [asdict(size), images.source]
            part = study.remembered(f"seed{seed}-{count}", settings, compute, live=pictured)
            for name, value in part.items():
                accuracy.setdefault((count, name), []).append(value)
            study.say(f"seed {seed}, {count} labels: " + ", ".join(f"{n} {value:.3f}" for n, value in part.items()))
    table = Table(
        "Accuracy on unseen digits by the number of labels",
        ["training data", *(f"{count} labels" for count in size.labelled)],
    )
    for name, label in ROWS.items():
        table.add(label, *(mean_spread(accuracy[count, name]) for count in size.labelled))
    table.notes.append(
        f"Mean ± standard deviation over {size.seeds} seeds (VAE, labels, classifier); {len(tested)} test images; "
        f"{size.steps} steps each, half of every batch replaced; {size.pairs} geodesics a transform."
    )
    for kind in ("same", "any"):
        table.notes.append(verdict(accuracy, size, f"geodesic-{kind}", f"straight-{kind}"))
    table.notes.append(verdict(accuracy, size, "geodesic-any", "none"))
    table.notes.append(verdict(accuracy, size, "geodesic-any", "pixels"))
    headline = (
        f"Run on {images.source}: VAEs with {size.latent_dim}-D latents on {len(training)} images without labels, "
        "classifiers on the labelled ones."
    )
    study.finish(headline, [table], figures[0])
    return [table]


def verdict(accuracy: dict[tuple[int, str], list[float]], size: Size, name: str, other: str) -> str:
    parts = []
    for count in size.labelled:
        gains = np.array(accuracy[count, name]) - np.array(accuracy[count, other])
        better = f"{int((gains > 0).sum())} of {len(gains)} seeds better"
        parts.append(f"{mean_spread(gains)} with {count} labels ({better})")
    return f"{ROWS[name][0].upper()}{ROWS[name][1:]} against {ROWS[other]}: " + ", ".join(parts) + "."


def picture(repaired: pm.RepairedMetric, ways: dict[str, Transform], shape: tuple[int, int]) -> Figure:
    """The longest pairs of the mixed transform: decoded along the straight line and along the geodesic."""
    mix = ways["geodesic-any"]
    assert isinstance(mix, pm.GeodesicMixup)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    detour = (mix.curves[:, 1:] - mix.curves[:, :-1]).norm(dim=2).sum(1) / (mix.curves[:, -1] - mix.curves[:, 0]).norm(
        dim=1
    )
    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    axes = figure.subplots(6, len(t))
    for index, pair in enumerate(detour.argsort(descending=True)[:3].tolist()):
        curve = mix.curves[pair]
        line = curve[0] + t[:, None] * (curve[-1] - curve[0])
        bent = curve[(t * (len(curve) - 1)).round().long()]
        for side, (points, label) in enumerate(((line, "straight"), (bent, "repaired geodesic"))):
            frames = repaired.decoder(points).view(-1, *shape).float().numpy()
            away = (repaired.offset(points) > 0).tolist()
            plots.draw_frames(axes[2 * index + side], frames, label=label, off_data=away)
    figure.suptitle("decoded between labelled digits, the geodesics that bend most; orange: off the data", size=10)
    return figure


if __name__ == "__main__":
    main(**arguments(__doc__))
