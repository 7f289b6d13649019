"""A family of small decoders, trained in seconds, over the axes that a repair must not care about."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


@dataclass(frozen=True)
class Member:
    """A trained decoder with its latents (N, d) and, where there are any, data (N, D)."""

    name: str
    decoder: nn.Module
    latents: Tensor
    data: Tensor | None


def relu_net(latent_dim: int) -> nn.Sequential:
    """Latent -> 30 outputs by two hidden layers, with many kinks and as it was initialised."""
    return nn.Sequential(nn.Linear(latent_dim, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 30))


class TransposedConv(nn.Module):
    """Latent -> 8x8 image by transposed convolutions."""

    def __init__(self, latent_dim: int, activation: type[nn.Module] = nn.ReLU, last: type[nn.Module] = nn.Sigmoid):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(latent_dim, 16 * 4),
            activation(),
            nn.Unflatten(1, (16, 2, 2)),
            nn.ConvTranspose2d(16, 16, 4, 2, 1),
            activation(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
            last(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


def mlp(sizes: list[int], activation: type[nn.Module], last: type[nn.Module] | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers += [nn.Linear(a, b)] + ([activation()] if index < len(sizes) - 2 else [])
    return nn.Sequential(*layers, *([last()] if last else []))


@functools.cache
def digits() -> Tensor:
    return torch.tensor(load_digits().data / 16.0, dtype=torch.float32)


def _seeded(train: Callable[..., Member]) -> Callable[..., Member]:
    """Seeds the training and leaves the caller's random state as it was."""

    @functools.wraps(train)
    def run(*args, **kwargs) -> Member:
        with torch.random.fork_rng():
            torch.manual_seed(kwargs.get("seed", 0))
            return train(*args, **kwargs)

    return functools.cache(run)


@_seeded
def vae(latent_dim: int, activation=nn.Tanh, conv: bool = False, beta: float = 0.2, steps: int = 600, seed: int = 0):
    data = digits()
    encoder = mlp([64, 128, 2 * latent_dim], activation)
    decoder = TransposedConv(latent_dim) if conv else mlp([latent_dim, 64, 128, 64], activation, nn.Sigmoid)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 2e-3)
    for _ in range(steps):
        x = data[torch.randint(len(data), (128,))]
        mean, log_std = encoder(x).chunk(2, 1)
        z = mean + log_std.exp() * torch.randn_like(mean)
        fit = nn.functional.binary_cross_entropy(decoder(z).flatten(1), x, reduction="none").sum(1)
        divergence = 0.5 * (mean**2 + (2 * log_std).exp() - 2 * log_std - 1).sum(1)
        loss = (fit + beta * divergence).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    latents = encoder(data).chunk(2, 1)[0].detach()
    name = f"vae d={latent_dim} {'conv' if conv else activation.__name__}"
    return Member(name, decoder, latents, data)


@_seeded
def autoencoder(latent_dim: int, activation=nn.ReLU, noise: float = 0.0, steps: int = 600, seed: int = 0):
    data = digits()
    encoder = mlp([64, 128, latent_dim], activation)
    decoder = mlp([latent_dim, 128, 64], activation)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 2e-3)
    for _ in range(steps):
        x = data[torch.randint(len(data), (128,))]
        loss = (decoder(encoder(x + noise * torch.randn_like(x))) - x).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    name = f"{'dae' if noise else 'ae'} d={latent_dim} {activation.__name__}"
    return Member(name, decoder, encoder(data).detach(), data)


@_seeded
def gan(latent_dim: int, conv: bool = False, steps: int = 500, seed: int = 0):
    """A generator without encoder or data: its latents are samples of the prior."""
    data = digits()
    generator = TransposedConv(latent_dim) if conv else mlp([latent_dim, 128, 64], nn.ReLU, nn.Sigmoid)
    critic = mlp([64, 128, 1], nn.LeakyReLU)
    g_optimiser = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.5, 0.9))
    c_optimiser = torch.optim.Adam(critic.parameters(), 1e-3, betas=(0.5, 0.9))
    softplus = nn.functional.softplus
    for _ in range(steps):
        real = data[torch.randint(len(data), (128,))]
        fake = generator(torch.randn(128, latent_dim)).flatten(1)
        loss = softplus(-critic(real)).mean() + softplus(critic(fake.detach())).mean()
        c_optimiser.zero_grad()
        loss.backward()
        c_optimiser.step()
        loss = softplus(-critic(fake)).mean()
        g_optimiser.zero_grad()
        loss.backward()
        g_optimiser.step()
    return Member(f"gan d={latent_dim} {'conv' if conv else 'mlp'}", generator, torch.randn(1500, latent_dim), None)


def moved(member: Member, scale: float, shift: float, seed: int = 0) -> Member:
    """The same decoder in other latent coordinates: rotated, scaled, shifted; float64, to keep the shift exact."""
    generator = torch.Generator().manual_seed(seed)
    dim = member.latents.shape[1]
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    before = nn.Linear(dim, dim, dtype=torch.float64)
    with torch.no_grad():
        before.weight.copy_(rotation.T / scale)
        before.bias.copy_(-(torch.full((dim,), shift, dtype=torch.float64) @ rotation) / scale)
    import copy

    decoder = nn.Sequential(before, copy.deepcopy(member.decoder).double())
    data = None if member.data is None else member.data.double()
    return Member(member.name + " moved", decoder, member.latents.double() @ rotation.T * scale + shift, data)


def members() -> list[Callable[[], Member]]:
    """One maker for each member, so that a test trains only what it needs."""
    return [
        lambda: vae(2),
        lambda: vae(2, nn.ReLU),
        lambda: vae(10),
        lambda: vae(10, conv=True),
        lambda: vae(64, nn.ReLU, beta=0.05),
        lambda: autoencoder(2, nn.Tanh),
        lambda: autoencoder(10),
        lambda: autoencoder(10, noise=0.2),
        lambda: autoencoder(64, nn.Tanh),
        lambda: gan(2),
        lambda: gan(10),
        lambda: gan(64, conv=True),
        lambda: gan(100),
    ]
