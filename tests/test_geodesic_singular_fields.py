"""Fields of matrices that are singular or zero, allowed beside a decoder: only the sum has to be positive definite."""

import math

import pytest
import torch

from posthoc_metric import Decoder
from posthoc_metric.geodesic import Status, geodesic, logarithm
from posthoc_metric.metric import MetricParts, StructuredMetric


class Bent(torch.nn.Module):
    """A smooth map of R^d onto itself with one inverse: its pullback is flat, and every pair has one geodesic."""

    def __init__(self, dim, kept=None, seed=0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.mix = (torch.randn(dim, dim, dtype=torch.float64, generator=draw) / math.sqrt(dim / 2)).tril(-1)
        self.phase = torch.randn(dim, dtype=torch.float64, generator=draw)
        self.dim, self.kept = dim, dim if kept is None else kept

    def whole(self, z):
        return z + 0.6 * torch.sin(1.3 * z @ self.mix.mT + self.phase)

    def forward(self, z):
        return self.whole(z.double())[..., : self.kept]

    def jacobian(self, z):
        slope = 0.78 * torch.cos(1.3 * z @ self.mix.mT + self.phase)
        return torch.eye(self.dim, dtype=z.dtype) + slope[..., None] * self.mix


def nothing(z):
    return torch.zeros(len(z), z.shape[1], z.shape[1], dtype=z.dtype)


@pytest.mark.parametrize("kept", ["all but the field's", "all"])
@pytest.mark.parametrize("dim", [2, 4, 9])
def test_a_field_without_full_rank_does_not_keep_curves_from_converging(dim, kept):
    bent = Bent(dim)
    if kept == "all":
        parts = MetricParts(embedding=Decoder(bent, latent_dim=dim), field=nothing)
    else:
        half = dim // 2

        def rest(z):
            jacobian = bent.jacobian(z)[:, half:]
            return jacobian.mT @ jacobian

        parts = MetricParts(embedding=Decoder(Bent(dim, kept=half), latent_dim=dim), field=rest)
    a, b = torch.randn(2, 8, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    metric = StructuredMetric(parts, dim)
    solution = geodesic(metric, a, b)
    step = bent.whole(b) - bent.whole(a)
    assert set(solution.status) == {Status.CONVERGED}
    torch.testing.assert_close(solution.length, step.norm(dim=1), rtol=3e-4, atol=0)
    found = logarithm(metric, a, b)
    assert set(found.status) == {Status.CONVERGED} and float(found.error.max()) < 1e-2
    exact = torch.linalg.solve(bent.jacobian(a), step[..., None])[..., 0]
    torch.testing.assert_close(found.velocities, exact, rtol=1e-4, atol=1e-5)
