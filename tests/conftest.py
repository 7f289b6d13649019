from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Two test processes share two cores; more threads would only get in each other's way."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def geomstats():
    """Geomstats, ready to be imported from."""
    if importlib.util.find_spec("geomstats") is None:
        pytest.skip("geomstats is not installed; it is a peer, not a dependency: pip install geomstats")
    if not hasattr(np, "trapz"):
        # it asks for a name that NumPy has given up
        setattr(np, "trapz", np.trapezoid)  # noqa: B010 - ruff rewrites the plain assignment to another name
