"""What a caller has set for torch as a whole changes no result, and what results are made of stays usable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import posthoc_metric as pm
from posthoc_metric import geometry


def network(dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 6)]
        return nn.Sequential(*layers).to(dtype)


def latents(count=240):
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 2
    z[: count // 2] += 2
    return z


@pytest.fixture(scope="module")
def decoder():
    return pm.Decoder(network(), latent_dim=2)


@pytest.fixture(scope="module")
def repaired(decoder):
    return pm.repair(decoder, latents())


class TestAutocast:
    def test_a_decoder_is_wrapped_and_called_as_without_it(self, decoder):
        z = latents(5)
        expected = decoder(z), decoder.jacobian(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            wrapped = pm.Decoder(decoder._engine.found.call.target, latent_dim=2)
            for one in (decoder, wrapped):
                assert torch.equal(one(z), expected[0]) and torch.equal(one.jacobian(z), expected[1])
            assert torch.is_autocast_enabled("cpu")
        assert wrapped.describe() == decoder.describe()

    def test_geodesics_are_those_without_it(self, repaired):
        start, end = latents()[:2], latents()[200:202]
        expected = repaired.geodesic(start, end)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = repaired.geodesic(start, end)
            velocities = repaired.log(start, end)
        assert torch.equal(found.points, expected.points) and found.status == expected.status
        assert torch.equal(velocities, repaired.log(start, end))

    def test_so_are_those_of_a_function_with_a_network_inside(self):
        small = network()

        def metric(z):
            y = small(z.float()).double()
            return (1 + y.square().sum(1))[:, None, None] * torch.eye(2, dtype=torch.float64)

        start, end = latents()[:2], latents()[200:202]
        expected = pm.geodesic(metric, start, end)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = pm.geodesic(metric, start, end)
        assert torch.equal(found.points, expected.points)


class _Distance(pm.UncertaintyModel):
    """Without a closed form of its gradient, so that autograd has to find it."""

    def fit(self, decoder, latents, data=None, *, seed=0):
        self.sites = latents[::4] + 0
        self.fitted = True
        return self

    def score(self, z):
        squares = (z[:, None] - self.sites).square().sum(-1)
        return (-(-4 * squares).logsumexp(1) / 4 + 2).clamp_min(1e-3).sqrt()


class TestInferenceMode:
    @pytest.mark.parametrize("uncertainty", ["rbf", "gp", "rbf-published", _Distance])
    def test_a_repair_is_the_same_inside(self, decoder, uncertainty):
        def found():
            model = uncertainty if isinstance(uncertainty, str) else uncertainty()
            repaired = pm.repair(decoder, latents() + 0, decoder(latents()), uncertainty=model)
            return repaired, repaired.geodesic(latents()[:1], latents()[200:201])

        expected, curves = found()
        with torch.inference_mode():
            repaired, inside = found()
        assert torch.equal(inside.points, curves.points)
        # what was made inside is of use outside, where curves are found by gradients too
        outside = repaired.geodesic(latents()[:1], latents()[200:201])
        assert torch.equal(outside.points, curves.points)
        assert torch.equal(repaired.tensor(latents()), expected.tensor(latents()))

    def test_a_function_is_differentiated_inside_too(self):
        def metric(z):
            return (1 + z.square().sum(1))[:, None, None] * torch.eye(2, dtype=torch.float64)

        start, end = latents()[:2], latents()[200:202]
        expected = pm.geodesic(metric, start, end)
        with torch.inference_mode():
            found = pm.geodesic(metric, start, end)
            velocities = pm.FunctionMetric(metric, 2).log(start, end)
        assert torch.equal(found.points, expected.points)
        assert torch.equal(velocities, pm.FunctionMetric(metric, 2).log(start, end))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_a_decoder_wrapped_or_read_inside_is_the_same(self, dtype, tmp_path):
        def found():
            wrapped = pm.Decoder(own, latent_dim=2)
            read = pm.load_decoder(tmp_path / "m.pt", factory=lambda: network(dtype), latent_dim=2)
            far = wrapped.acquainted(30 + latents())
            return [one for one in (wrapped, read, far, wrapped.in_float64()) if one is not None]

        own = network(dtype)
        torch.save(own.state_dict(), tmp_path / "m.pt")
        z, u = latents(5), torch.ones(5, 6)
        expected = found()
        with torch.inference_mode():
            made = found()
        for one, other in zip(made, expected, strict=True):
            assert one.describe() == other.describe()
            assert torch.equal(one.vjp(z, u)[1], other.vjp(z, u)[1])

    def test_latents_made_inside_give_results_that_can_be_differentiated(self, repaired):
        with torch.inference_mode():
            z = latents() + 0
        results = repaired.tensor(z), repaired.mean(z[:6]), repaired.geodesic(z[:1], z[1:2]).points
        assert not any(result.is_inference() for result in results)


def bowl(z):
    return (1 + z.square().sum(1))[:, None, None] * torch.eye(2, dtype=z.dtype, device=z.device)


def everything(decoder, z):
    """What the library gives for latents z (n, 2), by name."""
    data = decoder(z)
    repaired = pm.repair(decoder, z, data)
    low, high = [-1.0, -1.0], [1.0, 1.0]
    curves = repaired.geodesic(z[:2], z[-2:])
    audit = repaired.audit(pairs=2, points=60)
    return {
        "jacobian": pm.Decoder(decoder._engine.found.call.target, latent_dim=2).jacobian(z[:3]),
        "rbf": repaired.tensor(2 * z),
        "gp": pm.repair(decoder, z[::3], uncertainty="gp").tensor(2 * z),
        "published": pm.repair(decoder, z, data, uncertainty="rbf-published").tensor(2 * z),
        "curves": curves.points,
        "frames": curves.decode(4),
        "fixed point": repaired.geodesic(z[:1], z[-1:], solver="fixed-point", max_steps=50).points,
        "of a function": pm.geodesic(bowl, z[:2], z[-2:]).points,
        "no curves": repaired.geodesic(z[:0], z[:0]).points,
        "log": repaired.log(z[:1], z[2:3]),
        "exp": repaired.exp(z[:2], z[2:4] / 10),
        "mean": repaired.mean(z[:3]),
        "distances": repaired.distances(z[:4]),
        "graph": repaired.distances(z[:30], method="graph"),
        "transport": geometry.transport(repaired, z[:1], z[3:4], z[:1]).vectors,
        "curvature": geometry.curvature(repaired, z[:3]),
        "walk": geometry.random_walk(repaired, z[:3], time=0.1, steps=3),
        "volume": geometry.sample_volume(repaired, 5, low, high, steps=5).points,
        "directions": geometry.principal_geodesics(repaired, z[:3]).directions,
        "mixed": pm.geodesic_mixup(repaired, z, np.arange(len(z)) % 3, pairs=3).sample(4)[0],
        "inverse": pm.invert(decoder, data[:3], starts=32).latents,
        "audit": torch.tensor([line.after for line in audit.criteria], dtype=torch.float64, device="cpu"),
    }


@pytest.fixture(scope="module")
def expected(decoder):
    return everything(decoder, latents(300))


class TestDefaults:
    """torch's default device is where most things of a script are made; the library's are where the decoder is."""

    def test_the_default_device_does_not_matter(self, decoder, expected):
        z = latents(300)
        # nothing can be computed there, so that whatever is made there is found
        with torch.device("meta"):
            found = everything(decoder, z)
        assert [name for name in found if not np.array_equal(found[name], expected[name])] == []

    def test_the_default_dtype_does_not_matter(self, decoder, expected):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            found = everything(decoder, latents(300))
        finally:
            torch.set_default_dtype(before)
        assert [name for name in found if not np.array_equal(found[name], expected[name])] == []
