"""The commands over a user's own decoder."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .._arrays import check_seed
from ..arrays_io import read_named
from ..errors import InvalidArgumentError
from ..output import check_folder, staged_folder, to_json, write_file
from ..repair import repair as fit_repair
from ..report import check_image_shape, write_report
from ..report.page import readable
from .shared import (
    POINT,
    AsJson,
    Data,
    OpenDecoder,
    Repaired,
    check_result,
    draw_pairs,
    folder,
    npy,
    open_repaired,
    packed,
    points_of,
    sides,
    with_decoder,
)
from .terminal import NEGATIVE, as_options, plain, say, show_audit, show_json, show_table, stages


class Uncertainty(str, Enum):
    """Names of the uncertainty models."""

    rbf = "rbf"
    gp = "gp"
    published = "rbf-published"


class Method(str, Enum):
    """How distances are computed."""

    auto = "auto"
    solver = "solver"
    graph = "graph"


@with_decoder
def repair(
    open_decoder: OpenDecoder,
    latents: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Training latents (N, d): .npy, .npz, .pt, .csv, .h5ad; FILE:NAME picks one."
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", parser=folder, help="Folder for repaired.safetensors and repair.json.")
    ],
    data: Data = None,
    uncertainty: Annotated[
        Uncertainty, typer.Option(metavar="NAME", help="What models the unknown: rbf, gp or rbf-published.")
    ] = Uncertainty.rbf,
    inflation: Annotated[
        float, typer.Option(help="Least cost of a step in the void, over the costliest on the data.")
    ] = 10.0,
    support_quantile: Annotated[float, typer.Option(help="Share of held-out latents that count as known.")] = 0.99,
    max_condition_number: Annotated[float, typer.Option(help="Bound on the Jacobian's condition number.")] = 1e3,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Repair a decoder's metric and save it.

    Every other command takes what this one writes, and the same options for the decoder.
    """
    check_folder(out)
    with stages(3) as bar:
        bar.next("opening the latents and the decoder")
        points = read_named(latents, "latents")
        decoder = open_decoder(points.shape[1] if points.ndim == 2 else None)
        bar.next("fitting")
        repaired = fit_repair(
            decoder,
            points,
            None if data is None else read_named(data, "data", sparse=True),
            uncertainty=uncertainty.value,
            inflation=inflation,
            support_quantile=support_quantile,
            max_condition_number=max_condition_number,
            seed=seed,
        )
        bar.next("saving")
        facts = {
            "latent_dim": repaired.dim,
            "output_dim": decoder.output_dim,
            "latents": len(repaired.geometry.latents),
            "uncertainty": uncertainty.value,
            **asdict(repaired.knobs),
            "seed": seed,
        }
        with staged_folder(out) as draft:
            repaired.save(draft / "repaired.safetensors")
            (draft / "repair.json").write_text(to_json(facts), encoding="utf-8")
    if as_json:
        show_json(facts | {"file": str(out / "repaired.safetensors")})
        return
    say(
        f"Repaired a decoder R^{repaired.dim} -> R^{decoder.output_dim} from {facts['latents']} latents; saved "
        f"{out / 'repaired.safetensors'}. See what it did: posthoc-metric audit {shlex.quote(str(out))} and the same "
        "decoder options."
    )


