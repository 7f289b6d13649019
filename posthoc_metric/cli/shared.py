"""What several commands need: options, the decoder they name, a repaired metric, points."""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, get_type_hints

import numpy as np
import torch
import typer
from torch import Tensor
from torch.distributions import Distribution

from .._arrays import describe
from .._warn import warn_caller
from ..arrays_io import read_named
from ..belonging import check_data
from ..checkpoint import load_decoder
from ..decoder import Decoder, fisher_rao
from ..decoder.outputs import entry
from ..errors import (
    CalibrationWarning,
    DecoderError,
    InvalidArgumentError,
    OutputError,
    PosthocMetricError,
    PosthocMetricWarning,
)
from ..loading import load
from ..output import check_file
from ..parallel import cut
from ..repair import RepairedMetric
from ..saving import latent_columns
from .terminal import clear_errors

#: opens the decoder that the options name, for latents of so many columns where that is known
OpenDecoder = Callable[[int | None], Decoder]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output instead of a summary.")]
Data = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="What the latents encode, row by row; the files are those of --latents."),
]
Repaired = Annotated[
    Path, typer.Argument(metavar="REPAIRED", help="repaired.safetensors, or the folder that `repair` wrote it into.")
]

#: help of an option that takes a point
POINT = (
    "Row of the latents, or coordinates 0.5,-1.2. A whole number is a row, and -1 the last; but of latents with one "
    "column -1 is a coordinate, and 3.0 is where 3 is a row."
)

_option = functools.partial(typer.Option, rich_help_panel="The decoder")
#: rows of a matrix that are written at a time
_ROWS = 16


def _open(
    checkpoint: Annotated[Path, _option(metavar="FILE", help="The trained decoder.")],
    factory: Annotated[
        str | None,
        _option(
            metavar="MODULE:CLASS", help="What builds the model that the weights go into; imported because you name it."
        ),
    ] = None,
    factory_args: Annotated[
        str | None, _option(metavar="JSON", help='Keywords for the factory, as {"width": 64}.')
    ] = None,
    key: Annotated[str | None, _option(help="Where in the file the weights are, if not found alone.")] = None,
    prefix: Annotated[str | None, _option(help="Prefix of the decoder's weights, if not found alone.")] = None,
    method: Annotated[str | None, _option(help="Which method of the model decodes, such as decode.")] = None,
    output: Annotated[
        str | None, _option(help="Which part of what it returns: a tuple's index, a key or a name.")
    ] = None,
    fisher: Annotated[
        bool,
        _option(
            "--fisher-rao",
            help="Measure how well the distributions that it returns can be told apart; --data are observations then.",
        ),
    ] = False,
    condition: Annotated[
        str | None,
        _option(
            metavar="JSON",
            help='What it needs beside latents: a label as 3, a vector as [0.5, 1], or keywords as {"library": [9.2]}.',
        ),
    ] = None,
    latent_dim: Annotated[int | None, _option(min=1, help="Latent dimension, if not found alone.")] = None,
    latent_shape: Annotated[
        str | None,
        _option(
            metavar="SHAPE", help="Axes of one latent, if it has several, as 4x8x8; files of latents hold them flat."
        ),
    ] = None,
    trust: Annotated[
        bool, _option("--trust", help="Allow files that run code when they are read: only your own.")
    ] = False,
) -> Decoder:
    given: dict[str, Any] = {"key": key, "prefix": prefix, "method": method, "latent_dim": latent_dim}
    if output is not None:
        given["output"] = int(output) if re.fullmatch(r"-?[0-9]{1,9}", output) else output
    if fisher:
        given["output"] = functools.partial(_told_apart, given.get("output"))
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if factory_args is not None:
        options["factory_kwargs"] = _json(factory_args, "--factory-args", 'a JSON object such as {"width": 64}', dict)
    if latent_shape is not None:
        options["latent_shape"] = sides(latent_shape, "--latent-shape", "4x8x8")
    if condition is not None:
        options["condition"] = _json(condition, "--condition", 'JSON such as 3, [0.5, 1] or {"library": [9.2]}')
    return load_decoder(checkpoint, factory=factory, trust=trust, **options)


def _told_apart(output: int | str | None, result: Any) -> Tensor:
    part = result if output is None else entry(result, output)
    if not isinstance(part, Distribution):
        raise DecoderError(
            f"`--fisher-rao` needs a decoder that returns a torch distribution; got {describe(part)}. Name the part "
            "that is one with --output, or let the class that --factory names return one, as Categorical(logits=x) "
            "of logits x."
        )
    return fisher_rao(part)


