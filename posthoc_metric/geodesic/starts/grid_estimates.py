"""What a grid that knows the metric at its corners tells of curves: in which cells they run, and how long they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..curves.placement import even
from ..curves.polygons import met, norms, run_along
from .graph import MetricGraph
from .ruler import TensorRuler
from .start_curves import SPANS, WAY, StartCurves

#: of the points of a curve in resolved cells so many stand for one
_THIN = 4


def held(grid: MetricGraph, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The cells (..., m) that hold the nodes of curves (..., m, d), and where (d, ..., m)."""
    assert grid.cells is not None
    cells, places = grid.cells.holding(nodes.flatten(0, -2))
    return cells.view(nodes.shape[:-1]), places.unflatten(1, nodes.shape[:-1])


def everywhere(facts: Tensor, cells: Tensor) -> Tensor:
    """Whether what is known of cells holds for every one of ``cells`` (..., m), over the last axis."""
    return facts.index_select(0, cells.flatten()).view(cells.shape).all(-1)


def estimate(grid: MetricGraph, curves: StartCurves) -> tuple[Tensor, Tensor]:
    """Length of ``curves`` by what is known at the grid's corners, and nodes and knots to match, in place.

    A node is worth its share of the length and of the latent way; the knots are the share of the length, so that
    a curve starts out at nearly constant speed even where it runs up a wall.

    Returns:
        Cells (Q, m) that the curves run through, and whether the grid has resolved the metric in all of them (Q,).
    """
    cells, places = held(grid, curves.nodes)
    smooth = everywhere(grid.resolved, cells)
    curves.length[:] = float("inf")
    # where the metric varies little within every cell, fewer points tell as much
    for among, stride in ((smooth, _THIN), (~smooth, 1)):
        if bool(among.any()):
            # slices copy nothing
            rows = slice(None) if bool(among.all()) else among.nonzero().flatten()
            nodes = curves.nodes[rows, ::stride]
            pieces = lengths_of_pieces(grid, nodes, cells[rows, ::stride], places[:, rows, ::stride])
            length = pieces.sum(1)
            fine = torch.isfinite(length) & (length > 0)
            if not bool(fine.all()):
                rows = among.nonzero().flatten()[fine]
                nodes, pieces, length = nodes[fine], pieces[fine], length[fine]
            run = run_along(pieces)
            way = torch.lerp(run, run_along(norms(nodes.diff(dim=1))), WAY)
            found = met(way, torch.cat([run[..., None], nodes], dim=2), even(nodes, SPANS))
            curves.length[rows], curves.knots[rows], curves.nodes[rows] = length, found[..., 0], found[..., 1:]
    return cells, smooth


def lengths_of_pieces(grid: MetricGraph, nodes: Tensor, cells: Tensor, places: Tensor) -> Tensor:
    """Lengths (..., m-1) of the pieces of curves (..., m, d) by what is known at the corners of their cells."""
    assert grid.cells is not None and isinstance(grid.ruler, TensorRuler)
    known = grid.cells.at(grid.table, cells.flatten(), places.flatten(1)).unflatten(0, nodes.shape[:-1])
    return grid.ruler.along(nodes, known)
