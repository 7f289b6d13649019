"""Decoders that the benchmarks share, trained here from scikit-learn's digits drawn at 28 x 28."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from torch import Tensor, nn


def images() -> Tensor:
    """(1797, 784) float32 in [0, 1]."""
    pictures = load_digits().images / 16
    return torch.from_numpy(np.clip(zoom(pictures, (1, 3.5, 3.5), order=1), 0, 1).reshape(len(pictures), -1)).float()


def mlp_vae(dim: int, hidden: int = 256, epochs: int = 40, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """Decoder ``R^dim -> R^784``, latents (1797, dim) and data (1797, 784) of a VAE, kept in a temporary folder."""
    data = images()
    decoder = nn.Sequential(
        nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 784), nn.Sigmoid()
    )
    encoder = nn.Sequential(nn.Linear(784, hidden), nn.Tanh(), nn.Linear(hidden, 2 * dim))
    kept = Path(tempfile.gettempdir()) / f"posthoc-metric-benchmark-vae-{dim}-{hidden}-{epochs}-{seed}.pt"
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        decoder.load_state_dict(state["decoder"])
        encoder.load_state_dict(state["encoder"])
    else:
        _train(encoder, decoder, data, dim, epochs, seed)
        torch.save({"decoder": decoder.state_dict(), "encoder": encoder.state_dict()}, kept)
    with torch.no_grad():
        latents = encoder(data)[:, :dim]
    return decoder.eval().requires_grad_(False), latents, data


def _train(encoder: nn.Module, decoder: nn.Module, data: Tensor, dim: int, epochs: int, seed: int) -> None:
    torch.manual_seed(seed)
    for module in [*encoder.modules(), *decoder.modules()]:
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)
    for epoch in range(epochs):
        for rows in torch.randperm(len(data)).split(128):
            mean, log_variance = encoder(data[rows]).chunk(2, dim=1)
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            likelihood = nn.functional.binary_cross_entropy(decoder(z), data[rows], reduction="sum")
            divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum()
            loss = (likelihood + min(1.0, epoch / 10) * divergence) / len(rows)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def pairs(latents: Tensor, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """``count`` random pairs of different latents."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(latents), generator=generator)[: 2 * count]
    return latents[order[:count]], latents[order[count:]]