def with_decoder(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a decoder; it gets a function that opens it as its first argument.

    Errors of this library end the command with their message.
    """
    shared, own = inspect.signature(_open), inspect.signature(command)
    hints = get_type_hints(_open, include_extras=True) | get_type_hints(command, include_extras=True)

    @functools.wraps(command)
    def run(**options: Any) -> None:
        decoder = {name: options.pop(name) for name in shared.parameters}
        with clear_errors():
            command(lambda columns: _open_for(columns, decoder), **options)

    first, *rest = own.parameters.values()
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
        for parameter in [*rest, *shared.parameters.values()]
    ]
    # Typer reads the options off the signature and the annotations
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__  # type: ignore[attr-defined]
    return run


def _open_for(columns: int | None, options: dict[str, Any]) -> Decoder:
    """What the options name; the latents' columns are its latent dimension where it is found no other way, or wrong.

    A model with an encoder may be taken for one of the encoder's input, and says so only when it is called.
    """
    if columns is None or options["latent_dim"] is not None:
        return _open(**options)
    problem: PosthocMetricError | None = None
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", PosthocMetricWarning)  # of others' those that are heard without this, too
        try:
            found: Decoder | None = _open(**options)
        except PosthocMetricError as error:
            found, problem = None, error
    if found is None or found.latent_dim != columns:
        try:
            return _open(**options | {"latent_dim": columns})
        except PosthocMetricError:
            # it is no decoder of these latents, and what was found of itself says more
            if problem is not None:
                raise problem from None
    for note in notes:
        warnings.warn_explicit(note.message, note.category, note.filename, note.lineno)
    assert found is not None
    return found


def open_repaired(open_decoder: OpenDecoder, path: Path, data: str | None = None) -> RepairedMetric:
    """The metric that ``repair`` wrote, with the data it was fitted on if they are given again."""
    file = path / "repaired.safetensors" if path.is_dir() else path
    repaired = load(file, open_decoder(latent_columns(file)))
    if data is not None:
        rows, doubt = check_data(repaired.decoder, read_named(data, "data", sparse=True), repaired.geometry.latents)
        if doubt:
            warn_caller(doubt, CalibrationWarning)
        repaired.data = rows.subset(repaired.geometry.training_rows)
    return repaired


def draw_pairs(latents: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The ends (count, d) of pairs of latents, none of which comes twice."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(latents), generator=generator, device="cpu").to(latents.device)
    return latents[order[:count]], latents[order[count : 2 * count]]


def points_of(arguments: list[str], name: str, latents: Tensor) -> Tensor:
    """Points (n, d) from row numbers of the latents, or coordinates such as ``0.5,-1.2``."""
    return torch.stack([_point(argument, name, latents) for argument in arguments])


def _point(argument: str, name: str, latents: Tensor) -> Tensor:
    count, dim = latents.shape
    row = _row(argument.strip(), dim)
    if row is not None:
        if not -count <= row < count:
            advice = "or backwards from -1, the last" if dim > 1 else f"and the coordinate {row} is written {row}.0"
            raise InvalidArgumentError(
                f"`{name}` must be a row from 0 to {count - 1}; got {row}. Rows count from zero, {advice}."
            )
        return latents[row]
    try:
        point = torch.tensor([float(cell) for cell in argument.split(",")], dtype=latents.dtype, device=latents.device)
    except ValueError:
        point = latents.new_zeros(0)
    if len(point) != dim:
        wanted = "a coordinate with a decimal point" if dim == 1 else f"{dim} coordinates with commas between"
        raise InvalidArgumentError(f"`{name}` must be a row number of the latents or {wanted}; got {argument!r}.")
    return point


def _row(text: str, dim: int) -> int | None:
    """The row that a whole number is, in every dimension; ``None`` for what is no row.

    With a sign it is one only where it cannot be the one coordinate of a latent.
    """
    digits = text if dim == 1 else text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() else None


def sides(text: str, option: str, example: str) -> tuple[int, ...]:
    """A shape such as (64, 64, 3) from ``64x64x3``."""
    try:
        return tuple(int(side) for side in text.lower().split("x"))
    except ValueError:
        raise InvalidArgumentError(f"`{option}` must read like {example}; got {text!r}.") from None


def folder(text: str) -> Path:
    """The folder that an option names; an empty name, as of a variable that is not set, would be the current one."""
    if not text:
        raise typer.BadParameter("it must name a folder, and is empty. '.' is the folder that you are in.")
    return Path(text)


def check_result(out: Path | None, ending: str = "") -> None:
    """See that a result can be written to ``out``, before long work begins.

    Raises:
        OutputError: it cannot.
        InvalidArgumentError: the name does not end as what is written into it should.
    """
    if out is None:
        return
    if os.path.isdir(out):
        raise OutputError(f"`--out` must be a file to write; {str(out)!r} is a folder. Add a name to it.")
    check_file(out)
    if ending and out.suffix.lower() != ending:
        raise InvalidArgumentError(
            f"`--out` must end in {ending}, which is what will be in it; got {str(out)!r}. Name it "
            f"{out.with_suffix(ending).name!r}, and convert it afterwards: numpy.load reads it."
        )


def packed(**arrays: Any) -> bytes:
    """What a ``.npz`` of named arrays holds."""
    buffer = io.BytesIO()
    named: dict[str, Any] = {name: _array(value) for name, value in arrays.items()}
    np.savez_compressed(buffer, **named)
    return buffer.getvalue()


def npy(matrix: Any) -> Callable[[BinaryIO], None]:
    """Writes the ``.npy`` of a matrix some rows at a time: it may be a map of a file, and exceed memory."""
    array = _array(matrix)
    kind = np.lib.format.dtype_to_descr(array.dtype)
    facts = {"descr": kind, "fortran_order": False, "shape": array.shape}

    def write(stream: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(stream, facts)
        for low, high in cut(len(array), _ROWS):
            stream.write(array[low:high].tobytes())

    return write


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _json(text: str, name: str, wanted: str, kind: type = object) -> Any:
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        if isinstance(value, kind):
            return value
    raise InvalidArgumentError(f"`{name}` must be {wanted}; got {text!r:.200}. Put it in single quotes.")
