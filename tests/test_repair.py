from __future__ import annotations

import numpy as np
import pytest
import torch
from family import autoencoder, gan, moved, vae

import posthoc_metric as pm
from posthoc_metric.errors import CheckpointError, InvalidArgumentError, OutputError
from posthoc_metric.uncertainty import RBF


def wrap(member):
    return pm.Decoder(member.decoder, latent_dim=member.latents.shape[1])


@pytest.fixture(scope="module")
def small():
    return vae(2)


@pytest.fixture(scope="module")
def repaired(small):
    return pm.repair(wrap(small), small.latents, small.data)


def test_the_metric_is_the_decoders_own_plus_the_gate(repaired, small):
    z = torch.randn(40, 2, dtype=torch.float64)
    added = repaired.tensor(z) - repaired.decoder_metric.tensor(z)
    expected = repaired.gate(z)[:, None, None] * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(added, expected, rtol=1e-10, atol=1e-9)


def test_kind_and_dtype_follow_the_input(repaired):
    points = np.zeros((3, 2), dtype=np.float32)
    assert repaired.tensor(points).dtype == np.float32
    assert isinstance(repaired.log_volume(points), np.ndarray)
    assert repaired.condition_number(torch.zeros(3, 2, dtype=torch.float64)).dtype == torch.float64


def test_row_by_row_gives_the_batch(repaired):
    z = torch.randn(7, 2, dtype=torch.float64)
    alone = torch.cat([repaired.tensor(row[None]) for row in z])
    torch.testing.assert_close(alone, repaired.tensor(z), rtol=1e-5, atol=1e-5)


def test_gradient_of_the_weight_is_its_derivative(repaired):
    z = repaired.geometry.shell(0.2, 60)
    _, gradient = repaired.gate.value_and_gradient(z)
    step = 1e-6
    for j in range(2):
        e = torch.zeros(2, dtype=torch.float64)
        e[j] = step
        difference = (repaired.gate(z + e) - repaired.gate(z - e)) / (2 * step)
        torch.testing.assert_close(gradient[:, j], difference, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))


