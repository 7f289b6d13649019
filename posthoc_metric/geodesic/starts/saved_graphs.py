"""Start graphs as tensors, so that a saved metric need not measure them again."""

from __future__ import annotations

from typing import Any

import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ...metric import Metric
from ..guard import guard
from .cells import Cells
from .graph import MetricGraph
from .make import cache_of
from .ruler import ChordRuler, TensorRuler

_RULERS = {ruler.__name__: ruler for ruler in (TensorRuler, ChordRuler)}
_CELLS = ("origin", "places", "sizes")
#: what is known of a graph's points is left out of the file beyond this, and asked of the decoder again on loading
_MOST_BYTES = 32 * 2**20


def graphs_state(metric: Metric) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The start graphs built for ``metric`` so far: tensors, and for each graph what JSON can hold of it."""
    tensors: dict[str, Tensor] = {}
    facts: list[dict[str, Any]] = []
    for (_, *key), graph in cache_of(metric).graphs.items():
        parts = {
            "points": graph.points,
            "lengths": torch.from_numpy(graph.lengths.data),
            "columns": torch.from_numpy(graph.lengths.indices),
            "rows": torch.from_numpy(graph.lengths.indptr),
        }
        if graph.cells is not None:
            del parts["points"]
            parts |= {name: getattr(graph.cells, name) for name in _CELLS}
        if graph.known.nbytes <= _MOST_BYTES:
            parts["known"] = graph.known
        tensors |= {f"{len(facts)}.{name}": value for name, value in parts.items()}
        unit = None if graph.cells is None else graph.cells.unit
        facts.append({"key": key, "k": graph.k, "ruler": type(graph.ruler).__name__, "unit": unit})
    return tensors, facts


def restore_graphs(metric: Metric, tensors: dict[str, Tensor], facts: list[dict[str, Any]]) -> None:
    """Give ``metric`` the start graphs that :func:`graphs_state` described."""
    cache, parts = cache_of(metric), guard(metric.parts())
    device = torch.device("cpu") if metric.support is None else metric.support.device
    for number, fact in enumerate(facts):
        ruler = _RULERS[fact["ruler"]](parts)
        cells = None
        if fact["unit"] is not None:
            origin, places, sizes = (tensors[f"{number}.{name}"].to(device) for name in _CELLS)
            cells = Cells(origin, fact["unit"], places.long(), sizes)
        points = tensors[f"{number}.points"].to(device) if cells is None else cells.points
        known = tensors.get(f"{number}.known")
        edges = (tensors[f"{number}.{name}"].cpu().numpy() for name in ("lengths", "columns", "rows"))
        key = (str(device), *_hashable(fact["key"]))
        cache.graphs[key] = MetricGraph(
            points,
            ruler.know(points) if known is None else known.to(device),
            csr_matrix(tuple(edges), shape=(len(points), len(points))),
            ruler,
            cells,
            fact["k"],
        )


def _hashable(key: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(_hashable(part) for part in key) if isinstance(key, list) else key
