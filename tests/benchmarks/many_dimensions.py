"""Many latent dimensions: MLP decoders with d = 20 and 64, a convolutional GAN with d = 100 and D = 12,288.

Run ``python tests/benchmarks/many_dimensions.py [pairs] [reference pairs] [case ...]``, by default 100 pairs and 3 of
them for the reference, on all cases: ``mlp-20``, ``mlp-64``, ``gan-relu-tanh``, ``gan-relu-sigmoid``.  ``memory`` runs
the memory case alone: d = 512, D = 196,608, whose peak is that of a process of its own.

The reference is PyTorch's L-BFGS, 2,000 steps with a strong Wolfe line search from the same straight line, on the
discrete energy of 16 quadratic elements: more nodes are slower to move, with 64 elements it ends 2 % higher.  Both
curves are judged by the same measure, 8,192 chords of the curve through the nodes.  Times are CPU times of this
process, on one thread; each case runs in a process of its own, so that its peak memory is its own.  References take
hours for 100 pairs; each is kept in a temporary folder when it is done, and ``references`` makes no more than them.

The generator is a DCGAN with narrow channels, trained here for 600 steps on scikit-learn's digits in random colours, at
64 x 64; the one with a sigmoid output has the same weights.  Its latents are draws of the prior.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from models import mlp_vae, pairs
from sklearn.datasets import load_digits
from torch import Tensor, nn

import posthoc_metric as pm
from posthoc_metric.geodesic.curves.spline import Spline, interpolate
from posthoc_metric.geodesic.relaxation.matrix_free import MatrixFreeEnergy

CASES = ("mlp-20", "mlp-64", "gan-relu-tanh", "gan-relu-sigmoid")
_STEPS = 2000
_SPANS = 32


def generator(dim: int = 100, width: int = 64, side: int = 64, last: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """``dim`` -> 4 x 4 x ``width`` -> ... -> ``side`` x ``side`` x 3, doubling the side and halving the width."""
    layers: list[nn.Module] = [nn.Unflatten(1, (dim, 1, 1)), nn.ConvTranspose2d(dim, width, 4, bias=False)]
    layers += [nn.BatchNorm2d(width), nn.ReLU()]
    size = 4
    while 2 * size < side:
        narrow = max(4, width // 2)
        layers += [nn.ConvTranspose2d(width, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
        width, size = narrow, 2 * size
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1), last())


def gan(last: type[nn.Module] = nn.Tanh, steps: int = 600) -> nn.Module:
    """The trained generator, kept in a temporary folder."""
    kept = _kept(f"gan-{steps}")
    if not kept.exists():
        torch.manual_seed(0)
        torch.save(_trained(steps).state_dict(), kept)
    net = generator(last=last)
    net.load_state_dict(torch.load(kept, weights_only=True))
    return net.eval().requires_grad_(False)


def _trained(steps: int) -> nn.Module:
    made = generator()
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2)]
    for width in (8, 16, 32):
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
    critic = nn.Sequential(*layers, nn.Conv2d(64, 1, 4), nn.Flatten(0))
    for module in [*made.modules(), *critic.modules()]:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0, 0.02)
    makes = torch.optim.Adam(made.parameters(), 1e-3, betas=(0.5, 0.999))
    judges = torch.optim.Adam(critic.parameters(), 4e-4, betas=(0.5, 0.999))
    pictures = torch.from_numpy(load_digits().images / 16).float()
    judge = nn.functional.binary_cross_entropy_with_logits
    for _ in range(steps):
        shape = nn.functional.interpolate(
            pictures[torch.randint(len(pictures), (64,))][:, None], (64, 64), mode="bilinear"
        )
        ink, paper = torch.rand(2, 64, 3, 1, 1)
        real = 2 * (shape * ink + (1 - shape) * paper / 2) - 1
        fake = made(torch.randn(64, 100))
        true, false = critic(real), critic(fake.detach())
        loss = judge(true, torch.full_like(true, 0.9)) + judge(false, torch.zeros_like(false))
        judges.zero_grad()
        loss.backward()
        judges.step()
        false = critic(fake)
        makes.zero_grad()
        judge(false, torch.ones_like(false)).backward()
        makes.step()
    return made


def case(name: str, count: int) -> tuple[pm.Decoder, Tensor, Tensor]:
    """Decoder and pairs."""
    kind, *rest = name.split("-")
    if kind == "mlp":
        net, latents, _ = mlp_vae(int(rest[0]))
        return pm.Decoder(net, latent_dim=int(rest[0])), *pairs(latents, count)
    net = gan(nn.Sigmoid if rest[-1] == "sigmoid" else nn.Tanh)
    latents = torch.randn(2 * count, 100, generator=torch.Generator().manual_seed(1))
    return pm.Decoder(net, latent_dim=100), latents[:count], latents[count:]


@dataclass(frozen=True)
class Reference:
    """What L-BFGS made of one pair: the judged length, the straight line's, and CPU seconds."""

    length: float
    straight: float
    seconds: float


