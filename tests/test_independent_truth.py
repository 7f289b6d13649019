"""The solver against what shares no code with it: SciPy's boundary values, shooting, grids, stochman, geomstats."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch
from conftest import BENCHMARKS
from scipy.integrate import solve_bvp, solve_ivp
from scipy.optimize import root
from test_properties import _module, space
from test_spaces import points, upper
from torch import Tensor

from posthoc_metric.geodesic import Status, geodesic, shoot
from posthoc_metric.metric import FunctionMetric, MetricParts, StructuredMetric

#: lengths may not exceed another's by more than this
TOO_LONG = 1e-3


def pairs(name: str, count: int) -> tuple[Tensor, Tensor]:
    if name == "half-plane":
        return upper(count), upper(count, seed=1)
    shift = {"Swiss roll": (6.0, 8.0), "torus": (0.0, 1.0)}.get(name, (0.0, 0.0))
    return shift[0] + points(count, 2), shift[1] + points(count, 2, 1)


def christoffel(tensor, z: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Geodesic accelerations (m, d), by autograd of ``tensor`` only: ``M⁻¹ (½ ∇ vᵀMv - ∂_v M v)``."""
    with torch.enable_grad():
        x = torch.from_numpy(z).requires_grad_(True)
        w = torch.from_numpy(v)
        matrices = tensor(x)
        square = torch.einsum("ni,nij,nj->", w, matrices, w)
        pushed = (matrices @ w[..., None])[..., 0]
        (by_place,) = torch.autograd.grad(square, x, retain_graph=True)
        # ∂_v (M v): the derivative of pushed along v, row by row
        along = torch.stack(
            [(torch.autograd.grad(pushed[:, i].sum(), x, retain_graph=True)[0] * w).sum(1) for i in range(z.shape[1])],
            1,
        )
    return torch.linalg.solve(matrices.detach(), by_place / 2 - along).numpy()


def by_autograd(name: str):
    """``M(z)`` (n, d, d) written for autograd, apart from the library's own derivatives."""
    metric = space(name)
    if name in ("sphere", "half-plane"):
        return metric._tensor
    if name == "Swiss roll":
        return lambda z: torch.diag_embed(torch.stack([1 + z[:, 0] ** 2, torch.ones_like(z[:, 0])], dim=1))
    if name == "torus":
        return lambda z: torch.diag_embed(torch.stack([(2 + z[:, 1].cos()) ** 2, torch.ones_like(z[:, 0])], dim=1))
    value = _module()

    def tensor(z: Tensor) -> Tensor:
        jacobian = torch.func.vmap(torch.func.jacfwd(lambda one: value(one[None])[0]))(z)
        return jacobian.mT @ jacobian

    return tensor


@pytest.mark.parametrize("name", ["sphere", "half-plane", "Swiss roll", "torus", "decoder"])
def test_scipys_boundary_value_solver(name):
    metric, tensor, (a, b) = space(name), by_autograd(name), pairs(name, 4)
    solution = geodesic(metric, a, b)
    assert solution.converged.all()
    times = np.linspace(0, 1, 41)
    generator = np.random.default_rng(0)

    def system(_, y):
        return np.concatenate([y[2:], christoffel(tensor, y[:2].T.copy(), y[2:].T.copy()).T])

    for row in range(len(a)):
        start = solution(torch.from_numpy(times))[row].numpy().T
        # not the solver's curve itself: bent by some percent of its extent
        bump = 0.03 * np.ptp(start, axis=1).max() * generator.standard_normal((2, 1))
        start = start + bump * np.sin(np.pi * times)
        guess = np.concatenate([start, np.gradient(start, times, axis=1)])
        one, other = a[row].numpy(), b[row].numpy()
        found = solve_bvp(
            system, lambda p, q, one=one, other=other: np.r_[p[:2] - one, q[:2] - other], times, guess, tol=1e-8
        )
        assert found.success
        ends = torch.from_numpy(found.y.T)
        speed = torch.einsum("ni,nij,nj->n", ends[:, 2:], tensor(ends[:, :2]), ends[:, 2:]).sqrt()
        assert float(speed.max() / speed.min() - 1) < 1e-5
        length, theirs = float(solution.length[row]), float(speed.mean())
        assert abs(length - theirs) <= 3 * float(solution.length_error[row]) + 1e-6 * theirs
        assert length <= theirs * (1 + 3e-4)
        dense = torch.linspace(0, 1, 21, dtype=torch.float64)
        away = torch.from_numpy(found.sol(dense.numpy())[:2].T) - solution(dense)[row]
        assert float(away.norm(dim=1).max()) <= 0.02 * float((b[row] - a[row]).norm())


