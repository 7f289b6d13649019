"""Is this the decoder that a repair was fitted on?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_NUMBERS = 8


def sketch(outputs: Tensor) -> Tensor:
    """Outputs (K, D) as their norms and eight projections, (K, 9) float64.

    The directions are cosines of incommensurable frequencies: no random generator, whose stream a
    later version could change.
    """
    outputs = outputs.double().cpu()
    index = torch.arange(1, outputs.shape[1] + 1, dtype=torch.float64, device="cpu")
    frequencies = math.sqrt(5.0) * torch.arange(1, _NUMBERS + 1, dtype=torch.float64, device="cpu").sqrt()
    directions = torch.cos(index[:, None] * frequencies) * math.sqrt(2.0)
    return torch.cat([outputs.norm(dim=1, keepdim=True), outputs @ directions], dim=1)


def same_fingerprint(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two fingerprints differ by no more than the rounding of single precision across machines."""
    if one.shape != other.shape:
        return False
    scale = torch.maximum(one[:, :1].abs(), other[:, :1].abs())
    return bool(((one.double() - other.double()).abs() <= tolerance * scale + 1e-12).all())
