"""Geodesics in one dimension against integrals that are known, and SciPy's quadrature."""

import importlib
import math

import pytest
import torch
from family import relu_net
from scipy.integrate import simpson

from posthoc_metric import Decoder, PullbackMetric, repair
from posthoc_metric.geodesic import Status, exp, frechet_mean, geodesic, log, logarithm
from posthoc_metric.metric import FunctionMetric
from posthoc_metric.spaces import HalfPlane


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def metric_of(speed):
    """Under which a unit step at z is ``speed(z)`` long."""
    return FunctionMetric(lambda z: speed(z).square()[:, :, None], 1)


@pytest.mark.parametrize(
    ("speed", "primitive"),
    [
        (lambda z: z.abs(), lambda z: z * z.abs() / 2),
        (lambda z: z.exp(), lambda z: z.exp()),
        (
            lambda z: 1 + 99 * torch.sigmoid((z - 1) / 1e-3),
            lambda z: z + 0.099 * torch.nn.functional.softplus((z - 1) / 1e-3),
        ),
        (lambda z: torch.zeros_like(z), lambda z: torch.zeros_like(z)),
    ],
    ids=["zero on the way", "smooth", "wall", "nothing"],
)
def test_lengths_and_times_are_those_of_the_integral(speed, primitive):
    metric = metric_of(speed)
    a, b = column(-1.0, 2.0, 0.3, 0.5), column(3.0, -0.7, 0.3, 0.51)
    found = metric.geodesic(a, b)
    run = (primitive(b) - primitive(a))[:, 0]
    assert found.converged.all()
    torch.testing.assert_close(found.length, run.abs(), rtol=3e-4, atol=1e-12)
    assert ((found.length - run.abs()).abs() <= found.length_error + 1e-12).all()
    torch.testing.assert_close(found.energy, found.length.square())
    torch.testing.assert_close(found(0.0), a)
    torch.testing.assert_close(found(1.0), b)
    # at constant speed: a quarter of the time is a quarter of the length
    quarter = (primitive(found(0.25)) - primitive(a))[:, 0]
    torch.testing.assert_close(quarter, run / 4, rtol=2e-3, atol=1e-12)


def pole(power):
    """Of ``M = |z|^-power``: the speed and its integral, of which rules of quadrature converge slowly at zero."""
    left = 1 - power / 2
    return lambda z: z.abs() ** (-power / 2), lambda z: z.sign() * z.abs() ** left / left


def wave(often):
    return lambda z: 2 + torch.sin(often * z), lambda z: 2 * z - torch.cos(often * z) / often


def cusps(often):
    """Of ``M = 1 + sin(often z)``, whose speed is ``sqrt(2) |cos(x)|`` with ``x = often z / 2 - pi / 4``."""

    def primitive(z):
        x = often * z / 2 - math.pi / 4
        turns = torch.floor(x / math.pi + 0.5)
        return 2**1.5 / often * (2 * turns + torch.sin(x - turns * math.pi))

    return lambda z: (1 + torch.sin(often * z)).clamp_min(0).sqrt(), primitive


@pytest.mark.parametrize(
    ("family", "value", "sure"),
    [
        (pole, 0.5, 1.0),
        (pole, 0.9, 1.0),
        (pole, 1.5, 0.9),
        (wave, 1e3, 0.5),
        (wave, 1e4, 0.0),
        (cusps, 30, 1.0),
        (cusps, 1e3, 0.1),
    ],
)
def test_no_length_is_sure_that_is_off_by_much_more_than_its_error(family, value, sure):
    speed, primitive = family(value)
    a, b = torch.randn(2, 200, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = metric_of(speed).geodesic(a, b)
    exact = (primitive(b) - primitive(a)).abs()[:, 0]
    off = (found.length - exact).abs()[found.converged]
    assert (off <= 3 * found.length_error[found.converged] + 1e-9).all()
    assert (off <= 1e-3 * exact[found.converged]).all()
    assert float(found.converged.double().mean()) >= sure


class Saturating(torch.nn.Module):
    """A decoder whose outputs switch between zero and one within a tiny share of the way."""

    def __init__(self, gain):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last, self.gain = torch.nn.Linear(1, 32).double(), torch.nn.Linear(32, 20).double(), gain
        for layer, scale in ((self.first, 1.0), (self.last, 0.3)):
            for parameter in layer.parameters():
                parameter.data = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, z):
        return torch.sigmoid(self.gain * self.last(torch.tanh(3 * self.first(z))))


