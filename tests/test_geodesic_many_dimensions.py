"""Curves in many dimensions: gradients, the quasi-Newton relaxation, lengths by chords, memory, batches."""

import functools

import pytest
import torch
from test_spaces import points
from through import Through
from torch import nn

from posthoc_metric.decoder import Decoder
from posthoc_metric.errors import DecoderError
from posthoc_metric.geodesic import Status, geodesic
from posthoc_metric.geodesic.curves.chords import halved
from posthoc_metric.geodesic.curves.quadrature import FIVE, measure
from posthoc_metric.geodesic.curves.rows import few_rows
from posthoc_metric.geodesic.curves.spline import interpolate
from posthoc_metric.geodesic.refinement import refiner, routes
from posthoc_metric.geodesic.relaxation.energy import CurveEnergy
from posthoc_metric.geodesic.relaxation.matrix_free import MatrixFreeEnergy, Slope, matrix_free
from posthoc_metric.geodesic.relaxation.preconditioner import Preconditioner, _sketch, precondition
from posthoc_metric.geodesic.relaxation.quasi_newton import relax_matrix_free
from posthoc_metric.geodesic.starts.start_curves import jump_over, straight
from posthoc_metric.geodesic.status import STATUSES
from posthoc_metric.metric import MetricParts, PullbackMetric, StructuredMetric


def mlp(dim=12, outputs=40, bend=nn.Tanh, seed=0, dtype=torch.float64, scale=None):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(dim, 64), bend(), nn.Linear(64, outputs)).to(dtype)
        if scale is not None:
            net[0].weight.data *= scale
    return Decoder(net, latent_dim=dim)


def kinked(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 100))
    return Decoder(net.double(), latent_dim=8)


class Bowl:
    """A weight with a minimum, ``1 + ‖z‖⁴ / 10``."""

    def __call__(self, z):
        return 1 + z.square().sum(1).square() / 10

    def value_and_gradient(self, z):
        square = z.square().sum(1)
        return 1 + square.square() / 10, 0.4 * square[:, None] * z


def field(z):
    return (2 + torch.sin(z[:, :1]))[..., None] * torch.eye(z.shape[1], dtype=z.dtype)


def detached(z):
    return field(z.detach())


def bent(pairs=3, spans=16, dim=12, seed=3):
    """Crooked curves with uneven times."""
    h = 0.2 + points(pairs, spans, seed).abs()
    h = h / h.sum(1, keepdim=True)
    return points(pairs * (spans + 1), dim, seed).view(pairs, spans + 1, dim), h


KINDS = {
    "decoder": lambda d: MetricParts(embedding=d),
    "weight": lambda d: MetricParts(embedding=d, weight=Bowl()),
    "field": lambda d: MetricParts(embedding=d, field=field),
    "field without gradient": lambda d: MetricParts(embedding=d, field=detached),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_energys_slope_and_that_of_the_dense_route(kind):
    parts = KINDS[kind](mlp())
    nodes, h = bent()
    energy = MatrixFreeEnergy(parts, nodes[:, 0])
    here = energy.slope(nodes, h)
    whole = CurveEnergy(parts, nodes[:, 0])
    dense = whole.linearise(nodes, whole.frame(nodes, h))
    torch.testing.assert_close(here.energy, dense.energy)
    # the dense route keeps Jacobians in single precision
    torch.testing.assert_close(here.gradient, dense.gradient, rtol=1e-4, atol=1e-4)
    move = points(3 * 15, 12, 9).view(3, 15, 12)
    ahead, behind = nodes.clone(), nodes.clone()
    ahead[:, 1:-1] += 1e-5 * move
    behind[:, 1:-1] -= 1e-5 * move
    slope = (energy.slope(ahead, h).energy - energy.slope(behind, h).energy) / 2e-5
    torch.testing.assert_close((here.gradient * move).sum((1, 2)), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [5, 7, 20, 40])
def test_pieces_add_up_to_the_whole(rows):
    parts = MetricParts(embedding=mlp(), weight=Bowl())
    nodes, h = bent()
    whole = MatrixFreeEnergy(parts, nodes[:, 0]).slope(nodes, h)
    pieces = MatrixFreeEnergy(parts, nodes[:, 0], 8 * 10 * 40 * rows).slope(nodes, h)
    for name in ("energy", "gradient", "grain"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name))


