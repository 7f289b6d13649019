"""Values and ``Jᵀu`` by one evaluation: the same numbers as by two, from a decoder, a stack, behind the guard."""

import pytest
import torch
from through import Through
from torch import nn
from torch.utils.checkpoint import checkpoint

from posthoc_metric.decoder import Decoder
from posthoc_metric.errors import DecoderError, InvalidArgumentError
from posthoc_metric.geodesic.guard import GuardedMap
from posthoc_metric.geodesic.relaxation.matrix_free import MatrixFreeEnergy
from posthoc_metric.metric import MetricParts, PullbackMetric
from posthoc_metric.smooth_map import StackedMap, pull_rows, value_and_pull


def random(rows, dim, seed=1, dtype=torch.float64):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mlp(dim=3, out=6, bend=nn.Tanh):
    return nn.Sequential(nn.Linear(dim, 16), bend(), nn.Linear(16, out))


def conv():
    return nn.Sequential(
        nn.Unflatten(1, (3, 1, 1)),
        nn.ConvTranspose2d(3, 8, 4),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(8, 2, 4, 2, 1),
        nn.Sigmoid(),
    )


def noisy():
    """In train mode, as a training script leaves it."""
    net = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 6))
    net(random(64, 3, dtype=torch.float32))
    return net.train()


class Checkpointed(nn.Module):
    """Evaluates its inside once more on the way back, where it must be in eval mode still."""

    def __init__(self):
        super().__init__()
        self.inside = noisy()

    def forward(self, z):
        return checkpoint(self.inside, z, use_reentrant=False)


