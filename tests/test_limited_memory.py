"""The compact form of limited-memory BFGS against the update formula written out."""

from __future__ import annotations

import pytest
import torch

from posthoc_metric.geodesic.relaxation.limited_memory import Memory


def updated(inverse: torch.Tensor, step: torch.Tensor, bend: torch.Tensor) -> torch.Tensor:
    """``(I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ`` with ``ρ = 1 / s·y`` (Nocedal & Wright 2006, eq. 6.17)."""
    rho = 1 / (step @ bend)
    left = torch.eye(len(step), dtype=step.dtype) - rho * torch.outer(step, bend)
    return left @ inverse @ left.T + rho * torch.outer(step, step)


@pytest.mark.parametrize("taken", [[True] * 9, [True, False, True, True, False, True, True, False, True]])
def test_directions_are_those_of_the_updates_one_after_the_other(taken):
    """Of the last four slots, empty ones left out, each of two curves for itself."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size, width = 4, 7
    roots = draw(2, width, width), draw(2, width, width)
    hessian, start = (root @ root.mT + torch.eye(width, dtype=torch.float64) for root in roots)
    memory = Memory.empty(draw(2, width), size)
    history: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    scale = torch.ones(2, dtype=torch.float64)
    for number, taking in enumerate(taken):
        # the second curve takes every step
        mask = torch.tensor([[float(taking)], [1.0]], dtype=torch.float64)
        step = mask * draw(2, width)
        bend = (hessian @ step[..., None])[..., 0]
        turned = (start @ bend[..., None])[..., 0]
        gradient = draw(2, width)
        found = memory.enter(number, step, bend, turned, gradient, (start @ gradient[..., None])[..., 0])
        history.append((step, bend, turned))
        for curve in range(2):
            if mask[curve]:
                ratio = float(step[curve] @ bend[curve] / (bend[curve] @ turned[curve]))
                scale[curve] = min(max(ratio, 0.05), 20.0)
            inverse = scale[curve] * start[curve]
            for one, other, _ in history[-size:]:
                if one[curve].any():
                    inverse = updated(inverse, one[curve], other[curve])
            torch.testing.assert_close(found[curve], inverse @ gradient[curve], rtol=1e-9, atol=1e-9)
