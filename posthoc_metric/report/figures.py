"""The report's figures, each composed from :mod:`posthoc_metric.plots`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .. import plots
from .._arrays import as_tensor
from ..decoder.observation import means
from ..diagnostics import Audit
from .page import readable
from .pairs import PairStatistics, has_curve, sampled, shares_off_data, straight_lines

if TYPE_CHECKING:
    from ..geodesic import Solution
    from ..repair import RepairedMetric
    from ..smooth_map import SmoothMap

WIDTH = 9.2
DPI = 150
_MOST_CURVES = 40
_SAMPLES = 129
_GRID = 150
_FRAMES = 11
_FRAME_PAIRS = 3
#: share of an image's values outside [0, 1] that is told of
_MUCH_CUT = 0.01
#: what an offset above 0 is, in words: also one in twenty of the latents themselves
_OFF_DATA = "off the data, further from the training latents than 95 % of those held out"


@dataclass(frozen=True)
class Picture:
    """A figure with the words that say how to read it."""

    name: str
    title: str
    caption: str
    figure: Figure


def pictures(
    repaired: RepairedMetric,
    before: Solution,
    after: Solution,
    audit: Audit,
    pairs: PairStatistics,
    image_shape: tuple[int, ...] | None = None,
) -> Iterator[Picture]:
    """Every picture of a report, one after another.

    Args:
        before, after: geodesics of the decoder's own and of the repaired metric between the same pairs.
        pairs: what these came to.
        image_shape: (h, w), (h, w, 3) or (3, h, w) where the decoder's outputs are images with values in [0, 1], or
            coordinates of distributions whose means are.
    """
    if repaired.dim >= 2:
        yield maps(repaired)
        yield geodesics(repaired, before, after, pairs)
    if image_shape is not None and bool((has_curve(before) & has_curve(after)).any()):
        yield frames(repaired, before, after, image_shape)
    yield profile(audit)
    yield criteria(audit)


def maps(repaired: RepairedMetric) -> Picture:
    """Magnification factor and condition number before and after, each pair on one colour scale."""
    plane = plots.latent_plane(repaired.geometry.latents)
    offset = repaired.geometry.offset(plane.grid(_GRID)).reshape(_GRID, _GRID).cpu().numpy()
    metrics = {"Decoder alone": repaired.decoder_metric, "Repaired": repaired}
    figure = _figure(8.6, "compressed")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for row, quantity in zip(grid, plots.QUANTITIES, strict=True):
        fields = [plots.evaluate(metric, plane, quantity, _GRID) for metric in metrics.values()]
        norm = plots.shared_norm(fields, quantity, ceiling=repaired.knobs.max_condition_number)
        for ax, field, name in zip(row, fields, metrics, strict=True):
            flat = repaired.geometry.latents if repaired.dim == 2 else None
            plots.draw_field(ax, field, plane, quantity=quantity, norm=norm, latents=flat, offset=offset)
            plots.heading(ax, name, plots.QUANTITIES[quantity].label.split("  ")[0])
            ax.label_outer()
        plots.colour_bar(row[-1].images[0], row, quantity)
    if plane.title:
        figure.suptitle(plane.title[0].upper() + plane.title[1:], size=11, color=plots.INK)
    dots = (
        "White dots are the training latents"
        if repaired.dim == 2
        else f"The picture shows the {plane.title}; the three white dots are those points"
    )
    inflated = "offset 1, from where the inflation is guaranteed"
    void = f", and the dashed one {inflated}" if offset.max() > 1 else f"; {inflated}, is beyond the picture"
    caption = (
        f"{dots}; the solid white line is offset 0, the edge of the data{void}. Left and right share "
        "one colour scale in each row. On the data the two sides should look alike. Off the data the repaired side "
        "should be brighter in the upper row, so that crossing empty space is dear, and dark in the lower row, so that "
        "the metric is well conditioned."
    )
    return Picture("maps", "Magnification factor and condition number over the latent plane", caption, figure)


def geodesics(repaired: RepairedMetric, before: Solution, after: Solution, pairs: PairStatistics) -> Picture:
    """The same pairs' geodesics before and after."""
    latents = repaired.geometry.latents
    plane = plots.principal_plane(latents)
    chosen = torch.nonzero(has_curve(before) & has_curve(after)).flatten()[:_MOST_CURVES]
    # over axes of equal aspect with a legend outside, the layout forgets the headings
    figure = _figure(5.6, rect=(0, 0, 1, 0.955))
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    region = (
        repaired.geometry.offset(plane.grid(_GRID)).reshape(_GRID, _GRID).cpu().numpy() if repaired.dim == 2 else None
    )
    shown = latents[:: max(1, len(latents) // 4_000)]
    sides = (("Decoder alone", before, pairs.before), ("Repaired", after, pairs.after))
    for ax, (name, solution, found) in zip(axes, sides, strict=True):
        curves = sampled(solution, _SAMPLES)[chosen]
        offset = repaired.geometry.offset(curves.flatten(0, 1)).reshape(curves.shape[:2])
        plots.draw_curves(ax, curves, offset.cpu().numpy(), plane, latents=shown, region=region)
        share = readable(float(found.off_data[chosen].mean()), "percent") if len(chosen) else "–"
        plots.heading(ax, name, f"{share} of the length of these curves is off the data")
        ax.set_anchor("S")  # spare height goes above, where the heading is
        ax.label_outer()
    handles = [
        Line2D([], [], color=plots.ON_DATA, linewidth=1.4, label="over the data (offset ≤ 0)"),
        Line2D([], [], color=plots.OFF_DATA, linewidth=2.4, label="off the data (offset > 0)"),
        Line2D([], [], color=plots.INK, marker="o", linestyle="", markersize=4, label="ends"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    if plane.title:
        figure.suptitle(plane.title[0].upper() + plane.title[1:], size=11, color=plots.INK)
    tint = ", the tinted ground is where the offset is at most 0" if region is not None else ""
    caption = (
        f"The first {len(chosen)} pairs for which both metrics have a curve. Grey dots are training latents{tint}. "
        f"Thick orange pieces lie {_OFF_DATA}. The further out, the less decoded values mean; the repair should leave "
        "no more of them than there were, and none far out."
    )
    return Picture("geodesics", "The same pairs' geodesics before and after", caption, figure)


def frames(repaired: RepairedMetric, before: Solution, after: Solution, image_shape: tuple[int, ...]) -> Picture:
    """Decoded frames along the straight line and both geodesics, for the pairs that the decoder led astray most."""
    geometry, decoder = repaired.geometry, repaired.decoder
    finite = torch.nonzero(has_curve(before) & has_curve(after)).flatten()
    astray = shares_off_data(repaired, before)[finite]
    chosen = finite[astray.argsort(descending=True, stable=True)[:_FRAME_PAIRS]]
    straight = straight_lines(_tensor(after.points)[chosen, 0], _tensor(after.points)[chosen, -1], _FRAMES)
    rows = {
        "straight line": straight,
        "decoder alone": sampled(before, _FRAMES)[chosen],
        "repaired": sampled(after, _FRAMES)[chosen],
    }
    figure = _figure(0.5 + 2.5 * len(chosen))
    cut = []
    blocks = figure.subfigures(len(chosen), 1, squeeze=False, hspace=0.04)[:, 0]
    for index, block in enumerate(blocks):
        grid = block.subplots(len(rows), _FRAMES, squeeze=False)
        for axes, (name, curves) in zip(grid, rows.items(), strict=True):
            values = means(decoder, _tensor(decoder(curves[index])))
            cut.append(((values < 0) | (values > 1)).double().mean())
            images = _images(values, decoder, image_shape).cpu().numpy()
            off_data = (geometry.offset(curves[index]) > 0).tolist()
            plots.draw_frames(axes, images, label=name, off_data=off_data)
        block.suptitle(f"pair {int(chosen[index])}", size=9, color=plots.MUTED, x=0.01, ha="left")
    caption = (
        f"The {len(chosen)} pairs of all {len(_tensor(after.points))} whose unrepaired geodesic is off the data for "
        "the largest share of its length, at constant speed from left to right. A frame with a thick orange border "
        f"lies {_OFF_DATA}; the further out, the more its picture is a guess."
    )
    if (outside := float(torch.stack(cut).mean())) > _MUCH_CUT:
        caption += (
            f" {outside:.0%} of the values lie outside [0, 1] and are cut to it. Outputs in [-1, 1], as of tanh, "
            "are seen whole where the decoder ends in (x + 1) / 2, which halves all lengths."
        )
    return Picture("frames", "Decoded frames along the way", caption, figure)


def _images(values: torch.Tensor, decoder: SmoothMap, image_shape: tuple[int, ...]) -> torch.Tensor:
    """Flat outputs as images with their colours last; where torch's convolutions gave them first, that decides."""
    if len(image_shape) == 3:
        first = (3, *image_shape[:2]) if image_shape[2] == 3 else image_shape
        if image_shape[2] != 3 or getattr(decoder, "output_shape", None) == first:
            return values.reshape(-1, *first).movedim(1, -1)
    return values.reshape(-1, *image_shape)


def profile(audit: Audit) -> Picture:
    """Log volume and condition number against the offset."""
    figure = _figure(4.0)
    left, right = figure.subplots(1, 2)
    plots.log_volume_by_offset(audit, left)
    plots.heading(left, "Log volume", "median and 5 to 95 % band, per dimension")
    plots.condition_by_offset(audit, right)
    plots.heading(right, "Condition number", "95th percentile")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    caption = (
        "Shells of points around the data, evenly spaced in the order of their offset: 1 is one data radius beyond the "
        "data. Where a line breaks off, the metric became singular. The repaired log volume must agree with the "
        f"decoder's on the data and never fall further out.{_own_volume(audit)}"
    )
    return Picture("profile", "From the data outwards", caption, figure)


def _own_volume(audit: Audit) -> str:
    """What the decoder's own log volume does, for the caption."""
    found = next(row for row in audit.criteria if row.name == "persistence")
    if found.before > found.bound:
        return " The decoder's own falls, which makes it cheap for its shortest paths to leave the data."
    return " The decoder's own does not fall either." if found.before <= found.bound else ""


def criteria(audit: Audit) -> Picture:
    """The audit's criteria as multiples of their bounds."""
    figure = _figure(0.9 + 0.42 * len(audit.criteria))
    ax = plots.audit_panel(audit, figure.add_subplot())
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    caption = (
        "Each criterion of the table above as a multiple of its bound, on a logarithmic scale cut at 10,000 either "
        "way. Points right of the line meet the bound. The decoder's fidelity is to itself, and left out."
    )
    return Picture("audit", "The audit at a glance", caption, figure)


def _figure(height: float, layout: Literal["constrained", "compressed"] = "constrained", **space: Any) -> Figure:
    figure = Figure(figsize=(WIDTH, height))
    figure.set_layout_engine(layout, w_pad=0.08, h_pad=0.1, **space)
    return figure


def _tensor(value: object) -> torch.Tensor:
    return as_tensor(value).detach().double()