@pytest.mark.parametrize("make", [lambda: vae(2), lambda: gan(10), lambda: gan(64, conv=True)])
def test_second_derivatives_of_the_weight_are_those_of_its_gradient(make):
    member = make()
    found = pm.repair(wrap(member), member.latents, member.data)
    gate = found.gate
    # on the data, at the knee and in the void
    z = torch.cat([member.latents[:20].double(), found.geometry.shell(0.1, 20), found.geometry.shell(1.0, 20)])
    value, gradient, hessian = gate.value_gradient_hessian(z)
    torch.testing.assert_close(value, gate(z))
    torch.testing.assert_close(gradient, gate.value_and_gradient(z)[1])
    v = torch.randn(z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v *= 1e-5 * float(z.std())
    difference = (gate.value_and_gradient(z + v)[1] - gate.value_and_gradient(z - v)[1]) / 2
    pushed = (hessian @ v[..., None])[..., 0]
    scale = pushed.norm(dim=1, keepdim=True) + 1e-6 * gradient.norm(dim=1, keepdim=True) + 1e-9 * value[:, None]
    assert float(((pushed - difference) / scale).abs().max()) < 1e-4


@pytest.mark.parametrize("knob", [2.0, 10.0, 50.0])
@pytest.mark.parametrize("make", [lambda: vae(2), lambda: autoencoder(10), lambda: gan(10)])
def test_inflation_means_what_it_says(make, knob):
    member = make()
    found = pm.repair(wrap(member), member.latents, member.data, inflation=knob)
    held_out = found.decoder_metric.eigenvalues(found.geometry.audit)[:, -1].quantile(0.95)
    beyond = found.eigenvalues(torch.cat([found.geometry.shell(offset, 80, seed=77) for offset in (1, 3, 300)]))
    cost = (beyond[:, 0].quantile(0.05) / held_out).sqrt()
    assert 0.8 * knob < float(cost) < 1.5 * knob


@pytest.mark.parametrize("quantile", [0.8, 0.99])
@pytest.mark.parametrize("make", [lambda: vae(2), lambda: autoencoder(10), lambda: gan(10)])
def test_support_quantile_is_the_share_left_alone(make, quantile):
    member = make()
    found = pm.repair(wrap(member), member.latents, member.data, support_quantile=quantile)
    held_out = found.geometry.audit
    change = (found.log_volume(held_out) - found.decoder_metric.log_volume(held_out)) / found.dim
    alone = float((change <= 0.25).double().mean())
    # about 269 held-out latents: three standard errors, below; a share is never promised to be exact from above
    assert alone >= quantile - 3 * (quantile * (1 - quantile) / len(held_out)) ** 0.5 - 0.01


def test_a_smaller_support_starts_the_rise_earlier():
    member = vae(2)
    edges = []
    for quantile in (0.7, 0.9, 0.99):
        gate = pm.repair(wrap(member), member.latents, support_quantile=quantile).gate
        edges.append(gate.knee)
    assert edges == sorted(edges)
    assert edges[0] < edges[-1]


@pytest.mark.parametrize("bound", [1.1, 10.0, 100.0])
@pytest.mark.parametrize("make", [lambda: vae(10), lambda: gan(64, conv=True)])
def test_max_condition_number_bounds_the_condition_on_the_data(make, bound):
    member = make()
    found = pm.repair(wrap(member), member.latents, member.data, max_condition_number=bound)
    held_out = found.geometry.audit[:100]
    before, after = found.decoder_metric.condition_number(held_out), found.condition_number(held_out)
    # infinities would turn into NaN between two of them
    assert float(before.quantile(0.9, interpolation="lower")) > bound
    assert float(after.quantile(0.95)) <= 1.05 * bound


def test_more_latents_do_not_make_a_cliff_of_the_wall():
    torch.manual_seed(0)
    decoder = pm.Decoder(torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 30)))
    latents = torch.randn(200_000, 2)
    few, many = (pm.repair(decoder, latents[:count]).gate for count in (20_000, 200_000))
    assert many.gentle > 0.5 * few.gentle


def test_gradient_of_the_floor_is_its_derivative():
    member = gan(64, conv=True)
    floor = pm.repair(wrap(member), member.latents).gate.floor
    z = member.latents[:20].double()
    value, gradient = floor.value_and_gradient(z)
    assert float(value.min()) > 0
    v = torch.randn(z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-5
    difference = (floor(z + step * v) - floor(z - step * v)) / (2 * step)
    torch.testing.assert_close((gradient * v).sum(1), difference, rtol=1e-5, atol=1e-6 * float(difference.abs().max()))


def test_the_floor_is_zero_where_no_floor_is_needed(repaired):
    assert float(repaired.gate.floor.level) == 0.0


@pytest.mark.parametrize(
    ("scale", "shift"),
    [(1000.0, 1e4), (1e-3, 0.0), (1.0, 1e4), (1e-6, 0.0), (1e-6, 1e-2), (1e6, 1e4), (1e6, 1e10)],
)
@pytest.mark.parametrize("make", [lambda: vae(2), lambda: gan(10)])
def test_the_repaired_geometry_moves_with_the_latents(make, scale, shift):
    member = make()
    still, other = moved(member, 1.0, 0.0, seed=1), moved(member, scale, shift, seed=2)
    first = pm.repair(wrap(still), still.latents, still.data)
    second = pm.repair(wrap(other), other.latents, other.data)
    rows = torch.arange(0, len(member.latents), 10)
    void = torch.linspace(1, 6, len(rows), dtype=torch.float64)[:, None]
    for one, two in (
        (still.latents[rows], other.latents[rows]),
        (
            first.geometry.mean + void * (still.latents[rows] - first.geometry.mean),
            second.geometry.mean + void * (other.latents[rows] - second.geometry.mean),
        ),
    ):
        torch.testing.assert_close(second.eigenvalues(two) * scale**2, first.eigenvalues(one), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e-6, 1e4), (1e6, 1e4)])
