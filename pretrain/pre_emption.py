"""SIGTERM, by which a scheduler ends a run: obeyed at once or, where the run trains, after a step and a checkpoint.

It goes to all processes of a job, or of some of its hosts, so that ranks may get it at different steps, and their
readers of data with them.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Terminated(BaseException):
    """SIGTERM came while there was nothing to save."""


@contextmanager
def obeyed() -> Iterator[None]:
    """Within, SIGTERM raises `Terminated` in the main thread."""

    def end(*_) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM is only noted; gives a function that says whether it came. Thereafter it is ignored.

    It may come to this rank once all have heard of it by another, and are about to end.
    """
    came = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def left_to_parent(*_) -> None:
    """For a worker process, as it starts: its parent alone ends it, by SIGTERM or by dying; Ctrl-C is the parent's."""
    parent = multiprocessing.parent_process().pid
    show = threading.excepthook

    def show_unless_orphan(arguments) -> None:
        time.sleep(1)  # a process closes its connections a moment before it is gone
        if os.getppid() == parent:
            show(arguments)

    threading.excepthook = show_unless_orphan
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent: int) -> None:
    """End this process once the one that started it has died, or sends SIGTERM; for a thread of its own."""
    while os.getppid() == parent:
        came = signal.sigtimedwait({signal.SIGTERM}, 0.5)
        if came and came.si_pid == parent:
            break
    os._exit(0)
