"""Train the VAE that the package ships, and write ``posthoc_metric/assets/digits_vae.safetensors``.

    python demos/train_digits_vae.py            # about 20 s on one core; a second run gives the same file
    python demos/train_digits_vae.py --out x.safetensors

A plain VAE (Kingma & Welling 2014): Bernoulli likelihood on grey values, standard normal prior, the
evidence lower bound with weight one on both parts, two latent dimensions.  1,500 digits train it, the
other 297 only report.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

import posthoc_metric
from posthoc_metric.examples import ASSET, DigitsDecoder, DigitsEncoder, digits


@dataclass(frozen=True)
class Training:
    """How the shipped file was made."""

    epochs: int = 500
    batch_size: int = 128
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    kl_warm_up: float = 0.25  # share of the steps over which the divergence's weight rises to one
    training_images: int = 1500
    seed: int = 0


def bound(encoder: DigitsEncoder, decoder: DigitsDecoder, x: Tensor, kl_weight: float = 1.0) -> Tensor:
    """The negative evidence lower bound in nats, one sample an image, (B,)."""
    mean, log_variance = encoder.posterior(x)
    z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    reconstruction = binary_cross_entropy(decoder(z).clamp(1e-6, 1 - 1e-6), x, reduction="none").sum(-1)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
    return reconstruction + kl_weight * divergence


def train(settings: Training) -> tuple[DigitsDecoder, DigitsEncoder, dict[str, float]]:
    """The trained pair, and the bound on both parts of the data."""
    torch.manual_seed(settings.seed)
    data = digits().data
    order = torch.randperm(len(data))
    seen, unseen = data[order[: settings.training_images]], data[order[settings.training_images :]]
    decoder, encoder = DigitsDecoder(), DigitsEncoder()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    per_epoch = len(seen) // settings.batch_size
    steps = settings.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        position = step % per_epoch
        if position == 0:
            shuffled = torch.randperm(len(seen))
        batch = seen[shuffled[position * settings.batch_size :][: settings.batch_size]]
        loss = bound(encoder, decoder, batch, min(1.0, step / (settings.kl_warm_up * steps))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        nats = {
            "bound_train": float(bound(encoder, decoder, seen).mean()),
            "bound_test": float(bound(encoder, decoder, unseen).mean()),
        }
    return decoder.eval(), encoder.eval(), nats


def save(path: Path, decoder: DigitsDecoder, encoder: DigitsEncoder, record: dict) -> None:
    """One safetensors file, replaced whole or not at all."""
    tensors = {f"decoder.{name}": value.contiguous() for name, value in decoder.state_dict().items()}
    tensors |= {f"encoder.{name}": value.contiguous() for name, value in encoder.state_dict().items()}
    # one metadata key: safetensors writes several in no fixed order, and the file must come out the same every time
    content = safetensors.torch.save(tensors, metadata={"posthoc_metric": json.dumps(record, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def main(out: Path | None = None, quick: bool = False) -> dict[str, float]:
    """Train and write; returns the bounds in nats.

    ``quick`` trains for two epochs, for the tests, and by default writes apart from the package's own file.
    """
    if out is None:
        folder = Path(__file__).parent / "output" if quick else Path(posthoc_metric.__file__).parent / "assets"
        out = folder / ASSET
    settings = Training(epochs=2) if quick else Training()
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)  # sums in one order
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            decoder, encoder, nats = train(settings)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    record = {
        "format": 1,
        "what": "VAE on scikit-learn's digits, 8 x 8 grey values / 16, latent dimension 2",
        "made_by": "demos/train_digits_vae.py",
        "training": asdict(settings),
        "bounds_in_nats": nats,
        "torch": torch.__version__,
    }
    save(out, decoder, encoder, record)
    print(f"{out}: {nats['bound_train']:.2f} nats on the training images, {nats['bound_test']:.2f} on unseen ones")
    return nats


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where to write; the package's own file unless given")
    parser.add_argument("--quick", action="store_true", help="two epochs, to see that it runs")
    arguments = parser.parse_args()
    main(arguments.out, arguments.quick)