def test_the_preconditioner_inverts_the_hessian_of_a_constant_metric():
    # chords of a linear map: the Hessian of the two-point energy is 2 T ⊗ JᵀJ
    dim, spans = 12, 8
    metrics = torch.stack([2 * torch.eye(dim), torch.diag(torch.linspace(0.5, 3, dim))]).double()
    _, h = bent(2, spans)
    weights = points(2, spans, 4).abs()
    p = Preconditioner(metrics, weights, h)
    g = points(2 * (spans - 1), dim, 5).view(2, spans - 1, dim)
    torch.testing.assert_close(p.times(p.solve(g)), g)
    torch.testing.assert_close(p.take(torch.tensor([1])).solve(g[1:]), p.solve(g)[1:])
    floored = metrics + 0.1 * metrics.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(dim).double()
    stiff = (floored[:, None] + weights[..., None, None] * torch.eye(dim).double()) / h[..., None, None]
    dense = torch.zeros(2, spans + 1, dim, spans + 1, dim, dtype=torch.float64)
    for k in range(spans):
        for i, j, sign in ((k, k, 2), (k + 1, k + 1, 2), (k, k + 1, -2), (k + 1, k, -2)):
            dense[:, i, :, j] += sign * stiff[:, k]
    inner = dense[:, 1:-1, :, 1:-1].reshape(2, (spans - 1) * dim, -1)
    torch.testing.assert_close(p.solve(g), torch.linalg.solve(inner, g.flatten(1)).view_as(g))


def test_a_jacobian_that_does_not_fit_is_sketched():
    # the leading directions are there, and the trace is near
    torch.manual_seed(0)
    net = nn.Linear(40, 60, bias=False).double()
    with torch.no_grad():
        net.weight[:] = torch.linalg.qr(points(60, 40, 1))[0] * torch.logspace(1, -2, 40)
    decoder = Decoder(net, latent_dim=40)
    exact = (net.weight.mT @ net.weight).detach()
    found = _sketch(decoder, points(2, 40))
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - exact).norm() < 0.2 * exact.norm()
    nodes, h = bent(2, 8, 40)
    small, _ = precondition(MetricParts(embedding=decoder), nodes, h, 1000)
    g = points(2 * 7, 40, 5).view(2, 7, 40)
    torch.testing.assert_close(small.times(small.solve(g)), g)


@pytest.mark.parametrize("kind", ["decoder", "weight", "field"])
def test_lengths_are_those_of_the_dense_route(kind, monkeypatch):
    metric = StructuredMetric(KINDS[kind](mlp()), 12)
    a, b = points(6, 12, 1, 1.0), points(6, 12, 2, 1.0)
    free = geodesic(metric, a, b)
    monkeypatch.setattr(routes, "FEW", 99)
    dense = geodesic(metric, a, b)
    assert free.converged.all() and dense.converged.all()
    assert ((free.length - dense.length).abs() <= free.length_error + dense.length_error + 1e-4 * dense.length).all()


@functools.cache
def through_kinks(seed):
    """A metric with kinks, ten pairs and their geodesics."""
    metric, a, b = PullbackMetric(kinked(seed)), points(10, 8, 1), points(10, 8, 2)
    return metric, a, b, geodesic(metric, a, b)


def test_curves_with_kinks_are_left_to_gradients_and_come_out_shorter(monkeypatch):
    gains, converged = [], []
    for seed in range(3):
        metric, a, b, found = through_kinks(seed)
        with monkeypatch.context() as patched:
            patched.setattr(routes, "FEW", 99)
            newton = geodesic(metric, a, b)
        gains.append((newton.length - found.length) / newton.length)
        converged.append(newton.converged)
    gain = torch.cat(gains)
    # which curve rests in which of many shallow valleys is chance
    assert gain.mean() > 3e-4
    assert (gain > -5e-4).double().mean() >= 0.9
    # Newton's nodes rest in linear pieces of the decoder, and are called converged there
    assert gain[torch.cat(converged)].max() > 2e-3


def test_a_pair_under_kinks_has_the_same_geodesic_alone():
    metric, a, b, together = through_kinks(0)
    for i in (0, 3, 9):
        alone = geodesic(metric, a[i : i + 1], b[i : i + 1])
        assert torch.equal(alone.length[0], together.length[i])
        assert torch.equal(alone.points[0], together.points[i])


def test_which_route_is_taken():
    decoder = mlp()
    assert matrix_free(MetricParts(embedding=decoder), 12)
    assert not matrix_free(MetricParts(embedding=decoder), 8)
    assert not matrix_free(MetricParts(field=field), 12)


