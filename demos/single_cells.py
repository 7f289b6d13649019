"""Study 7: paths between types of single cells.

    pip install "posthoc-metric[singlecell]"
    python demos/single_cells.py

VAEs on the 700 labelled blood cells that scanpy ships (``pbmc68k_reduced``: 765 genes, after Zheng et al. 2017); paths
between cells of different types, straight, unrepaired and repaired, and how close they stay to real cells.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from common import LABELS, VAE, Fit, Study, Table, arguments, fit_vae, mean_spread, metrics_of
from matplotlib.figure import Figure
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA
from torch import Tensor

import posthoc_metric as pm
from posthoc_metric import plots
from posthoc_metric.diagnostics.faithfulness import FAR
from posthoc_metric.errors import MissingExtraError

_COMPONENTS = 20


@dataclass(frozen=True)
class Size:
    latent_dims: tuple[int, ...] = (2, 8)
    seeds: int = 3
    pairs: int = 50
    frames: int = 33
    epochs: int = 120
    names: tuple[str, ...] = ("decoder", "rbf-published", "rbf")


QUICK = Size((2,), 1, 4, 9, 20, ("decoder", "rbf"))


@dataclass(frozen=True)
class Cells:
    """Scaled log expression (N, genes) float32, and the type of each cell."""

    expression: Tensor
    types: np.ndarray


def load_cells() -> Cells:
    try:
        import scanpy
    except ImportError:
        raise MissingExtraError(
            "the study of single cells needs scanpy, which ships its data; it is not installed. "
            "Install the extra: pip install 'posthoc-metric[singlecell]'."
        ) from None
    cells = scanpy.datasets.pbmc68k_reduced()
    expression = torch.from_numpy(np.asarray(cells.X, dtype=np.float32))
    return Cells(expression, cells.obs["bulk_labels"].to_numpy().astype(str))


class Nearness:
    """Distance to the nearest real cell in the leading principal components, in units of what is usual among cells."""

    def __init__(self, cells: Cells):
        self.components = PCA(_COMPONENTS, random_state=0).fit(cells.expression.numpy())
        real = self.components.transform(cells.expression.numpy())
        self.tree = cKDTree(real)
        self.usual = float(np.median(self.tree.query(real, k=2)[0][:, 1]))

    def __call__(self, frames: Tensor) -> np.ndarray:
        """Decoded frames (B, T, genes) -> (B, T)."""
        flat = self.components.transform(frames.flatten(0, 1).float().numpy())
        return (self.tree.query(flat)[0] / self.usual).reshape(frames.shape[:2])


def pairs_of(cells: Cells, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells of different types, types drawn evenly."""
    generator = np.random.default_rng(seed)
    kinds = np.unique(cells.types)
    chosen = [generator.choice(kinds, 2, replace=False) for _ in range(count)]
    draws = [[generator.choice(np.flatnonzero(cells.types == kind)) for kind in pair] for pair in chosen]
    return np.array(draws)[:, 0], np.array(draws)[:, 1]


def picture(repaired: pm.RepairedMetric, curves: dict[str, Tensor], cells: Cells) -> Figure:
    figure = Figure(figsize=(4.0 * len(curves), 4.0), layout="constrained")
    latents = repaired.geometry.latents
    plane = plots.latent_plane(latents, margin=0.15)
    region = repaired.offset(plane.grid(120)).reshape(120, 120).numpy()
    kinds = np.unique(cells.types)
    for ax, (name, points) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        few = points[:15]
        offset = repaired.offset(few.flatten(0, 1)).view(few.shape[:2]).numpy()
        plots.draw_curves(ax, few, offset, plane, region=region)
        for index, kind in enumerate(kinds):
            ax.scatter(*latents[torch.from_numpy(cells.types == kind)].T.numpy(), s=4, color=f"C{index}", zorder=1)
        ax.set(xlabel="", ylabel="", xticks=[], yticks=[])
        ax.set_title(LABELS[name], size=10)
    figure.suptitle("dots: cells by type; blue: on the data, orange: off the data; tinted: the data's support", size=9)
    return figure


