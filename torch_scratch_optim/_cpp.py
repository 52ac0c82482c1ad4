"""Kernels for a CPU: C++, compiled to a library by the user's compiler, called through ctypes."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ._disk_cache import cached

# No flag lets the compiler change a result: no contraction to fma, no reassociation. The two that
# loosen something let it use the vector forms of sqrt and of choices.
FLAGS = "-std=c++17 -O3 -shared -fPIC -ffp-contract=off -fno-math-errno -fno-trapping-math -w"
if sys.platform == "darwin":
    FLAGS += " -undefined dynamic_lookup"  # the runtime of threads is torch's
# For the machine at hand; the first that gives a library with fused multiply-adds.
MACHINES = ("-march=native", "-mcpu=native", "-mavx2 -mfma -mf16c")
PREAMBLE = """
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#define INLINE static inline __attribute__((always_inline))
using namespace std;
"""

_loaded = count()  # how many libraries were loaded
_forked = False  # threads do not survive a fork, and to wait for them would take for ever


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class CppKernel:
    """A compiled rule.

    Args:
        source: its text, without :data:`PREAMBLE`.
        columns: the names of the columns.
        written: those that it writes.
        kinds: the device and dtype of each column.

    Raises:
        RuntimeError: there is no compiler, it fails, or the CPU has no fused multiply-add.
    """

    def __init__(
        self, source: str, columns: Sequence[str], written: Sequence[str], kinds: Sequence[Any]
    ) -> None:
        self.written = written
        compiler, text = require_compiler(), PREAMBLE + source
        path = os.path.realpath(compiler[0])
        key = [text, FLAGS, *compiler, path, str(os.stat(path).st_mtime_ns), _cpu()]
        library = _load(cached("\n".join(key), lambda: _compile(compiler, text)))
        self._run, self._peek = library.run, library.peek
        number, address = ctypes.c_int64, ctypes.c_void_p
        self._run.argtypes = [number, address, address, address, number, address, ctypes.c_int]
        self._peek.argtypes, self._peek.restype = [number, address], ctypes.c_double

    def __call__(
        self,
        sizes: array[int],
        pointers: array[int],
        numbers: array[float],
        stride: int,
        steps: array[int] | None = None,
    ) -> bool:
        """Move rows and count their steps, or do neither and say so.

        Args:
            sizes: how many elements each row has.
            pointers: the addresses of the rows' tensors, column after column.
            numbers: the rule's, of one row after another.
            stride: from one row's numbers to the next's; 0 if all have the same.
            steps: the addresses of the rows' step counts, in float32, if they are to be counted.

        Returns:
            Whether they were moved: not if memory overlaps or is missing, or numbers overflow.
        """
        threads = 1 if _forked else torch.get_num_threads()
        tables = [table.buffer_info()[0] for table in (sizes, pointers, numbers)]
        counted = steps.buffer_info()[0] if steps else None
        return not self._run(len(sizes), *tables, stride, counted, threads)

    def peek(self, steps: array[int]) -> float:
        """The step that all rows are about to take; NaN if they differ."""
        t: float = self._peek(len(steps), steps.buffer_info()[0])
        return t


def require_compiler() -> list[str]:
    """The command of the C++ compiler: ``$CXX``, or the first of the usual ones.

    Raises:
        RuntimeError: there is none.
    """
    try:
        own = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise RuntimeError(f"CXX={os.environ['CXX']} is no command: {error}") from None
    for command in [own] if own else [["c++"], ["g++"], ["clang++"]]:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    found = f"CXX={shlex.join(own)} is not to be found" if own else "none was found"
    raise RuntimeError(
        f"fused=True compiles the update and needs a C++ compiler, but {found}: install one "
        "(Debian, Ubuntu: apt install g++; macOS: xcode-select --install) or name it in the "
        "environment variable CXX; foreach and loop need none"
    )


@lru_cache(maxsize=1)
def _cpu() -> str:
    """A description of the CPU: machines of several kinds may share a home directory."""
    known = {platform.platform(), platform.processor()}
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known |= {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return "\n".join(sorted(known))


def _compile(compiler: list[str], text: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="torch_scratch_optim-") as folder:
        source, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        source.write_text(text, encoding="utf-8")
        for machine in MACHINES:
            command = [*compiler, *FLAGS.split(), *machine.split(), str(source), "-o", str(library)]
            problem = "it, or the CPU, has no fused multiply-add instructions"
            try:
                done = subprocess.run(command, capture_output=True, text=True, errors="replace")
                problem = done.stderr.strip() or problem
                if done.returncode == 0 and _load(binary := library.read_bytes()).has_fma():
                    return binary
            except (OSError, AttributeError) as error:  # no program, no library, another library
                problem = f"{problem}\n{error}"
    raise RuntimeError(
        f"fused=True compiles the update, and the compiler failed: {shlex.join(command)}\n"
        f"{problem}\nforeach and loop need none"
    )


def _load(binary: bytes) -> ctypes.CDLL:
    """Load a library from memory where possible: then no file can be truncated while it runs, and
    the folder of the cache may be mounted noexec."""
    try:
        descriptor = os.memfd_create("torch_scratch_optim")
    except (AttributeError, OSError):  # this system has no such thing, or does not allow it
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder, "kernel.so")
            path.write_bytes(binary)
            return ctypes.CDLL(str(path))
    with open(descriptor, "wb") as file:
        file.write(binary)
        file.flush()
        # The loader takes a library of the same path for the same one, so no path is used twice.
        return ctypes.CDLL(f"/proc/self/fd/{'./' * next(_loaded)}{descriptor}")
