from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import posthoc_metric as pm
from posthoc_metric import geodesic_mixup
from posthoc_metric.errors import ConvergenceWarning, InvalidArgumentError, NumericalError


class Linear(nn.Module):
    """f(z) = A z: geodesics of its pullback are straight, and a decoded point tells where its latent was."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.a.T


@pytest.fixture(scope="module")
def metric() -> pm.PullbackMetric:
    return pm.PullbackMetric(pm.Decoder(Linear().double(), latent_dim=2))


@pytest.fixture
def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    latents = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return latents, torch.arange(12) % 3


def test_samples_lie_on_the_curves_with_labels_in_proportion(metric, labelled):
    # on a linear decoder a geodesic is straight and its speed constant, so position and label must agree exactly
    latents = torch.tensor([[0.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    mix = geodesic_mixup(metric, latents, torch.tensor([0, 1]), pairs=4, partners="other")
    x, y = mix.sample(200)
    assert x.dtype == torch.float64 and y.shape == (200, 2)
    torch.testing.assert_close(y.sum(1), torch.ones(200))
    torch.testing.assert_close(x[:, 0], y[:, 1].double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[:, 1], 6 * y[:, 1].double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("alpha, variance", [(1.0, 1 / 12), (0.2, 1 / 5.6)])
def test_positions_follow_the_beta_distribution(metric, alpha, variance):
    latents = torch.tensor([[0.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    mix = geodesic_mixup(metric, latents, torch.tensor([0, 1]), pairs=2, alpha=alpha, curve="straight")
    _, y = mix.sample(4000)
    # Var Beta(a, a) = 1 / (4 (2a + 1))
    assert float(y[:, 0].var()) == pytest.approx(variance, rel=0.06)


@pytest.mark.parametrize("partners", ["same", "other", "any"])
def test_partners(metric, labelled, partners):
    mix = geodesic_mixup(metric, *labelled, pairs=60, partners=partners, curve="straight")
    same = mix.start_labels.argmax(1) == mix.end_labels.argmax(1)
    assert not bool((mix.curves[:, 0] == mix.curves[:, -1]).all(1).any())
    expected = {"same": bool(same.all()), "other": not bool(same.any()), "any": 0 < int(same.sum()) < 60}
    assert expected[partners]


def test_batch_keeps_shape_dtype_and_the_rows_not_drawn(metric, labelled):
    latents, labels = labelled
    mix = geodesic_mixup(metric, latents, labels, share=0.25, curve="straight", num_classes=5)
    x, y = torch.randn(16, 1, 3), torch.randint(0, 5, (16,))
    before = x.clone()
    mixed, soft = mix(x, y)
    assert mixed.shape == x.shape and mixed.dtype == x.dtype and soft.shape == (16, 5)
    assert torch.equal(x, before)
    untouched = (mixed == x).flatten(1).all(1)
    assert int(untouched.sum()) == 12
    assert torch.equal(soft[untouched].argmax(1), y[untouched]) and bool((soft[untouched].amax(1) == 1).all())
    nn.functional.cross_entropy(torch.zeros(16, 5), soft)


def test_draws_differ_from_batch_to_batch_and_repeat_with_the_seed(metric, labelled):
    one, two = (geodesic_mixup(metric, *labelled, pairs=8, seed=3) for _ in range(2))
    assert torch.equal(one.sample(5)[0], two.sample(5)[0])
    assert not torch.equal(one.sample(5)[0], one.sample(5)[0])


class Drawn(torch.utils.data.Dataset):
    def __init__(self, mix):
        self.mix = mix

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.mix.sample(3)[0]


def test_workers_of_a_data_loader_draw_apart_in_every_epoch(metric, labelled):
    mix = geodesic_mixup(metric, *labelled, pairs=8, seed=3)

    def epochs():
        # what the loader draws for every epoch
        source = torch.Generator().manual_seed(5)
        loader = torch.utils.data.DataLoader(Drawn(mix), batch_size=2, num_workers=2, generator=source)
        return torch.cat([batch for _ in range(2) for batch in loader]).flatten(1)

    found = epochs()
    assert len(found.unique(dim=0)) == len(found) == 8
    assert torch.equal(epochs(), found)


def test_numpy_and_float32_come_in_soft_labels_too(metric, labelled):
    latents, labels = labelled
    soft = nn.functional.one_hot(labels, 3).float() * 0.9 + 0.1 / 3
    mix = geodesic_mixup(metric, latents.float().numpy(), soft.numpy(), pairs=6)
    torch.testing.assert_close(mix.start_labels.sum(1), torch.ones(6))


def test_the_global_random_state_is_left_alone(metric, labelled):
    state = torch.get_rng_state()
    geodesic_mixup(metric, *labelled, pairs=3).sample(4)
    assert torch.equal(state, torch.get_rng_state())


def test_a_pair_without_a_curve_is_left_out_and_said(labelled):
    latents, labels = labelled
    metric = pm.FunctionMetric(
        lambda z: torch.eye(2, dtype=z.dtype) * torch.where(z[:, :1, None] > 100, float("nan"), 1.0), 2
    )
    metric.decoder = pm.Decoder(Linear().double(), latent_dim=2)
    bad = latents.clone()
    bad[0] = 200.0
    with pytest.warns(ConvergenceWarning, match="left out"):
        mix = geodesic_mixup(metric, bad, labels, pairs=40)
    assert mix.dropped > 0 and len(mix.curves) == 40 - mix.dropped == len(mix.status)
    assert bool(torch.isfinite(mix.sample(100)[0]).all())
    with pytest.raises(NumericalError, match="none of the"):
        geodesic_mixup(metric, torch.full((4, 2), 200.0), torch.tensor([0, 0, 1, 1]), pairs=4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"curve": "spline"}, "`curve`"),
        ({"partners": "friends"}, "`partners`"),
        ({"pairs": 0}, "`pairs`"),
        ({"alpha": 0.0}, "`alpha`"),
        ({"share": 1.5}, "`share` is .* above 0 and at most 1, .*; got float"),
        ({"num_classes": 2}, "num_classes"),
        ({"labels": torch.arange(5)}, "`labels`"),
        ({"labels": torch.rand(12)}, "class indices"),
        ({"labels": [[1], [1, 2]] * 6}, "`labels` must be class indices.*one length"),
        ({"labels": torch.ones(12, dtype=torch.complex64)}, "class indices"),
        ({"labels": torch.eye(12).to_sparse()}, "class indices"),
        ({"labels": torch.full((12, 3), float("nan"))}, "`labels`.*not negative; rows 0, 1, 2.*probabilities"),
        ({"labels": np.full((12, 3), -0.1)}, "not negative"),
        ({"labels": np.full((12, 3), np.inf)}, "finite"),
        ({"pairs": 2.0}, "`pairs`"),
        ({"labels": torch.arange(12), "partners": "same"}, "partners"),
        ({"curve": "straight", "max_steps": 3}, "solver options"),
        ({"max_stepz": 3}, "max_stepz"),
    ],
)
def test_bad_arguments_are_named(metric, labelled, change, message):
    arguments = {"latents": labelled[0], "labels": labelled[1], **change}
    with pytest.raises(InvalidArgumentError, match=message):
        geodesic_mixup(metric, arguments.pop("latents"), arguments.pop("labels"), **arguments)


def test_a_metric_without_decoder_and_a_batch_of_the_wrong_size_are_refused(metric, labelled):
    plain = pm.FunctionMetric(lambda z: torch.eye(2, dtype=z.dtype).expand(len(z), 2, 2), 2)
    with pytest.raises(InvalidArgumentError, match="with a decoder"):
        geodesic_mixup(plain, *labelled)
    mix = geodesic_mixup(metric, *labelled, pairs=3, curve="straight")
    with pytest.raises(InvalidArgumentError, match="3 numbers"):
        mix(torch.zeros(4, 7), torch.zeros(4, dtype=torch.long))
    with pytest.raises(InvalidArgumentError, match="one label for each"):
        mix(torch.zeros(4, 3), torch.zeros(5, dtype=torch.long))
    with pytest.raises(InvalidArgumentError, match="`count`"):
        mix.sample(0)


class Holed(Linear):
    """As Linear, but without a value in a strip between the latents."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        strip = (z[:, :1] > 1.0) & (z[:, :1] < 2.0)
        return torch.where(strip, torch.nan, 1.0) * super().forward(z)


