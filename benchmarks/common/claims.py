"""An output folder belongs to one command at a time, and nothing is written outside it.

Whoever writes or deletes asks `check` before: a folder that was removed meanwhile is not made anew,
one that took its place is left alone, and a link in a folder from elsewhere leads nowhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ELOOP, ENOENT
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


class Taken(Exception):
    """Another command is at work in the folder."""


class _Claim:
    """A folder, known again by a `mark`: the lock in it, or the folder itself."""

    def __init__(self, folder: Path, mark: str = ".") -> None:
        self.folder, self._real = folder.absolute(), folder.resolve()
        self._mark = self.folder / mark
        self._known = os.lstat(self._mark)

    def check(self, path: Path) -> None:
        if not self.is_ours():
            raise FileNotFoundError(ENOENT, "Removed or cleared meanwhile", str(self.folder))
        if not path.parent.resolve().is_relative_to(self._real):
            raise OSError(ELOOP, "A link leads out of the folder", str(path.parent))

    def is_ours(self) -> bool:
        try:
            return os.path.samestat(self._known, os.lstat(self._mark))
        except OSError:
            return False


_claims: list[_Claim] = []  # of this process


def check(path: Path) -> None:
    """Refuse to write to a path in a claimed folder that is gone, or that a link leads out of.

    Raises:
        OSError: with the folder's name.
    """
    for claim in _claims:
        if path.absolute().is_relative_to(claim.folder):
            claim.check(path)


def clear(folder: Path) -> None:
    """Delete a folder with all that is in it, but not one that took the place of ours.

    Raises:
        OSError: with the folder's name.
    """
    check(folder / LOCK)
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Write into a folder beside the command that has it."""
    claim = _Claim(folder)
    _claims.append(claim)
    try:
        yield
        claim.check(folder / LOCK)
    finally:
        _claims.remove(claim)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder and lock it; the lock ends with the process, however that ends.

    A signal must not raise while this begins or ends: hold it.
    Afterwards the lock is removed, and so is what was made if nothing was written to it.

    Raises:
        Taken: another command has it.
        OSError: it cannot be made or written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / LOCK, blocking=False)
    claim: _Claim | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        claim = _lock(folder, lock)
        _claims.append(claim)
        yield
        claim.check(folder / LOCK)
    finally:
        with suppress(OSError):
            if claim is not None:
                _claims.remove(claim)
                if claim.is_ours():
                    (folder / LOCK).unlink()
        lock.release()
        for path in made:
            with suppress(OSError):  # it is not empty, or was not made in the end
                path.rmdir()


def _lock(folder: Path, lock: FileLock) -> _Claim:
    while True:
        try:
            lock.acquire()
            return _Claim(folder, LOCK)
        except Timeout:
            raise Taken from None
        except FileNotFoundError:
            if not folder.is_dir():
                raise
            lock.release()  # its owner removed it between our opening and our locking: once more
