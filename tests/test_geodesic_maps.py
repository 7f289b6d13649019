"""Exponential, logarithm and distance matrices against closed forms and SciPy."""

import copy
import importlib

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from test_geodesic import ORACLES
from test_spaces import points

from posthoc_metric import Decoder, repair
from posthoc_metric.distances import distances
from posthoc_metric.errors import ConvergenceWarning, InvalidArgumentError
from posthoc_metric.geodesic import Status, exp, geodesic, log, logarithm, shoot
from posthoc_metric.metric import FunctionMetric, MetricParts, PullbackMetric, StructuredMetric
from posthoc_metric.spaces import HalfPlane, Sphere, SwissRoll, Torus


@pytest.mark.parametrize("name", ORACLES)
def test_exp_and_log_invert_each_other(name):
    space, a, b = ORACLES[name]
    velocity = log(space, a, b)
    torch.testing.assert_close(exp(space, a, velocity), b, rtol=0, atol=1e-5)
    torch.testing.assert_close(space.norm(a, velocity), space.distance(a, b), rtol=1e-6, atol=0)


def test_far_in_the_half_plane_the_logarithm_is_right_where_no_shot_hits():
    """Velocities that differ by 1e-10 part there to the whole distance."""
    space, a = HalfPlane(), torch.tensor([[0.0, 1.0]]).double().expand(4, -1)
    apart = torch.tensor([1e1, 1e2, 1e3, 1e5]).double()
    b = torch.stack([apart, torch.ones(4)], dim=1)
    found = logarithm(space, a, b)
    # along the half circle through both, whose centre is on the edge half way between
    radius = ((apart / 2).square() + 1).sqrt()
    velocity = space.distance(a, b)[:, None] * torch.stack([1 / radius, apart / 2 / radius], dim=1)
    wrong = (found.velocities - velocity).norm(dim=1) / velocity.norm(dim=1)
    assert (wrong[:3] <= 1e-6).all() and wrong[3] <= found.error[3] <= 1e-4
    assert found.converged.all()


def test_the_scale_of_other_pairs_does_not_choose_how_a_field_is_differentiated():
    """Alone, points 1e5 apart once made the differences that derivatives are probed by leap over the half plane."""
    space, b = HalfPlane(), torch.tensor([[1e1, 1.0], [1e2, 1.0], [1e3, 1.0], [1e5, 1.0]]).double()
    a = torch.tensor([[0.0, 1.0]]).double().expand(4, -1)
    fine = {"spans": 64, "tol": 1e-4, "rtol": 1e-5}
    together, alone = geodesic(space, a, b, **fine), geodesic(space, a[3:], b[3:], **fine)
    torch.testing.assert_close(together.length, space.distance(a, b), rtol=1e-5, atol=0)
    assert torch.equal(together.length[3:], alone.length)


def test_shots_through_a_float32_decoder_take_no_more_steps_than_in_double():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 40))
    single = PullbackMetric(Decoder(net, latent_dim=3))
    double = PullbackMetric(Decoder(copy.deepcopy(net).double(), latent_dim=3))
    z, v = points(6, 3), points(6, 3, 1)
    shots = [shoot(metric, z, v) for metric in (single, double)]
    assert bool((shots[0].steps <= shots[1].steps).all())
    torch.testing.assert_close(shots[0].points, shots[1].points, rtol=0, atol=1e-4)
    b = shots[1].points
    for metric in (single, double):
        found = logarithm(metric, z, b)
        assert found.converged.all() and (found.error < 3e-4).all() and not (found.miss > 2e-5).any()
        torch.testing.assert_close(exp(metric, z, found.velocities), b, rtol=0, atol=1e-4)


def test_options_of_the_geodesic_stand_above_those_of_the_logarithm():
    space, a, b = ORACLES["half-plane"]
    assert logarithm(space, a, b, max_spans=32).converged.all()
    with pytest.raises(InvalidArgumentError, match="`spans`"):
        logarithm(space, a, b, spans="many")


