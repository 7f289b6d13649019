"""Start curves through every valley that may hold the geodesic, and curves of one pair that turn out to be the same."""

import pytest
import torch

import posthoc_metric as pm
from posthoc_metric.examples import digits, digits_vae
from posthoc_metric.geodesic.curves.contenders import contenders
from posthoc_metric.geodesic.curves.placement import Clock
from posthoc_metric.geodesic.curves.spline import interpolate
from posthoc_metric.geodesic.guard import guard
from posthoc_metric.geodesic.refinement.candidates import Curves, Facts, contest, rivals
from posthoc_metric.geodesic.relaxation.doubles import couples_of, doubles, parted_by_no_hill
from posthoc_metric.geodesic.relaxation.energy import CurveEnergy
from posthoc_metric.geodesic.relaxation.gauss_newton import relax
from posthoc_metric.geodesic.starts.make import make_starts
from posthoc_metric.metric import FunctionMetric


def gates(*heights):
    """A wall across the plane at x = 0 with narrow gates."""

    def tensor(z):
        wall = torch.exp(-(z[:, 0] ** 2) / 0.02)
        for height in heights:
            wall = wall * (1 - torch.exp(-((z[:, 1] - height) ** 2) / 0.09))
        return (1 + 400 * wall)[:, None, None] * torch.eye(2, dtype=z.dtype)

    return FunctionMetric(tensor, 2)


def crossings(metric, a, b, names=("straight", "grid")):
    """Heights at which the start curves of one pair cross x = 0, the shortest curve's first."""
    starts = make_starts(metric, guard(metric.parts()), a, b, None, names)
    starts = starts.take(starts.length.argsort())
    rows = starts.nodes[..., 0].abs().argmin(1)
    return starts.nodes[torch.arange(len(rows)), rows, 1].tolist()


A, B = torch.tensor([[-0.9, 0.05]]).double(), torch.tensor([[0.9, 0.05]]).double()


def test_a_way_through_every_gate_that_is_not_much_farther():
    found = crossings(gates(0.6, -0.6), A, B)
    assert any(abs(height - 0.6) < 0.1 for height in found) and any(abs(height + 0.6) < 0.1 for height in found)
    assert abs(found[0] - 0.6) < 0.1


def test_no_way_through_gates_that_are_far_off_and_none_beside_a_gate():
    found = crossings(gates(0.3, -0.9), A, B)
    assert len(found) == 1 and abs(found[0] - 0.3) < 0.1


def test_the_shorter_of_two_ways_whatever_the_grid_takes_for_it():
    metric = gates(0.6, -0.58)
    a, b = torch.tensor([[-0.9, 0.0], [0.9, 0.0]]).double(), torch.tensor([[0.9, 0.0], [-0.9, 0.0]]).double()
    solution = metric.geodesic(a, b)
    assert bool(solution.converged.all())
    assert bool((solution.points[:, 16, 1] < 0).all())
    # whichever gate a curve is sent through, only one of them is the shortest
    held = [gates(0.6).geodesic(a, b).length, gates(-0.58).geodesic(a, b).length]
    assert torch.allclose(solution.length, torch.minimum(*held), rtol=1e-3)


