"""A small convolutional network, trained apart from the generative models, that judges what they decode."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .data import Images
from .training import Fit, step_down

if TYPE_CHECKING:
    from .study import Study


class Classifier(nn.Module):
    """Two convolutions and two linear layers; images come flat, (B, h·w)."""

    def __init__(self, shape: tuple[int, int], classes: int = 10):
        super().__init__()
        self.shape = shape
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(24 * (shape[0] // 4) * (shape[1] // 4), 64),
            nn.ReLU(),
            nn.Linear(64, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.view(-1, 1, *self.shape))

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """(B, h·w) -> (B, classes)."""
        return torch.cat([self(rows.float()).softmax(-1) for rows in x.split(1000)])

    def accuracy(self, images: Images) -> float:
        return float((self.probabilities(images.pixels).argmax(1) == images.labels).double().mean())


def fit_classifier(model: Classifier, x: Tensor, targets: Tensor, fit: Fit) -> None:
    """Minimise the cross entropy to labels (N,) or to soft labels (N, classes)."""
    optimizer, schedule = fit.optimizer(model, len(x))
    for rows in fit.batches(len(x)):
        step_down(optimizer, cross_entropy(model(x[rows]), targets[rows]))
        schedule.step()


def classifier(study: Study, images: Images, *, seed: int = 0) -> Classifier:
    """The judge, trained once and cached."""
    fit = Fit(epochs=8, batch_size=32 if study.quick else 64, learning_rate=2e-3, seed=seed)
    return study.cached(
        f"classifier-seed{seed}",
        {"data": images.source, "count": len(images), **asdict(fit)},
        lambda: Classifier(images.shape),
        lambda model: fit_classifier(model, images.pixels, images.labels, fit),
    )
