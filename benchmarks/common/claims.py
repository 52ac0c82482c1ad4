"""Locks on output folders: one command works in a folder at a time, and writes nothing outside it.

Call `check` before writing or deleting: it fails if the folder was removed or replaced meanwhile,
or if a link in it leads outside.
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
    """A folder, identified by the inode of `mark`: the lock in it, or the folder itself."""

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
    """Refuse a path in a claimed folder if the folder is gone or a link leads out of it.

    Raises:
        OSError: with the folder's name.
    """
    for claim in _claims:
        if path.absolute().is_relative_to(claim.folder):
            claim.check(path)


def clear(folder: Path) -> None:
    """Delete a folder and its contents, unless it replaced the one that was claimed.

    Raises:
        OSError: with the folder's name.
    """
    check(folder / LOCK)
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Write into a folder that another command may have claimed."""
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

    Hold signals while this begins and ends. At the end the lock is removed, and so is every folder
    that was made and is still empty.

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
