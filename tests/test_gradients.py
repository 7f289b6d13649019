"""Gradients by the latents: of what a metric says at them, and of geodesic lengths by their ends."""

import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn

import posthoc_metric as pm
from posthoc_metric.errors import InvalidArgumentError, SecondDerivativeError
from posthoc_metric.field_derivative import FieldDerivative
from posthoc_metric.spaces import HalfPlane, Sphere, SwissRoll

SAID = {
    "tensor": lambda metric, z: metric.tensor(z),
    "inner": lambda metric, z: metric.inner(z, 2 * z + 1, z.flip(0)),
    "norm": lambda metric, z: metric.norm(z, z + 1),
    "eigenvalues": lambda metric, z: metric.eigenvalues(z),
    "log_volume": lambda metric, z: metric.log_volume(z),
    "condition_number": lambda metric, z: metric.condition_number(z),
}


def network(dim, width, act=nn.Tanh, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(dim, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, width)]
    return nn.Sequential(*layers).requires_grad_(False)


def latents(count, dim, seed=1):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def metrics():
    """Metrics of every structure: a decoder's own, with a weight, a field, stacked maps, and a function's."""
    module, z = network(3, 12).double(), latents(200, 3)
    decoder = pm.Decoder(module)
    with torch.no_grad():
        data = module(z) + 0.05 * latents(200, 12, seed=2)
    return {
        "pullback": pm.PullbackMetric(decoder),
        "rbf": pm.repair(decoder, z),
        "gp": pm.repair(decoder, z, uncertainty="gp"),
        "rbf-published": pm.repair(decoder, z, data, uncertainty="rbf-published"),
        "function": pm.FunctionMetric(
            lambda z: torch.diag_embed(torch.stack([z[:, 1].exp(), 2 + z[:, 0].sin(), 4 + z[:, 0] * z[:, 2]], dim=1)), 3
        ),
    }


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("name", ["pullback", "rbf", "gp", "rbf-published", "function"])
def test_gradients_are_those_of_differences(metrics, name, said):
    # on the data and in the void
    z = torch.cat([0.5 * latents(2, 3, seed=3), latents(2, 3, seed=4) + 2]).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: SAID[said](metrics[name], z), z, eps=1e-5, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("said", SAID)
def test_values_are_the_same_with_a_graph_as_without(metrics, said):
    z = latents(5, 3)
    for metric in metrics.values():
        plain, recorded = SAID[said](metric, z), SAID[said](metric, z.clone().requires_grad_())
        assert recorded.requires_grad and not plain.requires_grad
        assert torch.equal(plain, recorded.detach())


def test_gradients_by_the_vectors(metrics):
    z, u, v = latents(4, 3), latents(4, 3, seed=5).requires_grad_(), latents(4, 3, seed=6).requires_grad_()
    metrics["rbf"].inner(z, u, v).sum().backward()
    tensors = metrics["rbf"].tensor(z)
    torch.testing.assert_close(u.grad, (tensors @ v.detach()[..., None])[..., 0])
    torch.testing.assert_close(v.grad, (tensors @ u.detach()[..., None])[..., 0])


