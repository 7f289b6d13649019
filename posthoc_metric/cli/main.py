"""The commands, put together."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import OutputError
from .commands import audit, describe, distances, geodesic, repair, report
from .demo import demo
from .streams import standard_streams
from .terminal import MISTAKE, show_error

_EPILOG = (
    "Exit codes: 0 done; 1 done, but with a result that is not good, as each command's help says; 2 a mistake; "
    "130 interrupted."
)
COMMANDS: tuple[Callable[..., Any], ...] = (demo, repair, audit, geodesic, distances, report, describe)

app = typer.Typer(
    name="posthoc-metric",
    help="Repair the geometry of a trained generative model after training.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"posthoc-metric {__version__}")
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Keeps a single command from becoming the whole program."""


def _help(command: Callable[..., Any]) -> str:
    """The docstring with each paragraph on one line, for the terminal to break."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


for _command in COMMANDS:
    app.command(help=_help(_command))(_command)


def main() -> None:
    """Run the command line; ``posthoc_metric_command`` is the entry point, which catches Ctrl-C during imports too."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with standard_streams():
            app()
    except OutputError as error:  # of the help, or of what was still to be written at the end
        show_error(error)
        sys.exit(MISTAKE)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, so that drafts are cleaned up."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
