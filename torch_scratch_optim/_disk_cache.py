"""Compiled kernels on disk, so that each is compiled once on a machine.

What is read back is code that will run, so it is used only if its content is whole and nobody else
could have written it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_DIGEST = hashlib.sha256().digest_size


def directory() -> Path:
    """Where kernels are kept: ``$TORCH_SCRATCH_CACHE``, or the user's folder for such files."""
    if own := os.environ.get("TORCH_SCRATCH_CACHE"):
        return Path(own)
    default = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~")}
    root = os.environ.get("XDG_CACHE_HOME") or default.get(sys.platform, "~/.cache")
    home = Path(os.path.expanduser(root))
    # A user may have no home.
    return (home if home.is_absolute() else Path(tempfile.gettempdir())) / "torch_scratch_optim"


def cached(key: str, compile: Callable[[], bytes]) -> bytes:
    """The binary that `compile` makes, from disk if it is there; `key` is all it depends on."""
    path = directory() / hashlib.sha256(key.encode()).hexdigest()
    binary = _read(path)
    if binary is None:
        binary = compile()
        # A folder that is full or may not be written costs the next process a compilation.
        with suppress(OSError):
            _write(path, binary)
    return binary


def _read(path: Path) -> bytes | None:
    """A file's content without the digest at its end, if it is whole and the user's own."""
    try:
        with path.open("rb") as file:
            if not (_is_private(path.parent.stat()) and _is_private(os.fstat(file.fileno()))):
                return None
            content = file.read()
    except OSError:  # it is not there, or may not be read: to be compiled
        return None
    binary, digest = content[:-_DIGEST], content[-_DIGEST:]
    return binary if hashlib.sha256(binary).digest() == digest else None


def _is_private(status: os.stat_result) -> bool:
    if not hasattr(os, "geteuid"):  # Windows: a user's folders are the user's own
        return True
    writable_by_others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.geteuid() and not writable_by_others


def _write(path: Path, binary: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(path.parent.stat()):
        return
    descriptor, name = tempfile.mkstemp(dir=path.parent)  # its owner's alone
    try:
        with open(descriptor, "wb") as file:
            file.write(binary + hashlib.sha256(binary).digest())
        os.replace(name, path)  # so that no process ever sees a part of it
    except BaseException:
        os.unlink(name)
        raise