def test_a_decoder_in_single_precision_has_the_gradients_of_its_copy_in_double():
    module, z = network(4, 20), latents(100, 4)
    found = []
    for decoder in (pm.Decoder(module), pm.Decoder(copy.deepcopy(module).double())):
        metric = pm.repair(decoder, z)
        at = z[:8].clone().requires_grad_()
        metric.log_volume(at).sum().backward()
        found.append(at.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    single = z[:8].float().requires_grad_()
    metric.log_volume(single).sum().backward()
    torch.testing.assert_close(single.grad.double(), found[1], rtol=1e-4, atol=1e-4)


def test_many_dimensions_and_a_decoder_that_loses_some():
    decoder = pm.Decoder(network(30, 8).double())
    z = (0.1 * latents(2, 30)).requires_grad_()
    metric = pm.PullbackMetric(decoder)
    weights = latents(30, 30, seed=7)
    assert torch.autograd.gradcheck(lambda z: (weights * metric.tensor(z)).sum((1, 2)), z, atol=1e-6)
    # its volume is zero everywhere, and has no slope to speak of
    assert torch.equal(metric.log_volume(z), torch.full((2,), -torch.inf, dtype=torch.float64))


class InNumPy(pm.Metric):
    dim = 3

    def tensor(self, z):
        z = np.asarray(z)
        return (1 + z[:, :1, None] ** 2 + 0.3 * np.sin(z[:, 1:2, None])) * (np.eye(3) + 0.1)


@pytest.mark.parametrize("said", [name for name in SAID if name not in ("tensor", "eigenvalues", "condition_number")])
def test_metrics_that_record_nothing_have_differences(said):
    in_numpy = InNumPy()
    detached = pm.FunctionMetric(lambda z: torch.from_numpy(in_numpy.tensor(z.detach())), 3)
    for metric in (in_numpy, detached):
        z = latents(4, 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda z, m=metric: SAID[said](m, z), z, eps=1e-5, atol=1e-5, rtol=1e-4)


def test_no_graph_where_none_is_wanted(metrics):
    z = latents(4, 3).requires_grad_()
    with torch.no_grad():
        assert not metrics["rbf"].tensor(z).requires_grad
        assert not metrics["rbf"].geodesic(z[:2], z[2:]).length.requires_grad
    solution = metrics["rbf"].geodesic(z[:2], z[2:])
    assert solution.length.requires_grad and not solution.points.requires_grad
    assert isinstance(metrics["rbf"].geodesic(z[:2].detach().numpy(), z[2:]).length, np.ndarray)


def test_a_second_derivative_is_refused(metrics):
    metric, other = metrics["rbf"], latents(3, 3, seed=15)
    for said in (metric.log_volume, metric.tensor, lambda z: metric.geodesic(z, other).length):
        z = latents(3, 3).requires_grad_()
        # a loss that is linear in what is said, beside one that has second derivatives
        (first,) = torch.autograd.grad(said(z).sum() + z.pow(3).sum(), z, create_graph=True)
        with pytest.raises(SecondDerivativeError, match="Detach"):
            first.sum().backward()
    with pytest.raises(SecondDerivativeError):
        torch.autograd.functional.hessian(lambda z: metric.log_volume(z).sum(), latents(3, 3))


@pytest.mark.parametrize("name", ["rbf", "gp", "function"])
def test_rows_that_do_not_fit_into_memory_at_once_have_the_same_gradients(metrics, name, monkeypatch):
    ends, found = [latents(3, 3, seed=seed) for seed in (8, 9)], []
    for _ in range(2):
        z, end = (x.clone().requires_grad_() for x in ends)
        (metrics[name].log_volume(z) + metrics[name].geodesic(z.detach(), end).length).sum().backward()
        found.append((z.grad, end.grad))
        for module in ("posthoc_metric.gradients", "posthoc_metric.geodesic.first_variation"):
            monkeypatch.setattr(sys.modules[module], "working_memory", lambda: 1)
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieces)


def test_the_derivative_of_a_field_is_probed_at_few_of_many_points(metrics):
    asked = []

    def field(z):
        asked.append(len(z))
        return metrics["gp"].parts().field(z)

    derivative = FieldDerivative(field, latents(5000, 3))
    assert derivative.by_autograd and sum(asked) < 1000


def test_ways_of_differentiating_that_find_nothing_are_refused(metrics):
    metric, z, other = metrics["rbf"], latents(3, 3), latents(3, 3, seed=15)
    for said in (metric.log_volume, metrics["function"].log_volume):
        with pytest.raises(InvalidArgumentError, match="forward-mode|torch.func"):
            torch.func.jvp(said, (z,), (other,))
    for said in (metric.log_volume, lambda z: metric.geodesic(z, other).length):
        with pytest.raises(InvalidArgumentError, match="torch.func"):
            torch.func.grad(lambda z, said=said: said(z).sum())(z)
    decoder = metric.decoder
    for said in (
        decoder,
        decoder.jacobian,
        lambda z: decoder.vjp(other, torch.ones(3, decoder.output_dim) * z.sum())[1],
    ):
        with pytest.raises(InvalidArgumentError, match="torch.func"):
            torch.func.grad(lambda z, said=said: said(z).sum())(z)
    for said in (metric.tensor, lambda z: metric.geodesic(z, other).length):
        with pytest.raises(InvalidArgumentError, match="one cotangent at a time.*vectorize"):
            torch.autograd.functional.jacobian(said, z, vectorize=True)
    # those of a function are torch's own
    volume = metrics["function"].log_volume
    z.requires_grad_()
    (known,) = torch.autograd.grad(volume(z).sum(), z)
    torch.testing.assert_close(torch.func.grad(lambda z: volume(z).sum())(z.detach()), known)