class Swinging(torch.nn.Module):
    """Every first span of a dyadic cut holds whole periods, and every point of it the same value."""

    def forward(self, z):
        return torch.cat([z, torch.sin(512 * math.pi * z)], dim=1)


@pytest.mark.parametrize(
    ("module", "sure"), [(Saturating(200), 1.0), (Saturating(1e3), 1.0), (Saturating(5e3), 1.0), (Swinging(), 0.0)]
)
def test_no_length_is_sure_that_falls_short_of_chords(module, sure):
    a, b = torch.randn(2, 40, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a[0], b[0] = 0.0, 1.0
    found = PullbackMetric(Decoder(module, latent_dim=1)).geodesic(a, b)
    times = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        chords = [module(p + times * (q - p)).diff(dim=0).norm(dim=1).sum() for p, q in zip(a, b, strict=True)]
    short = torch.stack(chords) - found.length
    assert (short <= 3 * found.length_error + 1e-9)[found.converged].all()
    assert float(found.converged.double().mean()) >= sure


def test_a_way_and_its_reverse_are_as_long():
    speed, _ = wave(300)
    a, b = torch.randn(2, 20, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    metric = metric_of(speed)
    torch.testing.assert_close(metric.geodesic(a, b).length, metric.geodesic(b, a).length, rtol=1e-9, atol=0)


def test_a_repaired_decoder_far_from_its_data_is_scipys_integral():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 20)).double()
    decoder = Decoder(module, latent_dim=1)
    latents = torch.randn(300, 1).double()
    repaired = repair(decoder, latents, decoder(latents))
    a, b = column(0.1, -20.0, 15.0), column(1.0, 30.0, -0.3)
    found = repaired.geodesic(a, b)
    assert found.converged.all() and (found.spans <= 256).all()

    times = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:, None]
    for start, end, length in zip(a, b, found.length.tolist(), strict=True):
        speeds = repaired.norm(start + times * (end - start), (end - start).expand(len(times), 1))
        assert abs(length / simpson(speeds.numpy(), dx=1 / 200_000) - 1) < 5e-4
    velocity = log(repaired, a[:1], b[:1])
    torch.testing.assert_close(exp(repaired, a[:1], velocity), b[:1], rtol=0, atol=1e-5)


def test_a_pair_alone_has_the_bits_it_has_in_a_batch_and_a_bad_one_spoils_none():
    metric = metric_of(lambda z: torch.where(z > 2.5, torch.nan, z.abs() + 0.1))
    a, b = column(-1.0, 0.0, 1.0, 2.0), column(1.0, 3.0, -2.0, 2.0)
    found = metric.geodesic(a, b)
    assert [status.name for status in found.status] == ["CONVERGED", "NOT_FINITE", "CONVERGED", "CONVERGED"]
    assert torch.isnan(found.length[1]) and torch.isnan(found.points[1]).all()
    for row in (0, 2, 3):
        alone = metric.geodesic(a[row : row + 1], b[row : row + 1])
        assert alone.length.equal(found.length[row : row + 1])
        assert alone.points.equal(found.points[row : row + 1])


def test_kinks_are_measured_by_chords_and_spans_are_not_exceeded():
    torch.manual_seed(0)
    decoder = Decoder(relu_net(1).double(), latent_dim=1)
    metric = PullbackMetric(decoder)
    a, b = torch.randn(10, 1).double(), 3 * torch.randn(10, 1).double()
    found = metric.geodesic(a, b)
    times = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None]
    exact = torch.stack([decoder(p + times * (q - p)).diff(dim=0).norm(dim=1).sum() for p, q in zip(a, b, strict=True)])
    assert found.converged.all()
    torch.testing.assert_close(found.length, exact, rtol=1e-3, atol=0)
    few = metric.geodesic(a, b, rtol=1e-12, rough_rtol=1e-12, max_spans=16)
    assert (few.spans <= 16).all() and set(few.status) == {Status.UNRESOLVED}
    assert logarithm(metric, a, b).converged.all()


def test_the_metric_is_asked_as_often_as_is_said():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 9)).double()
    decoder = Decoder(module, latent_dim=1)
    a, b = torch.randn(16, 1).double(), torch.randn(16, 1).double()
    with decoder.counting() as work:
        found = geodesic(PullbackMetric(decoder), a, b)
    assert work.jvps == int(found.evaluations.sum())


