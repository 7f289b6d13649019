from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

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


#: where the benchmarks' scripts are
BENCHMARKS = str(Path(__file__).parent / "benchmarks")


@pytest.fixture
def scripts(monkeypatch):
    """The benchmarks' folder as a script in it sees it."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(BENCHMARKS):
            del sys.modules[name]
