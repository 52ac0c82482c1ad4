"""Kernels for a CPU: C++ that the user's compiler makes a library of, called through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from array import array
from functools import lru_cache
from pathlib import Path

import torch

from ._disk_cache import cached

# No flag lets the compiler change a result: no contraction to fma, no reassociation. The two that
# loosen something let it use the vector forms of sqrt and of choices.
FLAGS = "-std=c++17 -O3 -shared -fPIC -ffp-contract=off -fno-math-errno -fno-trapping-math -w"
if sys.platform == "darwin":
    FLAGS += " -undefined dynamic_lookup"  # the runtime of threads is torch's
# For the machine at hand; the first that its compiler takes.
MACHINES = ("-march=native", "-mcpu=native", "-mavx2 -mfma -mf16c")
# Elements for which it pays to take another thread, as in torch's own kernels.
GRAIN = 2**15
PREAMBLE = """
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#define INLINE static inline __attribute__((always_inline))
using namespace std;
"""

_forked = False  # threads do not survive a fork, and to wait for them would take for ever


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class CppKernel:
    """A rule as machine code.

    Args:
        source: its text, without :data:`PREAMBLE`.
        written: the columns that it writes.

    Raises:
        RuntimeError: there is no compiler, it fails, or the CPU has no fused multiply-add.
    """

    counts = True

    def __init__(self, source: str, written: list[str]) -> None:
        self.written = written
        compiler = require_compiler()
        text = PREAMBLE + source
        key = "\n".join([text, FLAGS, *compiler, _identity(compiler[0]), _cpu()])
        library = _load(cached(key, lambda: _compile(compiler, text)))
        self._run, self._peek = library.run, library.peek
        int64, pointer = ctypes.c_int64, ctypes.c_void_p
        self._run.argtypes = [int64, pointer, pointer, pointer, int64, pointer, ctypes.c_int]
        self._peek.argtypes, self._peek.restype = [int64, pointer], ctypes.c_double

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
            steps: the addresses of the rows' step counts, in float32, if they are to
                be counted.

        Returns:
            Whether they were moved: not if memory overlaps or is missing, or numbers overflow.
        """
        threads = 1 if _forked else min(torch.get_num_threads(), -(-sum(sizes) // GRAIN))
        address = array.buffer_info
        refused: int = self._run(
            len(sizes),
            address(sizes)[0],
            address(pointers)[0],
            address(numbers)[0],
            stride,
            address(steps)[0] if steps else None,
            threads,
        )
        return not refused

    def peek(self, steps: array[int]) -> float:
        """The step that all rows are about to take; NaN if they differ.

        Args:
            steps: the addresses of the rows' step counts, in float32.
        """
        t: float = self._peek(len(steps), steps.buffer_info()[0])
        return t


def require_compiler() -> list[str]:
    """The command of the C++ compiler: ``$CXX``, or the first of the usual ones.

    Raises:
        RuntimeError: there is none.
    """
    own = shlex.split(os.environ.get("CXX", ""))
    for command in [own] if own else [["c++"], ["g++"], ["clang++"]]:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    raise RuntimeError(
        "fused=True compiles the update and needs a C++ compiler, but "
        + (f"CXX={shlex.join(own)} is not to be found" if own else "none was found")
        + ": install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install) or name "
        "it in the environment variable CXX; foreach and loop need none"
    )


def _identity(path: str) -> str:
    status = os.stat(path)
    return f"{os.path.realpath(path)} {status.st_size} {status.st_mtime_ns}"


@lru_cache(maxsize=1)
def _cpu() -> str:
    """What tells CPUs apart, for homes are shared by machines of several kinds."""
    with Path("/proc/cpuinfo").open() if sys.platform == "linux" else open(os.devnull) as file:
        lines = {line for line in file if line.startswith(("flags", "Features", "model name"))}
    text = "".join(sorted(lines)) + platform.processor() + platform.platform()
    return hashlib.sha256(text.encode()).hexdigest()


def _compile(compiler: list[str], text: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="torch_scratch_optim-") as folder:
        source, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        source.write_text(text, encoding="utf-8")
        for machine in MACHINES:
            command = [*compiler, *FLAGS.split(), *machine.split(), str(source), "-o", str(library)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if done.returncode == 0 and library.is_file():
                binary = library.read_bytes()
                if _load(binary).has_fma():
                    return binary
                done.stderr = (
                    "there are no fused multiply-add instructions, or it does not know them"
                )
    raise RuntimeError(
        f"fused=True compiles the update, and the compiler failed: {shlex.join(command)}\n"
        f"{done.stderr.strip()}; foreach and loop need none"
    )


def _load(binary: bytes) -> ctypes.CDLL:
    """A library from memory where that can be done: then no file can be cut short while it runs,
    and it does not matter whether the folder of the cache lets code run."""
    if hasattr(os, "memfd_create"):
        # The descriptor stays open: the loader takes a library of the same path for the same one.
        descriptor = os.memfd_create("torch_scratch_optim")
        with open(descriptor, "wb", closefd=False) as file:
            file.write(binary)
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "kernel.so")
        path.write_bytes(binary)
        return ctypes.CDLL(str(path))
