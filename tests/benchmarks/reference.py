"""Reference lengths: the shortest path on a fine uniform grid, minimised with many nodes, its length a sum of chords.

Nothing of the solver's own starts, coarse levels or length estimates enters; only its inner relaxation does, at
a resolution far beyond what it would choose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_metric.geodesic.curves.spline import interpolate
from posthoc_metric.geodesic.relaxation.energy import CurveEnergy
from posthoc_metric.geodesic.relaxation.gauss_newton import relax
from posthoc_metric.geodesic.starts.graph import build_graph
from posthoc_metric.geodesic.starts.ruler import TensorRuler
from posthoc_metric.geodesic.starts.shortest_paths import shortest_paths
from posthoc_metric.geodesic.starts.start_curves import rounded
from posthoc_metric.metric import Metric


def chord_length(metric: Metric, spline, chords: int = 4096) -> Tensor:
    """Lengths (B,) as the sum of many chords of the embedding and of the weight at their midpoints."""
    parts = metric.parts()
    count = len(spline.knots)
    times = torch.linspace(0, 1, chords + 1, dtype=torch.float64)
    lengths = []
    for row in range(count):
        one = spline.take(torch.tensor([row]))
        z = one.at(times[None])[0][0]
        step, middle = z.diff(dim=0), (z[1:] + z[:-1]) / 2
        squares = torch.zeros(chords, dtype=torch.float64)
        if parts.embedding is not None:
            # derivatives, not differences of float32 values, which would cancel
            squares += parts.embedding.jvp(middle, step)[1].square().sum(1)
        if parts.weight is not None:
            squares += parts.weight(middle) * step.square().sum(1)
        if parts.field is not None:
            squares += torch.einsum("ni,nij,nj->n", step, parts.field(middle), step)
        lengths.append(squares.sqrt().sum())
    return torch.stack(lengths)


def fine_reference(
    metric: Metric, start: Tensor, end: Tensor, side: int = 160, spans: int = 256, block: int = 20
) -> tuple[Tensor, object]:
    """Lengths (B,) and splines of the reference geodesics for ``metric.support``'s box, d = 2."""
    parts = metric.parts()
    assert metric.support is not None
    a, b = start.double(), end.double()
    around = torch.cat([metric.support.double(), a, b])
    low, high = around.amin(0), around.amax(0)
    margin = 0.15 * (high - low)
    box = torch.stack([low - margin, high + margin], dim=1).tolist()
    axes = [torch.linspace(lo, hi, side, dtype=torch.float64) for lo, hi in box]
    points = torch.cartesian_prod(*axes)
    graph = build_graph(TensorRuler(parts), points, 24)
    paths = shortest_paths(graph, a, b)
    nodes = rounded(paths.corners, paths.lengths, torch.arange(len(a)), 1).nodes
    middles = (nodes[:, 1:] + nodes[:, :-1]) / 2
    dense = torch.empty(len(a), 257, a.shape[1], dtype=torch.float64)
    dense[:, ::2], dense[:, 1::2] = nodes, middles
    dense = dense[:, :: 256 // spans]
    knots = torch.linspace(0, 1, spans + 1, dtype=torch.float64).expand(len(a), -1).contiguous()
    energy = CurveEnergy(parts, a)
    final = []
    for rows in torch.arange(len(a)).split(block):
        relaxed = relax(energy, dense[rows].contiguous(), knots[rows], tol=1e-4, max_steps=200)
        final.append(relaxed.nodes)
    spline = interpolate(knots, torch.cat(final))
    return torch.cat([chord_length(metric, spline.take(rows)) for rows in torch.arange(len(a)).split(block)]), spline
