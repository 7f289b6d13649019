"""Work cut into blocks and handed to joblib: local cores by ``n_jobs=``, a cluster by ``joblib.parallel_config``.

What a block computes depends on the block alone: not on how many workers there are, how many threads they
have, nor on who computed the blocks before it.  So results are the same bit for bit however they came about.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend
from threadpoolctl import threadpool_limits

from .._arrays import is_integer
from ..errors import InvalidArgumentError, WorkerError
from ..surroundings import lasting, one_torch_thread, own_precision
from .progress import Progress

try:
    import cloudpickle
except ImportError:  # joblib before 1.6 carries its own
    from joblib.externals import cloudpickle

Task = Callable[[Any, Any], Any]

#: payloads that a worker keeps
_KEPT = 2
#: in a worker, by their digests; and in the driver, which were sent to whoever worked then
_kept: dict[str, tuple[Any]] = {}
_sent: dict[str, None] = {}

#: rounds without a single finished block after which lost workers are no accident
_FRUITLESS_ROUNDS = 3
#: the thread of a worker that looks whether there still is whom it works for
_WATCH = "posthoc_metric: ends with its driver"


@dataclass(frozen=True)
class _Done:
    """A block's result; whatever else a backend hands back is a block that was lost."""

    index: int
    value: Any
    seconds: float


@dataclass(frozen=True)
class _Unknown:
    """What a worker answers that does not keep the payload it was not sent."""


def run_blocks(
    task: Task,
    shared: Any,
    blocks: Sequence[Any],
    *,
    n_jobs: int | None = None,
    done: Collection[int] = (),
    progress: Progress | None = None,
    stage: str = "",
) -> Iterator[tuple[int, Any]]:
    """Yield ``(index, task(shared, block))`` for all blocks that are not ``done``, as they are finished.

    A worker that dies takes its unfinished blocks with it; they are handed out again.

    Args:
        task: a function of a module, so that workers can import it; it must not draw random numbers.
        shared: what all blocks need, such as the metric; pickled once.
        blocks: what tells the blocks apart, small.
        n_jobs: as in joblib; ``None`` leaves it to ``joblib.parallel_config``, outside of which it means 1.
        done: indices of blocks not to compute.

    Raises:
        WorkerError: workers keep dying without finishing a block.
        InvalidArgumentError: ``shared`` cannot be pickled.
    """
    progress = progress or Progress()
    missing = sorted(set(range(len(blocks))).difference(done))
    progress.begin(stage, len(blocks), len(blocks) - len(missing))
    if not missing:
        return
    if _in_process(n_jobs):
        for index in missing:
            # sums are then taken in one order whatever the machine
            with one_torch_thread(), threadpool_limits(1):
                result = _compute(task, shared, index, blocks[index])
            progress.advance(result.seconds)
            yield index, result.value
        return
    workers = None if n_jobs is None else int(n_jobs)
    payload = _pack(shared)
    digest = hashlib.sha256(payload.tobytes()).hexdigest()
    # writing it out for every call, and removing it, takes up to 0.1 s
    sent = None if digest in _sent else payload
    _remember(_sent, digest, None)
    fruitless = 0
    while missing:
        before = len(missing)
        unknown = False
        trouble: BaseException | None = None
        calls = (delayed(_call)(sent, digest, os.getpid(), task, index, blocks[index]) for index in missing)
        left = set(missing)
        threads = torch.get_num_threads()
        try:
            # some backends, such as multiprocessing, hand nothing back before all is done
            lazily = getattr(get_active_backend()[0], "supports_return_generator", False)
            kind = "generator_unordered" if lazily else "list"
            for result in Parallel(n_jobs=workers, return_as=kind, batch_size=1)(calls):
                if isinstance(result, _Done):
                    left.discard(result.index)
                    progress.advance(result.seconds)
                    yield result.index, result.value
                elif isinstance(result, _Unknown):
                    unknown = True
                elif isinstance(result, BaseException):
                    trouble = result
        except Exception as error:
            if not _is_lost_worker(error):
                raise
            trouble = error
        finally:
            torch.set_num_threads(threads)
        missing = sorted(left)
        if unknown:
            sent = payload
            continue
        fruitless = fruitless + 1 if len(missing) == before else 0
        if fruitless == _FRUITLESS_ROUNDS:
            raise WorkerError(
                f"workers died {fruitless} times in a row before any finished a block ({trouble!r:.300}). Blocks that "
                "were finished before are kept in `store`, where one was given. They may have run out of "
                "memory: use fewer workers (`n_jobs`), or look at the cluster's logs."
            ) from trouble


