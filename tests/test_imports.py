"""Imports point one way along the pipeline: what a module imports at its head comes before it."""

import ast
import graphlib
from pathlib import Path

import pytest

import posthoc_metric

PACKAGE = Path(posthoc_metric.__file__).parent
PIPELINE = ("decoder", "uncertainty", "metric", "geodesic", "diagnostics", "report", "cli")
SOLVER = ("curves", "starts", "relaxation", "refinement", "solve", "maps", "means")


def imported(path, house):
    """The parts of a house, files or folders of its top, that a file imports at its head."""
    place = path.relative_to(PACKAGE.parent).parts[:-1]
    depth = len(house.relative_to(PACKAGE.parent).parts)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            above = place[: len(place) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                found = (*above, *name.split("."))
                if found[:depth] == place[:depth] and len(found) > depth:
                    yield found[depth]


@pytest.mark.parametrize(("folder", "stages"), [(".", PIPELINE), ("geodesic", SOLVER)])
def test_every_part_comes_after_what_it_imports(folder, stages):
    house, parts = PACKAGE / folder, {}
    for path in house.rglob("*.py"):
        own = path.relative_to(house).parts[0].removesuffix(".py")
        if own != "__init__":
            parts.setdefault(own, set()).update(set(imported(path, house)) - {own})
    # an error if there is a circle
    order = list(graphlib.TopologicalSorter(parts).static_order())
    needs = {}
    for part in order:
        needs[part] = parts.get(part, set()).union(*(needs[other] for other in parts.get(part, ())))
    assert needs[stages[-1]]
    for index, stage in enumerate(stages):
        assert not needs[stage] & set(stages[index:]), stage
