from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from family import gan, mlp, vae

import posthoc_metric as pm
from posthoc_metric.diagnostics import share_off_data, shells
from posthoc_metric.diagnostics.criteria import at_most, faithfulness_criteria, shell_criteria
from posthoc_metric.diagnostics.faithfulness import Faithfulness, Followed, connected_pairs
from posthoc_metric.diagnostics.smoothness import smoothness
from posthoc_metric.repair import RepairedMetric
from posthoc_metric.smooth_map import condition_numbers
from posthoc_metric.support import Support
from posthoc_metric.uncertainty.volumes import largest_fall


def wrap(member):
    return pm.Decoder(member.decoder, latent_dim=member.latents.shape[1])


@pytest.fixture(scope="module")
def repaired():
    member = vae(2)
    return pm.repair(wrap(member), member.latents, member.data)


@pytest.fixture(scope="module")
def audit(repaired):
    return repaired.audit(pairs=10)


def roughness(tensor, derivative, radius):
    values, vectors = torch.linalg.eigh(tensor)
    return smoothness(values, vectors.mT @ derivative @ vectors, radius)


def criterion(audit, name):
    (found,) = [line for line in audit.criteria if line.name == name]
    return found


def test_the_default_repair_passes(audit):
    assert audit.passed, str(audit)
    assert all(line.passed is not None for line in audit.criteria), str(audit)


def test_the_unrepaired_decoder_would_fail(audit):
    for name in ("inflation", "persistence", "conditioning in the void"):
        line = criterion(audit, name)
        before = line.before
        assert not (before <= line.bound if line.relation == "at most" else before >= line.bound)


def test_the_published_repair_fails_and_shows_its_wall_and_collapse():
    member = vae(2)
    published = pm.repair(wrap(member), member.latents, member.data, uncertainty="rbf-published")
    found = published.audit(pairs=0)
    assert criterion(found, "faithfulness").reason == "no pairs were to be followed"
    assert not found.passed
    assert criterion(found, "persistence").passed is False
    assert criterion(found, "conditioning in the void").passed is False
    volume = [row.metrics["repaired"].log_volume_q50 for row in found.shells if row.name != "gaps"]
    assert max(volume[1:5]) > volume[0] + 1, "no wall"
    assert volume[-1] < volume[0] - 1, "no collapse"
    condition = [row.metrics["repaired"].condition_number_q95 for row in found.shells]
    assert max(condition) > 10 * condition[0], "the wall is not of rank one"


def test_a_loose_condition_number_fails():
    member = gan(64, conv=True)
    loose = pm.repair(wrap(member), member.latents, max_condition_number=1e7)
    assert criterion(loose.audit(pairs=0, points=40), "conditioning near the data").passed is False


def changed(repaired, **numbers):
    """The same repair with other numbers in its gate."""
    gate = replace(repaired.gate, **numbers)
    parts = (repaired.decoder_metric, repaired.model, gate, repaired.geometry, repaired.knobs)
    return RepairedMetric(*parts, repaired.data)


def test_a_support_that_is_too_small_fails(repaired):
    known = repaired.model.score(repaired.geometry.calibration)
    narrow = changed(repaired, knee=float(known.quantile(0.3)))
    assert criterion(narrow.audit(pairs=0, baseline=False), "fidelity, 90th percentile").passed is False


class LosesADirection(torch.nn.Module):
    """The second latent all but vanishes from the output, except where the first exceeds ``edge``."""

    def __init__(self, edge: float):
        super().__init__()
        self.edge = edge

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        scale = 1e-5 + torch.sigmoid(40 * (z[:, :1] - self.edge))
        return torch.cat([z[:, :1], 1e-3 * torch.sin(z[:, :1]), scale * z[:, 1:]], dim=1)


@pytest.mark.parametrize(("edge", "judged"), [(1.5, True), (2.6, False)])
def test_fidelity_looks_at_more_latents_where_few_are_well_conditioned(edge, judged):
    latents = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = pm.repair(pm.Decoder(LosesADirection(edge), latent_dim=2), latents)
    conditions = found.decoder_metric.condition_number(found.geometry.audit)
    first = int((conditions[:200] <= 1e3).sum())
    assert 0 < first < (50 if judged else 20)
    line = criterion(found.audit(pairs=0), "fidelity, median")
    assert (line.passed is not None) == judged
    if judged:
        within = torch.cumsum(conditions <= 1e3, 0)[199::200].tolist()
        enough = next(index for index, count in enumerate(within) if count >= 50)
        assert enough > 0 and f" {within[enough]} of {200 * (enough + 1)} " in line.description
    else:
        assert f"at {int((conditions <= 1e3).sum())} of {len(conditions)} latents" in line.reason


