"""Commands as processes of their own, which are ended with the test, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 100.0  # seconds


@contextmanager
def child(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Python with these arguments, in a group of processes of its own, which hears Ctrl-C.

    Where pytest was begun by a script with `&` it ignores SIGINT, and so would all its children.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, *arguments], start_new_session=True, text=True, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        for pid in processes_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def processes_of(group: int, words: str = "") -> list[int]:
    """The processes of a group, those whose command line has the words."""
    found = subprocess.run(["ps", "-wweo", "pid,pgid,args"], capture_output=True, text=True)
    rows = [line.split(maxsplit=2) for line in found.stdout.splitlines()[1:]]
    return [int(pid) for pid, its, args in rows if int(its) == group and words in args]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
