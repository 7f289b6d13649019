"""One contract on every device: results are where the points came from, and the CPU's numbers to rounding.

The rows for CUDA run where there is a GPU: ``python -m pytest -m cuda``.  Without one, a device that only claims to be
one finds tensors that were made elsewhere: see ``pretended.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import posthoc_metric as pm
from posthoc_metric.distances import MetricTable, neighbours
from posthoc_metric.geometry import principal_geodesics, transport

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")],
    ),
]
if "pretended" in sys.modules:
    DEVICES.append("pretend")
on_every_device = pytest.mark.parametrize("device", DEVICES)


def network(device="cpu"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 9)).double().to(device)


def latents(device="cpu"):
    return torch.randn(150, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)


def convolutional(device):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (3, 1, 1)), nn.ConvTranspose2d(3, 8, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3)
        ).to(device)


def close(found, expected, tolerance):
    found = torch.as_tensor(found).cpu().double()
    expected = torch.as_tensor(expected).cpu().double()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max(), float((found - expected).abs().max())


@pytest.fixture(scope="module")
def reference():
    """The same on the CPU."""
    decoder, z = pm.Decoder(network(), latent_dim=2), latents()
    return decoder, z, pm.repair(decoder, z, decoder(z))


@on_every_device
def test_a_decoder_works_where_its_model_is(device, reference):
    decoder, z = pm.Decoder(network(device), latent_dim=2), latents(device)
    assert decoder.device.type == device and f"on {device}" in decoder.describe()
    value, jacobian = decoder.value_and_jacobian(z)
    assert value.device.type == jacobian.device.type == device
    close(value, reference[0](reference[1]), 1e-12)
    close(jacobian, reference[0].jacobian(reference[1]), 1e-12)
    u = torch.ones_like(value)
    close(decoder.vjp(z, u)[1], reference[0].vjp(reference[1], u.cpu())[1], 1e-12)


@on_every_device
def test_points_from_elsewhere_come_back_there(device, reference):
    decoder = pm.Decoder(network(device), latent_dim=2)
    assert decoder(latents()).device.type == "cpu"
    assert isinstance(decoder(latents().numpy()), np.ndarray)
    repaired = pm.repair(decoder, latents().numpy(), reference[0](reference[1]).numpy())
    for points in (latents(), latents(device)):
        for found in (
            repaired.tensor(points),
            repaired.log_volume(points),
            repaired.offset(points),
            repaired.inner(points, points, points),
        ):
            assert found.device == points.device
    close(repaired.tensor(latents()), reference[2].tensor(latents()), 1e-6)


@on_every_device
@pytest.mark.parametrize("there", [True, False])
def test_vectors_may_lie_elsewhere_than_their_points(device, reference, there):
    metric = pm.PullbackMetric(pm.Decoder(network(device), latent_dim=2))
    places = (latents(device)[:5], latents()[5:10]) if there else (latents()[:5], latents(device)[5:10])
    z, v = (x.clone().requires_grad_() for x in places)
    known, way = latents()[:5].requires_grad_(), latents()[5:10].requires_grad_()
    exact = pm.PullbackMetric(reference[0])
    for found, expected in (
        (metric.inner(z, v, v + 1), exact.inner(known, way, way + 1)),
        (metric.norm(z, v), exact.norm(known, way)),
    ):
        assert found.device == z.device
        close(found.detach(), expected.detach(), 1e-9)
        found.sum().backward()
        expected.sum().backward()
    assert v.grad.device == v.device
    close(v.grad, way.grad, 1e-6)
    close(z.grad, known.grad, 1e-4)


@on_every_device
@pytest.mark.parametrize("dim", [2, 10])
def test_vectors_are_carried_from_elsewhere(device, dim):
    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.bend = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

        def forward(self, z):
            return torch.cat([z, self.bend * z.square().sum(1, keepdim=True)], dim=1)

    a, b, v = torch.randn(3, 2, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = transport(pm.PullbackMetric(pm.Decoder(Bowl(), latent_dim=dim)), a, b, v, num=4)
    metric = pm.PullbackMetric(pm.Decoder(Bowl().to(device), latent_dim=dim))
    # curves are solved where this is
    metric.support = torch.cat([a, b]).to(device)
    found = transport(metric, a.numpy(), b.numpy(), v.numpy(), num=4)
    assert isinstance(found.vectors, np.ndarray) and bool(found.converged.all())
    close(found.vectors, expected.vectors, 1e-4)


@on_every_device
@pytest.mark.parametrize("uncertainty", ["rbf", "gp", "rbf-published"])
def test_a_repair_agrees_with_the_cpu(device, uncertainty):
    found = []
    for where in ("cpu", device):
        decoder, z = pm.Decoder(network(where), latent_dim=2), latents(where)
        repaired = pm.repair(decoder, z, decoder(z), uncertainty=uncertainty)
        assert repaired.support.device.type == where
        metric = repaired.tensor(2 * z[:40])
        assert metric.device.type == where
        found.append(metric)
    close(found[1], found[0], 1e-5)


@on_every_device
def test_geodesics_agree_with_the_cpu(device, reference):
    decoder, z = pm.Decoder(network(device), latent_dim=2), latents(device)
    repaired = pm.repair(decoder, z, decoder(z))
    solution = repaired.geodesic(z[:4], z[4:8])
    assert solution.points.device.type == solution.length.device.type == device
    expected = reference[2].geodesic(reference[1][:4], reference[1][4:8])
    assert solution.status == expected.status
    close(solution.length, expected.length, 1e-4)
    assert solution.decode(3).device.type == device
    matrix = repaired.distances(z[:3])
    assert matrix.device.type == device
    close(matrix, reference[2].distances(reference[1][:3]), 1e-4)
    close(repaired.exp(z[:2], 0.1 * z[:2]), reference[2].exp(reference[1][:2], 0.1 * reference[1][:2]), 1e-4)


@on_every_device
def test_geodesics_without_a_support_agree_with_the_cpu(device, reference):
    metric, z = pm.PullbackMetric(pm.Decoder(network(device), latent_dim=2)), latents(device)
    expected = pm.PullbackMetric(reference[0]).geodesic(reference[1][:2], reference[1][2:4]).length
    # whatever was asked before, and where from
    for points in (z.cpu(), z, z.cpu()):
        for support in (None, z):
            found = metric.geodesic(points[:2], points[2:4], support=support).length
            assert found.device == points.device
            close(found, expected, 1e-4)


@on_every_device
@pytest.mark.parametrize("there", [True, False])
def test_logarithms_and_means_agree_with_the_cpu(device, reference, there):
    decoder, z = pm.Decoder(network(device), latent_dim=2), latents(device)
    repaired, z = pm.repair(decoder, z, decoder(z)), z if there else z.cpu()
    few = reference[1][:5]
    log, mean = repaired.log(z[:1], z[1:2]), repaired.mean(z[:5])
    assert log.device == mean.device == z.device
    close(log, reference[2].log(few[:1], few[1:2]), 1e-3)
    close(mean, reference[2].mean(few), 1e-3)
    found = principal_geodesics(repaired, z[:5])
    assert found.directions.device == z.device and found.points(np.zeros((1, 2))).shape == (1, 2)


@on_every_device
def test_saved_on_one_device_loaded_on_the_other(device, reference, tmp_path):
    reference[2].save(tmp_path / "r.safetensors")
    loaded = pm.load(tmp_path / "r.safetensors", pm.Decoder(network(device), latent_dim=2))
    assert loaded.support.device.type == device
    z = latents(device)
    found = loaded.tensor(2 * z)
    assert found.device.type == device
    close(found, reference[2].tensor(2 * z.cpu()), 1e-9)
    loaded.save(tmp_path / "again.safetensors")
    close(pm.load(tmp_path / "again.safetensors", reference[0]).tensor(z.cpu()), reference[2].tensor(z.cpu()), 1e-9)


@on_every_device
def test_a_table_and_neighbours(device, reference):
    decoder, z = pm.Decoder(network(device), latent_dim=2), latents(device)
    table = MetricTable(pm.repair(decoder, z, decoder(z)), z[:20], rtol=3e-2, max_levels=4)
    inside, outside = table.tensor(z[:20]), table.tensor(latents() + 9)
    assert inside.device.type == device and outside.device.type == "cpu"
    close(inside, reference[2].tensor(z[:20].cpu()), 5e-2)
    assert neighbours(table, z[:8], k=2).nnz == 16


@on_every_device
def test_a_store_is_gone_on_with_from_elsewhere(device, reference, tmp_path):
    decoder, z = pm.Decoder(network(device), latent_dim=2), latents(device)
    for metric, points in ((pm.repair(decoder, z, decoder(z)), z), (reference[2], z.cpu())):
        found = metric.distances(points[:3], store=tmp_path)
        close(found, reference[2].distances(reference[1][:3]), 1e-4)


@on_every_device
def test_audit_inversion_and_mixup(device, reference):
    decoder, z = pm.Decoder(network(device), latent_dim=2), latents(device)
    repaired = pm.repair(decoder, z, decoder(z))
    assert repaired.audit(pairs=2, points=60).passed == reference[2].audit(pairs=2, points=60).passed
    found = pm.invert(decoder, decoder(z[:3]), starts=128)
    assert found.latents.device.type == device and bool(found.converged.all())
    x, y = pm.geodesic_mixup(repaired, z, torch.arange(len(z)) % 3, curve="straight", pairs=4).sample(5)
    assert x.device.type == y.device.type == device


@on_every_device
def test_a_convolutional_decoder(device):
    if device == "pretend":
        pytest.skip("torch's convolution of a pretended tensor with a tangent ends the process")
    decoder = pm.Decoder(convolutional(device), latent_dim=3)
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(device)
    expected = pm.Decoder(convolutional("cpu"), latent_dim=3).jacobian(z.cpu())
    close(decoder.jacobian(z), expected, 1e-3)  # convolutions of a GPU may round as TF32


@pytest.mark.slow
def test_on_a_device_that_only_claims_to_be_one():
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot register a device in Python")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-p", "pretended", "-n0", "-p", "no:cacheprovider", "-k", "pretend"]
    path = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [*command, str(here / "test_devices.py"), "--deselect", "test_on_a_device_that_only_claims_to_be_one"],
        cwd=here.parent,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
