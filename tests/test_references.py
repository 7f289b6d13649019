"""What docstrings and messages refer to is there, under that name and of that kind."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

import posthoc_metric

PACKAGE = Path(posthoc_metric.__file__).parent
ROLE = re.compile(r":(func|class|meth|mod|attr|data|exc):`~?(posthoc_metric[\w.]*)`")
REFERENCES = sorted(
    {
        (str(path.relative_to(PACKAGE)), *found)
        for path in PACKAGE.rglob("*.py")
        for found in ROLE.findall(path.read_text())
    }
)


def look_up(name):
    """What attributes lead to from the package, its modules imported on the way where they are not attributes yet."""
    parts = name.split(".")
    found = posthoc_metric
    for count, part in enumerate(parts[1:], 2):
        if isinstance(found, ModuleType) and not hasattr(found, part):
            importlib.import_module(".".join(parts[:count]))
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("file", "role", "name"), REFERENCES)
def test_a_reference_leads_to_what_it_says(file, role, name):
    found = look_up(name)
    if role == "mod":
        assert isinstance(found, ModuleType)
    elif role == "class":
        assert isinstance(found, type)
    elif role in ("func", "meth"):
        assert callable(found) and not isinstance(found, type)
