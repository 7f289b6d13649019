"""The relaxation solver against closed forms."""

import copy
import functools

import numpy as np
import pytest
import torch
from test_spaces import points, upper
from through import Through

import posthoc_metric as pm
from posthoc_metric.errors import InvalidArgumentError, NumericalError
from posthoc_metric.geodesic import Status, geodesic
from posthoc_metric.geodesic.curves.elements import Model
from posthoc_metric.geodesic.curves.linear import solve_model
from posthoc_metric.metric import FunctionMetric
from posthoc_metric.spaces import HalfPlane, LinearDecoder, Plane, Sphere, SwissRoll

ORACLES = {
    "plane": (Plane([[2.0, 0.5], [0.5, 1.0]]), points(20, 2), points(20, 2, 1)),
    "sphere": (Sphere(), points(20, 2), points(20, 2, 1)),
    "sphere of dimension 5": (Sphere(5), points(20, 5), points(20, 5, 1)),
    "half-plane": (HalfPlane(), upper(20), upper(20, seed=1)),
    "linear decoder": (LinearDecoder(points(7, 3, 2)), points(20, 3), points(20, 3, 1)),
    "Swiss roll": (SwissRoll(), 6 + points(20, 2), 8 + points(20, 2, 1)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_length_is_the_closed_form_distance(name):
    space, a, b = ORACLES[name]
    solution = geodesic(space, a, b)
    exact = space.distance(a, b)
    assert solution.converged.all()
    assert ((solution.length - exact).abs() <= 1e-4 * exact).all()
    assert (solution.length_error <= 3e-4 * exact).all()
    torch.testing.assert_close(solution.energy, solution.length**2, rtol=1e-3, atol=0)
    torch.testing.assert_close(solution.points[:, 0], a)
    torch.testing.assert_close(solution.points[:, -1], b)


@pytest.mark.parametrize("seed", [0, 6])
def test_a_hundred_pairs_keep_their_promise_where_the_energy_is_flat(seed):
    # near the antipode many curves are nearly as short, and a Gauss-Newton model takes the valley for steep
    sphere, a, b = Sphere(), points(100, 2, seed), points(100, 2, seed + 1)
    solution = geodesic(sphere, a, b)
    error = (solution.length / sphere.distance(a, b) - 1).abs()
    assert solution.converged.all()
    assert (error <= 1e-4).all()
    assert (error <= 3 * solution.length_error / solution.length + 1e-6).all()


def test_what_is_called_converged_is_so_where_the_chart_is_stretched():
    # some of these great circles run far out, beyond what the grid and the steps reach
    sphere, a, b = Sphere(), points(600, 2, 4, 0.7), points(600, 2, 5, 0.7)
    solution = geodesic(sphere, a, b)
    error = (solution.length / sphere.distance(a, b) - 1).abs()
    assert solution.converged.double().mean() > 0.97
    assert (error[solution.converged] <= 1e-4).all()


def test_a_pair_far_out_changes_nothing_in_its_neighbours_under_a_field():
    def numpy_fn(z):
        z = np.asarray(z.detach())
        return (4 / (1 + (z**2).sum(1)) ** 2)[:, None, None] * np.eye(2)

    a, b = points(8, 2), points(8, 2, 1)
    far = torch.tensor([[1e6, 0.0]], dtype=torch.float64)
    for metric in (Sphere(), FunctionMetric(numpy_fn, 2)):
        alone, beside = geodesic(metric, a, b), geodesic(metric, torch.cat([a, far]), torch.cat([b, -far]))
        assert alone.converged.all() and beside.converged[:8].all()
        assert torch.equal(alone.length, beside.length[:8])


def test_no_pair_ends_the_others_where_the_metric_fades_away():
    metric = FunctionMetric(lambda z: (-z.square().sum(1)).exp()[:, None, None] * torch.eye(2, dtype=z.dtype), 2)
    a = torch.tensor([[0.3839, 0.5138], [0.1, 0.0]], dtype=torch.float64)
    b = torch.tensor([[-0.4828, -2.6931], [0.2, 0.1]], dtype=torch.float64)
    assert geodesic(metric, a, b).converged[1]


def test_blocks_of_pairs_are_joined(monkeypatch):
    from posthoc_metric.geodesic import pairs

    sphere, a, b = Sphere(), points(20, 2), points(20, 2, 1)
    whole = geodesic(sphere, a, b)
    monkeypatch.setattr(pairs, "_PAIRS", 7)
    pieces = geodesic(sphere, a, b)
    torch.testing.assert_close(pieces.length, whole.length, rtol=1e-9, atol=0)
    torch.testing.assert_close(pieces(0.3), whole(0.3), rtol=1e-7, atol=1e-9)
    assert whole.status == pieces.status and whole.start == pieces.start


def test_points_are_equally_spaced_in_length():
    space, a, b = ORACLES["half-plane"]
    solution = geodesic(space, a, b)
    curve = solution(torch.linspace(0, 1, 9))
    pieces = torch.stack([space.distance(curve[:, i], curve[:, i + 1]) for i in range(8)], 1)
    assert (pieces / pieces.mean(1, keepdim=True) - 1).abs().max() < 2e-3
    torch.testing.assert_close(solution(0.5), solution(torch.tensor([0.5]))[:, 0])
    speed = space.norm(solution(0.3), solution.velocity(0.3))
    torch.testing.assert_close(speed, solution.length)


def test_kind_and_dtype_come_back():
    a = np.zeros((2, 2), dtype=np.float32)
    solution = geodesic(Sphere(), a, a + np.float32(0.5))
    for value in (solution.points, solution.length, solution(0.5)):
        assert isinstance(value, np.ndarray) and value.dtype == np.float32
    assert solution.converged.dtype == bool and solution.status == (Status.CONVERGED,) * 2


def test_a_pair_of_equal_points_has_length_zero():
    solution = geodesic(Sphere(), points(3, 2), points(3, 2))
    assert solution.converged.all() and (solution.length == 0).all()


@pytest.mark.parametrize("how", ["torch", "numpy", "detached", "partial", "object"])
def test_a_plain_function_is_enough(how):
    def torch_fn(z):
        return (4 / (1 + z.square().sum(1)) ** 2)[:, None, None] * torch.eye(2, dtype=z.dtype)

    def numpy_fn(z):
        z = np.asarray(z.detach())
        return (4 / (1 + (z**2).sum(1)) ** 2)[:, None, None] * np.eye(2)

    def detached(z):
        return (4 / (1 + z.detach().square().sum(1)) ** 2)[:, None, None] * torch.eye(2) + 0 * z.sum()

    class Object:
        def __call__(self, z):
            return torch_fn(z)

    known = {"torch": torch_fn, "numpy": numpy_fn, "detached": detached, "object": Object()}
    fn = known.get(how) or functools.partial(torch_fn)
    a, b = points(10, 2), points(10, 2, 1)
    solution = geodesic(fn, a, b)
    assert solution.converged.all()
    assert torch.equal(geodesic(FunctionMetric(fn, 2), a, b).length, solution.length)
    torch.testing.assert_close(solution.length, Sphere().distance(a, b), rtol=1e-4, atol=0)


def test_bad_input_is_named():
    ok = torch.zeros(3, 2)
    nan = ok.clone()
    nan[1] = float("nan")
    for arguments, options, words in [
        ((Sphere(), torch.zeros(3, 5), ok), {}, "2 columns"),
        ((Sphere(), nan, ok), {}, "row 1 is"),
        ((Sphere(), ok, ok[:2]), {}, "3 rows"),
        ((None, ok, ok), {}, "FunctionMetric"),
        ((torch.nn.Linear(2, 3), ok, ok), {}, "PullbackMetric"),
        ((torch.nn.Linear(2, 3).forward, ok, ok), {}, "PullbackMetric"),
        ((lambda z: z, ok, ok), {}, "3, 2, 2"),
        ((Sphere(), ok, ok), {"max_step": 3}, "Did you mean `max_steps`"),
        ((Sphere(), ok, ok), {"suport": ok}, "Did you mean `support`"),
        ((Sphere(), ok, ok), {"rtol": -1.0}, "positive"),
        ((Sphere(), ok, ok), {"solver": "magic"}, "solver"),
        ((Sphere(), ok, ok), {"starts": 3}, "straight, grid, graph"),
        ((Sphere(), ok, ok), {"support": ok[:0]}, "at least one latent"),
    ]:
        with pytest.raises(InvalidArgumentError, match=words):
            geodesic(*arguments, **options)


def test_what_is_no_metric_is_refused():
    metric = FunctionMetric(lambda z: -torch.eye(2, dtype=z.dtype).expand(len(z), 2, 2), 2)
    with pytest.raises(NumericalError, match="row 0 of `start` its smallest eigenvalue is -1"):
        geodesic(metric, points(3, 2), points(3, 2, 1))


@pytest.mark.parametrize("spans", [np.int64(4), 10, 17, 512])
def test_any_number_of_spans_will_do(spans):
    space, a, b = ORACLES["sphere"]
    solution = geodesic(space, a, b, spans=spans, max_spans=1024, rtol=np.float32(1e-4))
    assert solution.converged.all()
    torch.testing.assert_close(solution.length, space.distance(a, b), rtol=1e-4, atol=0)


def test_a_pair_without_a_metric_touches_no_neighbour():
    space, a, b = ORACLES["half-plane"]
    bad = b.clone()
    bad[7, 1] = -1.0
    alone = geodesic(space, torch.cat([a[:7], a[8:]]), torch.cat([b[:7], b[8:]]))
    solution = geodesic(space, a, bad)
    rest = torch.arange(20) != 7
    assert solution.status[7] is Status.NOT_FINITE and not solution.converged[7]
    assert torch.isnan(solution.length[7]) and torch.isnan(solution.points[7]).all()
    for name in ("points", "length", "length_error", "residual", "steps", "evaluations", "converged"):
        assert torch.equal(getattr(solution, name)[rest], getattr(alone, name)), name


@pytest.mark.parametrize("name", ORACLES)
def test_a_pair_has_the_same_geodesic_alone(name):
    space, a, b = ORACLES[name]
    together = geodesic(space, a, b)
    for i in (0, 11):
        alone = geodesic(space, a[i : i + 1], b[i : i + 1])
        torch.testing.assert_close(alone.points[0], together.points[i], rtol=0, atol=1e-9)
        assert alone.spans[0] == together.spans[i]


def test_inputs_are_not_modified():
    space, a, b = ORACLES["sphere"]
    a, b = a.clone(), b.clone()
    before = a.clone(), b.clone(), torch.get_rng_state()
    geodesic(space, a, b)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1]) and torch.equal(torch.get_rng_state(), before[2])


