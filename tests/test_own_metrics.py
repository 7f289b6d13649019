"""Metrics that users write: what their ``tensor(z)`` may return, and what is said of what it may not."""

import numpy as np
import pytest
import torch

import posthoc_metric as pm
from posthoc_metric.distances import MetricTable
from posthoc_metric.errors import InvalidArgumentError, NumericalError, PosthocMetricError
from posthoc_metric.geodesic import shoot
from posthoc_metric.geometry import curvature, random_walk, transport
from posthoc_metric.metric import FunctionMetric, MetricParts, StructuredMetric
from posthoc_metric.spaces import HalfPlane, Plane


def bowl(z):
    """``(1 + ‖z‖²) I`` in torch."""
    return (1 + z.square().sum(1))[:, None, None] * torch.eye(z.shape[1], dtype=z.dtype)


def own(returned, dimension=2, name="Own"):
    """An instance of a metric that is written with ``dim`` and ``tensor`` alone."""
    return type(name, (pm.Metric,), {"dim": dimension, "tensor": lambda self, z: returned(z)})()


KINDS = {
    "float32": lambda z: bowl(z.float()),
    "NumPy": lambda z: bowl(z).detach().numpy(),
    "NumPy inside": lambda z: (1 + np.square(np.asarray(z)).sum(1))[:, None, None] * np.eye(2),
    "NumPy float32": lambda z: bowl(z).detach().numpy().astype(np.float32),
    "lists": lambda z: bowl(z).tolist(),
}