@pytest.mark.parametrize("name", ["sphere", "half-plane", "Swiss roll", "torus", "decoder"])
def test_shooting(name):
    """SciPy integrates the geodesic equation and finds the velocity that hits the other end."""
    metric, tensor, (a, b) = space(name), by_autograd(name), pairs(name, 1 if name == "decoder" else 2)
    solution = geodesic(metric, a, b)
    first = solution.velocity(0.0).numpy()
    for row in range(len(a)):
        one, other = a[row].numpy(), b[row].numpy()

        def end(v, one=one):
            def system(_, y):
                return np.concatenate([y[2:], christoffel(tensor, y[None, :2].copy(), y[None, 2:].copy())[0]])

            return solve_ivp(system, (0, 1), np.concatenate([one, v]), rtol=1e-7, atol=1e-8, method="DOP853").y[:, -1]

        found = root(lambda v, other=other: end(v)[:2] - other, 1.01 * first[row], tol=1e-6)  # noqa: B023
        assert found.success
        v = torch.from_numpy(found.x)
        theirs = float((v @ tensor(a[row : row + 1])[0] @ v).sqrt())
        length = float(solution.length[row])
        assert abs(length - theirs) <= 3 * float(solution.length_error[row]) + 1e-5 * theirs
        # the library's own shot ends where SciPy's does
        shot = shoot(metric, a[row : row + 1], v[None])
        np.testing.assert_allclose(shot.points[0], other, atol=1e-4)
        np.testing.assert_allclose(shot.velocities[0], end(found.x)[2:], atol=1e-4)
        assert float(shot.speed_drift[0]) < 1e-6


@pytest.mark.parametrize("name", ["sphere", "half-plane", "torus", "decoder", "repaired"])
def test_never_longer_than_the_shortest_path_on_a_grid(scripts, name):
    from independent import bounds, grid_paths

    metric, (a, b) = space(name), pairs("half-plane" if name == "half-plane" else "sphere", 6)
    ends = torch.cat([a, b])
    margin = 0.2 * (ends.amax(0) - ends.amin(0))
    low = ends.amin(0) - margin
    if name == "half-plane":
        low[1] = 0.5 * ends[:, 1].min()
    paths = grid_paths(metric, a, b, torch.stack([low, ends.amax(0) + margin]), side=60)
    upper_bound = torch.cat([bounds(metric, path[None]) for path in paths])
    solution = geodesic(metric, a, b)
    assert (solution.length <= upper_bound * (1 + TOO_LONG)).all()
    # the grid has 32 directions: its paths are longer by some percent at most, or one of the two is wrong
    assert (upper_bound <= 1.06 * solution.length).all()


def test_round_a_wall_never_longer_than_on_a_grid(scripts):
    """Walls with gaps: the straight line is in the wrong valley for most pairs."""
    from independent import bounds, grid_paths

    def fn(z: Tensor) -> Tensor:
        gap = 1 - torch.exp(-((z[:, 1] - 0.7) ** 2) / 0.02)
        cost = 1 + 400 * gap * torch.exp(-z[:, 0].square() / 0.005)
        return cost[:, None, None] * torch.eye(2, dtype=z.dtype)

    metric = FunctionMetric(fn, 2)
    a, b = points(10, 2), points(10, 2, 1)
    a[:, 0], b[:, 0] = -0.3 - a[:, 0].abs(), 0.3 + b[:, 0].abs()
    box = torch.tensor([[-2.0, -2.0], [2.0, 2.0]], dtype=torch.float64)
    paths = grid_paths(metric, a, b, box, side=100)
    upper_bound = torch.cat([bounds(metric, path[None]) for path in paths])
    solution = geodesic(metric, a, b)
    assert (solution.length <= upper_bound * (1 + TOO_LONG))[solution.converged].all()
    assert solution.converged.double().mean() >= 0.9


@pytest.mark.parametrize("name", ["sphere", "half-plane", "Swiss roll", "decoder"])
def test_never_longer_than_stochman(scripts, name):
    if importlib.util.find_spec("stochman") is None:
        pytest.skip("stochman is not installed; it is a peer, not a dependency: pip install stochman")
    from peers import curve_lengths, stochman_curves

    metric, (a, b) = space(name), pairs(name, 8)
    theirs = curve_lengths(metric, stochman_curves(metric, steps=100)(a, b))
    solution = geodesic(metric, a, b)
    assert solution.converged.all()
    assert (solution.length <= theirs * (1 + TOO_LONG)).all()


@pytest.mark.parametrize("name", ["sphere", "half-plane"])
def test_never_longer_than_geomstats(geomstats, name):
    a, b = pairs(name, 20)
    solution = geodesic(space(name), a, b)
    if name == "sphere":
        from geomstats.geometry.hypersphere import Hypersphere

        sphere = space(name)
        theirs = Hypersphere(dim=2).metric.dist(sphere.to_ambient(a).numpy(), sphere.to_ambient(b).numpy())
    else:
        from geomstats.geometry.poincare_half_space import PoincareHalfSpace

        theirs = PoincareHalfSpace(dim=2).metric.dist(a.numpy(), b.numpy())
    assert solution.converged.all()
    np.testing.assert_allclose(solution.length, theirs, rtol=3e-4)


