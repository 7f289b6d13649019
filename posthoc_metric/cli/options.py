"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_DECODER = "The decoder"

Checkpoint = Annotated[
    Path, typer.Option("--checkpoint", metavar="FILE", help="The trained decoder.", rich_help_panel=_DECODER)
]
Factory = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:CLASS",
        help="What builds the model that the checkpoint's weights go into; imported because you name it.",
        rich_help_panel=_DECODER,
    ),
]
FactoryArguments = Annotated[
    str | None,
    typer.Option(
        "--factory-args", metavar="JSON", help='Keywords for the factory, as {"width": 64}.', rich_help_panel=_DECODER
    ),
]
Key = Annotated[
    str | None,
    typer.Option(help="Where in the checkpoint the weights are, if not found alone.", rich_help_panel=_DECODER),
]
Prefix = Annotated[
    str | None, typer.Option(help="Prefix of the decoder's weights, if not found alone.", rich_help_panel=_DECODER)
]
Method = Annotated[
    str | None, typer.Option(help="Which method of the model decodes, such as decode.", rich_help_panel=_DECODER)
]
LatentDim = Annotated[
    int | None, typer.Option(min=1, help="Latent dimension, if not found alone.", rich_help_panel=_DECODER)
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Allow files that run code when they are read. Only for your own.", rich_help_panel=_DECODER
    ),
]
Repaired = Annotated[
    Path, typer.Argument(metavar="REPAIRED", help="repaired.safetensors, or the folder that `repair` wrote it into.")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="What the latents encode, row by row: .npy, .npz, .pt, .csv, .h5ad; FILE:NAME picks one.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output instead of a summary.")]