QUESTIONS = {
    "geodesic": lambda m, a, b: m.geodesic(a, b).length,
    "fixed point": lambda m, a, b: m.geodesic(a, b, solver="fixed-point").length,
    "exp": lambda m, a, b: m.exp(a, 0.1 * b),
    "log": lambda m, a, b: m.log(a, b),
    "mean": lambda m, a, b: m.mean(np.concatenate([a, b])),
    "distances": lambda m, a, b: m.distances(a, b),
    "inner": lambda m, a, b: m.inner(a, b, a + b),
    "norm": lambda m, a, b: m.norm(a, b),
    "eigenvalues": lambda m, a, b: m.eigenvalues(a),
    "volume element": lambda m, a, b: m.log_volume(a),
    "transport": lambda m, a, b: transport(m, a, b, b).vectors,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.ConvergenceWarning")
def test_any_kind_and_dtype_may_be_returned(kind, question):
    a, b = np.array([[0.0, 0.0], [0.2, -0.1]]), np.array([[1.0, 1.0], [0.4, 0.3]])
    found, exact = (QUESTIONS[question](metric, a, b) for metric in (own(KINDS[kind]), own(bowl)))
    assert isinstance(found, np.ndarray) and found.dtype == np.float64
    np.testing.assert_allclose(found, exact, rtol=2e-3, atol=2e-3)


def test_one_dimension_in_single_precision():
    found = own(KINDS["float32"], 1).geodesic(np.zeros((1, 1)), np.ones((1, 1)))
    # of sqrt(1 + z²) from 0 to 1
    assert found.length[0] == pytest.approx((np.sqrt(2) + np.arcsinh(1)) / 2, rel=1e-3)


class Sphere(torch.nn.Module):
    """The unit sphere from its stereographic plane, by weights in single precision."""

    def __init__(self):
        super().__init__()
        self.turn = torch.nn.Parameter(torch.linalg.qr(torch.tensor([[1.0, 2, 3], [4, 5, 7], [7, 9, 9]]))[0])

    def forward(self, z):
        square = z.square().sum(1, keepdim=True)
        return torch.cat([2 * z, square - 1], dim=1) / (square + 1) @ self.turn


def of_jacobians(decoder):
    def tensor(z):
        jacobian = decoder.jacobian(z)
        return jacobian.mT @ jacobian

    return pm.FunctionMetric(tensor, 2)


@pytest.mark.parametrize("made", [of_jacobians, lambda d: pm.FunctionMetric(pm.PullbackMetric(d).tensor, 2)])
def test_rounding_of_a_single_decoder_within_a_metric_in_double_is_no_feature_of_it(made):
    metric = made(pm.Decoder(Sphere(), latent_dim=2))
    z = torch.tensor([[0.3, -0.2], [1.1, 0.4], [-0.5, 0.9]], dtype=torch.float64)
    assert torch.allclose(curvature(metric, z), torch.ones(3, dtype=torch.float64), atol=2e-2)
    v = torch.tensor([[0.5, 0.2], [0.0, -1.0]], dtype=torch.float64)
    shot = shoot(metric, torch.zeros_like(v), v)
    # great circles through the pole
    size = v.norm(dim=1, keepdim=True)
    assert torch.allclose(shot.points, v / size * size.tan(), atol=1e-3)
    assert bool(shot.converged.all()) and int(shot.steps.max()) < 100


def test_what_is_float64_passes_untouched():
    answer = torch.eye(2, dtype=torch.float64).repeat(3, 1, 1)
    z = torch.zeros(3, 2, dtype=torch.float64)
    assert own(lambda z: answer).parts().field(z) is answer


def test_single_precision_is_still_differentiated_by_torch():
    z = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    own(KINDS["float32"]).parts().field(z).sum().backward()
    torch.testing.assert_close(z.grad, torch.full_like(z, 4.0))


WRONG = {
    "no batch axis": (lambda z: torch.eye(2), r"shape \(\d, 2, 2\) for \d points; got tensor of shape \(2, 2\)"),
    "one matrix for all": (lambda z: torch.eye(2)[None], r"got tensor of shape \(1, 2, 2\).*batch axis first"),
    "the diagonal": (lambda z: torch.ones(len(z), 2), r"got tensor of shape \(\d, 2\)"),
    "nothing": (lambda z: None, "got NoneType"),
    "complex": (lambda z: bowl(z).to(torch.complex128), "real numbers.*complex128"),
    "complex NumPy": (lambda z: bowl(z).numpy() * 1j, "real numbers.*complex128"),
    "sparse": (lambda z: bowl(z).to_sparse(), "real numbers"),
    "ragged": (lambda z: [[1.0], [1.0, 2.0]], r"got list \(\[\[1.0\], \[1.0, 2.0\]\]\)"),
    "not symmetric": (lambda z: bowl(z) + torch.tensor([[0, 1], [0, 0]]), "symmetric matrices; rows 0, 1.* are not"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("question", ["geodesic", "exp", "log", "mean", "inner", "norm", "eigenvalues"])
def test_what_is_wrong_is_named(case, question):
    returned, words = WRONG[case]
    with pytest.raises(InvalidArgumentError, match=rf"`tensor\(z\)` of Own must return.*{words}"):
        QUESTIONS[question](own(returned), np.zeros((2, 2)), np.ones((2, 2)))


def test_a_function_that_returns_ragged_lists_or_sparse_matrices_is_named():
    z = torch.zeros(2, 2)
    for returned in (lambda z: [[1.0], [1.0, 2.0]], lambda z: bowl(z).to_sparse()):
        with pytest.raises(InvalidArgumentError, match="`fn` must return real numbers"):
            FunctionMetric(returned, 2).tensor(z)


def test_a_metric_without_dim_says_so():
    class Flat(pm.Metric):
        def tensor(self, z):
            return bowl(z)

    a, b = np.zeros((1, 2)), np.ones((1, 2))
    for ask in QUESTIONS.values():
        with pytest.raises(InvalidArgumentError, match="`dim` must be the latent dimension.*Flat has none.*self.dim"):
            ask(Flat(), a, b)
    # as an attribute that is not there
    assert not hasattr(Flat(), "dim") and getattr(Flat(), "dim", None) is None
    late = Flat()
    late.dim = 2
    assert late.norm(a, b)[0] == pytest.approx(np.sqrt(2))


def test_dim_may_be_numpy_s():
    metric = FunctionMetric(bowl, np.int64(2))
    assert type(metric.dim) is int and metric.norm(np.zeros((1, 2)), np.ones((1, 2))).shape == (1,)
    for wrong in (np.int64(0), True, np.bool_(True), 2.0):
        with pytest.raises(InvalidArgumentError, match="`dim` is .* must be an integer of at least 1"):
            FunctionMetric(bowl, wrong)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_negative_squares_of_lengths_are_not_lengths(scale, dtype):
    z, v = torch.zeros(3, 2, dtype=dtype), scale * torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=dtype)
    for metric in (own(lambda z: -bowl(z)), FunctionMetric(lambda z: -bowl(z), 2)):
        with pytest.raises(NumericalError, match="positive definite; at row 0 of `z` the vector in `v`.*-1.*sign"):
            metric.norm(z, v)
    saddle = own(lambda z: torch.diag(torch.tensor([1.0, -1.0])).expand(len(z), 2, 2))
    with pytest.raises(NumericalError, match="at row 1 of"):
        saddle.norm(z, v)
    # along what it does not shorten there is nothing to see
    assert float(saddle.norm(z[:1], v[:1])) == pytest.approx(scale)


def test_rounding_below_zero_is_zero():
    # of rank one; along what it flattens float32 rounds to either side of zero
    ways = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = torch.stack([-ways[:, 1], ways[:, 0]], 1)
    for dtype in (torch.float32, torch.float64):
        metric = own(lambda z, dtype=dtype: (z[:, :, None] * z[:, None]).to(dtype))
        assert bool((metric.inner(ways, flat, flat) < 0).any())
        lengths = metric.norm(ways, flat)
        assert bool((lengths >= 0).all()) and float(lengths.max()) < 1e-2


def test_norm_is_the_root_of_inner_where_there_is_no_metric_too():
    where = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    found = HalfPlane().norm(where, torch.ones(2, 2))
    assert found.dtype == torch.float32 and float(found[0]) == pytest.approx(2**0.5) and bool(found[1].isnan())
    with pytest.raises(InvalidArgumentError, match="`v` must hold one vector for each of the 2"):
        HalfPlane().norm(where, torch.ones(3, 2))


def test_parts_of_a_negative_weight_are_caught_too():
    class Debt:
        def __call__(self, z):
            return -torch.ones_like(z[:, 0])

        def value_and_gradient(self, z):
            return self(z), torch.zeros_like(z)

    with pytest.raises(PosthocMetricError, match="positive definite"):
        StructuredMetric(MetricParts(weight=Debt()), 2).norm(torch.zeros(1, 2), torch.ones(1, 2))


@pytest.mark.parametrize("kind", [pm.FunctionMetric, lambda fn, dim: own(fn, dim)])
def test_a_pair_that_the_solver_loses_leaves_the_others_alone(kind):
    """Where a direction costs nothing it comes to points that are not finite."""
    metric = kind(lambda z: torch.diag(torch.tensor([1.0, 0.0], dtype=z.dtype)).expand(len(z), 2, 2), 2)
    found = metric.geodesic([[0.0, 0.0], [0.0, 0.0]], [[0.0, 5.0], [1.0, 1.0]])
    assert len(found.status) == 2 and found.length[1] == pytest.approx(1.0)


WRAPPED = own(pm.FunctionMetric(bowl, 2).tensor)


@pytest.mark.parametrize(
    "metric", [pm.FunctionMetric(bowl, 2), WRAPPED, Plane(), HalfPlane(), MetricTable(Plane(), np.eye(2))]
)
def test_what_the_solver_asks_at_no_number_is_answered(metric):
    z = torch.tensor([[float("nan"), 1.0], [0.5, 0.5]], dtype=torch.float64)
    found = metric.parts().field(z)
    assert bool(found[0].isnan().all()) and bool(metric.parts().field(z[:1]).isnan().all())
    torch.testing.assert_close(found[1:], metric.tensor(z[1:]))
    with pytest.raises(InvalidArgumentError, match="`z` must be finite"):
        metric.tensor(z)


def test_a_walk_stays_where_a_metric_that_wraps_another_has_values():
    """Steps of vectors that are turned at its edge come to points that are no numbers."""
    flat = Plane()
    hole = pm.FunctionMetric(lambda z: torch.where((z.abs() < 0.2).all(1)[:, None, None], torch.nan, flat.tensor(z)), 2)
    start = torch.tensor([[0.0, 0.6], [0.3, 0.1]])
    paths = [random_walk(metric, start, steps=20, time=1.0) for metric in (hole, own(hole.tensor))]
    torch.testing.assert_close(*paths)


@pytest.mark.parametrize("kind", [lambda: pm.FunctionMetric(bowl, 2), Plane])
def test_a_tensor_that_is_overridden_is_what_is_solved(kind):
    made = kind()
    made.__class__ = type("Longer", (type(made),), {"tensor": lambda self, z: 4 * bowl(z) / bowl(z)[:, :1, :1]})
    assert made.geodesic([[0.0, 0.0]], [[3.0, 4.0]]).length[0] == pytest.approx(10.0)


def test_a_strongly_bent_function_gets_nodes_enough():
    """The pullback of ``z -> (z, A sin(W z + b))`` in six dimensions, given as a function: no chords tell how it bends.

    The curves are held to those of eight times as many spans.  With sixteen, three that were CONVERGED were longer by
    more than was asked, one by 1.6e-3.
    """
    generator = torch.Generator().manual_seed(1)
    inner = torch.randn(20, 6, generator=generator, dtype=torch.float64) * 3 / 6**0.5
    phase = 6.28 * torch.rand(20, generator=generator, dtype=torch.float64)
    outer = torch.randn(20, 20, generator=generator, dtype=torch.float64) / 20**0.5

    def tensor(z):
        jacobians = outer @ ((z @ inner.T + phase).cos()[:, :, None] * inner)
        return jacobians.mT @ jacobians + torch.eye(6, dtype=z.dtype)

    generator.manual_seed(101)
    a, b = torch.randn(2, 10, 6, generator=generator, dtype=torch.float64)
    metric = pm.FunctionMetric(tensor, 6)
    found, fine = metric.geodesic(a, b), metric.geodesic(a, b, spans=128, rtol=1e-6)
    assert found.converged.all()
    assert ((found.length / fine.length - 1).abs() <= 3e-4).all()


def test_frames_of_a_decoder_that_is_a_plain_module():
    """It takes its own precision, and its weights learn nothing of it."""
    metric = own(bowl)
    metric.decoder = torch.nn.Linear(2, 3)
    frames = metric.geodesic(torch.zeros(1, 2), torch.ones(1, 2)).decode(4)
    assert frames.shape == (1, 4, 3) and not frames.requires_grad
    torch.testing.assert_close(frames[0, [0, -1]], metric.decoder(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).detach())


def test_frames_of_a_decoder_that_gives_one_number_a_row():
    metric = own(bowl)
    metric.decoder = lambda z: z.sum(1)
    frames = metric.geodesic(torch.zeros(2, 2), torch.ones(2, 2)).decode(4)
    assert frames.shape == (2, 4, 1) and frames[0, -1, 0] == pytest.approx(2.0)
    assert metric.geodesic(torch.zeros(0, 2), torch.ones(0, 2)).decode(4).shape == (0, 4, 1)


@pytest.mark.parametrize("ask", [pm.Metric.exp, pm.Metric.log, lambda m, z, v: random_walk(m, z, steps=2, time=1.0)])
def test_of_no_points_there_is_nothing_to_find(ask):
    assert len(ask(own(bowl), torch.zeros(0, 2), torch.zeros(0, 2))) == 0


@pytest.mark.parametrize("write", [lambda z: z.mul_(2), lambda z: np.multiply(z.numpy(), 2, out=z.numpy())])
def test_a_function_that_writes_into_its_latents_changes_nobody_elses(write):
    def written(z):
        write(z)
        return bowl(z)

    metric, twice = pm.FunctionMetric(written, 2), pm.FunctionMetric(lambda z: bowl(2 * z), 2)
    z, end = torch.tensor([[0.5, 1.0], [1.0, 0.0]]).double(), torch.tensor([[-0.5, 1.0], [0.0, 1.0]]).double()
    before = z.clone()
    torch.testing.assert_close(metric.tensor(z), twice.tensor(z))
    torch.testing.assert_close(curvature(metric, z), curvature(twice, z))
    torch.testing.assert_close(metric.geodesic(z, end).length, twice.geodesic(z, end).length, rtol=1e-4, atol=0)
    assert torch.equal(z, before)
    (slope,) = torch.autograd.grad(metric.log_volume(z.requires_grad_()).sum(), z)
    torch.testing.assert_close(slope, 8 * before / (1 + 4 * before.square().sum(1, keepdim=True)))


def test_a_function_whose_matrices_depend_on_the_rest_of_the_batch_is_refused():
    """As where the axis of a mean was forgotten: every length would be that of another metric."""

    def coupled(z):
        return torch.eye(2, dtype=z.dtype).repeat(len(z), 1, 1) * (1 + z.mean().square())

    with pytest.raises(InvalidArgumentError, match="a matrix of its own"):
        pm.geodesic(coupled, [[0.0, 1.0]], [[1.0, 2.0]])