def test_an_empty_batch_gives_an_empty_solution():
    solution = geodesic(Sphere(), torch.zeros(0, 2), torch.zeros(0, 2))
    assert len(solution) == 0 and solution.points.shape == (0, 33, 2)


def test_a_ridge_between_the_nodes_is_not_confirmed_by_fewer_of_them():
    def ridge(z):
        height = 1 + 1e6 * torch.exp(-((z[:, 0] - 0.1 * (3 * z[:, 1]).sin()) ** 2) / 2e-4)
        return height[:, None, None] * torch.eye(2, dtype=z.dtype)

    # with 16 spans these run from one point of quadrature before the ridge to one behind it
    a = torch.tensor(
        [
            [-1.8145725463338842, 0.43522737374460985],
            [-2.132361570039975, -0.4410456617501166],
            [-1.8741403023973733, 0.8907441092264958],
            [-1.1389669699629437, 0.22923601005067612],
        ]
    ).double()
    b = torch.tensor(
        [
            [1.9574360503471395, -1.739327866438541],
            [2.1318556564229545, 0.55509522801003],
            [1.5377634656716168, -0.8041840324925653],
            [1.0093729186570373, -0.6464926133468288],
        ]
    ).double()
    solution = geodesic(FunctionMetric(ridge, 2), a, b)
    # to cross it costs 1e3 * sqrt(4e-4 pi) = 35, and there is no way round it
    assert not (solution.converged & (solution.length < 20)).any()


