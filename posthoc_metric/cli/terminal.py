"""What the commands say: results on standard output, everything else on standard error."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..diagnostics import Audit
from ..errors import PosthocMetricError, PosthocMetricWarning
from ..output import jsonable, to_json
from ..report.page import readable

MISTAKE, NEGATIVE, INTERRUPTED = 2, 1, 130
#: columns of a file or a pipe, to which no table is cut
_WIDE = 1_000_000
VERDICTS = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "[dim]not judged[/]"}
#: options by the arguments they stand for
_OPTIONS = {
    **{name: f"--{name}" for name in ("method", "output", "condition", "key", "prefix", "factory")},
    "latent_dim": "--latent-dim",
    "latent_shape": "--latent-shape",
    "factory_kwargs": "--factory-args",
    "trust": "--trust",
    "n_jobs": "--jobs",
    "uncertainty": "--uncertainty",
}
#: options by arguments that messages name alone
_NAMED = {
    **{name: f"--{name}" for name in ("out", "latents", "data", "points", "store", "seed", "pairs", "inflation")},
    **{name: option for name, option in _OPTIONS.items() if name != "trust"},
    "support_quantile": "--support-quantile",
    "max_condition_number": "--max-condition-number",
    "image_shape": "--image-shape",
    "a": "--points",
    "start": "--from",
    "end": "--to",
}
#: what stands for calls of Python's that messages name
_CALLS = {
    "`repaired.save(path)`": "`posthoc-metric repair`",
    "`repaired.save`": "`posthoc-metric repair`",
    "`pm.load_decoder`": "`--checkpoint`",
    "`pm.load`": "the argument REPAIRED",
}
#: arguments that no command has an option for
_PYTHON_ONLY = (
    *("strict", "observe", "probe", "max_bytes"),  # of decoders
    *("support", "max_steps", "max_spans", "rtol", "rough_rtol"),  # of geodesics
    *("calibrate", "neighbours", "graph_neighbours", "sample", "refine"),  # of distances
)
#: a value as Python writes it
_VALUE = r"""True|False|-?\d+(?:\.\d+)?|'[\w.]+'|"[\w.]+"|\([\d, ]+\)|\[[^][]*\]|\{[^{}]*\}"""
#: a line of Python, which stays as it is; or one that a command stands for; or another thing only Python has; or an
#: argument with or without a value, or named alone
_ARGUMENT = re.compile(
    r"\w\((?:[^()]|\([^()]*\))*\w=(?:[^()]|\([^()]*\))*\)"
    r"|(?P<statuses>metric\.geodesic\(a, b\)\.status)"
    r"|(?P<function>a function of the result|method=, a function of the model and z)"
    rf"|`?\b(?P<name>{'|'.join((*_OPTIONS, *_PYTHON_ONLY))})=(?P<value>{_VALUE})?`?(?=[\s,;.)]|$)"
    rf"|`(?P<named>{'|'.join((*_NAMED, *_PYTHON_ONLY))})`"
)


def results() -> Console:
    return _console(sys.stdout.isatty())


def _console(shown: bool, **options: Any) -> Console:
    """Lines are broken for a terminal alone: in a file or a pipe a path must stay whole."""
    return Console(highlight=False, emoji=False, soft_wrap=not shown, width=None if shown else _WIDE, **options)


def say(text: str) -> None:
    """A result in words, as it stands: a path may hold what Rich takes for markup."""
    results().print(text, markup=False)


def notes() -> Console:
    return _console(sys.stderr.isatty(), stderr=True)


@contextmanager
def clear_errors() -> Iterator[None]:
    """A user's mistake ends in one message and exit code 2, Ctrl-C in 130; neither shows a stack trace."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", PosthocMetricWarning)
            # torch's own, when the graph of an exported program is copied; the user can do nothing about it
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            default = warnings.showwarning

            def show(message: Any, category: Any, *rest: Any) -> None:
                if issubclass(category, PosthocMetricWarning):
                    notes().print(f"[yellow]Note:[/] {escape(as_options(str(message)))}")
                else:
                    default(message, category, *rest)

            warnings.showwarning = show  # type: ignore[assignment]
            yield
    except PosthocMetricError as error:
        show_error(error)
        raise typer.Exit(MISTAKE) from None
    except (KeyboardInterrupt, RuntimeError) as error:
        # TorchScript gives what Python raised within it as an error of its own
        if isinstance(error, RuntimeError) and "KeyboardInterrupt" not in str(error):
            raise
        notes().print("Stopped. Nothing half-written was left behind.")
        raise typer.Exit(INTERRUPTED) from None


