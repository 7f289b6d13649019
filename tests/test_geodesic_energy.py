"""The discrete energy's derivatives, and what is done in single precision for decoders that know no more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import posthoc_metric as pm
from posthoc_metric.field_derivative import FieldDerivative
from posthoc_metric.geodesic.curves.elements import Model, chord_products, stiffness
from posthoc_metric.geodesic.curves.placement import make_clock, retimed
from posthoc_metric.geodesic.curves.quadrature import FIVE, confirm, measure
from posthoc_metric.geodesic.curves.spline import interpolate
from posthoc_metric.geodesic.relaxation.energy import CurveEnergy
from posthoc_metric.geodesic.relaxation.linearisation import Linearisation
from posthoc_metric.geodesic.relaxation.trust_region import step_in_region
from posthoc_metric.metric import FunctionMetric, MetricParts


class Bowl:
    """``w(z) = 1 + z₁² + z₁ z₂²``, with its derivatives."""

    def __call__(self, z: Tensor) -> Tensor:
        return 1 + z[:, 0] ** 2 + z[:, 0] * z[:, 1] ** 2

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self(z), torch.stack([2 * z[:, 0] + z[:, 1] ** 2, 2 * z[:, 0] * z[:, 1]], dim=1)

    def value_gradient_hessian(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hessian = torch.stack([torch.full_like(z[:, 0], 2.0), 2 * z[:, 1], 2 * z[:, 1], 2 * z[:, 0]], dim=1)
        return *self.value_and_gradient(z), hessian.view(-1, 2, 2)


def _curves(count: int, spans: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randn(count, spans + 1, 2, generator=generator, dtype=torch.float64).cumsum(1) / spans
    h = 0.5 + torch.rand(count, spans, generator=generator, dtype=torch.float64)
    return nodes, h / h.sum(1, keepdim=True)


def _decoder(dtype: torch.dtype) -> pm.Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 60))
    return pm.Decoder(module.to(dtype), latent_dim=2)


def _dense(model: Model) -> Tensor:
    """(P, n-1, d, n-1, d), column by column."""
    count, nodes, dim, _ = model.diagonal.shape
    units = torch.eye(nodes * dim, dtype=torch.float64).view(-1, nodes, dim)
    return torch.stack([model.times(unit.expand(count, -1, -1)) for unit in units], dim=-1).unflatten(-1, (nodes, dim))


def test_the_model_of_a_weight_with_second_derivatives_is_its_hessian():
    nodes, h = _curves(3, 8)
    energy = CurveEnergy(MetricParts(weight=Bowl()), nodes[:, 0])
    frame = energy.frame(nodes, h)
    here = energy.linearise(nodes, frame)
    step = 1e-6

    def gradient(moved: Tensor) -> Tensor:
        return energy.linearise(moved, frame).gradient

    columns = []
    for node in range(1, 8):
        for axis in range(2):
            push = torch.zeros_like(nodes)
            push[:, node, axis] = step
            columns.append((gradient(nodes + push) - gradient(nodes - push)) / (2 * step))
    exact = torch.stack(columns, dim=-1).unflatten(-1, (7, 2))
    torch.testing.assert_close(_dense(here.convex + here.rest), exact, rtol=1e-6, atol=1e-7 * float(exact.abs().max()))


def test_a_float32_decoder_is_worked_with_in_single_precision_and_no_other():
    assert CurveEnergy(MetricParts(_decoder(torch.float32)), torch.zeros(4, 2).double()).dtype == torch.float32
    assert CurveEnergy(MetricParts(_decoder(torch.float64)), torch.zeros(4, 2).double()).dtype == torch.float64


def test_single_precision_costs_no_more_than_the_decoders_own():
    nodes, h = _curves(3, 8)
    decoder = _decoder(torch.float32)
    narrow, wide = (CurveEnergy(MetricParts(decoder), nodes[:, 0]) for _ in range(2))
    wide.dtype = torch.float64
    single, double = (energy.linearise(nodes, energy.frame(nodes, h)) for energy in (narrow, wide))
    torch.testing.assert_close(single.energy, double.energy, rtol=1e-6, atol=0.0)
    scale = float(double.gradient.abs().max())
    torch.testing.assert_close(single.gradient, double.gradient, rtol=0.0, atol=3e-6 * scale)
    # conditions are squared in these: they are formed in double precision from the same Jacobians
    assert single.image is not None and double.image is not None
    torch.testing.assert_close(single.image.squares, double.image.squares, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("curvatures, far", [((1.0, 1.0), 1.0), ((0.5, -1.0), 2.0), ((-1.0, -1.0), 3.0)])
def test_a_step_says_whether_the_model_is_positive_definite_without_damping(curvatures, far):
    eye = torch.eye(2, dtype=torch.float64).expand(1, 3, 2, 2)
    none, near = (torch.zeros(1, k, 2, 2, dtype=torch.float64) for k in (0, 2))
    one = torch.ones(1, dtype=torch.float64)
    gradient = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 3, 2)
    here = Linearisation(
        torch.zeros(1, 5, 2, dtype=torch.float64),
        one,
        gradient,
        Model(eye.clone(), near.clone(), none.clone()),
        Model(torch.zeros_like(eye), near, none),
    )
    bent = torch.tensor(curvatures, dtype=torch.float64).diag().expand_as(eye)
    step, _, _ = step_in_region(
        here, Model(bent.clone(), near.clone(), none.clone()), eye.clone(), 100 * one, torch.zeros_like(one)
    )
    assert bool(step.bowl) == (min(curvatures) > 0)
    # where it is not, the way is the Gauss-Newton part's, and the model says how far: to its minimum, or three times
    torch.testing.assert_close(step.move, -far * gradient)
    torch.testing.assert_close(step.predicted, 3 * (far - curvatures[0] * far**2 / 2) * one)
    torch.testing.assert_close(step.size, 3**0.5 * far * one)


class Ridge:
    """``w(z) = 1 + 100 exp(-z₁² / 2s²)``, with its gradient."""

    width = 0.03

    def __call__(self, z: Tensor) -> Tensor:
        return 1 + 100 * torch.exp(-z[:, 0].square() / (2 * self.width**2))

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        slope = -(self(z) - 1) * z[:, 0] / self.width**2
        return self(z), torch.stack([slope, torch.zeros_like(slope)], dim=1)


@pytest.mark.parametrize("offset", [0.0, 0.02, 0.04, 0.0625])
def test_a_ridge_between_the_nodes_is_felt(offset):
    """A ridge less than half a span wide, across a straight curve, wherever it lies."""
    nodes = torch.zeros(1, 17, 2, dtype=torch.float64)
    nodes[0, :, 0] = torch.linspace(-1, 1, 17) + offset
    h = torch.full((1, 16), 1 / 16, dtype=torch.float64)
    energy = CurveEnergy(MetricParts(weight=Ridge()), nodes[0])
    found = float(energy.linearise(nodes, energy.frame(nodes, h)).energy)
    exact = 4 + 200 * Ridge.width * (2 * torch.pi) ** 0.5
    assert abs(found / exact - 1) < 0.1


def test_retimed_curves_lose_the_energy_that_uneven_speed_costs():
    """Of all timings of a curve constant speed has the least energy, the square of its length."""
    parts = MetricParts(weight=Bowl())
    knots = torch.linspace(0, 1, 33, dtype=torch.float64)[None]
    # at first slow, and standing still at the end
    way = (2 * knots - knots.square()) ** 2
    spline = interpolate(knots, torch.stack([way, 1 - way.square()], dim=2))
    measured = confirm(parts, spline, measure(parts, spline, None, FIVE)[0], FIVE)
    times = retimed(make_clock(spline, measured.squares.sqrt(), FIVE), knots)
    again = interpolate(times, spline.nodes)
    better = confirm(parts, again, measure(parts, again, None, FIVE)[0], FIVE)
    assert float(times[0, 0]) == 0 and float(times[0, -1]) == 1 and bool((times.diff(dim=1) > 0).all())
    torch.testing.assert_close(better.length, measured.length, rtol=1e-4, atol=0)
    lost, left = (part.energy / measured.length.square() - 1 for part in (measured, better))
    assert float(lost) > 0.2 and 0 <= float(left) < 0.05 * float(lost)


@pytest.mark.parametrize("even", [True, False])
def test_energy_and_flux_need_no_more_than_products_of_the_chords(even):
    _, h = _curves(5, 12)
    form = stiffness(torch.full_like(h, 1 / 12) if even else h)
    chords = torch.randn(5, 12, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    flux, products = form.flux(chords), chord_products(chords)
    torch.testing.assert_close(products[0], chords.square().sum(2))
    torch.testing.assert_close(form.energy(*products), (flux * chords).sum((1, 2)))
    torch.testing.assert_close(form.flux_square(*products), flux.square().sum((1, 2)))


def test_a_field_that_autograd_differentiates_once_but_not_twice():
    """``torch.cdist`` of few points has no second derivatives, and of many it has."""
    centres = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def hills(distance):
        def tensor(z):
            return (1 + 3 * torch.exp(-distance(z).square()).sum(1))[:, None, None] * torch.eye(3, dtype=z.dtype)

        return FunctionMetric(tensor, 3)

    once = hills(lambda z: torch.cdist(z, centres))
    twice = hills(lambda z: (z[:, None] - centres).norm(dim=-1))
    assert not FieldDerivative(once.tensor, centres[:4] + 0.1).twice
    assert FieldDerivative(twice.tensor, centres[:4] + 0.1).twice
    a, b = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for number in (1, 12):
        found, known = once.geodesic(a[:number], b[:number]), twice.geodesic(a[:number], b[:number])
        assert bool(found.converged.all())
        assert torch.allclose(found.length, known.length, rtol=6e-4)