@pytest.mark.parametrize("dim", [6, 12])
def test_a_second_start_in_the_same_valley_costs_little(dim):
    flat = torch.ones(dim, dtype=torch.float64)
    # directions that hardly matter, in which two curves of one length are far apart
    flat[dim // 2 :] = 0.02
    metric = PullbackMetric(mlp(dim, scale=flat))
    latents = points(200, dim, 3, 1.0)
    a, b = points(10, dim, 1, 1.0), points(10, dim, 2, 1.0)
    line = geodesic(metric, a, b, starts="straight")
    both = geodesic(metric, a, b, support=latents, starts=("straight", "graph"))
    assert both.converged.all()
    assert both.evaluations.sum() < 1.5 * line.evaluations.sum()
    assert (both.length <= line.length * (1 + 3e-4)).all()


def test_no_longer_than_a_long_relaxation_of_the_same_energy():
    metric = PullbackMetric(mlp(20, 60))
    a, b = points(4, 20, 1, 1.0), points(4, 20, 2, 1.0)
    solution = geodesic(metric, a, b)
    knots = torch.linspace(0, 1, 33, dtype=torch.float64).expand(4, -1).contiguous()
    nodes = a[:, None] + knots[..., None] * (b - a)[:, None]
    start, _ = precondition(metric.parts(), nodes, knots.diff(dim=1), 2**29)
    energy = MatrixFreeEnergy(metric.parts(), a)
    long = relax_matrix_free(energy, start, nodes, knots, tol=1e-5, max_steps=2000, pair=torch.arange(4))
    assert (long.residual <= 1e-5).all()
    assert solution.converged.all()
    assert (solution.length <= 1.001 * long.energy.sqrt()).all()
    assert ((solution.length - long.energy.sqrt()).abs() <= solution.length_error + 1e-4 * solution.length).all()


class Rounded:
    """``1 + x² / 2`` at the one inner node, lost in rounding, and an inverse Hessian that is ``far`` too large."""

    def __init__(self, far):
        self.far = far

    def elements(self, nodes, h):
        return None

    def slope_on(self, elements, nodes):
        x = nodes[:, 1:-1]
        return Slope(1 + x.square().sum((1, 2)) / 2, x, torch.ones_like(x[:, 0, 0]))

    def energies(self, nodes, h):
        return self.slope_on(None, nodes).energy

    def take(self, index):
        return self

    def solve(self, gradient):
        return self.far * gradient

    def times(self, move):
        return move / self.far


@pytest.mark.parametrize("far", [0.5, 5.0, 40.0])
def test_a_first_step_that_is_far_too_long_is_shortened_where_rounding_hides_the_energy(far):
    nodes = torch.tensor([[[0.0], [1.0], [0.0]]], dtype=torch.float64)
    knots, pair = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    rounded = Rounded(far)
    found = relax_matrix_free(rounded, rounded, nodes, knots, tol=1e-3, max_steps=40, pair=pair)
    assert STATUSES[int(found.status)] is Status.CONVERGED
    assert float(found.nodes[0, 1, 0].abs()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bend", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("dim", [2, 3, 5, 8, 11])
def test_a_pair_has_the_same_geodesic_alone(bend, dtype, dim):
    # sizes for which matrix products do depend on how many rows there are, and on where they lie
    metric = StructuredMetric(MetricParts(embedding=mlp(dim, 33, bend, dtype=dtype), weight=Bowl()), dim)
    a, b = points(9, dim, 1), points(9, dim, 2)
    together = geodesic(metric, a, b, max_spans=32)
    for i in (0, 3, 7):
        alone = geodesic(metric, a[i : i + 1], b[i : i + 1], max_spans=32)
        # of Newton's small matrices of odd size every other one begins at an odd address, which the residual may show
        exact = dim in (2, 8, 11)
        torch.testing.assert_close(alone.residual[0], together.residual[i], rtol=0 if exact else 1e-12, atol=0)
        for name in ("points", "length", "length_error", "steps", "evaluations", "spans"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i]), name


@pytest.mark.parametrize("parts", KINDS.values(), ids=KINDS)
def test_curves_that_share_a_call_have_the_slopes_that_they_have_alone(parts):
    for dtype, outputs in ((torch.float32, 33), (torch.float64, 33), (torch.float64, 500)):
        nodes, h = bent(21)
        energy = MatrixFreeEnergy(parts(mlp(12, outputs, dtype=dtype)), nodes[:, 0])
        assert energy.elements(nodes, h).ends is not None
        together = energy.slope(nodes, h)
        for i in (0, 3, 4, 20):
            alone = energy.slope(nodes[i : i + 1], h[i : i + 1])
            for name in ("energy", "gradient", "grain"):
                assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i]), name
        # and those of an embedding that is asked for one curve at a time
        energy.rows = 1
        apart = energy.slope(nodes, h)
        precise = {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(together.energy, apart.energy, rtol=precise, atol=0)
        torch.testing.assert_close(together.gradient, apart.gradient, rtol=precise, atol=precise)


def test_a_pair_without_a_value_touches_no_neighbour():
    class Holed(Through):
        def at(self, z):
            bad = (z[:, 0] > 5).nonzero().flatten().tolist()
            if bad:
                raise DecoderError("no value", tuple(bad))
            return z

    metric = PullbackMetric(Holed(mlp(12, 30)))
    a, b = points(5, 12, 1, 1.0), points(5, 12, 2, 1.0)
    for hole in (0, 3):
        bad = b.clone()
        bad[hole, 0] = 9.0
        solution, clean = geodesic(metric, a, bad), geodesic(metric, a, b)
        rest = torch.arange(5) != hole
        assert solution.status[hole] is Status.NOT_FINITE
        assert solution.converged[rest].all()
        for name in ("points", "length", "length_error", "steps"):
            assert torch.equal(getattr(solution, name)[rest], getattr(clean, name)[rest]), name


def test_a_pair_without_a_value_touches_no_neighbour_with_which_it_shares_calls():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 33)).double()
    metric = PullbackMetric(Decoder(lambda z: net(z) + torch.log(8 - z[:, :1]), latent_dim=12))
    a, b = points(5, 12, 1, 1.0), points(5, 12, 2, 1.0)
    bad = b.clone()
    bad[3, 0] = 9.0
    solution, clean = geodesic(metric, a, bad), geodesic(metric, a, b)
    rest = torch.arange(5) != 3
    assert solution.status[3] is Status.NOT_FINITE
    assert solution.converged[rest].all()
    for name in ("points", "length", "length_error", "steps"):
        assert torch.equal(getattr(solution, name)[rest], getattr(clean, name)[rest]), name