def test_a_printed_solution_counts_statuses_and_says_what_to_do():
    a, b = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [0.0, -3.0], [1.0, 1.0]])
    half = FunctionMetric(lambda z: torch.diag_embed(z[:, 1:].clamp_min(0).pow(-2).expand(-1, 2)), 2)
    text = repr(geodesic(half, a, b))
    assert text.splitlines()[0] == "3 geodesics, d = 2: 2 CONVERGED, 1 NOT_FINITE; lengths 0.6931 to 0.9624"
    assert text.splitlines()[1] == f"  row 1 {Status.NOT_FINITE}"
    assert repr(geodesic(half, a[:1], b[:1])) == "1 geodesic, d = 2: 1 CONVERGED; lengths 0.6931 to 0.6931"


def test_lengths_err_with_the_fourth_power_of_the_spacing():
    # fixed numbers of spans: the relaxation may not refine further, and its own residual is out of the way
    space, a, b = ORACLES["half-plane"]
    exact = space.distance(a, b)
    errors = []
    spans = (8, 16, 32)
    for number in spans:
        solution = geodesic(space, a, b, spans=number, max_spans=number, tol=1e-8, rtol=1e-15, starts="straight")
        errors.append(float(((solution.length - exact).abs() / exact).median()))
    slope = np.polyfit(np.log(spans), np.log(errors), 1)[0]
    assert -4.8 < slope < -3.5, (slope, errors)


