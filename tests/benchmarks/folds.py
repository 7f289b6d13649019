"""Maps with folds: robot arms, whose elbow bends either way, and random maps onto few outputs; repaired by default.

Run ``python tests/benchmarks/folds.py [pairs]``.  A way across the fold of the arm of two links is judged by the ray
that is reflected at the circle of its reach; what is longer goes round where there are no data, or has found no better
valley.  Nothing of the kind is known of the others.  CPU time of a solve whose start graphs are there.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from peers import table, timed
from torch import Tensor, nn

import posthoc_metric as pm


class Arm(nn.Module):
    """Where the hand of an arm is, (B, d) -> (B, 2) or (B, 3); in space every second joint turns about another axis."""

    def __init__(self, joints: int, spatial: bool):
        super().__init__()
        self.joints, self.spatial = joints, spatial

    def forward(self, q: Tensor) -> Tensor:
        if not self.spatial:
            angles = q.cumsum(1)
            return torch.stack([angles.cos().sum(1), angles.sin().sum(1)], dim=1) / self.joints
        turned = torch.eye(3, dtype=q.dtype).expand(len(q), 3, 3)
        hand = q.new_zeros(len(q), 3)
        for joint in range(self.joints):
            c, s = q[:, joint].cos(), q[:, joint].sin()
            one, none = torch.ones_like(c), torch.zeros_like(c)
            flat = joint % 2 == 0
            rows = (c, -s, none, s, c, none, none, none, one) if flat else (c, none, s, none, one, none, -s, none, c)
            turned = turned @ torch.stack(rows, dim=1).view(-1, 3, 3)
            hand = hand + turned[:, :, 0] / self.joints
        return hand


def random_map(dim: int, outputs: int) -> nn.Module:
    """A strongly bent network."""
    layers = [nn.Linear(dim, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)]
    net = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    return net


def reflected(a: Tensor, b: Tensor) -> Tensor:
    """Lengths (B,) of the shortest ways from hand to hand, (B, 2) each, that touch the unit circle."""
    turn = np.linspace(-np.pi, np.pi, 20_001)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    ways = (np.linalg.norm(end[:, None] - circle, axis=2) for end in (a.numpy(), b.numpy()))
    return torch.from_numpy(sum(ways).min(axis=1))


def main(count: int = 40, only: str = "") -> None:
    """Print the table, or of it what ``only`` is part of the name of."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases: dict[str, tuple[nn.Module, int, float]] = {
        "arm, 2 joints, plane": (Arm(2, False), 2, 0.8),
        "arm, 3 joints, plane": (Arm(3, False), 3, 0.8),
        "arm, 3 joints, space": (Arm(3, True), 3, 0.8),
        "arm, 7 joints, space": (Arm(7, True), 7, 0.8),
        "random, R^2 to R^2": (random_map(2, 2), 2, 1.0),
        "random, R^3 to R^3": (random_map(3, 3), 3, 1.0),
        "random, R^4 to R^3": (random_map(4, 3), 4, 1.0),
    }
    header = ("map", "ms/pair", "evaluations", "converged", "excess, median", "90th percentile")
    for name, (net, dim, scale) in ((name, case) for name, case in cases.items() if only in name):
        z = scale * torch.randn(1000, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        metric = pm.repair(pm.Decoder(net, latent_dim=dim), z, net(z).detach())
        a, b = z[:count], z[count : 2 * count]
        metric.geodesic(a[:2], b[:2])
        seconds, found = timed(lambda metric=metric, a=a, b=b: metric.geodesic(a, b))
        excess = (float("nan"), float("nan"))
        if name == "arm, 2 joints, plane":
            over = a[:, 1] * b[:, 1] < 0
            shares = found.length[over] / reflected(net(a[over]), net(b[over])) - 1
            excess = (float(shares.median()), float(shares.quantile(0.9)))
        evaluations = float(found.evaluations.double().median())
        row = (name, 1e3 * seconds / count, evaluations, float(found.converged.double().mean()), *excess)
        print(table(header, [row]), flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