def test_solvers_do_not_take_second_derivatives_for_zero(metrics):
    """A metric made of another has first derivatives by autograd only."""
    derivative = FieldDerivative(lambda z: 2 * metrics["gp"].tensor(z), latents(8, 3))
    assert derivative.by_autograd and not derivative.twice


@pytest.mark.parametrize("space", [HalfPlane(), Sphere(), SwissRoll()], ids=lambda space: type(space).__name__)
def test_gradients_of_lengths_are_those_of_the_closed_form(space):
    a, b = ((0.4 * latents(6, 2, seed=seed) + shift).requires_grad_() for seed, shift in ((1, 2.0), (2, 3.0)))
    pm.geodesic(space, a, b).length.sum().backward()
    for ends, other in ((a, b), (b, a)):
        for axis, step in enumerate(1e-5 * torch.eye(2, dtype=torch.float64)):
            here, there = ends.detach(), other.detach()
            known = (space.distance(here + step, there) - space.distance(here - step, there)) / 2e-5
            torch.testing.assert_close(ends.grad[:, axis], known, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "dim"), [("pullback", 3), ("rbf", 3), ("gp", 3), ("one", 1), ("ten", 10)])
def test_gradients_of_lengths_are_those_of_differences(metrics, name, dim):
    metric = pm.repair(pm.Decoder(network(dim, 12).double()), latents(100, dim)) if dim != 3 else metrics[name]
    ends = [latents(4, dim, seed=seed) for seed in (8, 9)]
    a, b = (x.clone().requires_grad_() for x in ends)
    solution = metric.geodesic(a, b)
    assert bool(solution.converged.all())
    solution.length.sum().backward()
    moves = [1e-2 * latents(4, dim, seed=seed) for seed in (10, 11)]
    fine = {"rtol": 1e-6, "tol": 1e-4, "max_spans": 1024}
    ahead, behind = (
        metric.geodesic(*(x + sign * move for x, move in zip(ends, moves, strict=True)), **fine).length
        for sign in (1, -1)
    )
    found = sum((x.grad * move).sum(1) for x, move in zip((a, b), moves, strict=True))
    size = sum((x.grad * x.grad).sum(1).sqrt() * move.norm(dim=1) for x, move in zip((a, b), moves, strict=True))
    assert float(((found - (ahead - behind) / 2).abs() / size).max()) < 5e-3


class Holed(nn.Module):
    def forward(self, z):
        return torch.cat([z, z.square(), (4 - z[:, :1]).sqrt()], dim=1)


def test_pairs_without_a_curve_leave_the_gradients_of_others_alone():
    metric = pm.PullbackMetric(pm.Decoder(Holed(), latent_dim=2))
    a = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 1.0], [1.0, 0.0], [9.0, 1.0]], dtype=torch.float64, requires_grad=True)
    metric.geodesic(a, b).length.sum().backward()
    assert torch.equal(b.grad[1], torch.zeros(2, dtype=torch.float64))
    assert bool(torch.isnan(b.grad[2]).all())
    counted = b.detach().clone().requires_grad_()
    solution = metric.geodesic(a, counted)
    solution.length[solution.converged].sum().backward()
    assert torch.equal(counted.grad, torch.cat([b.grad[:2], torch.zeros(1, 2, dtype=torch.float64)]))
    alone = b[:1].detach().clone().requires_grad_()
    metric.geodesic(a[:1], alone).length.sum().backward()
    torch.testing.assert_close(b.grad[:1], alone.grad)