def test_a_length_that_cannot_be_confirmed_is_said_to_be_so():
    roll = SwissRoll()
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[14.0, 1.0]])
    solution = geodesic(roll, a, b, spans=8, max_spans=8)
    assert solution.status == (Status.UNRESOLVED,) and not solution.converged.any()
    assert solution.length_error > 1e-4 * solution.length
    assert "max_spans" in str(solution.status[0])


def test_step_limit_is_said():
    space, a, b = ORACLES["sphere"]
    solution = geodesic(space, a, b, max_steps=1, max_spans=16, tol=1e-6)
    assert Status.STEP_LIMIT in solution.status


def test_decode_and_plot():
    space, a, b = ORACLES["Swiss roll"]
    solution = geodesic(space, a, b)
    frames = solution.decode(5)
    assert frames.shape == (20, 5, 3)
    torch.testing.assert_close(frames[:, 0], space.embedding(a))
    with pytest.raises(InvalidArgumentError, match="decoder"):
        geodesic(Sphere(), a[:1] - 6, b[:1] - 8).decode(5)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    assert len(solution.plot().lines) == 20


def test_times_outside_the_curve_are_refused():
    space, a, b = ORACLES["sphere"]
    with pytest.raises(InvalidArgumentError, match=r"\[0, 1\]"):
        geodesic(space, a[:1], b[:1])(1.5)


def test_a_decoder_without_value_fails_its_own_pair_only():
    from posthoc_metric.errors import DecoderError
    from posthoc_metric.metric import PullbackMetric

    class Holed(Through):
        def at(self, z):
            bad = (z[:, 1] > 12).nonzero().flatten().tolist()
            if bad:
                raise DecoderError("no value", tuple(bad))
            return z

    metric = PullbackMetric(Holed(SwissRoll().embedding))
    a, b = ORACLES["Swiss roll"][1:]
    bad = b.clone()
    bad[3, 1] = 20.0
    solution, clean = geodesic(metric, a, bad), geodesic(metric, a, b)
    rest = torch.arange(20) != 3
    assert solution.status[3] is Status.NOT_FINITE and clean.converged.all()
    assert solution.converged[rest].all()
    assert torch.equal(solution.points[rest], clean.points[rest])


def test_a_float32_decoder_and_near_pairs():
    from posthoc_metric.decoder import Decoder
    from posthoc_metric.metric import PullbackMetric

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 50))
    metric = PullbackMetric(Decoder(net, latent_dim=2))
    a = points(10, 2).float()
    for size in (1e-5, 1e-3, 1e-1):
        step = size * points(10, 2, 1).float()
        solution = geodesic(metric, a, a + step)
        step = (a + step).double() - a.double()
        assert solution.converged.all(), size
        expected = metric.norm(a.double() + step / 2, step)
        torch.testing.assert_close(solution.length.double(), expected, rtol=20 * size**2 + 2e-4, atol=0)


