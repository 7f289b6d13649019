"""Locks that no fork leaves locked: a child has no thread that would give back what another held at the time."""

from __future__ import annotations

import os
import threading

#: torch has one level of forward-mode AD for all threads, and so have the switches behind some kernels
ONE_AT_A_TIME = threading.RLock()
#: over what is remembered of modes, defaults and counts; held for moments, and by those who hold the other one too
BOOKS = threading.RLock()


def _acquire() -> None:
    # in the order in which decoders take them
    ONE_AT_A_TIME.acquire()
    BOOKS.acquire()


def _release() -> None:
    BOOKS.release()
    ONE_AT_A_TIME.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_acquire, after_in_parent=_release, after_in_child=_release)