def relu_on_a_line():
    torch.manual_seed(1)
    layers = [torch.nn.Linear(1, 64), torch.nn.ReLU(), torch.nn.Linear(64, 20)]
    module = torch.nn.Sequential(*layers).double()
    for parameter in module.parameters():
        parameter.data *= 2
    kinks = (-module[0].bias / module[0].weight[:, 0]).detach()

    def length(a, b):
        between = kinks[(kinks > min(a, b)) & (kinks < max(a, b))]
        at = torch.cat([torch.tensor([a, b], dtype=torch.float64), between]).sort().values[:, None]
        with torch.no_grad():
            return float(module(at).diff(dim=0).norm(dim=1).sum())

    return PullbackMetric(Decoder(module, latent_dim=1)), length


def test_errors_across_kinks_are_exceeded_by_few():
    metric, length = relu_on_a_line()
    z = torch.randn(24, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    i, j = torch.triu_indices(24, 24, 1)
    found = metric.geodesic(z[i], z[j])
    exact = torch.tensor([length(*pair) for pair in zip(z[i, 0].tolist(), z[j, 0].tolist(), strict=True)]).double()
    off = (found.length - exact).abs()
    assert found.converged.all() and (off < 3e-4 * exact).all()
    assert float((off > found.length_error + 1e-9 * exact).double().mean()) < 0.1


def test_the_mean_is_where_lengths_are_on_average_kinks_or_none():
    metric, length = relu_on_a_line()
    z = torch.randn(15, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    first = float(z.min())
    found = frechet_mean(metric, z)
    run = torch.tensor([length(first, point) for point in z[:, 0].tolist()]).double()
    assert found.converged and found.steps <= 2
    assert abs(length(first, float(found.point)) - float(run.mean())) < 2e-3 * float(run.std())
    assert found.variance == pytest.approx(float(run.var(correction=0)), rel=1e-3)
    far = frechet_mean(metric, z, start=[float(z.max())])
    assert far.converged and 1 <= far.steps < 30
    torch.testing.assert_close(far.point, found.point, rtol=0, atol=1e-2)


@pytest.mark.parametrize("start", [None, [1e3]])
def test_a_mean_stays_where_there_is_a_metric(start):
    """Steps as long as the slope said led from 1000 to -8210, where there is none, with a variance of zero."""
    z = torch.tensor([[1e-6], [1.0], [1e3]], dtype=torch.float64)
    found = frechet_mean(HalfPlane(1), z, start=start)
    assert found.converged and float(found.point) == pytest.approx(0.1, rel=1e-3)
    assert found.variance == pytest.approx(float(z.log().var(correction=0)), rel=1e-4)


@pytest.mark.parametrize("weights", [None, [0.0, 1.0, 1.0]])
def test_a_point_that_cannot_be_reached_does_not_move_the_mean(weights):
    found = frechet_mean(HalfPlane(1), torch.tensor([[-5.0], [1.0], [4.0]]).double(), weights=weights)
    assert not found.converged and math.isnan(float(found.distances[0]))
    assert float(found.point) == pytest.approx(2.0, rel=1e-3)


def test_the_logarithm_takes_no_shots(monkeypatch):
    metric, _ = relu_on_a_line()
    a, b = torch.randn(5, 1).double(), torch.randn(5, 1).double()
    monkeypatch.setattr(importlib.import_module("posthoc_metric.geodesic.maps.logarithm"), "integrate", None)
    found = logarithm(metric, a, b)
    assert found.converged.all() and (found.error < 1e-3).all()
    assert ((found.velocities > 0) == (b > a)).all()


@pytest.mark.parametrize(
    "speed",
    [
        lambda z: z.abs(),
        lambda z: 1 + 100 * torch.exp(-((z - 0.3) ** 2) * 1e4),
        lambda z: torch.where(z > 0.123, 10.0, 1.0).to(z),
    ],
    ids=["zero on the way", "ridge", "jump"],
)
def test_gradients_by_the_ends_are_the_speeds_there(speed):
    """Averages over the way were off by a tenth at a zero, by a fifth at a ridge and by a factor at a jump."""
    a, b = column(-1.5, 1.2, 0.5).requires_grad_(), column(1.7, -0.4, 0.5).requires_grad_()
    length = metric_of(speed).geodesic(a, b).length
    by_start, by_end = torch.autograd.grad(length, (a, b), torch.ones_like(length))
    ahead = (b - a).sign()
    torch.testing.assert_close(by_start, -ahead * speed(a))
    torch.testing.assert_close(by_end, ahead * speed(b))
