from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    """Results are compared to tolerances that hold for any number of threads; two is what CI has."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
