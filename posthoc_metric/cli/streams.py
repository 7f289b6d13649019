"""Standard output and error as they may be: of few characters, full, left by their reader, or closed."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import OutputError

#: what a program ends in that is stopped by the signal of a pipe without a reader
_READER_LEFT = 141
#: what stands for characters that an encoding lacks; others are written as Python escapes them
_PLAIN = {
    **dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻−–ᵀ×\u202f", "0123456789---Tx ", strict=True)),
    "≤": "<=",
    "≥": ">=",
    "±": "+-",
    "κ": "kappa",
    "∞": "inf",
    "½": "1/2",
    "→": "->",
    "…": "...",
}
_RAISED = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹ᵀ"


def _in_plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """What to write for a run of characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    said, raised = "", False
    for place in range(error.start, error.end):
        character = error.object[place]
        if character in _RAISED and not raised:
            said += "^"
        raised = character in _RAISED
        said += _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()
    return said, error.end


codecs.register_error("posthoc-metric", _in_plain)


class _Stream(io.TextIOWrapper):
    """Takes what an encoding lacks in other characters, and nothing more after the first error of the system.

    Args:
        stream: what it writes to.
        name: in the message of that error; without one there is nobody to tell.
    """

    def __init__(self, stream: Any, name: str | None):
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="posthoc-metric",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._stream = stream  # which would close what both write to, once nobody holds it
        self._name = name
        self._broken = False

    def write(self, text: str) -> int:
        if self._broken or text == "":  # with which click finds out what a stream takes, deaf to errors
            return len(text)
        try:
            return super().write(text)
        except OSError as error:
            self._fail(error)
            return len(text)

    def flush(self) -> None:
        if self._broken:
            return
        try:
            super().flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._broken = True
        if self._name is None:
            return
        if isinstance(error, BrokenPipeError):
            raise SystemExit(_READER_LEFT) from None
        raise OutputError(
            f"cannot write to {self._name}: {error.strerror}. Free space, or send it somewhere else."
        ) from None


@contextmanager
def standard_streams() -> Iterator[None]:
    """Within it ``sys.stdout`` takes every character and raises :class:`OutputError`, and ``sys.stderr`` never fails.

    What is said to a stream that was closed before the program began is lost.  The streams stay as they are then made,
    for a program that ends with the block.
    """
    for name, spoken in (("stdout", "standard output"), ("stderr", None)):
        setattr(sys, name, _Stream(getattr(sys, name) or open(os.devnull, "w"), spoken))  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout.flush()
