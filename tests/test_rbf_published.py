"""The published precision network: its formulae, its fit, its derivatives, its known defects."""

from __future__ import annotations

import pytest
import torch

from posthoc_metric.decoder import Decoder
from posthoc_metric.errors import FitError, InvalidArgumentError, NotFittedError
from posthoc_metric.metric import PullbackMetric
from posthoc_metric.smooth_map import StackedMap
from posthoc_metric.uncertainty.rbf_published import PublishedRBF


def _decoder(dim=2, outputs=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = torch.nn.Sequential(torch.nn.Linear(dim, 16), torch.nn.Tanh(), torch.nn.Linear(16, outputs)).double()
    for parameter in layers.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return Decoder(layers, latent_dim=dim)


def _problem(rows=600, dim=2, outputs=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    decoder = _decoder(dim, outputs, seed)
    latents = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    scale = 0.1 + 0.4 * latents[:, :1].abs()
    data = decoder(latents) + scale * torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    return decoder, latents, data


@pytest.fixture(scope="module")
def fitted():
    decoder, latents, data = _problem()
    return decoder, latents, data, PublishedRBF(count=12).fit(decoder, latents, data, seed=3)


def test_bandwidths_are_the_published_formula(fitted):
    _, latents, _, model = fitted
    state = model.state()
    labels = (latents[:, None] - state["centres"][None]).norm(dim=2).argmin(1)
    for k, centre in enumerate(state["centres"]):
        radius = (latents[labels == k] - centre).norm(dim=1).mean()
        assert torch.isclose(state["bandwidths"][k], 0.5 / (2.0 * radius) ** 2, rtol=1e-9)


def test_noise_is_the_published_formula(fitted):
    _, _, _, model = fitted
    state = model.state()
    assert (state["weights"] > 0).all()
    z = torch.randn(5, 2, dtype=torch.float64)
    square = (z[:, None] - state["centres"][None]).square().sum(-1)
    precision = torch.exp(-state["bandwidths"] * square) @ state["weights"].T + 1e-6
    assert torch.allclose(model.noise(z), precision**-0.5, rtol=1e-12)


def test_weights_reach_the_likelihood_of_a_general_optimiser(fitted):
    decoder, latents, data, model = fitted
    features, square = model.noise.features(latents), (data - decoder(latents)).square()
    logs = model.state()["weights"].T.log().contiguous().requires_grad_()
    solver = torch.optim.LBFGS([logs], max_iter=500, line_search_fn="strong_wolfe")

    def objective():
        solver.zero_grad()
        precision = features @ logs.exp() + 1e-6
        value = 0.5 * (precision * square - precision.log()).mean()
        value.backward()
        return value

    ours = float(objective().detach())
    solver.step(objective)
    assert model.likelihood[-1] == pytest.approx(ours, abs=1e-7)
    assert ours - float(objective().detach()) < 5e-4
    assert all(later <= earlier for earlier, later in zip(model.likelihood, model.likelihood[1:], strict=False))


def test_noise_follows_the_residuals():
    decoder, latents, data = _problem(rows=4000)
    noise = PublishedRBF(count=32).fit(decoder, latents, data).noise
    near = torch.tensor([[0.0, 0.0], [1.5, 0.0]], dtype=torch.float64)
    small, large = noise(near).mean(1)
    assert 0.1 < small < 0.35
    assert large == pytest.approx(0.1 + 0.4 * 1.5, rel=0.25)


def test_derivatives_agree_with_each_other_and_with_finite_differences(fitted):
    _, _, _, model = fitted
    generator = torch.Generator().manual_seed(1)
    z = 2 * torch.randn(7, 2, generator=generator, dtype=torch.float64)
    v = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    u = torch.randn(7, 6, generator=generator, dtype=torch.float64)
    value, jacobian = model.noise.value_and_jacobian(z)
    step = 1e-6
    numeric = (model.noise(z + step * v) - model.noise(z - step * v)) / (2 * step)
    pushed = torch.einsum("bij,bj->bi", jacobian, v)
    assert torch.allclose(pushed, numeric, rtol=1e-6, atol=1e-7 * float(pushed.abs().max()))
    assert torch.allclose(model.noise.jvp(z, v)[1], pushed, rtol=1e-10, atol=1e-10)
    assert torch.allclose(model.noise.vjp(z, u)[1], torch.einsum("bij,bi->bj", jacobian, u), rtol=1e-10, atol=1e-10)
    for other in (model.noise(z), model.noise.jvp(z, v)[0], model.noise.vjp(z, u)[0]):
        assert torch.equal(value, other)


def test_far_away_everything_is_finite_and_the_term_has_collapsed(fitted):
    _, _, _, model = fitted
    z = torch.tensor([[1e3, 0.0], [-1e8, 1e8]], dtype=torch.float64)
    value, jacobian = model.noise.value_and_jacobian(z)
    assert torch.equal(value, torch.full_like(value, 1e-6**-0.5))
    assert torch.equal(jacobian, torch.zeros_like(jacobian))


def test_stacked_with_the_decoder_shows_the_wall_and_the_collapse(fitted):
    decoder, latents, _, model = fitted
    metric = PullbackMetric(StackedMap([decoder, model.noise]))
    angle = torch.linspace(0, 6.28, 40, dtype=torch.float64)
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    volume = [float(metric.log_volume(radius * ring).median()) for radius in (1.0, 8.0, 60.0)]
    assert volume[1] > volume[0] + 2
    assert volume[2] < volume[0] - 2


def test_stacked_map_is_the_concatenation(fitted):
    decoder, latents, _, model = fitted
    both = StackedMap([decoder, model.noise])
    z, v = latents[:4], latents[4:8]
    u = torch.randn(4, 12, dtype=torch.float64)
    assert both.output_dim == 12
    assert torch.equal(both(z), torch.cat([decoder(z), model.noise(z)], dim=1))
    assert torch.equal(both.jvp(z, v)[1], torch.cat([decoder.jvp(z, v)[1], model.noise.jvp(z, v)[1]], dim=1))
    jacobian = both.value_and_jacobian(z)[1]
    assert torch.allclose(both.vjp(z, u)[1], torch.einsum("bij,bi->bj", jacobian, u), rtol=1e-10)
    assert both(z.numpy()).shape == (4, 12)
    with pytest.raises(InvalidArgumentError, match="same latent dimension"):
        StackedMap([decoder, _decoder(dim=3)])


def test_save_rebuild_and_seed_are_bit_equal(fitted):
    decoder, latents, data, model = fitted
    again = PublishedRBF(count=12).fit(decoder, latents, data, seed=3)
    rebuilt = PublishedRBF.from_state(model.settings(), model.state())
    assert torch.equal(model.noise(latents), again.noise(latents))
    assert torch.equal(model.noise(latents), rebuilt.noise(latents))


def test_float32_and_numpy_come_back_as_they_came(fitted):
    _, latents, _, model = fitted
    assert model.noise(latents[:3].float()).dtype == torch.float32
    assert model.noise.value_and_jacobian(latents[:3].numpy())[1].shape == (3, 6, 2)


@pytest.mark.parametrize("case", ["duplicates", "one cluster", "exact", "tiny far cluster"])
def test_awkward_data_fit(case):
    decoder, latents, data = _problem(rows=200)
    if case == "duplicates":
        latents = latents[:4].repeat(50, 1)
    if case == "one cluster":
        data, latents = data[:3], latents[:3]
    if case == "exact":
        data = decoder(latents)
    if case == "tiny far cluster":
        latents = torch.cat([latents, latents[:3] + 1e3])
        data = torch.cat([data, data[:3]])
    before = latents.clone(), data.clone()
    model = PublishedRBF().fit(decoder, latents, data)
    value, jacobian = model.noise.value_and_jacobian(latents)
    assert torch.isfinite(value).all() and torch.isfinite(jacobian).all() and (value > 0).all()
    assert torch.equal(before[0], latents) and torch.equal(before[1], data)


def test_many_rows_are_fitted_on_a_drawn_part():
    decoder, latents, data = _problem(rows=30_000, outputs=2)
    state = torch.random.get_rng_state()
    model = PublishedRBF(count=4).fit(decoder, latents, data.numpy(), seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    again = PublishedRBF(count=4).fit(decoder, latents, data, seed=1)
    assert torch.equal(model.noise(latents[:5]), again.noise(latents[:5]))


def test_guards():
    decoder, latents, data = _problem(rows=50)
    with pytest.raises(FitError, match="`data` must be given"):
        PublishedRBF().fit(decoder, latents)
    with pytest.raises(FitError, match="all rows coincide"):
        PublishedRBF().fit(decoder, latents[:1].repeat(50, 1), data)
    with pytest.raises(FitError, match="all rows are the same"):
        PublishedRBF().fit(decoder, latents, data[:1].repeat(50, 1))
    with pytest.raises(FitError, match="finite"):
        PublishedRBF().fit(decoder, latents, torch.where(data > 0.5, torch.inf, data))
    with pytest.raises(NotFittedError, match="fit"):
        PublishedRBF().noise  # noqa: B018
    with pytest.raises(InvalidArgumentError, match="`count`"):
        PublishedRBF(count=0)
    with pytest.raises(InvalidArgumentError, match="`width`"):
        PublishedRBF(width=-1)
