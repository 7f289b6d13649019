"""The published fixed-point solver: right where it converges, and honest where it does not."""

import numpy as np
import pytest
import torch
from test_spaces import points, upper

import posthoc_metric as pm
from posthoc_metric.errors import InvalidArgumentError
from posthoc_metric.examples import digits, digits_vae
from posthoc_metric.geodesic import Status, geodesic
from posthoc_metric.geodesic.fixed_point import Kernel, Process
from posthoc_metric.spaces import HalfPlane, LinearDecoder, Plane, Sphere, SwissRoll, Torus


def near(a, scale, seed=1):
    """Points of the half-space whose distance from ``a`` does not depend on its height."""
    return a + scale * a[:, -1:] * points(*a.shape, seed).abs()


SPACES = {
    "plane": (Plane([[2.0, 0.5], [0.5, 1.0]]), points(20, 2), points(20, 2, 1)),
    "sphere": (Sphere(), points(20, 2), points(20, 2) + 0.15 * points(20, 2, 1)),
    "half-plane": (HalfPlane(), upper(20), near(upper(20), 0.1)),
    "half-space of dimension 5": (HalfPlane(5), upper(20, 5), near(upper(20, 5), 0.1)),
    "linear decoder": (LinearDecoder(points(7, 3, 2)), points(20, 3), points(20, 3, 1)),
    "Swiss roll": (SwissRoll(), 6 + points(20, 2), 6 + points(20, 2) + 0.5 * points(20, 2, 1)),
}


@pytest.mark.parametrize("name", SPACES)
def test_short_pairs_have_the_closed_form_distance(name):
    space, a, b = SPACES[name]
    # the published tolerance would leave most of these on their straight lines
    solution = geodesic(space, a, b, solver="fixed-point", tol=1e-4)
    exact = space.distance(a, b)
    assert solution.converged.all() and set(solution.start) == {"straight"}
    assert ((solution.length - exact).abs() <= 1e-3 * exact).all()
    assert ((solution.length - exact).abs() <= solution.length_error + 1e-7 * exact).all()
    torch.testing.assert_close(solution.points[:, 0], a)
    torch.testing.assert_close(solution.points[:, -1], b)


def test_a_finer_mesh_and_a_smaller_tolerance_are_nearer():
    space, a, b = HalfPlane(), upper(40), upper(40, seed=1)
    exact = space.distance(a, b)
    errors = []
    for options in ({}, {"mesh": 20, "tol": 1e-6}):
        solution = geodesic(space, a, b, solver="fixed-point", **options)
        errors.append(float(((solution.length - exact).abs() / exact).quantile(0.5)))
    assert errors[1] < 0.1 * errors[0]


def test_what_is_called_converged_is_so():
    # the published criterion is met by far more of these pairs than have their length right
    space, a, b = Sphere(), points(200, 2, 3), points(200, 2, 4)
    solution = geodesic(space, a, b, solver="fixed-point", max_steps=100)
    error = (solution.length / space.distance(a, b) - 1).abs()
    assert 0.5 < solution.converged.double().mean() < 1
    assert (error[solution.converged] <= 2e-3).all()
    assert float(error[~solution.converged].max()) > 5e-3
    assert (solution.converged == (torch.tensor([s is Status.CONVERGED for s in solution.status]))).all()


def test_the_kernels_derivatives_are_its_derivatives():
    kernel = Kernel(0.3)
    s = torch.tensor([0.1, 0.35], dtype=torch.float64)
    t = torch.tensor([0.0, 0.4, 0.9], dtype=torch.float64)
    for by_s, by_t in ((1, 0), (0, 1), (2, 0), (1, 2), (2, 2), (0, 2)):
        step = 1e-5
        lower = (by_s - 1, by_t) if by_s else (by_s, by_t - 1)
        by = (step, 0.0) if by_s else (0.0, step)
        ahead, behind = kernel(s + by[0], t + by[1], *lower), kernel(s - by[0], t - by[1], *lower)
        torch.testing.assert_close(kernel(s, t, by_s, by_t), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-5)


