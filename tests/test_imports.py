"""Imports point one way along the pipeline: what a module imports at its head comes before it."""

import ast
import graphlib
from pathlib import Path

import posthoc_metric

PACKAGE = Path(posthoc_metric.__file__).parent
PIPELINE = ("decoder", "uncertainty", "metric", "geodesic", "diagnostics", "report", "cli")


def imported(path):
    """The parts of the package, files or folders of its top, that a file imports at its head."""
    place = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            above = place[: len(place) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((*above, *name.split("."))[0] for name in names)


def test_every_part_comes_after_what_it_imports():
    parts = {}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own != "__init__":
            parts.setdefault(own, set()).update(set(imported(path)) - {own})
    # an error if there is a circle
    order = list(graphlib.TopologicalSorter(parts).static_order())
    needs = {}
    for part in order:
        needs[part] = parts.get(part, set()).union(*(needs[other] for other in parts.get(part, ())))
    for index, stage in enumerate(PIPELINE):
        assert not needs[stage] & set(PIPELINE[index:]), stage