def test_near_and_equal_pairs_of_a_float32_decoder():
    metric = PullbackMetric(mlp(12, 300, dtype=torch.float32))
    a = points(6, 12).float()
    for size in (0.0, 1e-5, 1e-3, 1e-1):
        end = a + size * points(6, 12, 1).float()
        solution = geodesic(metric, a, end)
        step = end.double() - a.double()
        assert solution.converged.all(), size
        expected = metric.norm(a.double() + step / 2, step)
        torch.testing.assert_close(solution.length.double(), expected, rtol=20 * size**2 + 2e-4, atol=0)


def test_chords_find_the_length_of_a_kinked_curve():
    # F(z) = |z| in 200 coordinates: each chord that crosses a kink is too short; in between the curve is straight
    class Folded:
        latent_dim, output_dim = 200, 200

        def __call__(self, z):
            return z.abs()

        def jvp(self, z, v):
            return z.abs(), z.sign() * v

    parts = MetricParts(embedding=Folded())
    knots = torch.linspace(0, 1, 9, dtype=torch.float64)[None]
    start, end = points(1, 200, 1, 1.0), points(1, 200, 2, 1.0)
    line = start[:, None] + knots[..., None] * (end - start)[:, None]
    spline = interpolate(knots, line)
    known = measure(parts, spline, None, FIVE)[0]
    known.errors += 1.0
    found, asked = halved(parts, spline, known, 1e-3 * known.length, 32, 2**20)
    exact = (end - start).norm()
    # the error is the size to be expected, no bound: where the kinks lie is chance
    assert (found.length - exact).abs() <= 3 * found.errors.sum()
    assert found.errors.sum() < 1e-2 * exact
    assert int(asked) in (32, 96, 224, 480)
    few, _ = halved(parts, spline, known, 1e-3 * known.length, 32, 1)
    torch.testing.assert_close(few.lengths, found.lengths)


