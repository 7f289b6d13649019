"""How much a decoder was asked to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .turns import BOOKS


@dataclass
class Work:
    """Rows evaluated while counting.

    Attributes:
        values: rows of ``f(z)``, those that finite differences need included.
        jvps: rows of ``J(z) v``; a Jacobian of B rows counts B·d.
        vjps: rows of ``J(z)ᵀ u``, and of ``f(z)`` evaluated so that one can follow.
    """

    values: int = 0
    jvps: int = 0
    vjps: int = 0


class Counters:
    """The counts being taken of one decoder, from any thread; a copy of a decoder begins without any."""

    def __init__(self) -> None:
        self._running: list[Work] = []

    @contextmanager
    def counting(self) -> Iterator[Work]:
        """Count inside the ``with`` block."""
        work = Work()
        with BOOKS:
            self._running.append(work)
        try:
            yield work
        finally:
            with BOOKS:
                self._running = [counter for counter in self._running if counter is not work]

    def add(self, **rows: int) -> None:
        """Add numbers of rows by the names they have in :class:`Work`."""
        if self._running:
            with BOOKS:
                for counter in self._running:
                    for name, number in rows.items():
                        setattr(counter, name, getattr(counter, name) + number)

    def __reduce__(self) -> tuple[Any, ...]:
        return Counters, ()
