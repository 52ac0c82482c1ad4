"""Worker processes that do not receive Ctrl-C and end with this process, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from benchmarks.common import signals

Result = TypeVar("Result")


class Workers:
    """A pool of processes, started as they are needed."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def submit(self, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        with signals.held():  # this may begin a process
            return self._executor.submit(work, *arguments)


@contextmanager
def workers(count: int, prepare: Callable[..., object], *arguments: Any) -> Iterator[Workers]:
    """Start up to `count` processes, which call `prepare` first; kill them when the block ends.

    Raises:
        OSError: one of them was ended from outside.
    """
    with signals.held():
        context = multiprocessing.get_context("spawn")
        # Nothing is sent: its end tells the processes that this one was killed.
        theirs, ours = context.Pipe(duplex=False)
        executor = ProcessPoolExecutor(count, context, _begin, (theirs, prepare, *arguments))
        others = set(multiprocessing.active_children())
    try:
        yield Workers(executor)
    except BrokenProcessPool as problem:
        raise OSError("a worker ended without a word (out of memory?)") from problem
    finally:
        with signals.held():
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            executor.shutdown(cancel_futures=True)
            ours.close()
            theirs.close()


def _begin(end: Connection, prepare: Callable[..., None], *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    threading.Thread(target=_leave_with, args=(end,), daemon=True).start()
    prepare(*arguments)


def _leave_with(end: Connection) -> None:
    end.poll(None)
    os._exit(1)