@pytest.fixture(scope="module")
def counted():
    """The quick form of the count, once for the tests that read it."""
    added = BENCHMARKS not in sys.path
    if added:
        sys.path.insert(0, BENCHMARKS)
    try:
        import hard_pairs

        with pytest.MonkeyPatch.context():
            return hard_pairs.main(34, 0.5, steps=60, pieces=256, side=40)
    finally:
        if added:
            sys.path.remove(BENCHMARKS)


def test_hard_pairs_all_end_in_a_status_and_none_is_claimed_falsely(counted):
    assert sum(tally.count for tally in counted) == 34
    assert all(sum(tally.statuses.values()) == tally.count for tally in counted)
    assert not any(tally.without for tally in counted)
    claims = [(tally.name, claim) for tally in counted for claim in tally.claims]
    assert not claims
    assert sum(tally.sampled for tally in counted) >= 10


class Holed:
    """A decoder without value below ``z_2 = -4``, whose output fades far out, so that curves there run away."""

    def __init__(self, inner):
        self.inner, self.latent_dim, self.output_dim = inner, inner.latent_dim, inner.output_dim

    def value(self, z):
        fade = torch.where(z[:, 1] < -4, float("nan"), 1 / (1 + (z[:, :1] / 30).square().sum(1)))
        return fade[:, None] * (self.inner.value(z) if hasattr(self.inner, "value") else self.inner(z))

    def value_and_jacobian(self, z):
        with torch.enable_grad():
            x = z.detach().clone().requires_grad_(True)
            value = self.value(x)
            rows = [torch.autograd.grad(value[:, i].sum(), x, retain_graph=True)[0] for i in range(value.shape[1])]
        return value.detach(), torch.stack(rows, dim=1).masked_fill(
            torch.isnan(value.detach())[:, :, None], float("nan")
        )

    def __call__(self, z):
        return self.value(z).detach()

    def jvp(self, z, v):
        value, jacobian = self.value_and_jacobian(z)
        return value, (jacobian * v[:, None]).sum(2)

    def vjp(self, z, u):
        value, jacobian = self.value_and_jacobian(z)
        return value, (jacobian * u[:, :, None]).sum(1)


@pytest.mark.parametrize("name", ["Swiss roll", "torus"])
def test_bad_pairs_change_nothing_in_their_neighbours(name):
    """Bit for bit, with a decoder that computes element by element.

    A decoder made of matrix products may itself round differently with another number of rows.
    """
    metric = StructuredMetric(MetricParts(embedding=Holed(space(name).embedding)), 2)
    a, b = pairs(name, 8)
    alone = geodesic(metric, a, b)
    bad_a = torch.tensor([[6.0, -5.0], [6.0, 0.0], [1e6, 0.0], [6.0, 1.0], [-1e3, 0.0]], dtype=torch.float64)
    bad_b = torch.tensor([[6.0, -6.0], [6.0, -9.0], [-1e6, 3.0], [6.0, 1.0], [1e3, 1e3]], dtype=torch.float64)
    order = torch.tensor([8, 0, 9, 1, 2, 10, 3, 4, 11, 5, 6, 12, 7])
    mixed = geodesic(metric, torch.cat([a, bad_a])[order], torch.cat([b, bad_b])[order])
    assert len(mixed.status) == 13 and all(isinstance(status, Status) for status in mixed.status)
    assert mixed.status[0] is Status.NOT_FINITE and mixed.status[2] is Status.NOT_FINITE
    rest = (order < 8).nonzero().flatten()
    assert alone.converged.any()
    assert [mixed.status[i] for i in rest.tolist()] == list(alone.status)
    for fact in ("points", "length", "energy", "residual", "length_error", "speed_variation", "steps", "evaluations"):
        one, other = getattr(mixed, fact)[rest], getattr(alone, fact)
        assert torch.equal(one, other), fact


def test_the_count_would_notice_a_false_claim(scripts):
    """A solver that calls straight lines shortest is found out: by descent, and by the lengths it makes up."""
    import hard_pairs
    from independent import descend

    sphere, a, b = space("sphere"), points(4, 2), points(4, 2, 1)
    line = a[0] + torch.linspace(0, 1, 513, dtype=torch.float64)[:, None] * (b[0] - a[0])
    found = descend(sphere, line)
    exact = float(sphere.distance(a[:1], b[:1]))
    assert found.before > exact * 1.001 and found.length == pytest.approx(exact, rel=1e-4) and found.barrier <= 1 + 1e-9
    made_up = hard_pairs.Hard("made up", FunctionMetric(lambda z: 4 * sphere._tensor(z), 2), a, b, sphere)
    tally = hard_pairs.examine(made_up, share=1.0)
    assert tally.false == 4 and {what for what, _, _ in tally.claims} == {"length"}
