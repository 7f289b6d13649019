"""Volumes as a function of the weight are those of the matrices."""

from __future__ import annotations

import torch

from posthoc_metric.uncertainty.volumes import joined, plain_volumes, shaped_volumes


def _matrices(count: int, dim: int, rank: int, seed: int) -> torch.Tensor:
    roots = torch.randn(count, rank, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return roots.mT @ roots


def _log_volume(matrices: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.linalg.slogdet(matrices)[1] / matrices.shape[1]


def test_volumes_with_a_shape_and_without():
    grams, floor = _matrices(20, 3, 4, 0), torch.linspace(0, 0.1, 20, dtype=torch.float64)
    shapes = _matrices(20, 3, 3, 1)
    shapes = shapes / torch.linalg.eigvalsh(shapes)[:, -1, None, None]
    identity = torch.eye(3, dtype=torch.float64)
    base = grams + floor[:, None, None] * identity
    plain, shaped = plain_volumes(torch.linalg.eigvalsh(grams), floor), shaped_volumes(grams, floor, shapes, 2.0)
    for weight in (0.0, 1e-3, 1.0, 1e4):
        weights = torch.full((20,), weight, dtype=torch.float64)
        for found, added in ((plain, identity), (shaped, shapes)):
            expected = _log_volume(base + weight * added)
            torch.testing.assert_close(found(weights), expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found.change(weights), expected - _log_volume(base), rtol=1e-8, atol=1e-9)
    both = joined(plain, shaped)
    torch.testing.assert_close(both(torch.ones(40, dtype=torch.float64))[20:], shaped(torch.ones(20).double()))


def test_volumes_where_a_direction_is_lost_or_known_in_full():
    """One that the decoder lost but the shape has; one that the shape lost; one that both lost."""
    lost = torch.diag(torch.tensor([1.0, 0.0])).double()[None]
    none = torch.zeros(1, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    unknown = torch.eye(2, dtype=torch.float64)[None]
    found = shaped_volumes(lost, none, unknown, 1.0)
    torch.testing.assert_close(found(4 * one), 0.25 * torch.tensor([5.0 * 4.0]).double().log())
    known = shaped_volumes(unknown, none, lost, 1.0)
    torch.testing.assert_close(known(3 * one), 0.25 * torch.tensor([4.0]).double().log())
    nowhere = shaped_volumes(lost, none, lost, 1.0)(one)
    assert torch.isfinite(nowhere).all() and float(nowhere) < -5