def test_an_inflation_that_was_not_delivered_fails(repaired):
    weak = changed(repaired, ceiling=repaired.gate.ceiling / 10)
    assert criterion(weak.audit(pairs=0, baseline=False), "inflation").passed is False


def test_a_support_that_is_too_large_fails(repaired):
    wide = changed(repaired, knee=repaired.gate.knee + repaired.geometry.radius)
    found = wide.audit(pairs=0, baseline=False)
    assert criterion(found, "persistence").passed is False


def test_smoothness_of_an_exponential_metric_is_its_rate():
    z = torch.linspace(-1, 1, 9, dtype=torch.float64)
    tensor = torch.exp(3 * z)[:, None, None] * torch.eye(2, dtype=torch.float64)
    found = roughness(tensor, 3 * tensor, radius=2.0)
    torch.testing.assert_close(found, torch.full_like(found, 2 * 3 * math.sqrt(2)))


def test_derivatives_by_several_steps_cost_one_decomposition(repaired, monkeypatch):
    whole, eigh = [], torch.linalg.eigh

    def counting(matrices):
        whole.append(len(matrices))
        return eigh(matrices)

    monkeypatch.setattr(torch.linalg, "eigh", counting)
    rows = repaired.audit(pairs=0, points=6, baseline=False).shells
    assert sum(whole) <= 2 * 3 * len(rows) + 2
    z = rows[0].shell.points
    both = torch.stack([repaired.tensor(z), -3 * repaired.tensor(z)])
    found = roughness(repaired.tensor(z), both, 2.0)
    torch.testing.assert_close(found, torch.stack([roughness(repaired.tensor(z), change, 2.0) for change in both]))