@pytest.fixture
def holed() -> tuple[pm.PullbackMetric, torch.Tensor, torch.Tensor]:
    """Two groups of latents, with a strip between them where the decoder gives NaN."""
    generator = torch.Generator().manual_seed(0)
    latents = 0.1 * torch.randn(24, 2, dtype=torch.float64, generator=generator)
    latents[12:, 0] += 3.0
    metric = pm.PullbackMetric(pm.Decoder(Holed().double(), latent_dim=2, probe=latents))
    return metric, latents, torch.arange(24) // 12


def test_straight_lines_that_cannot_be_decoded_are_left_out(holed):
    """They once stayed, and a sample in the middle of training raised."""
    metric, latents, labels = holed
    with pytest.warns(ConvergenceWarning, match=r"of 40 straight lines \d+ are not.*left out. Check the"):
        mix = geodesic_mixup(metric, latents, labels, pairs=40, curve="straight")
    assert mix.dropped > 0 and len(mix.curves) == 40 - mix.dropped and mix.status == ()
    assert bool((mix.start_labels.argmax(1) == mix.end_labels.argmax(1)).all())
    assert bool(torch.isfinite(mix.sample(500)[0]).all())
    with pytest.raises(NumericalError, match="none of the 5 pairs.*between them"):
        geodesic_mixup(metric, latents, labels, pairs=5, partners="other", curve="straight")


