"""Images of digits: MNIST where it can be had, else the digits that scikit-learn bundles."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import fetch_openml, load_digits
from torch import Tensor
from torch.nn.functional import avg_pool2d


@dataclass(frozen=True)
class Images:
    """Grey values in [0, 1].

    Attributes:
        pixels: (N, h·w) float32.
        labels: the digit drawn, (N,) int64.
        shape: (h, w).
        source: where they come from, for the tables.
    """

    pixels: Tensor
    labels: Tensor
    shape: tuple[int, int]
    source: str

    def __len__(self) -> int:
        return len(self.pixels)

    def part(self, rows: Tensor | slice) -> Images:
        return Images(self.pixels[rows], self.labels[rows], self.shape, self.source)

    def split(self, first: int, seed: int = 0) -> tuple[Images, Images]:
        """Two disjoint parts, the first of ``first`` images, shuffled."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.part(order[:first]), self.part(order[first:])

    def pooled(self) -> Images:
        """MNIST at half its resolution, which is a quarter of the work; smaller images as they are."""
        if self.shape != (28, 28):
            return self
        small = avg_pool2d(self.pixels.view(-1, 1, *self.shape), 2).flatten(1)
        return Images(small, self.labels, (14, 14), f"{self.source}, pooled to 14 x 14")

    def only(self, *digits: int) -> Images:
        return self.part(torch.isin(self.labels, torch.tensor(digits)))


def load_images(mnist: Path | None = None, *, quick: bool = False) -> Images:
    """MNIST from a folder of IDX files, else from OpenML, else the bundled digits; ``quick`` takes those at once."""
    if quick:
        return _bundled("scikit-learn's bundled digits (8 x 8)")
    if mnist is not None:
        return _from_folder(Path(mnist))
    try:
        pixels, labels = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff")
    except (OSError, ValueError) as error:
        print(f"MNIST could not be fetched from OpenML ({type(error).__name__}); pass --mnist FOLDER to use a copy.")
        return _bundled("scikit-learn's bundled digits (8 x 8), because MNIST could not be fetched")
    pixels, labels = pixels[-10_000:], labels[-10_000:].astype(np.int64)
    return Images(_scaled(pixels, 255), torch.from_numpy(labels), (28, 28), "MNIST's 10,000 test images (OpenML)")


def _from_folder(folder: Path) -> Images:
    """The test images, which are enough for these studies; the training images where only those are there."""
    for stem, what in (("t10k", "10,000 test"), ("train", "60,000 training")):
        found = [sorted(folder.glob(f"{stem}-{kind}*")) for kind in ("images", "labels")]
        if all(found):
            pixels, labels = (_idx(paths[0]) for paths in found)
            flat = _scaled(pixels.reshape(len(pixels), -1), 255)
            return Images(flat, torch.from_numpy(labels.astype(np.int64)), pixels.shape[1:], f"MNIST's {what} images")
    raise SystemExit(f"--mnist must name a folder with MNIST's IDX files (t10k-images-idx3-ubyte.gz); got {folder}.")


def _idx(path: Path) -> np.ndarray:
    """An IDX file: two zero bytes, a type, the number of axes, each axis's length, then the values."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    axes = content[3]
    lengths = np.frombuffer(content, ">i4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(lengths)


def _bundled(source: str) -> Images:
    pixels, labels = load_digits(return_X_y=True)
    return Images(_scaled(pixels, 16), torch.from_numpy(labels.astype(np.int64)), (8, 8), source)


def _scaled(pixels: np.ndarray, top: float) -> Tensor:
    return torch.from_numpy((pixels / top).astype(np.float32))