def follow(
    study: Study, cells: Cells, near: Nearness, size: Size, dim: int, seed: int
) -> tuple[dict[str, dict[str, float]], pm.RepairedMetric, dict[str, Tensor]]:
    """Train a VAE, follow paths between cells of different types, and measure their frames."""
    fit = Fit(epochs=size.epochs, batch_size=64, learning_rate=2e-3, seed=seed)
    vae = study.cached(
        f"cells-vae{dim}-seed{seed}",
        {"latent_dim": dim, **asdict(fit)},
        lambda: VAE(cells.expression.shape[1], dim, hidden=(64, 64), last=None),
        lambda model: fit_vae(model, cells.expression, fit, noise=1.0),
    )
    latents = vae.encode(cells.expression)
    decoder = pm.Decoder(vae.decoder, latent_dim=dim)
    metrics = metrics_of(study, decoder, latents, cells.expression, size.names, seed=seed)
    first, second = pairs_of(cells, size.pairs, seed)
    start, end = latents[first].double(), latents[second].double()
    t = torch.linspace(0, 1, size.frames, dtype=torch.float64)
    curves = {"straight": start[:, None] + t[None, :, None] * (end - start)[:, None]}
    converged = {"straight": 1.0}
    for name, metric in metrics.items():
        solution = metric.geodesic(start, end, rtol=1e-3)
        curves[name] = solution(t)
        converged[name] = float(solution.converged.double().mean())
    found: dict[str, dict[str, float]] = {}
    for name, points in curves.items():
        distance = near(decoder(points.flatten(0, 1)).view(*points.shape[:2], -1))
        offset = metrics["rbf"].offset(points.flatten(0, 1)).view(points.shape[:2])
        found[name] = {
            "mean": float(distance[:, 1:-1].mean()),
            "worst": float(distance.max(1).mean()),
            "off": float((offset[:, 1:-1] > 0).double().mean()),
            "far": float((offset[:, 1:-1] > FAR).double().mean()),
            "converged": converged[name],
        }
    return found, metrics["rbf"], curves


def main(
    quick: bool = False, *, out: Path | None = None, mnist: Path | None = None, publish: bool = False
) -> list[Table]:
    """``mnist`` is taken so that all studies are called alike, and not read."""
    cells = load_cells()
    study = Study("single_cells", quick, out, mnist, publish)
    size = QUICK if quick else Size()
    near = Nearness(cells)
    tables: list[Table] = []
    figures: list[Figure] = []
    for dim in size.latent_dims:
        runs: dict[str, list[dict[str, float]]] = {}
        for seed in range(size.seeds):
            pictured = dim == size.latent_dims[0] and seed == 0

            def compute(dim: int = dim, seed: int = seed, pictured: bool = pictured) -> dict[str, dict[str, float]]:
                found, repaired, curves = follow(study, cells, near, size, dim, seed)
                if pictured:
                    figures.append(picture(repaired, curves, cells))
                return found

            part = study.remembered(f"latents{dim}-{seed}", asdict(size), compute, live=pictured)
            for name, values in part.items():
                runs.setdefault(name, []).append(values)
            study.say(f"{dim} latents, seed {seed}: {size.pairs} pairs followed")
        tables.append(_table(runs, dim, size))
    headline = (
        f"Run on scanpy's pbmc68k_reduced: {len(cells.types)} cells of {len(np.unique(cells.types))} types, "
        f"{cells.expression.shape[1]} genes; {size.seeds} VAEs for each latent dimension."
    )
    study.finish(headline, tables, figures[0])
    return tables


def _table(runs: dict[str, list[dict[str, float]]], dim: int, size: Size) -> Table:
    table = Table(
        f"{dim} latents: decoded frames along paths between cells of different types ({size.pairs} pairs)",
        [
            "path",
            "distance to the nearest real cell",
            "farthest frame of a path",
            "frames off the data",
            "frames far off",
            "converged",
        ],
    )
    for name, values in runs.items():
        cells = (mean_spread([v[key] for v in values]) for key in ("mean", "worst", "off", "far", "converged"))
        table.add(LABELS[name], *cells)
    gains, off, far = (
        [before[key] - after[key] for before, after in zip(runs["decoder"], runs["rbf"], strict=True)]
        for key in ("mean", "off", "far")
    )
    table.notes += [
        f"Distances in {_COMPONENTS} principal components, in units of a real cell's median distance to its neighbour.",
        f"The repair brings frames closer to real cells than the decoder alone by {mean_spread(gains)} "
        f"(closer with {sum(g > 0 for g in gains)} of {len(gains)} seeds), and fewer of them off the data by "
        f"{mean_spread(off)} (fewer with {sum(g > 0 for g in off)}), far off by {mean_spread(far)} (fewer with "
        f"{sum(g > 0 for g in far)}).",
        f"Off the data: at an offset above 0, where 5 % of cells lie too; far off: above {FAR:g}, as the audit counts.",
    ]
    return table


if __name__ == "__main__":
    main(**arguments(__doc__))