def test_curves_of_another_metric_that_cannot_be_decoded_are_left_out(holed):
    own = pm.FunctionMetric(lambda z: torch.eye(2, dtype=z.dtype).expand(len(z), 2, 2), 2)
    own.decoder = holed[0].decoder
    with pytest.warns(ConvergenceWarning, match=r"of 40 curves 0 did not converge.*, \d+ are not finite"):
        mix = geodesic_mixup(own, *holed[1:], pairs=40)
    assert mix.dropped > 0 and len(mix.curves) == 40 - mix.dropped == len(mix.status)
    assert bool(torch.isfinite(mix.sample(500)[0]).all())


def test_a_decoder_that_is_not_wrapped_is_refused(labelled):
    own = pm.FunctionMetric(lambda z: torch.eye(2, dtype=z.dtype).expand(len(z), 2, 2), 2)
    own.decoder = Linear()
    with pytest.raises(InvalidArgumentError, match="`metric.decoder` must be a wrapped.*got Linear.*Wrap it first"):
        geodesic_mixup(own, *labelled)
    own.decoder = pm.Decoder(nn.Linear(3, 3))
    with pytest.raises(InvalidArgumentError, match=r"`metric.decoder` must take latents of dimension 2.*it takes 3"):
        geodesic_mixup(own, *labelled)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_a_batch_of_whole_numbers_is_refused(metric, labelled, dtype):
    """Mixtures written into it were truncated, images from 0 to 1 to zeros."""
    mix = geodesic_mixup(metric, *labelled, pairs=3, curve="straight")
    with pytest.raises(InvalidArgumentError, match="`x` must be floating point.*Convert it first"):
        mix(torch.zeros(4, 3, dtype=dtype), torch.zeros(4, dtype=torch.long))


def test_one_hot_labels_of_whole_numbers_are_told_to_become_float(metric, labelled):
    latents, labels = labelled
    one_hot = nn.functional.one_hot(labels, 3)
    for given in (one_hot, one_hot.bool(), one_hot.numpy(), one_hot.tolist(), one_hot.bool().numpy()):
        with pytest.raises(InvalidArgumentError, match="`labels` must be class indices.*one-hot labels to float"):
            geodesic_mixup(metric, latents, given, pairs=3)
    assert len(geodesic_mixup(metric, latents, one_hot.float(), pairs=3, curve="straight").curves) == 3


def test_it_teaches_a_classifier_in_a_loop(metric, labelled):
    """Two classes apart in the latent space: trained on mixtures alone, a linear classifier tells them apart."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(40, 2, dtype=torch.float64, generator=generator) * 0.3
    labels = torch.arange(40) % 2
    latents[:, 0] += 2.0 * labels
    data = metric.decoder(latents).float()
    mix = geodesic_mixup(metric, latents, labels, pairs=30, share=1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        x, y = mix(data, labels)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((model(data).argmax(1) == labels).float().mean()) > 0.95


def test_an_empty_batch_stays_empty(metric, labelled):
    mix = geodesic_mixup(metric, *labelled, pairs=3, curve="straight")
    state = mix._draws.generator.bit_generator.state
    for y in (torch.zeros(0, dtype=torch.long), torch.zeros(0, 3)):
        x, soft = mix(torch.zeros(0, 3), y)
        assert x.shape == (0, 3) and soft.shape == (0, 3)
    assert mix(torch.zeros(0, 1, 3), torch.zeros(0, 3))[0].shape == (0, 1, 3)
    assert mix._draws.generator.bit_generator.state == state
    with pytest.raises(InvalidArgumentError, match="3 numbers"):
        mix(torch.zeros(0, 7), torch.zeros(0, dtype=torch.long))


def test_labels_of_a_batch_are_named_y(metric, labelled):
    mix = geodesic_mixup(metric, *labelled, pairs=3, curve="straight")
    for y, words in [
        (torch.tensor([[0.5, 0.5, float("nan")]] * 2), "`y`, being soft, must be finite and not negative; rows 0, 1"),
        (torch.tensor([[0.0, 0.0, 1.0], [1.5, 0.0, -0.5]]), "`y`.*not negative; row 1 "),
        (torch.tensor([0, 3]), "`y` must be class indices from 0 to 2"),
        (torch.zeros(2, 4), "`y`, being soft, must have 3 columns"),
    ]:
        with pytest.raises(InvalidArgumentError, match=words):
            mix(torch.zeros(2, 3), y)


def test_integers_and_labels_may_be_numpy_s(metric, labelled):
    latents, labels = labelled
    # backwards, as torch takes no array of negative strides
    mix = geodesic_mixup(metric, latents, labels.numpy()[::-1], pairs=np.int64(4), num_classes=np.int32(3))
    x, y = mix.sample(np.int64(5))
    assert len(mix.curves) == 4 and x.shape == (5, 3) and y.shape == (5, 3)
