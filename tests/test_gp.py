"""The Gaussian process: its evidence, its posterior Jacobian, its length scale, its safety."""

from __future__ import annotations

import math
import warnings

import gpytorch
import pytest
import torch

import posthoc_metric as pm
from posthoc_metric.decoder import Decoder
from posthoc_metric.errors import CalibrationWarning, FitError, InvalidArgumentError, NotFittedError
from posthoc_metric.field_derivative import FieldDerivative
from posthoc_metric.matrix_field import DirectedField
from posthoc_metric.support import Support
from posthoc_metric.uncertainty import gp, gp_evidence, gp_shape
from posthoc_metric.uncertainty.gp import GaussianProcess, _condition


def _decoder(dim=2, outputs=5, seed=0, width=1.0):
    generator = torch.Generator().manual_seed(seed)
    layers = torch.nn.Sequential(torch.nn.Linear(dim, 32), torch.nn.Tanh(), torch.nn.Linear(32, outputs)).double()
    for parameter in layers.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    layers[0].weight.data *= width
    return Decoder(layers, latent_dim=dim)


def _latents(rows, dim, seed=0):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def exact():
    decoder, latents = _decoder(), 3 * _latents(120, 2) + 5
    data = decoder(latents) + 0.3 * _latents(120, 5, seed=9)
    return latents, GaussianProcess(targets="data").fit(decoder, latents, data)


@pytest.fixture(scope="module")
def sparse():
    decoder, latents = _decoder(), _latents(1500, 2)
    return latents, GaussianProcess(inducing=60).fit(decoder, latents)


def _posterior(model, latents):
    """The textbook posterior covariance (a, b) -> (A, B) in units of the signal's variance, without our factors."""
    scale, noise = model.hyperparameters.length_scale, model.hyperparameters.noise

    def kernel(a, b):
        return torch.exp(-0.5 * (a[:, None] - b[None]).square().sum(-1) / scale**2)

    inverse = torch.linalg.inv(kernel(latents, latents) + noise * torch.eye(len(latents), dtype=torch.float64))
    return lambda a, b: kernel(a, b) - kernel(a, latents) @ inverse @ kernel(latents, b)


def test_shape_is_the_mixed_second_derivative_of_the_posterior_by_autograd(exact):
    latents, model = exact
    covariance = _posterior(model, latents)
    scale = model.hyperparameters.length_scale
    for z in torch.cat([latents[:3], latents[:3] + 4.0]):
        mixed = torch.func.jacrev(torch.func.jacfwd(lambda a, b: covariance(a[None], b[None])[0, 0], 0), 1)(z, z)
        torch.testing.assert_close(model.shape()(z[None])[0], scale**2 * mixed, rtol=1e-5, atol=2e-6)


def test_shape_is_the_covariance_of_finite_differences_of_posterior_samples(exact):
    latents, model = exact
    covariance = _posterior(model, latents)
    scale = model.hyperparameters.length_scale
    step = 1e-3 * scale
    for z in (latents[0] + 0.5, latents.mean(0) + torch.tensor([9.0, 0.0], dtype=torch.float64)):
        corners = z + step * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)
        values, basis = torch.linalg.eigh(covariance(corners, corners))
        samples = _latents(40_000, 4) @ (basis * values.clamp_min(0).sqrt()).T
        slopes = torch.stack([samples[:, 0] - samples[:, 1], samples[:, 2] - samples[:, 3]], dim=1) / (2 * step)
        estimate = scale**2 * slopes.T @ slopes / len(slopes)
        torch.testing.assert_close(model.shape()(z[None])[0], estimate, rtol=0.03, atol=0.01)


def test_evidence_is_gpytorchs(exact):
    latents, model = exact
    decoder = _decoder()
    data = decoder(latents) + 0.3 * _latents(120, 5, seed=9)
    targets = gp_evidence.reduce(data, exact=True, seed=0).factor
    found = model.hyperparameters
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double()
    kernel.base_kernel.lengthscale, kernel.outputscale = found.length_scale, found.variance
    covariance = kernel(latents).add_jitter(found.noise * found.variance)
    prior = gpytorch.distributions.MultivariateNormal(torch.zeros(120, dtype=torch.float64), covariance)
    # five outputs of one variance; the factor's columns are scaled so that their mean square is a fifth
    total = sum(prior.log_prob(math.sqrt(5) * column) for column in targets.T).item() / (5 * 120)
    assert total == pytest.approx(found.evidence - 0.5 - 0.5 * math.log(2 * math.pi), abs=1e-6)