def test_a_multiple_of_the_identity_is_measured_as_its_matrices_are(repaired, audit, monkeypatch):
    # the package has a function of the module's name
    module = sys.modules["posthoc_metric.diagnostics.audit"]
    assert module._added(repaired) is repaired.parts().weight
    monkeypatch.setattr(module, "_added", lambda found: found.added)
    for row, other in zip(repaired.audit(pairs=0).shells, audit.shells, strict=True):
        assert row.metrics["decoder"] == other.metrics["decoder"]
        expected = other.metrics["repaired"].as_dict()
        assert row.metrics["repaired"].as_dict() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_roughness_is_no_matter_of_the_kinks_a_step_happens_to_cross():
    """ReLU layers of no full rank: almost everywhere the decoder's metric does not change at all."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        latents = torch.randn(200, 50)
        decoder = pm.Decoder(mlp([50, 64, 64, 50], torch.nn.ReLU), latent_dim=50)
    found = pm.repair(decoder, latents)
    row = found.audit(pairs=0, points=60).shells[0]
    z, step = row.shell.points, 1e-7
    u = torch.nn.functional.normalize(torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z), dim=1)
    change = (found.tensor(z + step * u) - found.tensor(z - step * u)) / (2 * step)
    exact = roughness(found.tensor(z), change, found.geometry.radius).quantile(0.95)
    assert row.metrics["repaired"].smoothness_q95 <= 10 * float(exact) + 10
    jumps = (found.tensor(z + 0.1 * u) - found.tensor(z - 0.1 * u)) / 0.2
    assert float(roughness(found.tensor(z), jumps, found.geometry.radius).quantile(0.95)) > 1e3 * float(exact)


def test_statistics_are_those_of_the_metric(repaired, audit):
    row = audit.shells[0]
    values = repaired.eigenvalues(row.shell.points)
    expected = float(torch.quantile(values[:, 0], 0.05, interpolation="lower"))
    assert row.metrics["repaired"].smallest_eigenvalue_q05 == pytest.approx(expected, rel=1e-6)


def test_held_out_points_are_new_to_model_and_calibration(repaired):
    (data, *_) = shells(repaired.geometry, 10_000)
    seen = torch.cat([repaired.geometry.training, repaired.geometry.calibration])
    assert not (data.points[:, None] == seen[None]).all(-1).any()


def test_share_off_data_counts_what_lies_outside():
    support = Support(torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)))
    curve = torch.stack([torch.linspace(0, 3, 301), torch.full((301,), 0.5)], 1)[None].double()
    expected = (2 - support.spread) / 3
    assert float(share_off_data(curve, support)[0]) == pytest.approx(expected, abs=0.02)


def test_pairs_are_drawn_only_where_the_data_connect_them():
    generator = torch.Generator().manual_seed(0)
    sides = torch.cat([torch.randn(400, 2, generator=generator) * 0.3 + shift for shift in (-5, 5)])
    start, end = connected_pairs(Support(sides), 40)
    assert len(start) == 40
    assert torch.equal(start[:, 0] > 0, end[:, 0] > 0)


def test_the_error_of_the_edge_is_that_of_the_pairs_differences(repaired, audit):
    start, end = connected_pairs(repaired.geometry, 10)
    before, after = (
        share_off_data(pm.geodesic(metric, start, end, rough_rtol=5e-3).points, repaired.geometry)
        for metric in (repaired.decoder_metric, repaired)
    )
    found = audit.faithfulness
    assert found.after.off_data - found.before.off_data == pytest.approx(float((after - before).mean()), abs=1e-12)
    assert found.error == pytest.approx(float((after - before).numpy().std(ddof=1)) / math.sqrt(10), rel=1e-9)
    assert repaired.audit(pairs=1).faithfulness.error == 0


@pytest.mark.parametrize(
    ("after", "error", "passed"),
    [(0.12, 0.0, False), (0.12, 0.01, True), (0.13, 0.01, False), (0.1049, 0.0, True), (math.nan, 0.01, False)],
)
def test_an_edge_passes_that_the_draw_of_pairs_explains(after, error, passed):
    before, after = (Followed(off_data=share, far=0.0, converged=1.0) for share in (0.1, after))
    found = Faithfulness(straight=before, before=before, after=after, pairs=10, error=error)
    assert [line.passed for line in faithfulness_criteria(found, asked=1)] == [True, passed]


@pytest.mark.parametrize(("values", "fall"), [([0, 1, 2], 0), ([0, 3, 1, 2], 2), ([1, -math.inf], math.inf)])
def test_largest_fall(values, fall):
    assert largest_fall([float(value) for value in values]) == fall


def test_nan_does_not_pass():
    assert at_most("x", "", {"repaired": math.nan}, 1.0).passed is False


def test_nan_on_a_farther_shell_does_not_pass(repaired, audit):
    """A model may have no score at few points, which an audit meets and the calibration did not."""
    for place in (2, 5):
        row = audit.shells[place]
        lost = replace(
            row.metrics["repaired"],
            log_volume_q50=math.nan,
            smallest_eigenvalue_q05=math.nan,
            condition_number_q95=math.nan,
            smoothness_q95=math.nan,
        )
        rows = list(audit.shells)
        rows[place] = replace(row, metrics={**row.metrics, "repaired": lost})
        found = shell_criteria(rows, inflation=10.0, condition=1e3, no_baseline="", walls=())
        failed = {line.name for line in found if line.passed is False}
        where = {"inflation", "conditioning in the void"} if row.shell.is_void else {"conditioning near the data"}
        assert failed == {"persistence", "smoothness"} | where


def test_as_dict_is_json_with_the_same_numbers(audit):
    again = json.loads(json.dumps(audit.as_dict()))
    assert again["passed"] == audit.passed
    assert again["criteria"][0]["after"] == audit.criteria[0].after
    assert str(audit).startswith("repair audit: passed")


def test_a_lost_direction_has_an_infinite_condition_number():
    # beside 0/0 and a large number: not the largest number there is either
    values = torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 4.0]], dtype=torch.float64)
    assert condition_numbers(values).tolist() == [math.inf, math.inf, 2.0]
    net = mlp([1, 16, 5], torch.nn.Tanh).double()
    latents = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = pm.repair(pm.Decoder(lambda z: net(z[:, 1:]), latent_dim=2), latents).audit(pairs=0)
    near = criterion(found, "conditioning near the data")
    assert near.before == math.inf and near.after <= 1e3
    assert "inf ->" in str(found)
    found.plot()


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_smoothness_is_not_judged_by_a_baseline_that_had_no_residuals_to_fit(shift):
    """Its peak is then one of rounding: anything between a half and a hundred times that of the repair."""
    with torch.random.fork_rng():
        torch.manual_seed(111)
        net = mlp([3, 32, 32, 20], torch.nn.ELU)
    latents = torch.randn(400, 3, generator=torch.Generator().manual_seed(211), dtype=torch.float64)
    decoder = pm.Decoder(lambda z: net(z) + shift, latent_dim=3)
    data = decoder(latents)
    found = pm.repair(decoder, latents, data).audit(pairs=0)
    line = criterion(found, "smoothness")
    assert line.passed is None and "no residuals" in line.reason and found.passed
    assert math.isfinite(line.published) and math.isfinite(line.after)
    # residuals well above the rounding of the data are real, and so are those of one output among many
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spread = (1e-1 if shift else 1e-3) * data.std(0).mean()
    one = torch.zeros(20, dtype=torch.float64)
    one[3] = 1.0
    for real in (noise, noise * one):
        line = criterion(pm.repair(decoder, latents, data + spread * real).audit(pairs=0), "smoothness")
        assert line.passed is not None and line.bound == line.published


@pytest.mark.parametrize("unit", [1e2, 1e3, 1e4])
def test_smoothness_is_not_judged_by_a_baseline_without_a_wall(unit):
    """Data on another scale than the outputs leave residuals as large as the noise that it has in the void."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = mlp([2, 64, 20], torch.nn.Tanh).double()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(500, 2, generator=generator, dtype=torch.float64)
    decoder = pm.Decoder(lambda z: unit * net(z), latent_dim=2)
    data = decoder(latents) / unit
    data = data + 0.1 * data.std() * torch.randn(data.shape, generator=generator, dtype=torch.float64)
    found = pm.repair(decoder, latents, data).audit(pairs=0)
    line = criterion(found, "smoothness")
    assert line.passed is None and "standard deviations" in line.reason
    assert found.passed, str(found)