def test_products_are_formed_a_few_rows_at_a_time():
    parts = MetricParts(embedding=mlp(12, 300), weight=Bowl(), field=field)
    few = few_rows(parts, 8 * 6 * 300 * 11)
    z, u, v = points(37, 12), points(37, 12, 1), points(37, 12, 2)
    assert few.most == 8
    torch.testing.assert_close(few.inner(z, u, v), parts.inner(z, u, v))
    torch.testing.assert_close(few.inner(z, u, u), parts.inner(z, u, u))


def test_little_memory_gives_the_same_lengths():
    metric = PullbackMetric(mlp(12, 300))
    a, b = points(3, 12, 3, 1.0), points(3, 12, 4, 1.0)
    small, large = geodesic(metric, a, b, memory_limit=200_000), geodesic(metric, a, b)
    assert small.converged.all()
    assert ((small.length - large.length).abs() <= small.length_error + large.length_error).all()


class Ring:
    """A weight that is next to nothing near the unit circle of two axes, and climbs within 0.003 to 2,000."""

    def __call__(self, z):
        return self.value_and_gradient(z)[0]

    def value_and_gradient(self, z):
        radius = z[:, :2].norm(dim=1).clamp_min(1e-9)
        away = torch.cat([(z[:, :2] / radius[:, None]) * (radius - 1)[:, None], z[:, 2:]], dim=1)
        distance = away.norm(dim=1).clamp_min(1e-9)
        share = torch.sigmoid((distance - 0.1) / 0.003)
        slope = share * (1 - share) / 0.003
        return 2000 * share, (2000 * slope / distance)[:, None] * away


def test_curves_that_climb_a_wall_at_both_ends():
    """The ends lie in the void: most of the length is the way out and in, and the path between keeps to the ring."""
    dim = 12
    flat = Decoder(lambda z: 1.0 * z, latent_dim=dim)
    angles = torch.linspace(0, 6.28, 200, dtype=torch.float64)
    support = torch.zeros(200, dim, dtype=torch.float64)
    support[:, 0], support[:, 1] = angles.cos(), angles.sin()
    metric = StructuredMetric(MetricParts(embedding=flat, weight=Ring()), dim)
    start, end = torch.zeros(2, 2, dim, dtype=torch.float64)
    start[:, 0], end[:, 1] = torch.tensor([1.4, 0.6]), torch.tensor([1.5, 0.6])
    solution = geodesic(metric, start, end, support=support)
    assert solution.converged.all(), solution
    # along the axes to the ring, and around it as far inside as one likes
    grid = torch.linspace(0, 0.5, 20001, dtype=torch.float64)
    ray = torch.zeros(len(grid), dim, dtype=torch.float64)
    ray[:, 0] = 1 + grid
    cost = (1 + Ring()(ray)).sqrt()
    run = torch.cat([torch.zeros(1), (cost[1:] + cost[:-1]).cumsum(0) * grid[1] / 2])
    climbs = [float(sum(run[round(away * 40000)] for away in ends)) for ends in ((0.4, 0.5), (0.4, 0.4))]
    for length, climb in zip(solution.length.tolist(), climbs, strict=True):
        assert climb - 0.2 < length < climb + 1.57


def test_curves_along_which_letters_flip_begin_with_more_nodes(monkeypatch):
    """A sequence of letters by softmax: few chords jump from letter to letter, and steps with them lead nowhere."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 30 * 12), nn.Unflatten(1, (30, 12)))
        net[0].weight.data *= 3
        net[2].weight.data *= 30
    net = nn.Sequential(net, nn.Softmax(dim=2)).double().requires_grad_(False)
    decoder = Decoder(net, latent_dim=10)
    a, b = points(4, 10, seed=1, scale=1.5), points(4, 10, seed=2, scale=1.5)
    b[3] = a[3] + 0.1 * b[3]
    lines = straight(a, b)
    jump = jump_over(decoder, lines, 8, 32)
    assert jump.tolist() == [True, True, True, False]
    assert torch.equal(jump_over(decoder, lines.take(torch.tensor([1])), 8, 32), jump[1:2])
    found = geodesic(PullbackMetric(decoder), a, b)
    monkeypatch.setattr(refiner, "jump_over", lambda embedding, curves, few, many: torch.zeros_like(jump))
    before = geodesic(PullbackMetric(decoder), a, b)
    assert found.converged.all()
    assert (found.evaluations[:3] < before.evaluations[:3]).double().mean() > 0.5
    assert (found.length <= 1.02 * before.length).all()
    assert torch.equal(found.length[3], before.length[3])
