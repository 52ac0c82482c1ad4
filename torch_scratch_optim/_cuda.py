"""Kernels for NVIDIA GPUs: CUDA C++ that NVRTC compiles, launched through the driver.

Both come with torch, as NVIDIA's package ``cuda.bindings``; no toolkit is needed.
"""

from __future__ import annotations

import importlib
from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import inf
from typing import Any

import torch

from ._disk_cache import cached
from ._tensors import overlap
from .engines import FLOAT_MAX

OLDEST = (7, 0)  # the first compute capability that is served
CHUNK, THREADS = 4096, 512  # elements that a block moves, and its threads
HEADER = 4  # words of a table before its rows
# What a launch takes by value: 4 KB, and nearly 32 KB with drivers from R530 (CUDA 12.1) on.
FEW_WORDS, MANY_WORDS = 4096 // 8 - HEADER, 32_760 // 8 - HEADER
FLAGS = ("--fmad=false", "--std=c++17")
PREAMBLE = f"""
typedef long long int64_t;
#define INLINE static __device__ __forceinline__
#define CHUNK {CHUNK}
#define THREADS {THREADS}
#define FEW_WORDS {FEW_WORDS}
#define MANY_WORDS {MANY_WORDS}
"""


class CudaKernel:
    """A rule as machine code of one device.

    Args:
        source: its text, without :data:`PREAMBLE`.
        columns: the names of the columns.
        written: those that it writes.
        kinds: the device and dtype of each column.

    Raises:
        RuntimeError: there is no NVRTC or driver, they fail, or the device is too old.
    """

    def __init__(
        self, source: str, columns: Sequence[str], written: Sequence[str], kinds: Sequence[Any]
    ) -> None:
        self.device: torch.device = kinds[0][0]
        self.written = written
        self._columns = [
            (c in written, d.itemsize) for c, (_, d) in zip(columns, kinds, strict=True)
        ]
        major, minor = torch.cuda.get_device_capability(self.device)
        if (major, minor) < OLDEST:
            raise RuntimeError(
                f"fused=True needs compute capability {OLDEST[0]}.{OLDEST[1]}, but {self.device} "
                f"has {major}.{minor}; foreach and loop need none"
            )
        driver, text, architecture = bindings("driver"), PREAMBLE + source, f"sm_{major}{minor}"
        self._takes_many = _answer(driver.cuDriverGetVersion()) >= 12_010
        if not self._takes_many:
            text = text.replace("#define MANY_WORDS", "//")
        key = [text, architecture, *FLAGS, str(_answer(bindings("nvrtc").nvrtcVersion()))]
        binary = cached("\n".join(key), lambda: compile_cubin(text, architecture))
        with torch.cuda.device(self.device):
            torch.cuda.current_stream()  # now there is a context
            module = _answer(driver.cuModuleLoadData(binary))
        names = [
            "move_few",
            *["move_many"] * self._takes_many,
            *["count"] * ("#define OPTIONS" in source),
        ]
        self._functions = {
            name: _answer(driver.cuModuleGetFunction(module, name.encode())) for name in names
        }
        self._layout: tuple[Any, list[int]] = None, []  # the sizes, and the chunks before each row
        self._apart: Any = None  # sizes and pointers that do not overlap

    def __call__(
        self, sizes: array[int], pointers: array[int], numbers: array[float], stride: int
    ) -> bool:
        """Move rows, or do nothing and say so; see :class:`~._cpp.CppKernel`."""
        if any(FLOAT_MAX < abs(n) < inf for n in numbers) or self.overlap(sizes, pointers):
            return False
        self._move(sizes, pointers, array("q", numbers.tobytes()), stride)
        return True

    def move_counted(
        self,
        sizes: array[int],
        pointers: array[int],
        steps: array[int],
        options: array[int],
        numbers: int,
        found_inf: int,
    ) -> None:
        """Count rows' steps on the device, work out there what follows, and move the rows.

        Args:
            sizes: how many elements each row has.
            pointers: the addresses of the rows' tensors, column after column.
            steps: the addresses of the rows' step counts, in float32; or nothing.
            options: the bits of numbers, and addresses of those that are on the device.
            numbers: how many the rule is given.
            found_inf: the address of a float on the device, 1 if nothing is to move; or 0.
        """
        rows, most = len(sizes), FEW_WORDS - len(options)
        scratch = torch.empty(rows * numbers + 1, dtype=torch.float64, device=self.device)
        address = scratch.data_ptr()
        for start in range(0, rows, most):
            some = min(most, rows - start)
            table = array("q", [some, address + 8 * start * numbers, numbers, found_inf])
            self._launch(
                "count", table + steps[start : start + some] + options, -(-some // THREADS)
            )
        self._move(sizes, pointers, array("q"), numbers, address, found_inf)

    def overlap(self, sizes: array[int], pointers: array[int]) -> bool:
        """Whether memory that is written belongs to something else, too, or there is none."""
        if self._apart == (sizes, pointers):
            return False
        pieces = [
            (begin := pointers[c * len(sizes) + i], begin + size * itemsize, written)
            for c, (written, itemsize) in enumerate(self._columns)
            for i, size in enumerate(sizes)
            if size
        ]
        if overlap(pieces):
            return True
        self._apart = sizes, pointers
        return False

    def _move(
        self,
        sizes: array[int],
        pointers: array[int],
        numbers: array[int],
        stride: int,
        address: int = 0,
        found_inf: int = 0,
    ) -> None:
        """Move rows by as few launches as tables allow. The numbers are at an address, or given."""
        known, first = self._layout  # threads may call at once, so read it once and write it once
        if known != sizes:
            first = list(accumulate((-(-s // CHUNK) for s in sizes), initial=0))
            self._layout = sizes, first
        rows, given = len(sizes), 0 if address else stride
        width = 2 + len(self._columns) + given
        shared = 0 if stride else len(numbers)
        many = self._takes_many and rows * width + shared > FEW_WORDS
        most = ((MANY_WORDS if many else FEW_WORDS) - shared) // width
        for start in range(0, rows, most):
            end = min(start + most, rows)
            if blocks := first[end] - first[start]:
                own = address and address + 8 * start * stride
                table = array("q", [end - start, own, stride, found_inf])
                table.extend([f - first[start] for f in first[start:end]])
                table += sizes[start:end]
                for column in range(0, len(pointers), rows):
                    table += pointers[column + start : column + end]
                table += numbers[start * given : end * given] if given else numbers
                self._launch("move_many" if many else "move_few", table, blocks)

    def _launch(self, name: str, table: array[int], blocks: int) -> None:
        words = HEADER + (MANY_WORDS if name == "move_many" else FEW_WORDS)
        table.frombytes(bytes(8 * (words - len(table))))  # a launch copies it whole
        parameters = array("Q", [table.buffer_info()[0]])
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream().cuda_stream
            arguments = (blocks, 1, 1, THREADS, 1, 1, 0, stream, parameters.buffer_info()[0], 0)
            _answer(bindings("driver").cuLaunchKernel(self._functions[name], *arguments))


def compile_cubin(text: str, architecture: str) -> bytes:
    """Compile CUDA C++ for an architecture such as ``sm_90``; no GPU is needed.

    Raises:
        RuntimeError: NVRTC is not there or refuses.
    """
    nvrtc = bindings("nvrtc")
    program = _answer(nvrtc.nvrtcCreateProgram(text.encode(), b"kernel.cu", 0, [], []))
    flags = [flag.encode() for flag in (f"--gpu-architecture={architecture}", *FLAGS)]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    if int(error):
        log = bytes(_answer(nvrtc.nvrtcGetProgramLogSize(program)))
        _answer(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"NVRTC could not compile the update: {log.decode(errors='replace')}")
    binary = bytes(_answer(nvrtc.nvrtcGetCUBINSize(program)))
    _answer(nvrtc.nvrtcGetCUBIN(program, binary))
    _answer(nvrtc.nvrtcDestroyProgram(program))
    return binary


def _answer(answer: tuple[Any, ...]) -> Any:
    """What a function of NVIDIA's returns besides its error code.

    Raises:
        RuntimeError: there was an error.
    """
    error, *values = answer
    if int(error):
        raise RuntimeError(f"fused=True: CUDA answers {error!r}")
    return values[0] if len(values) == 1 else values


@lru_cache
def bindings(name: str) -> Any:
    """A module of NVIDIA's package.

    Raises:
        RuntimeError: it is not there.
    """
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise RuntimeError(
            "fused=True on a GPU needs NVIDIA's package cuda-bindings, which torch's own wheels "
            f"for Linux bring: pip install cuda-bindings; foreach and loop need none ({error})"
        ) from error