@with_decoder
def audit(
    open_decoder: OpenDecoder,
    repaired: Repaired,
    data: Data = None,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs of held-out latents whose geodesics are followed.")] = 30,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the audit here, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a repair before and after; exit code 1 if it does not pass.

    With --data the published RBF repair is measured as well, which the smoothness is held to.
    """
    check_result(out)
    with stages(2) as bar:
        bar.next("opening the decoder and the metric")
        metric = open_repaired(open_decoder, repaired, data)
        bar.next("measuring before and after")
        found = metric.audit(pairs=pairs)
    if out is not None:
        write_file(out, to_json(found.as_dict()).encode())
    if as_json:
        show_json(found.as_dict())
    else:
        show_audit(found)
    if not found.passed:
        raise typer.Exit(NEGATIVE)


@with_decoder
def geodesic(
    open_decoder: OpenDecoder,
    repaired: Repaired,
    start: Annotated[list[str], typer.Option("--from", metavar="POINT", help=POINT)],
    end: Annotated[list[str], typer.Option("--to", metavar="POINT", help="Likewise; repeat both for several pairs.")],
    unrepaired: Annotated[bool, typer.Option("--unrepaired", help="Use the decoder's own metric instead.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write points, length, length_error, status here, as .npz.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Join points by geodesics; exit code 1 if one did not converge."""
    if len(start) != len(end):
        raise InvalidArgumentError(
            f"`--from` and `--to` must be given equally often; got {len(start)} and {len(end)}. Repeat one of them."
        )
    check_result(out, ".npz")
    with stages(2) as bar:
        bar.next("opening the decoder and the metric")
        metric = open_repaired(open_decoder, repaired)
        latents = metric.geometry.latents
        first, last = points_of(start, "--from", latents), points_of(end, "--to", latents)
        bar.next(f"solving {len(start)} geodesic{'s' if len(start) > 1 else ''}")
        solution = (metric.decoder_metric if unrepaired else metric).geodesic(first, last)
    if out is not None:
        curves = {"points": solution.points, "length": solution.length, "length_error": solution.length_error}
        write_file(out, packed(**curves, status=[status.name for status in solution.status]))
    rows: list[dict[str, Any]] = [
        {
            "from": start[i],
            "to": end[i],
            "length": float(solution.length[i]),
            "length_error": float(solution.length_error[i]),
            "status": solution.status[i].name,
            "advice": as_options(solution.status[i].value),
        }
        for i in range(len(start))
    ]
    if as_json:
        show_json({"pairs": rows, "converged": int(solution.converged.sum())})
    else:
        cells = [
            (
                row["from"],
                row["to"],
                readable(plain(row["length"])),
                readable(plain(row["length_error"])),
                row["status"],
            )
            for row in rows
        ]
        show_table(("from", "to", "length", "± at most", "status"), cells)
        for advice in {row["status"]: row["advice"] for row in rows if row["status"] != "CONVERGED"}.values():
            say(advice)
    if not bool(solution.converged.all()):
        raise typer.Exit(NEGATIVE)


@with_decoder
def distances(
    open_decoder: OpenDecoder,
    repaired: Repaired,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the matrix goes, as .npy.")],
    points: Annotated[
        str | None, typer.Option(metavar="FILE", help="Points (n, d); the training latents if not given.")
    ] = None,
    most: Annotated[int | None, typer.Option(min=2, help="Only the first so many points.")] = None,
    by: Annotated[
        Method, typer.Option(metavar="NAME", help="solver, graph, or auto: the graph beyond 4,000 pairs.")
    ] = Method.auto,
    jobs: Annotated[int, typer.Option(help="Processes; -1 for all cores.")] = 1,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=folder, help="What is done, to go on from if killed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the matrix of geodesic distances between points; exit code 1 if some are missing or not converged."""
    check_result(out, ".npy")
    metric = open_repaired(open_decoder, repaired)
    chosen = metric.geometry.latents if points is None else read_named(points, "points")
    matrix, facts = metric.distances(
        chosen[:most],
        method=by.value,
        n_jobs=None if jobs == 1 else jobs,
        store=store,
        progress=sys.stderr.isatty(),
        return_report=True,
    )
    write_file(out, npy(matrix))
    if as_json:
        show_json({"file": str(out), "points": len(matrix), **asdict(facts)})
    else:
        say(
            f"Wrote {len(matrix)} x {len(matrix)} distances to {out}, by the {facts.method}; of {facts.pairs} pairs "
            f"{facts.failed} have none and {facts.unconverged} did not converge."
        )
    if facts.failed or facts.unconverged:
        raise typer.Exit(NEGATIVE)


@with_decoder
def report(
    open_decoder: OpenDecoder,
    repaired: Repaired,
    out: Annotated[Path, typer.Option(metavar="DIR", parser=folder, help="Folder for the report.")],
    data: Data = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of latents to join.")] = 100,
    image_shape: Annotated[
        str | None,
        typer.Option(metavar="HxW[x3]|3xHxW", help="If the outputs are images in [0, 1]: their shape, as 28x28."),
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "Repaired latent geometry",
    seed: Annotated[int, typer.Option(help="Which pairs are drawn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a report on a repair; exit code 1 if its audit does not pass.

    It is one self-contained page, audit.json, geodesics.npz and figures.
    """
    shape = None if image_shape is None else sides(image_shape, "--image-shape", "28x28 or 64x64x3")
    seed = check_seed(seed)
    check_folder(out)
    with stages(5) as bar:
        bar.next("opening the decoder and the metric")
        metric = open_repaired(open_decoder, repaired, data)
        check_image_shape(shape, metric.decoder.output_dim)
        latents = metric.geometry.latents
        count = min(pairs, len(latents) // 2)
        start, end = draw_pairs(latents, count, seed)
        bar.next(f"{count} geodesics of the repaired metric")
        after = metric.geodesic(start, end)
        bar.next(f"{count} geodesics of the decoder alone")
        before = metric.decoder_metric.geodesic(start, end)
        bar.next("auditing before and after")
        found = metric.audit()
        bar.next("drawing and writing")
        facts = write_report(
            out, metric, before, after, found, image_shape=shape, title=title, settings={"seed of the pairs": seed}
        )
    if as_json:
        show_json(facts)
    else:
        show_audit(found)
        say(f"Open {out / 'report.html'} to see it.")
    if not found.passed:
        raise typer.Exit(NEGATIVE)


@with_decoder
def describe(open_decoder: OpenDecoder, as_json: AsJson = False) -> None:
    """Say what was found in a checkpoint, and how its derivatives are taken."""
    with stages(1) as bar:
        bar.next("opening the decoder")
        decoder = open_decoder(None)
    if as_json:
        show_json(
            {"latent_dim": decoder.latent_dim, "output_dim": decoder.output_dim, "description": decoder.describe()}
        )
    else:
        say(decoder.describe())
