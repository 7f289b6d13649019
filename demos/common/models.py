"""The models of the studies: small multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ACTIVATIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.2)}


def mlp(widths: Sequence[int], *, activation: str = "tanh", last: str | None = None) -> nn.Sequential:
    """Linear layers of the given widths with an activation between them, and ``last`` at the end."""
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layers.append(nn.Linear(before, after))
        if index < len(widths) - 2:
            layers.append(ACTIVATIONS[activation]())
        elif last is not None:
            layers.append(ACTIVATIONS[last]())
    return nn.Sequential(*layers)


class VAE(nn.Module):
    """A variational autoencoder (Kingma & Welling 2014) with a standard normal prior.

    Args:
        data_dim, latent_dim: D and d.
        hidden: widths of the decoder's hidden layers; the encoder has them in reverse.
        activation: between layers.
        last: of the decoder's output; "sigmoid" with a Bernoulli likelihood, ``None`` with a Gaussian one.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 2,
        *,
        hidden: Sequence[int] = (128, 128),
        activation: str = "tanh",
        last: str | None = "sigmoid",
    ):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = mlp([data_dim, *hidden[::-1], 2 * latent_dim], activation=activation)
        self.decoder = mlp([latent_dim, *hidden, data_dim], activation=activation, last=last)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of ``q(z | x)``, (B, d) each."""
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        return mean, log_variance

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]