def test_gradients_between_near_pairs_are_not_the_rounding_of_a_decoder_in_single_precision():
    module, z = network(3, 50), latents(100, 3)
    for distance in (1e-3, 1e-6):
        found = []
        for decoder in (pm.Decoder(module), pm.Decoder(copy.deepcopy(module).double())):
            end = (z[:6] + distance * latents(6, 3, seed=14)).requires_grad_()
            pm.repair(decoder, z).geodesic(z[:6], end).length.sum().backward()
            found.append(end.grad)
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_pairs_of_one_point_ask_nothing_of_a_metric_that_takes_no_empty_batch():
    def fn(z):
        assert len(z)
        return torch.eye(2, dtype=z.dtype) / z[:, 1, None, None] ** 2

    a = torch.tensor([[0.0, 1.0], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    pm.geodesic(fn, a, a.detach()).length.sum().backward()
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_lengths_that_a_loss_leaves_out_pass_no_nan_on_to_an_encoder():
    metric = pm.PullbackMetric(pm.Decoder(Holed(), latent_dim=2))
    encoder = nn.Linear(2, 2).double()
    with torch.no_grad():
        encoder.weight.copy_(torch.eye(2))
        encoder.bias.zero_()
    solution = metric.geodesic(torch.zeros(2, 2).double(), encoder(torch.tensor([[1.0, 1.0], [9.0, 1.0]]).double()))
    assert solution.converged.tolist() == [True, False]
    solution.length[solution.converged].sum().backward()
    assert bool(torch.isfinite(encoder.weight.grad).all()) and float(encoder.bias.grad.norm()) > 0.1


def test_latents_learn_from_distances(metrics):
    """The end of a geodesic is pulled down its own length to where that is as long as was asked."""
    start, end = latents(1, 3, seed=12), latents(1, 3, seed=13).requires_grad_()
    wanted = 0.5 * metrics["rbf"].geodesic(start, end).length.detach()
    optimiser = torch.optim.LBFGS([end], max_iter=10, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = (metrics["rbf"].geodesic(start, end).length - wanted).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    length = metrics["rbf"].geodesic(start, end).length.detach()
    assert float((length - wanted).abs()) < 1e-3 * float(wanted)


@pytest.mark.parametrize("near", [1e-6, 1e-9, 0.0])
def test_gradients_near_the_origin(near):
    """Where a point alone tells no size of the latents, difference steps are not lost in rounding."""
    metric = pm.PullbackMetric(pm.Decoder(network(3, 12).double()))
    z = (near * latents(2, 3)).requires_grad_()
    metric.log_volume(z).sum().backward()
    for axis, step in enumerate(1e-4 * torch.eye(3, dtype=torch.float64)):
        ahead, behind = (metric.log_volume(z.detach() + sign * step) for sign in (1, -1))
        torch.testing.assert_close(z.grad[:, axis], (ahead - behind) / 2e-4, rtol=1e-5, atol=1e-6)


def test_vectors_of_no_length_have_no_gradient(metrics):
    z = latents(2, 3).requires_grad_()
    v = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    metrics["rbf"].norm(z, v).sum().backward()
    for found in (z.grad, v.grad):
        assert torch.equal(found[0], torch.zeros(3, dtype=torch.float64)) and bool((found[1] != 0).any())


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_a_function_in_numpy_has_gradients_by_differences(size):
    def fn(z):
        return np.exp(np.sin(np.asarray(z)[:, :1, None] / size)) * np.eye(2)

    metric = pm.FunctionMetric(fn, 2)
    z = (size * latents(3, 2)).requires_grad_()
    metric.log_volume(z).sum().backward()
    known = torch.stack([(z[:, 0].detach() / size).cos() / size, torch.zeros(3, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(z.grad, known, rtol=1e-6, atol=1e-6 / size)
    assert metric.norm(z, torch.ones(3, 2)).requires_grad and metric.eigenvalues(z).requires_grad


def test_no_points_have_no_gradients_and_harm_none(metrics):
    z = latents(0, 3).requires_grad_()
    (metrics["rbf"].log_volume(z).sum() + metrics["rbf"].geodesic(z, z).length.sum()).backward()
    assert z.grad.shape == (0, 3)