def test_shot_is_scipys_and_conserves_speed_and_clairaut():
    torus = Torus()
    z = points(6, 2)
    v = 3 * points(6, 2, 1)
    shot = shoot(torus, z, v)
    assert shot.converged.all() and (shot.speed_drift < 1e-6).all()
    torch.testing.assert_close(torus.clairaut(shot.points, shot.velocities), torus.clairaut(z, v), rtol=0, atol=1e-6)
    R, r = 2.0, 1.0

    def equation(_, y):
        u, w, du, dw = y
        out = R + r * np.cos(w)
        return [du, dw, 2 * r * np.sin(w) / out * du * dw, -out * np.sin(w) / r * du**2]

    for i in range(6):
        reference = solve_ivp(equation, (0, 1), np.r_[z[i], v[i]], method="DOP853", rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(shot.points[i], reference.y[:2, -1], atol=1e-6)


def test_torus_geodesics_reach_the_ends_of_short_shots():
    torus = Torus()
    z, v = points(20, 2), points(20, 2, 1)
    end = shoot(torus, z, v).points
    solution = geodesic(torus, z, end)
    assert solution.converged.all()
    torch.testing.assert_close(solution.length, torus.norm(z, v), rtol=1e-4, atol=0)


def test_every_part_of_a_metric_enters_the_geodesic_equation():
    # the same metric by an embedding, a weight and a field, and by one field alone
    roll = SwissRoll().embedding

    class Weight:
        def __call__(self, z):
            return self.value_and_gradient(z)[0]

        def value_and_gradient(self, z):
            value = (0.3 * z[:, 0]).exp()
            return value, torch.stack([0.3 * value, torch.zeros_like(value)], 1)

    def field(z):
        return torch.diag_embed(torch.stack([1 + z[:, 1] ** 2, torch.ones_like(z[:, 1])], 1))

    parts = MetricParts(embedding=roll, weight=Weight(), field=field)
    whole = FunctionMetric(parts.tensor, 2)
    z, v = 5 + points(5, 2), points(5, 2, 1)
    structured = StructuredMetric(parts, 2)
    torch.testing.assert_close(shoot(structured, z, v).points, shoot(whole, z, v).points, rtol=0, atol=1e-6)
    one, two = geodesic(structured, z, z + v), geodesic(whole, z, z + v)
    assert one.converged.all() and two.converged.all()
    torch.testing.assert_close(one.length, two.length, rtol=1e-4, atol=0)


def test_a_shot_into_a_hole_is_not_finite_and_leaves_the_others():
    z = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    v = torch.tensor([[0.0, 0.5], [0.0, 0.5]])

    def half(z):
        height = torch.where(z[:, 1] < 1.2, z[:, 1], float("nan"))
        return height.pow(-2)[:, None, None] * torch.eye(2, dtype=z.dtype)

    v[1] *= 0.1
    shot = shoot(FunctionMetric(half, 2), z, v)
    assert shot.status == (Status.NOT_FINITE, Status.CONVERGED)
    assert torch.isnan(shot.points[0]).all() and torch.isfinite(shot.points[1]).all()
    with pytest.warns(ConvergenceWarning, match="row 0"):
        exp(FunctionMetric(half, 2), z, v)


def test_logarithm_without_polish_is_near():
    space, a, b = ORACLES["half-plane"]
    rough, fine = logarithm(space, a, b, polish=False), logarithm(space, a, b)
    assert torch.isnan(rough.miss).all()
    error = space.norm(a, rough.velocities - fine.velocities) / fine.length
    assert error.max() < 0.05


@pytest.mark.parametrize("dim", [2, 12, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_logarithm_through_a_decoder_leaves_along_the_great_circle(dim, dtype):
    """Stereographic charts of the unit sphere, whose logarithm in space is known; no shot is taken beyond d = 16."""

    def place(z):
        square = z.square().sum(1, keepdim=True)
        return torch.cat([2 * z, square - 1], dim=1) / (square + 1)

    decoder = Decoder(lambda z: place(z.to(dtype)), latent_dim=dim)
    a, b = 0.5 * points(5, dim) / dim**0.5, 0.5 * points(5, dim, 1) / dim**0.5
    found = logarithm(PullbackMetric(decoder), a, b)
    start, end = place(a), place(b)
    cosine = (start * end).sum(1, keepdim=True)
    away = torch.nn.functional.normalize(end - cosine * start, dim=1) * cosine.acos()
    pushed = torch.func.jvp(place, (a,), (found.velocities,))[1]
    wrong = (pushed - away).norm(dim=1) / away.norm(dim=1)
    assert found.converged.all()
    assert (wrong <= (1e-4 if dtype == torch.float32 else 1e-6)).all() and (wrong <= 1.5 * found.error + 1e-7).all()


def test_directions_of_a_repaired_decoder_in_many_dimensions_are_those_of_twice_the_nodes(monkeypatch):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(12, 64), torch.nn.Tanh(), torch.nn.Linear(64, 50))
    latents = torch.randn(400, 12)
    metric = repair(Decoder(net, latent_dim=12), latents, net(latents).detach())
    found = logarithm(metric, latents[:4], latents[4:8])
    settling = importlib.import_module("posthoc_metric.geodesic.maps.settling")
    monkeypatch.setattr(settling, "_MOST", 512)
    monkeypatch.setattr(settling, "_GRAINS", 1)
    finer = logarithm(metric, latents[:4], latents[4:8])
    wrong = metric.norm(latents[:4], found.velocities - finer.velocities) / finer.length
    assert found.converged.all() and (wrong <= 2 * found.error).all() and (found.error < 1e-3).all()


def test_distances_are_the_closed_form_and_symmetric():
    space, a, b = ORACLES["sphere"]
    square, table = distances(space, a[:5]), distances(space, a[:5], b[:3])
    assert (square == square.T).all() and (square.diagonal() == 0).all()
    for i in range(5):
        torch.testing.assert_close(table[i], space.distance(a[i].expand(3, -1), b[:3]), rtol=1e-4, atol=0)
    assert distances(space, a[:3].numpy()).dtype == np.float64


def test_distances_name_their_failures():
    below = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    with pytest.warns(ConvergenceWarning, match="1 of 1 pairs"):
        table = distances(HalfPlane(), below)
    assert torch.isnan(table[0, 1])


def test_bad_input_is_named():
    with pytest.raises(InvalidArgumentError, match="`v` must hold one velocity"):
        exp(Sphere(), torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(InvalidArgumentError, match="rtol"):
        exp(Sphere(), torch.zeros(3, 2), torch.zeros(3, 2), rtol=0.0)


def test_round_numbers_are_not_taken_for_single_precision():
    """At the origin and at whole numbers exact values are short; shots were then good to 1e-6 only."""
    torus, v = Torus(), torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shot = shoot(torus, torch.zeros(4, 2).double(), v)
    alone = torch.cat([shoot(torus, torch.zeros(1, 2).double(), one[None]).points for one in v])
    torch.testing.assert_close(shot.points, alone, rtol=0, atol=1e-12)
    plane = FunctionMetric(lambda z: np.eye(2)[None] / np.asarray(z)[:, 1, None, None] ** 2, 2)
    up = shoot(plane, np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]]))
    assert up.points[0, 1] == pytest.approx(np.e, rel=1e-7)