def test_the_process_meets_the_ends_and_its_accelerations():
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    process = Process(10, covariance)
    a, b = points(5, 2), 1 + points(5, 2, 1)
    posterior = process.condition(a, b, None)
    asked = torch.sin(3 * process.times)[None, :, None] * points(5, 2, 2)[:, None]
    curve, _ = process.curve(posterior, asked, process.times[[0, -1]])
    torch.testing.assert_close(curve, torch.stack([a, b], dim=1), rtol=0, atol=1e-6)
    inner, step = process.times[1:-1], 1e-4
    three = [process.curve(posterior, asked, inner + offset)[0] for offset in (-step, 0.0, step)]
    second = (three[0] - 2 * three[1] + three[2]) / step**2
    torch.testing.assert_close(second, asked[:, 1:-1], rtol=1e-3, atol=1e-3)


def test_the_iteration_is_the_published_one_written_plainly():
    # one pair, all coordinates in one Kronecker product, inverses as such, and the half-plane's equation by hand
    start, end = np.array([0.0, 1.0]), np.array([1.5, 0.7])
    support = upper(50, seed=5)
    covariance = np.cov(support.numpy().T)
    mesh = np.linspace(0, 1, 10)
    kernel = Kernel((0.5 / 9) ** 0.5)
    t, e = torch.from_numpy(mesh), torch.tensor([0.0, 1.0], dtype=torch.float64)

    def k(x, y, by_x=0, by_y=0):
        return kernel(x, y, by_x, by_y).numpy()

    way = end - start
    amplitude = (way @ covariance @ way) * covariance
    gram = np.kron(np.block([[k(t, t, 2, 2), k(t, e, 2)], [k(e, t, 0, 2), k(e, e)]]), amplitude)
    inverse = np.linalg.inv(gram + np.diag([1e-8] * 20 + [1e-10] * 4))
    cross = [np.kron(np.block([[k(t, t, order, 2), k(t, e, order)]]), amplitude) @ inverse for order in (0, 1)]

    def asked(y):
        news = np.concatenate([y.reshape(-1), np.zeros(4)])
        z = start + mesh[:, None] * way + (cross[0] @ news).reshape(10, 2)
        v = way + (cross[1] @ news).reshape(10, 2)
        return np.stack([2 * v[:, 0] * v[:, 1], v[:, 1] ** 2 - v[:, 0] ** 2], axis=1) / z[:, 1:]

    y, steps = np.zeros((10, 2)), 0
    while not ((y - asked(y)) ** 2 < 1e-4).all():
        wanted, cost = asked(y), ((y - asked(y)) ** 2).sum()
        for size in (1.0, 0.33, 0.33**2, 0.33**3):
            trial = y + size * (wanted - y)
            if ((trial - asked(trial)) ** 2).sum() < cost:
                break
        y, steps = trial, steps + 1
    solution = geodesic(
        HalfPlane(), start[None], end[None], support=support, solver="fixed-point", tol=1e-4, spans=18, num_points=5
    )
    assert steps > 3 and solution.steps[0] == steps
    points_at_mesh = (
        start + mesh[:, None] * way + (cross[0] @ np.concatenate([y.reshape(-1), np.zeros(4)])).reshape(10, 2)
    )
    np.testing.assert_allclose(solution._spline.nodes[0, ::2].numpy(), points_at_mesh, atol=1e-6)


def test_an_embedding_and_its_tensor_give_the_same_geodesics():
    from posthoc_metric.metric import FunctionMetric

    torus = Torus()
    a, b = points(10, 2), 0.5 + points(10, 2, 1)
    one = geodesic(torus, a, b, solver="fixed-point")
    two = geodesic(FunctionMetric(torus.tensor, 2), a, b, solver="fixed-point")
    torch.testing.assert_close(one.length, two.length, rtol=1e-6, atol=0)


def test_a_pair_without_a_metric_touches_no_neighbour():
    space, a, b = HalfPlane(), upper(12), upper(12, seed=1)
    bad = b.clone()
    bad[7, 1] = -1.0
    rest = torch.arange(12) != 7
    solution = geodesic(space, a, bad, solver="fixed-point")
    alone = geodesic(space, a[rest], b[rest], solver="fixed-point")
    assert solution.status[7] is Status.NOT_FINITE and torch.isnan(solution.points[7]).all()
    for name in ("points", "length", "length_error", "residual", "steps", "evaluations", "converged"):
        assert torch.equal(getattr(solution, name)[rest], getattr(alone, name)), name
    single = geodesic(space, a[3:4], b[3:4], solver="fixed-point")
    torch.testing.assert_close(single.points[0], solution.points[3], rtol=0, atol=1e-12)
    assert single.status[0] is solution.status[3] and single.steps[0] == solution.steps[3]