class SineNorm(torch.nn.Module):
    """A decoder whose repaired energy bends where Gauss-Newton's model sees nothing, in single precision."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = torch.nn.Linear(4, 64), torch.nn.Linear(64, 64)
        self.norm, self.last = torch.nn.LayerNorm(64), torch.nn.Linear(64, 40)

    def forward(self, z):
        hidden = torch.sin(2 * self.first(z))
        return self.last(hidden + torch.nn.functional.gelu(self.middle(self.norm(hidden))))


def test_geodesics_of_a_float32_decoder_go_on_below_the_rounding_of_the_energy():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        joints, along = torch.rand(1500, 4) * 2 - 1, torch.linspace(0, 1, 20)
        bend = (joints[:, :1] * along + joints[:, 1:2] * along**2 + joints[:, 2:3] * torch.sin(3 * along)).cumsum(1) / 6
        arm = torch.cat([bend.cos().cumsum(1) / 20, bend.sin().cumsum(1) / 20 * (1 + joints[:, 3:] / 3)], 1)
        data = arm + 0.005 * torch.randn(1500, 40)
        encoder = torch.nn.Sequential(torch.nn.Linear(40, 64), torch.nn.SiLU(), torch.nn.Linear(64, 4))
        module = SineNorm()
        optimizer = torch.optim.Adam([*encoder.parameters(), *module.parameters()], 2e-3)
        for _ in range(400):
            x = data[torch.randint(1500, (128,))]
            z = encoder(x)
            loss = (module(z + 0.05 * torch.randn_like(z)) - x).square().mean() + 1e-4 * z.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        z = encoder(data).detach()
    repaired = pm.repair(pm.Decoder(module, latent_dim=4), z, data)
    single = repaired.geodesic(z[:20], z[30:50])
    assert single.converged.all()
    # one pair may take hundreds of evaluations more in another order of summation, but not half of them
    assert single.evaluations.double().median() < 600
    double = pm.repair(pm.Decoder(copy.deepcopy(module).double(), latent_dim=4), z.double(), data.double())
    exact = double.geodesic(z[:20].double(), z[30:50].double())
    assert exact.converged.all()
    torch.testing.assert_close(single.length.double(), exact.length, rtol=1e-3, atol=0)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_solutions_are_pickled(convert):
    import pickle

    solution = Sphere().geodesic(convert([[1.0, 0.2]]), convert([[1.5, 0.9]]))
    again = pickle.loads(pickle.dumps(solution))
    assert type(again.length) is type(solution.length)
    assert again.length == solution.length
    assert (again.points == solution.points).all()
    assert (again.velocity(0.5) == solution.velocity(0.5)).all()


def test_start_graphs_are_kept_with_the_metric_but_not_pickled():
    import pickle

    space = Sphere()
    a, b = ORACLES["sphere"][1:]
    first = geodesic(space, a, b)
    kept = dict(space._start_cache.graphs)
    second = geodesic(space, a, b)
    # the very same objects: none was built anew
    assert kept and space._start_cache.graphs == kept
    again = pickle.loads(pickle.dumps(space))
    assert not again._start_cache.graphs
    assert torch.equal(first.points, second.points) and torch.equal(geodesic(again, a, b).points, first.points)


def test_a_way_round_a_wall_is_found_from_the_grid_and_off_the_saddle():
    # a bump in the middle: the straight line over it is a geodesic, but by symmetry alone
    def bump(z):
        cost = 1 + 1e4 * torch.exp(-(z.square().sum(1)) / 0.18)
        return cost[:, None, None] * torch.eye(2, dtype=z.dtype)

    metric = FunctionMetric(bump, 2)
    a, b = torch.tensor([[-1.0, 0.0]], dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    line = a + torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None] * (b - a)
    over = 2 * float(bump(line)[:, 0, 0].sqrt().mean())
    for starts in ("straight", "grid"):
        found = geodesic(metric, a, b, starts=starts)
        assert found.converged.all() and found.start == (starts,)
        assert float(found.length) < 0.5 * over


@pytest.mark.parametrize("kinked", [True, False])
def test_many_dimensions_and_kinks_do_not_keep_a_pair_from_converging(kinked):
    from posthoc_metric.decoder import Decoder
    from posthoc_metric.metric import PullbackMetric

    with torch.random.fork_rng():
        torch.manual_seed(0)
        bend = torch.nn.ReLU() if kinked else torch.nn.Tanh()
        net = torch.nn.Sequential(torch.nn.Linear(10, 64), bend, torch.nn.Linear(64, 40))
    metric = PullbackMetric(Decoder(net, latent_dim=10))
    a, b = points(4, 10, 1, 1.0), points(4, 10, 2, 1.0)
    solution = geodesic(metric, a, b)
    assert solution.converged.all()
    assert (solution.length_error <= 1e-3 * solution.length).all()
    # chords of the values are never longer than the curve, and so many of them hardly shorter
    frames = solution.decode(2001)
    chords = frames.diff(dim=1).norm(dim=2).sum(1)
    assert ((solution.length - chords).abs() <= solution.length_error + 1e-4 * solution.length).all()
    # from the same coarse curves: others may lead into another valley
    finer = geodesic(metric, a, b, rough_rtol=1e-4)
    assert (solution.length - finer.length <= 2 * solution.length_error + 1e-4 * finer.length).all()


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_jacobians_that_do_not_fit_are_asked_for_in_pieces(chunk):
    from posthoc_metric.decoder import Decoder
    from posthoc_metric.geodesic.relaxation.energy import CurveEnergy
    from posthoc_metric.metric import PullbackMetric

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(5, 32), torch.nn.Tanh(), torch.nn.Linear(32, 40)).double()
    metric = PullbackMetric(Decoder(net, latent_dim=5))
    nodes = points(3 * 17, 5, 1).view(3, 17, 5)
    h = 0.1 + points(3, 16, 2).abs()
    whole = CurveEnergy(metric.parts(), nodes[:, 0])
    pieces = CurveEnergy(metric.parts(), nodes[:, 0], 24 * 40 * 5 * chunk)
    assert pieces.lean(17, 5) and not whole.lean(17, 5)
    left, right = (energy.linearise(nodes, energy.frame(nodes, h)) for energy in (pieces, whole))
    for name in ("energy", "gradient", "grain"):
        torch.testing.assert_close(getattr(left, name), getattr(right, name))
    torch.testing.assert_close(left.image.squares, right.image.squares)
    torch.testing.assert_close(left.convex.diagonal, right.convex.diagonal)
    torch.testing.assert_close(left.convex.near, right.convex.near)
    torch.testing.assert_close(left.convex.far, right.convex.far)
    a, b = points(3, 5, 3), points(3, 5, 4)
    small, large = geodesic(metric, a, b, memory_limit=20_000), geodesic(metric, a, b)
    assert small.converged.all()
    assert ((small.length - large.length).abs() <= small.length_error + large.length_error).all()


def test_models_that_are_not_convex_keep_no_other_from_being_solved():
    generator = torch.Generator().manual_seed(0)
    count, nodes, dim = 30, 7, 2
    root = torch.randn(count, nodes, dim, dim, dtype=torch.float64, generator=generator)
    coupling = 0.01 * torch.randn(count, nodes - 1, dim, dim, dtype=torch.float64, generator=generator)
    model = Model(root @ root.mT + torch.eye(dim), coupling, coupling[:, : nodes // 2 - 1])
    bad = torch.arange(count) % 3 != 0
    model.diagonal[bad, 3] *= -1
    model.diagonal[1, 0] = float("nan")
    force = torch.randn(count, nodes, dim, dtype=torch.float64, generator=generator)
    found, convex = solve_model(model, force)
    assert torch.equal(convex, ~bad)
    torch.testing.assert_close(model.take(convex).times(found[convex]), force[convex])
    assert not found[~convex].any()
    several, same = solve_model(model, torch.stack([force, 2 * force, force.flip(1)], dim=3))
    assert torch.equal(same, convex) and torch.equal(several[..., 0], found)
    assert torch.equal(several[..., 2], solve_model(model, force.flip(1))[0])


@pytest.mark.parametrize("rtol", [1e-6, 1e-8])
def test_a_small_rtol_is_enough_for_lengths_that_good(rtol):
    """Curves as still as the default ``tol`` asks for are a few millionths too long, however many nodes they have."""
    space, a, b = Sphere(), points(10, 2, 0, 0.6), points(10, 2, 1, 0.6)
    solution = geodesic(space, a, b, rtol=rtol, rough_rtol=rtol)
    assert set(solution.status) == {Status.CONVERGED} and solution.evaluations.double().mean() < 2000
    torch.testing.assert_close(solution.length, space.distance(a, b), rtol=rtol, atol=0)