def test_audit_and_geodesics_move_with_the_latents(small, scale, shift):
    still, other = moved(small, 1.0, 0.0, seed=1), moved(small, scale, shift, seed=2)
    found = [pm.repair(wrap(member), member.latents, member.data) for member in (still, other)]
    audits = [metric.audit(points=40, pairs=0) for metric in found]
    for one, two in zip(audits[0].criteria, audits[1].criteria, strict=True):
        assert one.passed == two.passed, one.name
        if one.name != "smoothness":  # random directions
            assert two.after == pytest.approx(one.after, rel=0.01, abs=1e-3, nan_ok=True), one.name
    lengths = [
        metric.geodesic(member.latents[:6], member.latents[6:12]).length
        for metric, member in zip(found, (still, other), strict=True)
    ]
    torch.testing.assert_close(lengths[1], lengths[0], rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_a_decoder_in_single_precision_has_latents_of_any_scale(small, scale):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small.decoder

        def forward(self, z):
            return self.net(z / scale)

    plain = pm.repair(wrap(small), small.latents, small.data)
    other = pm.repair(pm.Decoder(Scaled(), latent_dim=2), small.latents * scale, small.data)
    z = torch.cat([small.latents[:50].double(), plain.geometry.shell(1.0, 20)])
    torch.testing.assert_close(other.eigenvalues(z * scale) * scale**2, plain.eigenvalues(z), rtol=1e-3, atol=1e-3)


def test_saving_and_loading_is_bit_equal(repaired, small, tmp_path):
    path = tmp_path / "repaired.safetensors"
    repaired.save(path)
    again = pm.load(path, wrap(small))
    z = 4 * torch.randn(50, 2, dtype=torch.float64)
    assert torch.equal(again.tensor(z), repaired.tensor(z))
    assert torch.equal(again.geometry.audit, repaired.geometry.audit)
    assert [file.name for file in tmp_path.iterdir()] == ["repaired.safetensors"]


@pytest.mark.parametrize("make", [lambda: vae(2), lambda: autoencoder(10)])
def test_start_graphs_are_saved_with_the_metric(make, tmp_path, monkeypatch):
    from posthoc_metric.geodesic.starts import saved_graphs

    member = make()
    metric = pm.repair(wrap(member), member.latents, member.data)
    a, b = member.latents[:2].double(), member.latents[2:4].double()
    path = tmp_path / "repaired.safetensors"
    metric.save(path)
    assert pm.load(path, wrap(member))._start_cache.graphs == {}
    expected = metric.geodesic(a, b)
    metric.save(path)
    for most in (2**25, 0):
        # known points that are too large for the file are asked of the decoder again
        monkeypatch.setattr(saved_graphs, "_MOST_BYTES", most)
        metric.save(path)
        again = pm.load(path, wrap(member))
        restored = dict(again._start_cache.graphs)
        found = again.geodesic(a, b)
        # the very same objects: none was built anew
        assert restored and again._start_cache.graphs == restored
        assert found.start == expected.start
        for name in ("length", "length_error", "steps", "points"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_another_decoder_is_refused(repaired, small, tmp_path):
    repaired.save(tmp_path / "r.safetensors")
    torch.manual_seed(5)
    stranger = torch.nn.Sequential(torch.nn.Linear(2, 30), torch.nn.Tanh(), torch.nn.Linear(30, 64))
    with pytest.raises(CheckpointError, match="another decoder"):
        pm.load(tmp_path / "r.safetensors", pm.Decoder(stranger, latent_dim=2))
    with pytest.raises(CheckpointError, match="latent dimension 2"):
        pm.load(tmp_path / "r.safetensors", wrap(autoencoder(10)))


def test_a_failed_save_leaves_nothing(repaired, tmp_path):
    with pytest.raises(OutputError, match="the folder is there"):
        repaired.save(tmp_path / "missing" / "r.safetensors")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        repaired.save(tmp_path / "taken")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("contents", "words"),
    [(b"", "not a whole safetensors file"), (b"\x80\x04}." * 100, "not a whole safetensors file"), (None, "no such")],
)
def test_what_is_no_saved_metric_is_refused(contents, words, small, tmp_path):
    path = tmp_path / "r.safetensors"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(CheckpointError, match=words):
        pm.load(path, wrap(small))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latents": torch.zeros(100, 3)}, "must have 2 columns"),
        ({"latents": torch.tensor([[0.0, float("nan")]] * 30)}, "must be finite; rows 0, 1"),
        ({"latents": torch.randn(8, 2)}, "at least 20 points"),
        ({"latents": torch.randn(30)}, r"shape \(B, 2\)"),
        ({"data": torch.zeros(7, 64)}, "one row for each of the 1797 latents"),
        ({"data": torch.zeros(1797, 5)}, "64 values a row"),
        ({"inflation": -1}, "`inflation`"),
        ({"inflation": "ten"}, "`inflation`"),
        ({"support_quantile": 1.5}, "`support_quantile`"),
        ({"max_condition_number": 0.5}, "`max_condition_number`"),
        ({"uncertainty": "rfb"}, "'rbf-published'"),
        ({"uncertainty": RBF}, "UncertaintyModel instance"),
        ({"decoder": torch.nn.Linear(2, 64)}, "Wrap it first"),
    ],
)
def test_bad_input_is_named(small, change, words):
    arguments = {"decoder": wrap(small), "latents": small.latents, "data": small.data} | change
    with pytest.raises(InvalidArgumentError, match=words):
        pm.repair(arguments.pop("decoder"), arguments.pop("latents"), arguments.pop("data"), **arguments)


