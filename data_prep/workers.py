"""Work spread over processes that inherit what they need, die with their parent, and are missed when they die."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from data_prep.errors import UnfinishedError


def available() -> int:
    """Cores that this process may use, which a scheduler may have granted fewer of than there are."""
    return len(os.sched_getaffinity(0))


def unordered(function: Callable, items: Sequence, workers: int, context: Any) -> Iterator:
    """`function(context, item)` for each item, in `workers` processes; results as they come.

    Only items and results travel between processes: `context` is inherited by fork, whatever its size. Raises what a
    call raises, and `UnfinishedError` where a process was killed.
    """
    if not len(items):
        return
    executor = ProcessPoolExecutor(
        max_workers=min(workers, len(items)),
        mp_context=multiprocessing.get_context("fork"),
        initializer=_start,
        initargs=(function, context),
    )
    try:
        for future in as_completed([executor.submit(_call, item) for item in items]):
            yield future.result()
    except BrokenProcessPool as error:
        raise UnfinishedError(
            f"a worker process was killed, perhaps for want of memory; if so, give fewer --workers than {workers}"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


_function: Callable
_context: Any


def _start(function: Callable, context: Any) -> None:
    global _function, _context
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function, _context = function, context


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(item: Any) -> Any:
    return _function(_context, item)
