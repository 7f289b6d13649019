"""What the machine has, and how much of it a piece of work may take."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

from threadpoolctl import ThreadpoolController

#: where Linux says what a container may use
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNKNOWN = 2**36
_SHARE, _MOST = 16, 512 * 2**20
#: bytes of temporaries that are worked on at once: larger ones cost more to allocate than to compute
AT_ONCE = 32 * 2**20


def physical_memory() -> int:
    """Bytes of main memory that this process may use: those of the machine, or of its container."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such call on this platform
        found = _UNKNOWN
    for name in _CONTAINER_LIMITS:
        try:
            found = min(found, int(Path(name).read_text()))
        except (OSError, ValueError):  # no container, or "max": no limit
            continue
    return found


def working_memory() -> int:
    """Bytes that the arrays of one piece of work may take by default: 1/16 of the memory, and no more than 512 MiB."""
    return max(1, min(_MOST, physical_memory() // _SHARE))


@lru_cache(maxsize=1)
def _pools() -> ThreadpoolController:
    # looked for once: it takes longer than a solve
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[Any]:
    """Inside, NumPy's and SciPy's BLAS use one thread.

    For many small matrices in a row: where others use the machine, the threads of a pool wait longer for each other
    than the work takes.
    """
    return _pools().limit(limits=1, user_api="blas")