def test_misspelt_options_are_refused(small):
    with pytest.raises(TypeError, match="inflaton"):
        pm.repair(wrap(small), small.latents, inflaton=3)


def test_latents_and_random_state_are_left_alone(small):
    latents = small.latents.clone()
    state = torch.random.get_rng_state()
    pm.repair(wrap(small), latents, small.data)
    assert torch.equal(latents, small.latents)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_seed_gives_the_same_repair(small, repaired):
    again = pm.repair(wrap(small), small.latents, small.data)
    assert again.gate.numbers() == repaired.gate.numbers()


def test_data_are_read_from_a_memory_map(small, repaired, tmp_path):
    np.save(tmp_path / "x.npy", small.data.numpy())
    found = pm.repair(wrap(small), small.latents.numpy(), np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert found.gate.numbers() == pytest.approx(repaired.gate.numbers(), rel=1e-6)


def test_it_says_on_one_line_what_it_is(repaired, small):
    assert repr(repaired) == (
        f"repaired metric of a Decoder R^2 -> R^64: rbf on 1797 latents of radius {repaired.geometry.radius:.4g}; "
        "inflation 10, support quantile 0.99, condition number at most 1000"
    )
    published = pm.repair(wrap(small), small.latents, small.data, uncertainty="rbf-published")
    assert "rbf-published on 1797 latents" in repr(published) and "inflation" not in repr(published)


def test_what_is_added_is_told_of_any_kind_of_latents(repaired):
    z = repaired.geometry.latents[:3] + 5.0
    added = repaired.added(z.numpy())
    assert isinstance(added, np.ndarray) and added.shape == (3, 2, 2)
    plain = repaired.tensor(z) - repaired.decoder_metric.tensor(z)
    torch.testing.assert_close(torch.from_numpy(added), plain, rtol=1e-6, atol=1e-9)
    with pytest.raises(InvalidArgumentError, match="`z`"):
        repaired.added(z[:, :1])