def test_hyperparameters_of_a_known_process_come_back():
    latents = _latents(400, 2)
    radius = float((latents - latents.mean(0)).square().sum(1).mean().sqrt())
    scale = 0.4 * radius
    kernel = torch.exp(-0.5 * (latents[:, None] - latents[None]).square().sum(-1) / scale**2)
    root = torch.linalg.cholesky(kernel + 0.05 * torch.eye(400, dtype=torch.float64))
    data = 7 + 3 * root @ _latents(400, 30, seed=4)
    model = GaussianProcess(targets="data").fit(_decoder(outputs=30), latents, data)
    assert model.exact
    assert model.hyperparameters.length_scale == pytest.approx(scale, rel=0.05)
    assert model.hyperparameters.noise == pytest.approx(0.05, rel=0.1)


def test_titsias_bound_is_the_evidence_with_all_points_and_below_it_with_fewer():
    points = _latents(80, 2)
    targets = gp_evidence.reduce(_decoder()(points), exact=True, seed=0)
    kernel = torch.exp(-0.5 * (points[:, None] - points[None]).square().sum(-1) / 0.6**2)
    noise = torch.tensor(0.05, dtype=torch.float64)
    exactly = float(gp_evidence._exact(kernel, noise, targets)[0])
    full = float(gp_evidence._titsias(kernel + 1e-10 * torch.eye(80), kernel, noise, targets)[0])
    few = float(gp_evidence._titsias(kernel[:20, :20], kernel[:20], noise, targets)[0])
    assert full == pytest.approx(exactly, abs=1e-5)
    assert few > exactly + 1e-4


def test_inducing_points_everywhere_give_the_exact_posterior():
    points = _latents(150, 2)
    exactly, _ = gp._condition(points, None, 0.3, 0.02)
    sparsely, _ = gp._condition(points, points, 0.3, 0.02)
    z = _latents(20, 2, seed=1)
    torch.testing.assert_close(
        gp_shape.shape_at(z, points, exactly, 0.3), gp_shape.shape_at(z, points, sparsely, 0.3), rtol=1e-4, atol=1e-5
    )


def test_principal_components_lose_only_noise():
    decoder, latents = _decoder(outputs=200), _latents(1200, 2)
    values = decoder(latents) + 0.2 * _latents(1200, 200, seed=3)
    targets = gp_evidence.reduce(values, exact=False, seed=0)
    assert targets.factor.shape == (1200, 64)
    assert float(targets.factor.square().sum()) / 1200 + targets.rest == pytest.approx(1.0)
    inducing = latents[:60]
    reduced = gp_evidence.maximise(latents, targets, inducing, (0.2, 2.0))
    whole = gp_evidence.maximise(latents, gp_evidence.reduce(values, exact=True, seed=0), inducing, (0.2, 2.0))
    assert reduced.length_scale == pytest.approx(whole.length_scale, rel=0.05)
    assert reduced.noise == pytest.approx(whole.noise, rel=0.1)


@pytest.mark.parametrize("which", ["exact", "sparse"])
def test_gradient_of_the_score_near_and_far(which, request):
    latents, model = request.getfixturevalue(which)
    spread = latents.std()
    for distance in (0.0, 1.0, 5.0, 100.0):
        z = latents[:6] + distance * spread
        score, gradient = model.score_and_gradient(z)
        step = 1e-5 * float(spread)
        for j in range(2):
            e = torch.zeros(2, dtype=torch.float64)
            e[j] = step
            numeric = (model.score(z + e) - model.score(z - e)) / (2 * step)
            torch.testing.assert_close(gradient[:, j], numeric, rtol=1e-4, atol=1e-5 / float(spread))
        assert torch.equal(score, model.score(z))