class NoGraph(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = mlp()

    def forward(self, z):
        with torch.no_grad():
            return self.inside(z)


class Branching(nn.Module):
    """Sums in another order when a graph is kept."""

    def __init__(self):
        super().__init__()
        self.inside = mlp()

    def forward(self, z):
        found = self.inside(z)
        return (found * 3) / 3 if torch.is_grad_enabled() else found


MODELS = {
    "mlp": (mlp, torch.float64, True),
    "single": (mlp, torch.float32, True),
    "conv": (conv, torch.float64, True),
    "single conv": (conv, torch.float32, True),
    "dropout and batch norm": (noisy, torch.float32, True),
    "checkpointed": (Checkpointed, torch.float64, True),
    "no graph": (NoGraph, torch.float64, False),
    "branching": (Branching, torch.float32, False),
}


def wrapped(name, **options):
    make, dtype, one = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make().to(dtype)
    return Decoder(module, latent_dim=3, **options), one


@pytest.mark.parametrize("name", MODELS)
def test_one_evaluation_gives_what_two_give(name):
    decoder, one = wrapped(name)
    z, u = random(7, 3), random(7, decoder.output_dim, 2)
    assert (decoder.pull_rows > 0) is one
    with decoder.counting() as work:
        value, pull = decoder.value_and_pull(z)
        pulled = pull(u)
    assert torch.equal(value, decoder(z))
    assert pulled.dtype == z.dtype
    exact = decoder.vjp(z, u)[1]
    eps = torch.finfo(decoder.dtype).eps
    torch.testing.assert_close(pulled, exact, rtol=8 * eps, atol=8 * eps * float(exact.abs().amax()))
    assert (work.values, work.vjps) == ((0, 7) if one else (work.values, work.vjps))
    assert one or work.values >= 7


def test_modes_and_arguments_stay_as_they_were():
    decoder, _ = wrapped("checkpointed")
    z, u = random(5, 3), random(5, 6, 2)
    module = decoder._engine.found.call.roots[0]
    kept = z.clone(), u.clone()
    _, pull = decoder.value_and_pull(z)
    assert module.inside.training
    pull(u)
    assert module.inside.training
    assert torch.equal(z, kept[0]) and torch.equal(u, kept[1])
    assert all(parameter.grad is None for parameter in module.parameters())


def test_arrays_come_back_as_arrays():
    decoder, _ = wrapped("mlp")
    z, u = random(4, 3), random(4, 6, 2)
    value, pull = decoder.value_and_pull(z.numpy())
    assert (value == decoder(z).numpy()).all()
    assert (pull(u.numpy()) == decoder.vjp(z, u)[1].numpy()).all()


def test_more_rows_than_memory_holds_are_evaluated_twice():
    decoder, _ = wrapped("mlp")
    small, _ = wrapped("mlp", max_bytes=8 * 5 * decoder._engine.found.row_bytes)
    assert small.pull_rows == 5
    for rows, counts in ((5, (0, 5)), (6, (6, 6)), (0, (0, 0))):
        z, u = random(rows, 3), random(rows, 6, 2)
        with small.counting() as work:
            value, pull = small.value_and_pull(z)
            pulled = pull(u)
        assert (work.values, work.vjps) == counts
        torch.testing.assert_close(value, decoder(z))
        torch.testing.assert_close(pulled, decoder.vjp(z, u)[1])


class Edged(nn.Module):
    """Infinite beyond ten, and without a slope at latents whose first number is negative."""

    def forward(self, z):
        first = z[:, :1]
        return torch.cat([z, torch.sqrt(first * (first > 0)), torch.where(first > 10, torch.inf, first)], dim=1)


def edged():
    return Decoder(Edged(), latent_dim=3, probe=0.5 + random(16, 3).abs())


def test_rows_without_a_value_or_a_derivative_are_named():
    decoder = edged()
    z = 1 + random(5, 3).abs()
    z[3, 0] = 11
    with pytest.raises(DecoderError, match="output must be finite") as error:
        decoder.value_and_pull(z)
    assert error.value.rows == (3,)
    z[3, 0], z[1, 0] = 1, -1
    value, pull = decoder.value_and_pull(z)
    with pytest.raises(DecoderError, match="derivative must be finite") as error:
        pull(torch.ones_like(value))
    assert error.value.rows == (1,)
    _, pull = decoder.value_and_pull(z)
    with pytest.raises(InvalidArgumentError, match="each of the 5 rows"):
        pull(torch.ones(4, 5))


def test_behind_the_guard_bad_rows_are_nan_and_the_others_stay():
    guarded = GuardedMap(edged())
    assert guarded.pull_rows == guarded.embedding.pull_rows > 0
    clean = 1 + random(6, 3).abs()
    u = random(6, 5, 2)
    no_value, no_slope, no_point, no_cotangent = clean.clone(), clean.clone(), clean.clone(), u.clone()
    no_value[2, 0], no_slope[2, 0], no_point[2, 1], no_cotangent[2, 3] = 11, -1, torch.nan, torch.nan
    for z, w in ((clean, u), (no_value, u), (no_slope, u), (no_point, u), (clean, no_cotangent)):
        value, pull = guarded.value_and_pull(z)
        torch.testing.assert_close(value, guarded(z), equal_nan=True, rtol=0, atol=0)
        torch.testing.assert_close(pull(w), guarded.vjp(z, w)[1], equal_nan=True)
        rest = torch.arange(6) != 2
        assert torch.isfinite(value[rest]).all()
    with guarded.embedding.counting() as work:
        guarded.value_and_pull(clean)[1](u)
    assert (work.values, work.vjps) == (0, 6)


def test_stacks_go_part_by_part():
    decoder = wrapped("mlp")[0]
    small = Decoder(mlp().double(), latent_dim=3, max_bytes=8 * 50 * decoder._engine.found.row_bytes)
    z, u = random(7, 3), random(7, 18, 2)
    stack = StackedMap([decoder, Through(decoder), small])
    assert stack.pull_rows == small.pull_rows < decoder.pull_rows
    value, pull = stack.value_and_pull(z)
    assert torch.equal(value, stack(z))
    torch.testing.assert_close(pull(u), stack.vjp(z, u)[1])
    assert StackedMap([Through(decoder)]).pull_rows == 0


def test_a_map_without_the_method_is_asked_twice():
    decoder, _ = wrapped("mlp")
    z, u = random(7, 3), random(7, 6, 2)
    assert pull_rows(Through(decoder)) == 0
    with decoder.counting() as work:
        value, pull = value_and_pull(Through(decoder), z)
        pulled = pull(u)
    assert (work.values, work.vjps) == (7, 7)
    assert torch.equal(value, decoder(z)) and torch.equal(pulled, decoder.vjp(z, u)[1])


def many(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(mlp(12, 40).double(), latent_dim=12, **options)


@pytest.mark.parametrize("rows", [None, 30, 8])
def test_slopes_of_curves_are_the_same_by_one_evaluation_or_two(rows):
    decoder = many()
    if rows is not None:
        decoder = many(max_bytes=8 * rows * decoder._engine.found.row_bytes)
    nodes, h = random(2 * 65, 12).view(2, 65, 12), 0.2 + random(2, 64).abs()
    one, two = (MatrixFreeEnergy(MetricParts(embedding=e), nodes[:, 0]) for e in (decoder, Through(decoder)))
    with decoder.counting() as work:
        found = one.slope(nodes, h)
    # both in one call with a spare row each, their ends apart; three pieces that share three rows; or two evaluations
    assert (work.values, work.vjps) == {None: (4, 2 * 64), 30: (0, 2 * (65 + 2 * 3)), 8: (2 * 65, 2 * 63)}[rows]
    expected = two.slope(nodes, h)
    for name in ("energy", "gradient", "grain"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("rows", [300, None], ids=["one a call", "together"])
def test_a_geodesic_asks_for_less_and_is_the_same(rows):
    decoder = many()
    if rows is not None:
        decoder = many(max_bytes=8 * rows * decoder._engine.found.row_bytes)
    a, b = random(2, 12, 3), random(2, 12, 4)
    with decoder.counting() as one:
        found = PullbackMetric(decoder).geodesic(a, b)
    with decoder.counting() as two:
        expected = PullbackMetric(Through(decoder)).geodesic(a, b)
    assert found.converged.all() and expected.converged.all()
    torch.testing.assert_close(found.length, expected.length, rtol=1e-6, atol=0)
    # 33 a pair tell with how many nodes to begin
    assert one.values - 66 < 0.25 * (two.values - 66)
    assert one.values + one.vjps < 0.7 * (two.values + two.vjps)
