"""Training loops, each a few lines, and the VAE that several studies share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from .data import Images
from .models import VAE

if TYPE_CHECKING:
    from .study import Study


@dataclass(frozen=True)
class Fit:
    """How a model is trained: Adam with a cosine decay."""

    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 3e-3
    seed: int = 0

    def steps(self, count: int) -> int:
        return self.epochs * max(count // self.batch_size, 1)

    def batches(self, count: int) -> Iterator[Tensor]:
        """Rows of each step's batch, by the seed alone."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            order = torch.randperm(count, generator=generator)
            for start in range(0, max(count - self.batch_size + 1, 1), self.batch_size):
                yield order[start : start + self.batch_size]

    def optimizer(
        self, model: nn.Module, count: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        adam = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.steps(count), 0.02 * self.learning_rate)


def fit_vae(
    model: VAE, data: Tensor, fit: Fit, *, noise: float | None = None, warm_up: float = 0.25, divergence: float = 1.0
) -> None:
    """Maximise the evidence lower bound.

    Args:
        noise: standard deviation of a Gaussian likelihood; ``None`` is the Bernoulli likelihood on grey values.
        warm_up: share of the steps over which the divergence's weight rises.
        divergence: the weight it rises to; below one the latents spread and leave holes between them.
    """
    optimizer, schedule = fit.optimizer(model, len(data))
    steps = fit.steps(len(data))
    for step, rows in enumerate(fit.batches(len(data))):
        x = data[rows]
        mean, log_variance = model.posterior(x)
        output = model.decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))
        if noise is None:
            likelihood = binary_cross_entropy(output.clamp(1e-6, 1 - 1e-6), x, reduction="none").sum(-1)
        else:
            likelihood = 0.5 * (output - x).square().sum(-1) / noise**2
        from_prior = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
        weight = divergence * min(1.0, (step + 1) / (warm_up * steps))
        step_down(optimizer, (likelihood + weight * from_prior).mean())
        schedule.step()


def fit_autoencoder(encoder: nn.Module, decoder: nn.Module, data: Tensor, fit: Fit, *, noise: float = 0.0) -> None:
    """Minimise the squared reconstruction error; with ``noise`` on the input it is a denoising autoencoder."""
    optimizer, schedule = fit.optimizer(nn.ModuleList([encoder, decoder]), len(data))
    for rows in fit.batches(len(data)):
        x = data[rows]
        step_down(optimizer, (decoder(encoder(x + noise * torch.randn_like(x))) - x).square().sum(-1).mean())
        schedule.step()


def fit_gan(generator: nn.Module, critic: nn.Module, data: Tensor, fit: Fit, *, latent_dim: int = 2) -> None:
    """The non-saturating game (Goodfellow et al. 2014) with one-sided label smoothing, prior N(0, I)."""
    options = {"lr": fit.learning_rate, "betas": (0.5, 0.999)}
    for_generator = torch.optim.Adam(generator.parameters(), **options)
    for_critic = torch.optim.Adam(critic.parameters(), **options)
    for rows in fit.batches(len(data)):
        z = torch.randn(len(rows), latent_dim)
        fake = generator(z)
        real_score, fake_score = critic(data[rows]), critic(fake.detach())
        truth = torch.full_like(real_score, 0.9)
        loss = binary_cross_entropy_with_logits(real_score, truth)
        step_down(for_critic, loss + binary_cross_entropy_with_logits(fake_score, torch.zeros_like(fake_score)))
        score = critic(fake)
        step_down(for_generator, binary_cross_entropy_with_logits(score, torch.ones_like(score)))


def step_down(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimizer down the gradient of a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def image_vae(study: Study, images: Images, *, seed: int, latent_dim: int = 2, divergence: float = 1.0) -> VAE:
    """The VAE that several studies share, trained once and cached."""
    fit = Fit(epochs=50, batch_size=64, learning_rate=5e-3, seed=seed) if study.quick else Fit(epochs=40, seed=seed)
    hidden = (64, 64) if study.quick else (128, 128)
    data_dim = images.pixels.shape[1]
    settings = {"data": images.source, "count": len(images), "hidden": hidden, "latent_dim": latent_dim, **asdict(fit)}
    if divergence != 1:
        settings["divergence"] = divergence
    return study.cached(
        f"vae{latent_dim}-seed{seed}",
        settings,
        lambda: VAE(data_dim, latent_dim, hidden=hidden),
        lambda model: fit_vae(model, images.pixels, fit, divergence=divergence),
    )