def audit_of_noisy(unit):
    """With the same noise everywhere, of a decoder of ten dimensions."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = mlp([10, 64, 64, 30], torch.nn.Tanh).double()
    generator = torch.Generator().manual_seed(16)
    latents = torch.randn(800, 10, generator=generator, dtype=torch.float64)
    decoder = pm.Decoder(lambda z: unit * net(z), latent_dim=10)
    outputs = decoder(latents)
    noise = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    return pm.repair(decoder, latents, outputs + 0.2 * outputs.std() * noise).audit(pairs=0)


def test_the_peak_of_the_published_wall_is_no_matter_of_units_and_of_where_shells_lie():
    """It may be thinner than they are apart, and the repair, smoother than it, would be told that it is not."""
    found = audit_of_noisy(1.0)
    line = criterion(found, "smoothness")
    assert max(row.metrics["rbf-published"].smoothness_q95 for row in found.shells) < line.after
    assert line.after < line.published == line.bound
    assert found.passed, str(found)
    again = criterion(audit_of_noisy(1e4), "smoothness")
    assert again.after == pytest.approx(line.after, rel=1e-6)
    assert again.published == pytest.approx(line.published, rel=0.01)


@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.CalibrationWarning")
def test_data_that_are_all_alike_leave_the_audit_without_its_baseline():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(120, 2, generator=generator, dtype=torch.float64)
    decoder = pm.Decoder(mlp([2, 16, 5], torch.nn.Tanh).double(), latent_dim=2)
    found = pm.repair(decoder, latents, torch.ones(120, 5)).audit(pairs=0, points=20)
    line = criterion(found, "smoothness")
    assert line.passed is None and "differ from row to row" in line.reason


@pytest.mark.parametrize("beyond", [0.0, 0.25])
def test_a_share_off_the_data_does_not_hang_on_where_the_points_of_a_curve_lie(beyond):
    support = Support(torch.randn(400, 2, generator=torch.Generator().manual_seed(0)))
    ends = torch.tensor([[-4.0, 0.3], [3.0, -1.0]], dtype=torch.float64)
    # finely, evenly, and crowded towards one end
    times = [torch.linspace(0, 1, n, dtype=torch.float64) ** power for n, power in ((100_001, 1), (65, 1), (65, 3))]
    line = [(ends[0] + t[:, None] * (ends[1] - ends[0]))[None] for t in times]
    middles = 0.5 * (line[0][0, 1:] + line[0][0, :-1])
    expected = float((support.offset(middles) > beyond).double().mean())
    assert 0.1 < expected < 0.9
    for curve in line[1:]:
        assert float(share_off_data(curve, support, beyond=beyond)) == pytest.approx(expected, abs=2e-3)
