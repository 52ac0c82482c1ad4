"""Ctrl-C and SIGTERM, handled the same way in every command; imports only what is fast to import.

A signal that is ignored when the program starts (nohup, `&` in a script) stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

NUMBERS = (signal.SIGINT, signal.SIGTERM)
Handlers = dict[signal.Signals, Any]
REPEATED = 5.0  # seconds within which another signal counts as a repetition of the first


def end_at_once() -> None:
    """From now on a signal ends the process with one line, while there is nothing to keep.

    Nothing is raised: an exception in the middle of an import prints a traceback, or is lost.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        with suppress(OSError):
            os.write(1, b"Interrupted.\n")
        os._exit(128 + number)

    _handle(end)


def ignore() -> None:
    """From now on the process ends by itself, soon."""
    _handle(signal.SIG_IGN)


class Heard:
    """The signals received, in `came`; they raise exceptions in a block `as_exceptions` only."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self._raises = False
        self._last = -REPEATED

    @contextmanager
    def as_exceptions(self) -> Iterator[None]:
        """In this block each signal raises KeyboardInterrupt, also one received before.

        A repetition does not raise, because it would interrupt the handling of the first signal. A
        later signal does, because Python drops exceptions in some places.
        """
        self._raises = True
        try:
            if self.came:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def note(self, number: int, frame: FrameType | None) -> None:
        if (now := time.monotonic()) - self._last >= REPEATED:
            self._last = now
            self.came.append(number)
            if self._raises:
                raise KeyboardInterrupt


@contextmanager
def noted() -> Iterator[Heard]:
    """In this block no signal ends the process."""
    heard = Heard()
    before = _handle(heard.note)
    try:
        yield heard
    finally:
        _restore(before)


@contextmanager
def held() -> Iterator[None]:
    """Signals that come in this block take effect after it; processes begun in it see no Ctrl-C.

    A terminal sends Ctrl-C to all processes. One that is only beginning has no handler yet, and
    would print a traceback; but it inherits which signals are blocked.
    """
    came: list[int] = []
    before = _handle(lambda number, frame: came.append(number))
    block = getattr(signal, "pthread_sigmask", None) if before else None
    mask = block(signal.SIG_BLOCK, {signal.SIGINT}) if block else None
    try:
        yield
    finally:
        if block:
            block(signal.SIG_SETMASK, mask)
        _restore(before)
        for number in came[:1]:
            signal.raise_signal(number)


def _handle(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> Handlers:
    """Returns the handlers before; nothing changes in a thread, which gets no signals."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in NUMBERS}
    theirs = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in theirs:
        signal.signal(number, handler)
    return theirs


def _restore(before: Handlers) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
