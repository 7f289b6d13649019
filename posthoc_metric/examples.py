"""The shipped example: a small trained VAE on scikit-learn's digits.

The weights in ``assets/digits_vae.safetensors`` come from ``demos/train_digits_vae.py``, which can be
run again and writes the same file.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from .errors import CheckpointError

ASSET = "digits_vae.safetensors"
IMAGE_SHAPE = (8, 8)
LATENT_DIM = 2


@dataclass(frozen=True)
class Digits:
    """The 1,797 digits of scikit-learn.

    Attributes:
        data: grey values in [0, 1], (1797, 64) float32; a row is an image of 8 x 8, row by row.
        labels: the digit drawn, (1797,) int64.
    """

    data: Tensor
    labels: Tensor


class DigitsEncoder(nn.Module):
    """``q(z | x)``: images (B, 64) -> mean (B, 2); :meth:`posterior` also gives the log variance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh())
        self.head = nn.Linear(128, 2 * LATENT_DIM)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of ``q(z | x)``, each (B, 2)."""
        mean, log_variance = self.head(self.body(x)).chunk(2, dim=-1)
        return mean, log_variance

    def forward(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]


class DigitsDecoder(nn.Sequential):
    """``E[x | z]``: latents (B, 2) -> grey values in [0, 1], (B, 64)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(LATENT_DIM, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 64), nn.Sigmoid()
        )


def digits() -> Digits:
    """The digits that the example was trained on, from scikit-learn; nothing is downloaded."""
    images, labels = load_digits(return_X_y=True)
    return Digits(torch.from_numpy((images / 16).astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))


def digits_vae() -> tuple[DigitsDecoder, DigitsEncoder]:
    """The trained decoder and encoder, float32, in eval mode and without gradients.

    Raises:
        CheckpointError: the package's own file is missing, so the installation is broken.
    """
    asset = files(__package__) / "assets" / ASSET
    try:
        content = asset.read_bytes()
    except OSError:
        raise CheckpointError(
            f"`digits_vae` expected the weights in {asset}, a file of this package, and it is not there. "
            "Install the package again, or run demos/train_digits_vae.py in a checkout."
        ) from None
    state = safetensors.torch.load(content)
    with torch.random.fork_rng(devices=[]):
        decoder, encoder = DigitsDecoder(), DigitsEncoder()
    for module, prefix in ((decoder, "decoder."), (encoder, "encoder.")):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        module.eval().requires_grad_(False)
    return decoder, encoder