@pytest.mark.parametrize(("width", "height"), [(0.05, 3.0), (0.02, 3.0), (0.05, 30.0)])
def test_no_step_leaps_over_a_ridge_between_flat_parts(width, height):
    """Two steps ran past it, by up to the whole way, with no drift of the speed; the logarithm was polished by them."""

    def ridge(z):
        factor = 1 + height * torch.exp(-(((z[:, 0] - 0.3) / width) ** 2))
        return factor.square()[:, None, None] * torch.eye(2, dtype=z.dtype)

    metric = FunctionMetric(ridge, 2)
    a, b = (torch.tensor([[x, 0.0]], dtype=torch.float64) for x in (-1.013, 1.1))
    # straight across, at a speed of one before the ridge
    length = 2.113 + height * width * np.pi**0.5
    velocity = torch.tensor([[length, 0.0]], dtype=torch.float64)
    shot, found = shoot(metric, a, velocity), logarithm(metric, a, b)
    assert shot.converged.all() and found.converged.all()
    torch.testing.assert_close(shot.points, b, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.velocities, velocity, rtol=1e-5, atol=1e-5)


def test_the_exponential_map_of_a_plain_field_in_single_precision_without_autograd():
    """Long difference steps do not bend the way: ends in the half-plane are right to 1e-4."""

    def single(z):
        return np.eye(2, dtype=np.float32) / z.numpy().astype(np.float32)[:, 1, None, None] ** 2

    z, v = np.array([[0.0, 1.0], [0.5, 0.7]]), np.array([[2.0, 1.5], [-1.5, 1.8]])
    found = shoot(FunctionMetric(single, 2), z, v)
    known = shoot(FunctionMetric(lambda z: HalfPlane().tensor(z), 2), z, v)
    assert found.converged.all()
    np.testing.assert_allclose(found.points, known.points, rtol=1e-4)