def show_error(error: PosthocMetricError) -> None:
    notes().print(f"[bold red]Error:[/] {escape(as_options(str(error)))}")


def as_options(message: str) -> str:
    """A message that names an argument of Python's, as ``latent_dim=``, by the option that stands for it.

    What has no option is said to be for Python only.
    """
    for call, command in _CALLS.items():
        message = message.replace(call, command)
    return _ARGUMENT.sub(_as_option, message)


def _as_option(found: re.Match[str]) -> str:
    if found["named"] in _NAMED:
        return f"`{_NAMED[found['named']]}`"
    if found["statuses"]:
        return "posthoc-metric geodesic"
    name = found["name"]
    if found["named"] or found["function"] or name in _PYTHON_ONLY:
        return f"{found[0]} (in Python only)"
    if name is None:
        return found[0]
    value = _written(name, found["value"] or "")
    if name == "method" and value in ("solver", "graph"):
        return f"--by {value}"
    return f"{_OPTIONS[name]} {value}" if value and name != "trust" else _OPTIONS[name]


def _written(name: str, value: str) -> str:
    """A value of Python's as a shell takes it."""
    if name == "latent_shape":
        return "x".join(re.findall(r"\d+", value))
    if value.startswith(("[", "{")):
        return "'" + value.replace("'", '"') + "'"  # JSON knows double quotes alone
    return value.strip("'\"")


class Stages:
    """A progress bar over the named stages of a job, on standard error."""

    def __init__(self, progress: Progress, total: int):
        self._progress = progress
        self._task = progress.add_task("", total=total)
        self._begun = False

    def next(self, what: str) -> None:
        """Begin the next stage."""
        self._progress.update(self._task, description=what, advance=1 if self._begun else 0)
        self._begun = True

    def done(self) -> None:
        self._progress.update(self._task, description="done", advance=1)


@contextmanager
def stages(total: int) -> Iterator[Stages]:
    """Show how far a job of ``total`` stages has come; gone from the screen when it ends."""
    columns = (SpinnerColumn(), BarColumn(bar_width=28), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    console = notes()
    with Progress(
        *columns,
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bar = Stages(progress, total)
        yield bar
        bar.done()


def show_json(value: Any) -> None:
    """One JSON object on standard output and nothing else."""
    text = to_json(value)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = to_json(value, ascii_only=True)
    sys.stdout.write(text)


def show_audit(audit: Audit) -> None:
    """The audit as a table."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("criterion")
    for name in ("decoder alone", "repaired", "bound"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("verdict")
    for row in audit.criteria:
        sign = "≤ " if row.relation == "at most" else "≥ "
        bound = "" if row.passed is None else sign + readable(plain(row.bound))
        table.add_row(row.name, readable(plain(row.before)), readable(plain(row.after)), bound, VERDICTS[row.passed])
    results().print(table)
    for row in audit.criteria:
        if row.passed is None:
            say(f"{row.name} is not judged: {row.reason}.")


def show_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A plain table."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    results().print(table)


def plain(value: float) -> Any:
    """A number as JSON has it, for :func:`posthoc_metric.report.page.readable`."""
    return jsonable(float(value))