def test_score_is_the_posterior_variance_and_far_away_a_distance(exact):
    latents, model = exact
    z = torch.cat([latents[:20], latents[:20] + 2.0])
    variance = _posterior(model, latents)(z, z).diagonal()
    torch.testing.assert_close(model.score(z), (-torch.log1p(-variance)).sqrt(), rtol=1e-4, atol=2e-4)
    far = latents.mean(0) + torch.tensor([[1e5, 0.0], [3e5, 0.0]], dtype=torch.float64)
    near = (far[:, None] - latents[None]).norm(dim=2).amin(1)
    torch.testing.assert_close(model.score(far), near / model.hyperparameters.length_scale, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dim", [2, 20, 100])
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_score_tells_data_from_void_and_the_prior_comes_back(dim, scale):
    latents = scale * (_latents(1300, dim) + 2)
    model = GaussianProcess(inducing=64).fit(_decoder(dim, width=0.3 / (scale * dim**0.5)), latents[:1100])
    support = Support(latents[:1100])
    known = model.score(latents[1100:])
    void = model.score(support.shell(1.0, 100))
    assert float(void.min()) > float(known.quantile(0.99))
    assert float(void.min()) > 1.3 * float(known.median())
    least = torch.linalg.eigvalsh(model.shape()(support.shell(1.0, 100, seed=8)))[:, 0]
    assert float(least.quantile(0.05)) > 0.7
    beyond = model.shape()(support.shell(10.0, 10))
    torch.testing.assert_close(beyond, torch.eye(dim, dtype=torch.float64).expand_as(beyond))


@pytest.mark.parametrize("case", ["duplicates", "two clusters", "line", "fourteen", "noiseless"])
def test_no_variance_is_negative_and_none_exceeds_the_prior(case):
    latents = _latents(300, 2)
    if case == "duplicates":
        latents = latents[:10].repeat(30, 1)
    if case == "two clusters":
        latents = torch.cat([1e-4 * latents[:150], 1e-4 * latents[150:] + 1])
    if case == "line":
        latents = latents * torch.tensor([1.0, 1e-9])
    if case == "fourteen":
        latents = latents[:14]
    if case == "noiseless":
        latents = _latents(3000, 2)
    before = latents.clone()
    model = GaussianProcess(inducing=100).fit(_decoder(), latents)
    z = torch.cat([latents, 0.5 * latents, 3 * latents, 1e6 * latents])
    matrices = model.shape()(z)
    values = torch.linalg.eigvalsh(matrices)
    assert float(values.min()) > 0
    assert float(values.max()) <= 1 + 1e-12
    assert torch.equal(matrices, matrices.mT)
    score, gradient = model.score_and_gradient(z)
    assert torch.isfinite(score).all() and torch.isfinite(gradient).all()
    assert torch.equal(before, latents)


def test_jitter_is_reported_only_where_it_was_needed():
    kernel = torch.exp(-0.5 * (_latents(50, 2)[:, None] - _latents(50, 2)[None]).square().sum(-1) / 0.1**2)
    assert gp_evidence.cholesky(kernel)[1] == 0
    smooth = torch.exp(-0.5 * (_latents(50, 2)[:, None] - _latents(50, 2)[None]).square().sum(-1) / 20**2)
    root, jitter = gp_evidence.cholesky(smooth)
    assert 0 < jitter <= 1e-8
    torch.testing.assert_close(root @ root.T, smooth, atol=2 * jitter, rtol=0)
    with pytest.raises(FitError, match="positive definite"):
        gp_evidence.cholesky(-smooth)


def test_length_scale_is_capped_where_it_would_claim_to_know_the_void():
    # a linear decoder is known everywhere from a few latents, and the evidence says so
    latents = _latents(300, 2)
    linear = Decoder(torch.nn.Linear(2, 5).double(), latent_dim=2)
    model = GaussianProcess().fit(linear, latents)
    low, high = model.length_scales
    radius = float((latents - latents.mean(0)).square().sum(1).mean().sqrt())
    assert low < model.hyperparameters.length_scale <= high * (1 + 1e-6) < radius
    least = torch.linalg.eigvalsh(model.shape()(Support(latents).shell(1.0, 200, seed=5)))[:, 0]
    assert float(least.quantile(0.05)) > 0.6


def test_float32_latents_and_memory_mapped_data(tmp_path):
    import numpy as np

    decoder, latents = _decoder(), _latents(200, 2)
    np.save(tmp_path / "data.npy", decoder(latents).float().numpy())
    mapped = np.load(tmp_path / "data.npy", mmap_mode="r")
    model, again = (GaussianProcess(targets="data").fit(decoder, latents.float(), mapped) for _ in range(2))
    assert model.score(latents[:3].float()).dtype == torch.float64
    assert torch.equal(model.score(latents[:3]), again.score(latents[:3]))


def test_fitting_leaves_the_global_random_state():
    decoder = _decoder()
    state = torch.random.get_rng_state()
    GaussianProcess(inducing=20).fit(decoder, _latents(1100, 2))
    assert torch.equal(state, torch.random.get_rng_state())


def test_guards():
    decoder, latents = _decoder(), _latents(40, 2)
    with pytest.raises(FitError, match="all rows coincide"):
        GaussianProcess().fit(decoder, latents[:1].repeat(40, 1))
    with pytest.raises(FitError, match="constant"):
        GaussianProcess(targets="data").fit(decoder, latents, torch.ones(40, 5))
    with pytest.raises(FitError, match="finite"):
        GaussianProcess(targets="data").fit(decoder, latents, torch.full((40, 5), torch.nan))
    with pytest.raises(FitError, match="`data` must be given"):
        GaussianProcess(targets="data").fit(decoder, latents)
    with pytest.raises(InvalidArgumentError, match="`targets`"):
        GaussianProcess(targets="both")
    with pytest.raises(NotFittedError, match="fit"):
        GaussianProcess().score(latents)
    with pytest.raises(InvalidArgumentError, match="`inducing`"):
        GaussianProcess(inducing=1)


@pytest.mark.parametrize("which, dim", [("exact", 2), ("exact", 5), ("sparse", 5)])
def test_closed_form_derivatives_of_a_repair_are_those_of_autograd(which, dim):
    decoder, latents = _decoder(dim=dim), _latents(300, dim)
    model = GaussianProcess(inducing=60) if which == "sparse" else "gp"
    field = pm.repair(decoder, latents, uncertainty=model).parts().field
    z = torch.cat([latents[:20], latents[20:40] + 1e-3, 3 * latents[:20], 1000 * latents[:4]])
    v = _latents(len(z), dim, seed=3)
    found = FieldDerivative(field, z)
    assert found.sloped is not None and found.by_autograd
    by_rows = torch.func.vmap(torch.func.jacrev(lambda at, way: field(at[None])[0] @ way))
    tensors, pushed = field.slope(z, v)
    torch.testing.assert_close(tensors, field(z))
    torch.testing.assert_close(pushed, by_rows(z, v), rtol=1e-6, atol=1e-9 * float(pushed.abs().max()))
    along, by_place = field.pull(z, v)
    torch.testing.assert_close(along, (tensors @ v[..., None])[..., 0])
    tilted = (pushed.mT @ v[..., None])[..., 0]
    torch.testing.assert_close(by_place, tilted, rtol=1e-6, atol=1e-9 * float(tilted.abs().max()))


class _Bowl:
    """``(1 + ‖z‖²) I``, with derivatives that are those of ``(1 + share ‖z‖²) I``."""

    def __init__(self, share):
        self.share = share

    def __call__(self, z):
        return (1 + z.square().sum(1))[:, None, None] * torch.eye(z.shape[1], dtype=z.dtype)

    def slope(self, z, v):
        return self(z), 2 * self.share * v[:, :, None] * z[:, None]

    def pull(self, z, v):
        tensors, pushed = self.slope(z, v)
        return (tensors @ v[..., None])[..., 0], (pushed.mT @ v[..., None])[..., 0]


def test_closed_forms_that_are_wrong_or_missing_are_left_to_autograd():
    z, v = _latents(50, 3), _latents(50, 3, seed=1)
    right, wrong = FieldDerivative(_Bowl(1.0), z), FieldDerivative(_Bowl(0.5), z)
    assert right.sloped is not None and wrong.sloped is None and wrong.by_autograd
    for one, other in zip(right(z, v) + right.pull(z, v), wrong(z, v) + wrong.pull(z, v), strict=True):
        torch.testing.assert_close(one, other)

    class Plain(GaussianProcess):
        def score_and_gradient(self, z):
            return None

    field = pm.repair(_decoder(), _latents(120, 2), uncertainty=Plain()).parts().field
    z, v = z[:, :2], v[:, :2]
    assert field.slope(z, v) is None and field.pull(z, v) is None
    assert FieldDerivative(field, z).by_autograd


@pytest.mark.parametrize("which", ["exact", "sparse"])
def test_single_directions_say_what_the_matrices_say(which, request):
    latents, model = request.getfixturevalue(which)
    z = torch.cat([latents[:30], latents[:30] + 4.0, latents[:5] + 1e4]).requires_grad_(True)
    v = _latents(len(z), 2, seed=3).requires_grad_(True)
    shape = model.shape()
    whole = torch.einsum("bi,bij,bj->b", v, shape(z), v)
    torch.testing.assert_close(shape.square(z, v), whole, rtol=1e-9, atol=1e-12)
    slopes = [torch.autograd.grad(values.sum(), (z, v)) for values in (whole, shape.square(z, v))]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    metric = pm.repair(_decoder(), latents.detach(), uncertainty=model)
    field = metric.parts().field
    assert isinstance(field, DirectedField)
    here, way = z.detach(), v.detach()
    torch.testing.assert_close(field.square(here, way), torch.einsum("bi,bij,bj->b", way, field(here), way))


def test_what_is_left_out_is_what_a_process_without_it_says():
    latents = _latents(60, 2)
    decoder = _decoder()
    model = GaussianProcess().fit(decoder, latents)
    scores, shapes = model.held_out_scores(decoder, latents), model.held_out_shapes(latents[:5])
    assert scores.shape == (60,) and shapes.shape == (5, 2, 2)
    for row in range(5):
        settings, state = model.settings(), model.state()
        kept = torch.arange(60) != row
        points = (latents - latents.mean(0)) / model._radius
        factor, _ = _condition(points[kept], None, model._length_scale, model.hyperparameters.noise)
        others = GaussianProcess.from_state(settings, state | {"sites": points[kept], "factor": factor})
        torch.testing.assert_close(others.score(latents[row, None])[0], scores[row], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(others.shape()(latents[row, None])[0], shapes[row], rtol=0, atol=1e-8)
    # a lone latent is not known by others, whatever rounding says
    lone = torch.cat([latents, torch.full((1, 2), 40.0, dtype=torch.float64)])
    far = GaussianProcess().fit(decoder, lone).held_out_scores(decoder, lone)
    assert torch.isfinite(far).all() and far.argmax() == 60


@pytest.mark.parametrize("seed", [0, 5, 7])
def test_a_repair_reckons_with_what_the_process_knows_in_the_void(seed):
    """It knows derivatives across gaps wider than what counts as near the data; little is then added there."""
    torch.manual_seed(seed)
    widths = ((1, 32), (32, 32), (32, 5))
    layers = [layer for width in widths for layer in (torch.nn.Linear(*width), torch.nn.Tanh())]
    decoder = Decoder(torch.nn.Sequential(*layers[:-1]).double(), latent_dim=1)
    with warnings.catch_warnings():
        # of a support a little smaller than the one asked for
        warnings.simplefilter("ignore", CalibrationWarning)
        repaired = pm.repair(decoder, _latents(200, 1, seed), uncertainty="gp")
    found = {line.name: line for line in repaired.audit(pairs=0).criteria}
    assert found["persistence"].passed and found["inflation"].passed and found["fidelity, 90th percentile"].passed


def test_in_many_dimensions_the_void_is_asked_in_parts_and_at_fewer_points(monkeypatch):
    """Shapes of 200 points at once, and their eigenvalues a dozen times, took minutes and gigabytes in d = 512."""
    assert len(gp._void(_latents(30, 64), seed=0)) == 200
    assert len(gp._void(_latents(30, 600), seed=0)) == 2**25 // 600**2
    decoder, latents = _decoder(20), _latents(60, 20)
    whole = GaussianProcess().fit(decoder, latents)
    asked = []

    def watched(points, sites, *others):
        asked.append(len(points) * sites.numel())
        return gp_shape.shape_at(points, sites, *others)

    monkeypatch.setattr(gp, "CHUNK", 2**15)
    monkeypatch.setattr(gp, "shape_at", watched)
    parts = GaussianProcess().fit(decoder, latents)
    assert max(asked) <= 2**15
    assert parts.length_scales == pytest.approx(whole.length_scales, rel=1e-6)


def test_what_is_left_out_is_left_out_with_its_copies():
    """Against a process without them, whose factor is found anew."""
    sites = _latents(12, 2)
    sites = torch.cat([sites, sites[:4], sites[:2]])
    noise, scale = 0.01, 0.7

    def factor(points):
        kernel = (-0.5 / scale**2 * gp_shape.squares(points, points).clamp_min(0)).exp()
        return torch.linalg.inv(torch.linalg.cholesky(kernel + noise * torch.eye(len(points), dtype=kernel.dtype)))

    left_out = gp_shape.LeftOut(sites, factor(sites), scale, noise)
    shares, shapes = left_out.shares(), left_out.shapes(len(sites))
    for row, site in enumerate(sites):
        others = sites[(sites != site).any(1)]
        root = factor(others)
        kernel = (-0.5 / scale**2 * gp_shape.squares(site[None], others)).exp()
        assert shares[row] == pytest.approx((1 - gp_shape.KEPT) * float((root @ kernel[0]).square().sum()), abs=1e-10)
        expected = gp_shape.shape_at(site[None], others, root, scale)[0]
        assert torch.allclose(shapes[row], expected, atol=1e-9)
