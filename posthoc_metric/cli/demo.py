"""``posthoc-metric demo``: the main job, end to end, on the shipped decoder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..decoder import Decoder
from ..diagnostics import Audit
from ..examples import IMAGE_SHAPE, LATENT_DIM, digits, digits_vae
from ..output import check_folder
from ..repair import repair
from ..report import write_report
from ..report.page import readable
from ..surroundings import one_torch_thread
from .shared import AsJson, draw_pairs, folder
from .terminal import NEGATIVE, clear_errors, results, show_audit, show_json, stages


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", parser=folder, help="Folder for the results.")] = Path(
        "posthoc-metric-demo"
    ),
    pairs: Annotated[int, typer.Option(min=1, max=800, help="How many pairs of digits.")] = 100,
    seed: Annotated[int, typer.Option(help="Which pairs of digits, and the seed of the repair.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Repair the shipped digits VAE and show what it did; exit code 1 if the audit does not pass.

    Loads a small trained decoder and its encoder, encodes scikit-learn's digits, repairs the metric, joins pairs of
    digits by geodesics before and after, audits the repair, and writes report.html, audit.json, geodesics.npz and the
    figures into DIR.
    """
    # matrices as small as these gain nothing from threads, and lose much where cores are shared
    with clear_errors(), one_torch_thread():
        began = time.perf_counter()
        check_folder(out)
        with stages(6) as bar:
            bar.next("loading the decoder and encoding the digits")
            module, encoder = digits_vae()
            images = digits().data
            latents = encoder(images).double()
            decoder = Decoder(module, latent_dim=LATENT_DIM)
            bar.next("repairing the metric")
            repaired = repair(decoder, latents, images, seed=seed)
            start, end = draw_pairs(latents, pairs, seed)
            bar.next(f"{pairs} geodesics of the repaired metric")
            after = repaired.geodesic(start, end)
            bar.next(f"{pairs} geodesics of the decoder alone")
            before = repaired.decoder_metric.geodesic(start, end)
            bar.next("auditing before and after")
            audit = repaired.audit(seed=seed)
            bar.next("drawing and writing the report")
            facts = write_report(
                out,
                repaired,
                before,
                after,
                audit,
                image_shape=IMAGE_SHAPE,
                title="Digits VAE: repaired latent geometry",
                settings={"decoder": "the shipped VAE on scikit-learn's digits", "seed of the pairs": seed},
            )
        if as_json:
            show_json(facts)
        else:
            _summarise(facts, audit, out, time.perf_counter() - began)
        if not audit.passed:
            raise typer.Exit(NEGATIVE)


def _summarise(facts: dict, audit: Audit, out: Path, seconds: float) -> None:
    geodesics, say = facts["geodesics"], results().print
    before, after = geodesics["before"], geodesics["after"]
    say(
        f"Repaired a VAE's latent space (d = 2) from {facts['settings']['latents']} encoded digits, and joined "
        f"{geodesics['pairs']} pairs of digits by geodesics: [bold]{after['converged']} converged[/]."
    )
    say(
        f"Off the data runs [bold]{readable(after['off_data_mean'], 'percent')}[/] of their length; with the decoder "
        f"alone it is {readable(before['off_data_mean'], 'percent')}, on straight lines "
        f"{readable(geodesics['straight_off_data_mean'], 'percent')}."
    )
    say()
    show_audit(audit)
    say()
    verdict = "[green]The audit passes.[/]" if audit.passed else "[red]The audit does not pass.[/]"
    say(f"{verdict} Open [bold]{escape(str(out / 'report.html'))}[/] to see it ({seconds:.0f} s).")