def test_a_far_neighbour_does_not_set_the_scale_of_differences():
    roll = SwissRoll()
    a, b = 6 + points(3, 2), 6.5 + points(3, 2, 1)
    far = torch.tensor([[6.0, 0.0]], dtype=torch.float64)
    alone = geodesic(roll, a, b, solver="fixed-point")
    beside = geodesic(roll, torch.cat([a, far]), torch.cat([b, far + torch.tensor([0.0, 1e7])]), solver="fixed-point")
    torch.testing.assert_close(beside.points[:3], alone.points, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["sphere", "Swiss roll"])
def test_memory_blocks_change_nothing(name):
    space, a, b = SPACES[name]
    whole = geodesic(space, a, b, solver="fixed-point")
    pieces = geodesic(space, a, b, solver="fixed-point", memory_limit=50_000)
    torch.testing.assert_close(whole.points, pieces.points, rtol=0, atol=1e-10)
    torch.testing.assert_close(whole.length_error, pieces.length_error, rtol=1e-4, atol=1e-10)
    assert whole.status == pieces.status


@pytest.fixture(scope="module")
def wall():
    decoder, encoder = digits_vae()
    data = digits().data
    latents = encoder(data).double()
    return pm.repair(pm.Decoder(decoder, latent_dim=2), latents, data, uncertainty="rbf-published"), latents


def test_the_published_wall_is_failed_honestly(wall):
    metric, latents = wall
    # a point far outside, on the other side of the wall, beside two short pairs that it must not touch
    a = latents.mean(0, keepdim=True)
    start = torch.cat([a, a, a])
    end = torch.cat([a + 0.01, a + 6 * latents.std(0), a - 0.01])
    solution = pm.geodesic(metric, start, end, solver="fixed-point", max_steps=100)
    assert solution.status[1] is not Status.CONVERGED and not solution.converged[1]
    assert solution.status[0] is Status.CONVERGED and solution.status[2] is Status.CONVERGED
    alone = pm.geodesic(metric, start[::2], end[::2], solver="fixed-point", max_steps=100)
    torch.testing.assert_close(solution.points[::2], alone.points, rtol=0, atol=1e-9)
    assert alone.converged.all()


def test_across_the_wall_no_wrong_length_is_called_converged(wall):
    metric, latents = wall
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(1))
    a, b = latents[order[:12]], latents[order[12:24]]
    solution = pm.geodesic(metric, a, b, solver="fixed-point", max_steps=60)
    relaxed = pm.geodesic(metric, a, b)
    wrong = solution.length > 1.01 * relaxed.length
    assert int(wrong.sum()) >= 4
    assert not solution.converged[wrong].any()
    assert {Status.UNRESOLVED, Status.DIVERGED} & set(solution.status)


def test_options_are_its_own():
    a, b = points(2, 2), points(2, 2, 1)
    for options, words in [
        ({"spams": 3}, "Did you mean `spans`"),
        ({"starts": "straight"}, "no option here"),
        ({"mesh": 1}, "`mesh`"),
        ({"spans": 9}, "even"),
        ({"tol": 0}, "`tol`"),
    ]:
        with pytest.raises(InvalidArgumentError, match=words):
            geodesic(Sphere(), a, b, solver="fixed-point", **options)
    with pytest.raises(InvalidArgumentError, match="'fixed-point'"):
        geodesic(Sphere(), a, b, solver="fixed")
    assert geodesic(Sphere(), a[:0], b[:0], solver="fixed-point", num_points=7).points.shape == (0, 7, 2)


def test_kind_dtype_and_equal_ends():
    a = points(3, 2).float().numpy()
    solution = geodesic(Sphere(), a, a, solver="fixed-point")
    assert solution.length.dtype == a.dtype and (solution.length == 0).all() and solution.converged.all()


def test_a_limit_on_steps_is_said():
    solution = geodesic(HalfPlane(), upper(20), upper(20, seed=1), solver="fixed-point", max_steps=1, tol=1e-8)
    assert Status.STEP_LIMIT in solution.status and not solution.converged.all()