def references(name: str, count: int, wanted: int) -> list[Reference]:
    """References of the first ``wanted`` of ``count`` pairs; kept one by one, as each takes about a minute."""
    decoder, a, b = case(name, count)
    energy = MatrixFreeEnergy(pm.PullbackMetric(decoder).parts(), a.double())
    found = []
    for i in range(min(wanted, count)):
        kept = _kept(f"lbfgs-{name}-{count}-{i}")
        if not kept.exists():
            before = time.process_time()
            length = judged(decoder, lbfgs(energy, a[i], b[i]))
            seconds = time.process_time() - before
            straight = judged(decoder, interpolate(*_line(a[i], b[i])))
            torch.save(asdict(Reference(length, straight, seconds)), kept)
        found.append(Reference(**torch.load(kept, weights_only=True)))
    return found


def lbfgs(energy: MatrixFreeEnergy, a: Tensor, b: Tensor) -> Spline:
    """One pair's reference curve."""
    knots = torch.linspace(0, 1, _SPANS + 1, dtype=torch.float64)[None]
    line = a.double() + knots[0, :, None] * (b - a).double()
    inner = line[1:-1].clone().requires_grad_(True)
    # steps of the L-BFGS method are sensible where the energy is of order one
    scale = 1 / float(energy.slope(line[None], knots.diff(dim=1)).energy)
    method = torch.optim.LBFGS(
        [inner], max_iter=_STEPS, tolerance_grad=0, tolerance_change=0, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        nodes = torch.cat([line[:1], inner.detach(), line[-1:]])[None]
        slope = energy.slope(nodes, knots.diff(dim=1))
        inner.grad = scale * slope.gradient[0]
        return scale * slope.energy[0]

    method.step(closure)
    return interpolate(knots, torch.cat([line[:1], inner.detach(), line[-1:]])[None])


def judged(decoder: pm.Decoder, spline: Spline, chords: int = 8192) -> float:
    """Length of one curve, by chords and Richardson's limit for kinks (smooth curves have no shortfall left)."""
    times = torch.linspace(0, 1, chords + 1, dtype=torch.float64)
    total, half = 0.0, 0.0
    for part in torch.arange(chords).split(512):
        some = times[part[0] : part[-1] + 2]
        values = decoder(spline.at(some[None])[0][0])
        total += float(values.diff(dim=0).norm(dim=1).sum())
        half += float(values[::2].diff(dim=0).norm(dim=1).sum())
    return 2 * total - half


def run(name: str, count: int, compared: int) -> None:
    """Print one case's rows."""
    torch.set_num_threads(1)
    decoder, a, b = case(name, count)
    metric = pm.PullbackMetric(decoder)
    base = _peak()
    before = time.process_time()
    with decoder.counting() as work:
        # below a thousandth of the length a generator with so few channels shows every single kink
        solution = metric.geodesic(a, b, starts="straight", **({"max_spans": 1024} if name.startswith("gan") else {}))
    spent = time.process_time() - before
    peak = _peak()
    statuses = {status.name: solution.status.count(status) for status in dict.fromkeys(solution.status)}
    error = (solution.length_error / solution.length).double()
    print(
        f"{name}: d = {decoder.latent_dim}, D = {decoder.output_dim}, {count} pairs: {statuses};"
        f" {spent / count:.2f} s a pair; rows a pair: {work.values / count:.0f} values,"
        f" {work.vjps / count:.0f} vjps, {work.jvps / count:.0f} jvps; spans (median, most)"
        f" {int(solution.spans.median())}, {int(solution.spans.max())}; length error (median, most)"
        f" {float(error.median()):.1e}, {float(error.max()):.1e}; peak {peak:.0f} MiB, {base:.0f} at the start",
        flush=True,
    )
    longer = []
    for i, known in enumerate(references(name, count, compared)):
        ours = judged(decoder, solution._spline.take(torch.tensor([i])))
        longer.append(ours / known.length - 1)
        print(
            f"    pair {i}: {solution.status[i].name}, length {float(solution.length[i]):.4f} +- "
            f"{float(solution.length_error[i]):.4f}; judged: ours {ours:.4f}, L-BFGS {known.length:.4f} in "
            f"{known.seconds:.0f} s, ours / theirs - 1 = {longer[-1]:+.1e}; straight line {known.straight:.4f}",
            flush=True,
        )
    if longer:
        excess = torch.tensor(longer)
        print(
            f"{name}: of {len(longer)} pairs ours is longer than L-BFGS's in {int((excess > 0).sum())}; ours / theirs "
            f"- 1: from {float(excess.min()):+.1e} to {float(excess.max()):+.1e}, median {float(excess.median()):+.1e}",
            flush=True,
        )


def memory(count: int = 2) -> None:
    """Print the peak memory of a few pairs of a generator from R^512 to 3 x 256 x 256 with random weights.

    Six quasi-Newton steps a level, which is not enough to converge: memory does not grow with the steps.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = generator(512, 128, 256)
    for module in net.modules():
        if isinstance(module, nn.ConvTranspose2d):
            # four inputs a channel meet in an output, one in the first layer: activations keep their size
            meet = 1 if module.stride == (1, 1) else 4
            nn.init.normal_(module.weight, 0, (2 / (meet * module.in_channels)) ** 0.5)
    decoder = pm.Decoder(net.eval().requires_grad_(False), latent_dim=512)
    a, b = torch.randn(2, count, 512)
    base = _peak()
    before = time.process_time()
    with decoder.counting() as work:
        solution = pm.PullbackMetric(decoder).geodesic(a, b, starts="straight", max_spans=64, max_steps=1)
    print(
        f"memory: d = 512, D = {decoder.output_dim}, {count} pairs: peak {_peak():.0f} MiB ({base:.0f} before);"
        f" {(time.process_time() - before) / count:.0f} s a pair, {work.values // count} values,"
        f" {work.vjps // count} vjps, {work.jvps // count} jvps; {[status.name for status in solution.status]},"
        f" length errors {[f'{v:.1e}' for v in (solution.length_error / solution.length).tolist()]}",
        flush=True,
    )


def _line(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    knots = torch.linspace(0, 1, 5, dtype=torch.float64)[None]
    return knots, a.double() + knots[..., None] * (b - a).double()


def _kept(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"posthoc-metric-benchmark-{name}.pt"


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: list[str]) -> None:
    """Run every case asked for in a process of its own, or this one if it is such a process."""
    numbers = [int(argument) for argument in arguments if argument.isdigit()]
    count, compared = (*numbers, *(100, 3)[len(numbers) :])
    names = [argument for argument in arguments if argument in (*CASES, "memory")] or list(CASES)
    if "--here" in arguments:
        memory() if names == ["memory"] else run(names[0], count, compared)
        return
    if "references" in arguments:
        torch.set_num_threads(1)
        for name in names:
            references(name, count, compared)
        return
    for name in names:
        subprocess.run([sys.executable, __file__, str(count), str(compared), name, "--here"], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
