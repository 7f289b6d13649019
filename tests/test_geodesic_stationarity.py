"""Maps of R^d onto itself, piecewise linear or bent: the metric is flat, a pair has one geodesic of known length."""

import pytest
import torch
from torch import nn

from posthoc_metric import Decoder, PullbackMetric
from posthoc_metric.geodesic import Status, geodesic


def folded(dim, layers, seed, leak=0.2):
    """Invertible layers of linear maps and leaky rectifiers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules: list[nn.Module] = []
        for _ in range(layers):
            layer = nn.Linear(dim, dim, dtype=torch.float64)
            turns = [torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0] for _ in range(2)]
            stretch = torch.diag((0.5 * torch.randn(dim, dtype=torch.float64)).exp())
            layer.weight.data = turns[0] @ stretch @ turns[1]
            layer.bias.data = 0.5 * torch.randn(dim, dtype=torch.float64)
            modules += [layer, nn.LeakyReLU(leak)]
    return nn.Sequential(*modules).requires_grad_(False)


@pytest.mark.parametrize(
    ("dim", "layers", "seed", "starts", "least"),
    [(2, 2, 1, ("straight", "grid"), 30), (2, 2, 1, ("straight",), 20), (3, 3, 3, ("straight", "grid"), 2)],
)
def test_curves_that_hang_on_kinks_are_not_called_geodesics(dim, layers, seed, starts, least):
    net = folded(dim, layers, seed)
    a, b = torch.randn(2, 40, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    solution = geodesic(PullbackMetric(Decoder(net, latent_dim=dim)), a, b, starts=starts)
    exact = (net(a) - net(b)).norm(dim=1)
    excess, done = solution.length - exact, solution.converged
    assert int(done.sum()) >= least
    # how a curve gets across so many kinks is chaotic, and few are off by more than they say
    told = excess[done] <= 3 * solution.length_error[done] + 1e-4 * exact[done]
    assert float(told.double().mean()) >= 0.9
    assert (excess[done] <= 3 * solution.length_error[done] + 1e-3 * exact[done]).all()
    # what is not called a geodesic says how far it may be from one
    assert set(solution.status) <= {Status.CONVERGED, Status.UNRESOLVED, Status.STEP_LIMIT}
    assert float((excess <= 3 * solution.length_error + 1e-4 * exact).double().mean()) >= 0.9


class Bent(nn.Module):
    """A smooth map of R^d onto itself with one inverse, far from linear within a unit."""

    def __init__(self, dim, bend, seed):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.bend, self.layers = bend, []
        for _ in range(2):
            mix = torch.randn(dim, dim, dtype=torch.float64, generator=draw).tril(-1) / (dim / 2) ** 0.5
            phase = torch.randn(dim, dtype=torch.float64, generator=draw)
            scale = (0.2 * torch.randn(dim, dtype=torch.float64, generator=draw)).exp()
            self.layers.append((mix, phase, scale, torch.randperm(dim, generator=draw)))

    def forward(self, z):
        for mix, phase, scale, order in self.layers:
            z = (scale * z + self.bend * torch.sin(1.3 * z @ mix.mT + phase))[..., order]
        return z


@pytest.mark.parametrize(
    ("dim", "seed", "count", "least", "relaxed_on"), [(8, 108, 40, 34, 1), (12, 112, 10, 9, 5), (20, 4, 5, 5, 1)]
)
def test_curves_that_gradients_relax_slowly_say_what_they_may_lose(dim, seed, count, least, relaxed_on):
    net = Bent(dim, 1.2, seed)
    a, b = torch.randn(2, 40, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))[:, :count]
    metric = PullbackMetric(Decoder(net, latent_dim=dim))
    solution = geodesic(metric, a, b)
    exact = (net(a) - net(b)).norm(dim=1)
    excess, done = solution.length - exact, solution.converged
    # those that sloped are relaxed on by the model that said so
    assert int(done.sum()) >= least
    assert (excess[done] <= 1.5 * solution.length_error[done] + 1e-5 * exact[done]).all()
    # what came to rest with few nodes has no kinks to excuse it
    few = done & (solution.spans < 64)
    assert (excess[few] <= 4e-4 * exact[few]).all() and (excess[done] <= 1.3e-3 * exact[done]).all()
    alone = slice(relaxed_on, relaxed_on + 1)
    assert torch.equal(geodesic(metric, a[alone], b[alone]).length, solution.length[alone])