def _is_lost_worker(error: Exception) -> bool:
    """Whether a backend says that a worker was lost; known by name, because the backends are optional."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        names & {"BrokenProcessPool", "BrokenExecutor", "KilledWorker", "CancelledError", "FutureCancelledError"}
    )


def worker_count(n_jobs: int | None) -> int:
    """How many workers ``n_jobs`` stands for; 1 where the work is done in this process.

    Raises:
        InvalidArgumentError: it stands for none.
    """
    return 1 if _in_process(n_jobs) else int(effective_n_jobs(n_jobs))


def _in_process(n_jobs: int | None) -> bool:
    backend, configured = get_active_backend()
    chosen = (configured or 1) if n_jobs is None else n_jobs
    if not is_integer(chosen) or chosen == 0:
        raise InvalidArgumentError(
            f"`n_jobs` must be None or an integer other than 0, as in joblib (-1: all cores); got {n_jobs!r}."
        )
    # loky is what joblib falls back on; any other backend was asked for, even with one worker
    return chosen == 1 and type(backend).__name__ in ("LokyBackend", "SequentialBackend")


def _pack(shared: Any) -> np.ndarray:
    """One array of bytes: joblib maps large arrays into local workers' memory and scatters them on a cluster."""
    try:
        return np.frombuffer(cloudpickle.dumps(shared), dtype=np.uint8)
    except Exception as error:
        raise InvalidArgumentError(
            f"the metric must be picklable to be sent to workers; it is not ({type(error).__name__}: {error}). "
            "Use n_jobs=1, the only way with TorchScript; functions of your own can be in a module that workers import."
        ) from error


def _shared_by(payload: np.ndarray | None, digest: str) -> tuple[Any] | None:
    """What a payload holds; without it, what this worker keeps of one sent before, if it does."""
    found = _kept.get(digest)
    if found is None and payload is not None:
        found = (cloudpickle.loads(payload.data),)
        _remember(_kept, digest, found)
    return found


def _remember(memory: dict[str, Any], digest: str, value: Any) -> None:
    memory[digest] = value
    while len(memory) > _KEPT:
        memory.pop(next(iter(memory)), None)


def _call(payload: np.ndarray | None, digest: str, driver: int, task: Task, index: int, block: Any) -> _Done | _Unknown:
    """What a worker runs, for the process of number ``driver``."""
    _end_with(driver)
    found = _shared_by(payload, digest)
    if found is None:
        return _Unknown()
    (shared,) = found
    if threading.current_thread() is threading.main_thread():
        with one_torch_thread(), threadpool_limits(1):
            return _compute(task, shared, index, block)
    # a thread that restored the process's limits would do so under its neighbours; the driver restores them
    torch.set_num_threads(1)
    threadpool_limits(1)
    return _compute(task, shared, index, block)


def _end_with(driver: int) -> None:
    """Let a local worker end soon after the process that it works for.

    One that is killed tells its workers nothing: they would compute on, and then wait for minutes or for good, with all
    their memory.
    """
    # workers of a cluster have other parents
    if not multiprocessing.current_process().name.startswith("LokyProcess"):
        return
    if any(thread.name == _WATCH for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name=_WATCH, daemon=True).start()


def _compute(task: Task, shared: Any, index: int, block: Any) -> _Done:
    begun = time.perf_counter()
    with torch.no_grad(), own_precision(), lasting():
        value = task(shared, block)
    return _Done(index, value, time.perf_counter() - begun)


def cut(total: int, size: int) -> list[tuple[int, int]]:
    """``[0, total)`` in blocks of ``size``; the size never depends on the number of workers."""
    return [(low, min(low + size, total)) for low in range(0, total, size)]