def test_the_way_back_is_as_long():
    module, encoder = digits_vae()
    data = digits().data
    latents = encoder(data).double()
    repaired = pm.repair(pm.Decoder(module), latents, data)
    # pairs whose ways there and back began in different valleys
    first, second = latents[[14, 14, 25, 16, 7, 24]], latents[[25, 22, 27, 17, 26, 31]]
    there, back = repaired.geodesic(first, second), repaired.geodesic(second, first)
    torch.testing.assert_close(there.length, back.length, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dim", [1, 3])
def test_other_dimensions_have_other_ways_or_none(dim):
    def tensor(z):
        hill = 60 * torch.exp(-z.square().sum(1) / 0.1)
        return (1 + hill)[:, None, None] * torch.eye(dim, dtype=z.dtype)

    metric = FunctionMetric(tensor, dim)
    a, b = torch.full((1, dim), -0.05).double(), torch.full((1, dim), -0.05).double()
    a[:, 0], b[:, 0] = -0.9, 0.9
    starts = make_starts(metric, guard(metric.parts()), a, b, None, ("straight", "grid"))
    assert len(starts.pair) >= 1 and bool(torch.isfinite(starts.nodes).all())
    assert bool(metric.geodesic(a, b).converged.all())


def test_no_curve_is_done_that_is_far_longer_than_its_discrete_counterpart():
    """Curves that settle beside a bend which they do not see are stationary, and their own length is confirmed."""
    centres = torch.rand(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1

    def tensor(z):
        hills = torch.exp(-torch.cdist(z, centres.to(z)).square() / 0.01).sum(1)
        return (1 + 10 * hills)[:, None, None] * torch.eye(2, dtype=z.dtype)

    metric = FunctionMetric(tensor, 2)
    a, b = torch.rand(2, 40, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    solution = metric.geodesic(a, b)
    energy = CurveEnergy(guard(metric.parts()), a)
    assert float(solution.converged.double().mean()) > 0.9
    for row in solution.converged.nonzero().flatten().tolist():
        spline, nodes = solution._spline.take(torch.tensor([row])), int(solution.spans[row]) + 1
        curve = spline.nodes[:, :nodes]
        found = energy.linearise(curve, energy.frame(curve, spline.knots[:, :nodes].diff(dim=1)))
        assert float(1 - found.energy.sqrt() / solution.length[row]) <= 3.1e-4


def test_one_curve_is_left_of_several_without_a_length():
    shapes = torch.rand(4, 9, 2, generator=torch.Generator().manual_seed(3))
    pair, nan = torch.tensor([0, 0, 1, 1]), float("nan")
    lengths, least = torch.tensor([nan, nan, 2.0, nan]), torch.tensor([nan, nan, 1.0, nan])
    assert contenders(pair, lengths, shapes, -1.0, least).tolist() == [True, False, True, False]
    # one that is within the margin, and can come to less than the shortest, or cannot
    lengths = torch.tensor([1.0, 1.01, 2.0, 2.02])
    least = torch.tensor([0.9, 0.99, 1.9, 2.01])
    assert contenders(pair, lengths, shapes, 0.05, least).tolist() == [True, True, True, False]


def test_a_quadrature_that_falls_short_of_the_chords_beats_no_other_curve():
    length, chords = torch.tensor([11.5, 11.7]).double(), torch.tensor([12.0, 11.7]).double()
    few, none, bends = torch.tensor([0.8, 0.0]).double(), torch.zeros(2).double(), torch.tensor([-0.5, 0.5])
    knots = torch.linspace(0, 1, 9).double().expand(2, -1)
    spline = interpolate(knots, torch.stack([knots, bends[:, None] * knots * (1 - knots)], dim=2))
    row = torch.arange(2)
    facts = Facts(length, length.square(), none, few, none, 0 * row, row, chords)
    clock = Clock(knots, knots)
    curves = Curves(0 * row, row, facts, spline, clock, knots[:, 1:], none, knots, none, row > 1)
    assert rivals(curves, 0.01).tolist() == [False, True]
    assert [kept.kind.tolist() for kept in contest([curves], None)] == [[1]]
    facts.chord_length[0] = 11.5
    assert rivals(curves, 0.01).tolist() == [True, False]


def test_couples_are_any_two_of_a_pair():
    pair = torch.tensor([3, 0, 3, 1, 3, 0])
    couples = {tuple(sorted(couple)) for couple in couples_of(pair).T.tolist()}
    assert couples == {(0, 2), (0, 4), (2, 4), (1, 5)}
    assert couples_of(pair[:0]).shape == (2, 0)


def test_of_two_curves_that_come_together_the_shorter_stays():
    flat = FunctionMetric(lambda z: torch.eye(2, dtype=z.dtype).expand(len(z), 2, 2), 2)
    knots = torch.linspace(0, 1, 9, dtype=torch.float64).expand(3, -1).contiguous()
    line = torch.stack([knots, torch.zeros_like(knots)], dim=2)
    bow = torch.sin(torch.pi * knots)[..., None] * torch.tensor([0.0, 1.0], dtype=torch.float64)
    nodes = line + bow * torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)[:, None, None]
    energy = CurveEnergy(flat.parts(), nodes.flatten(0, 1))
    pair = torch.tensor([0, 0, 1])
    found = relax(energy, nodes, knots, tol=1e-6, max_steps=20, pair=pair)
    assert found.doubled.tolist().count(True) == 1 and not bool(found.doubled[2])
    stays = ~found.doubled
    assert torch.allclose(found.energy[stays], torch.ones(2, dtype=torch.float64), atol=1e-9)
    apart = relax(energy, nodes, knots, tol=1e-6, max_steps=20)
    assert not bool(apart.doubled.any())
    assert doubles(nodes, found.energy, couples_of(pair)).numel() == 0


def test_every_pair_keeps_a_curve_when_all_of_its_curves_are_alike():
    pair = torch.zeros(5, dtype=torch.long)
    nodes = torch.linspace(0, 1, 9, dtype=torch.float64)[None, :, None].expand(5, 9, 2).clone()
    gone = doubles(nodes, torch.tensor([3.0, 1.0, 2.0, 1.0, float("nan")]).double(), couples_of(pair))
    assert set(gone.tolist()) < set(range(5)) and len(set(gone.tolist())) == 4


def test_curves_of_one_course_are_doubles_wherever_their_nodes_are():
    even = torch.linspace(0, 1, 17, dtype=torch.float64)
    knots = torch.stack([even, even + 0.02 * torch.sin(2 * torch.pi * even), even])
    nodes = torch.stack([knots, torch.sin(torch.pi * knots)], dim=2)
    nodes[2, :, 1] *= 1.05
    energy = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    assert float((nodes[1] - nodes[0]).norm(dim=-1).max()) > 0.02
    assert doubles(nodes, energy, couples_of(torch.zeros(3, dtype=torch.long))).tolist() == [1]


def heights_of(values):
    """Curves that run up to these heights and back."""
    knots = torch.linspace(0, 1, 9, dtype=torch.float64).expand(len(values), -1)
    bow = torch.sin(torch.pi * knots) * torch.tensor(values, dtype=torch.float64)[:, None]
    return torch.stack([knots, bow], dim=2), knots


def two_wells(nodes, h):
    """An energy that is least at heights of -1 and 1."""
    assert torch.allclose(h.sum(1), torch.ones(len(h), dtype=h.dtype))
    return 100 + (nodes[:, 4, 1].square() - 1).square()


def test_curves_far_apart_in_one_valley_are_told_from_those_with_a_hill_between():
    nodes, knots = heights_of([0.9, 1.2, -0.9, 5.0])
    energy = two_wells(nodes, knots.diff(dim=1))
    pair = torch.zeros(4, dtype=torch.long)
    gone, asked = parted_by_no_hill(two_wells, nodes, knots, energy, couples_of(pair))
    # the second is higher than the first; the third, as low, lies across the hill; the last is on another level
    assert set(gone.tolist()) == {1}
    assert 3 not in asked.tolist() and len(asked) == 3


def test_one_of_several_curves_of_equal_energy_in_one_valley_is_left():
    nodes, knots = heights_of([1.0, 1.0, 1.0])
    energy = two_wells(nodes, knots.diff(dim=1))
    energy = torch.cat([energy, energy.new_full((1,), float("nan"))])
    nodes, knots = torch.cat([nodes, nodes[:1]]), torch.cat([knots, knots[:1]])
    gone, _ = parted_by_no_hill(two_wells, nodes, knots, energy, couples_of(torch.zeros(4, dtype=torch.long)))
    assert sorted(set(gone.tolist())) == [1, 2]
