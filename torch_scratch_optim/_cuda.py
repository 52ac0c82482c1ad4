"""Kernels for NVIDIA GPUs: CUDA C++ that NVRTC compiles, launched through the driver.

Both come with torch, as NVIDIA's package ``cuda.bindings``; no toolkit is needed.
"""

from __future__ import annotations

import importlib
from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch

from ._disk_cache import cached

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
"""
FLOAT_MAX = torch.finfo(torch.float32).max


class CudaKernel:
    """A rule as machine code of one device.

    Args:
        source: its text, without :data:`PREAMBLE`.
        written: the columns that it writes.
        columns: for each column, whether it is written and the bytes of an element.
        numbers: how many numbers the rule is given.
        device: where it runs.

    Raises:
        RuntimeError: there is no NVRTC or driver, they fail, or the device is too old.
    """

    counts = False  # a step count on the host is the host's to count

    def __init__(
        self,
        source: str,
        written: list[str],
        columns: Sequence[tuple[bool, int]],
        numbers: int,
        device: torch.device,
    ) -> None:
        self.written, self.device = written, device
        self._columns, self._numbers = columns, numbers
        self._many = takes_large_tables()
        text = (f"#define MANY_WORDS {MANY_WORDS}\n" if self._many else "") + PREAMBLE + source
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST:
            raise RuntimeError(
                f"fused=True needs compute capability {OLDEST[0]}.{OLDEST[1]}, but {device} has "
                f"{capability[0]}.{capability[1]}; foreach and loop need none"
            )
        architecture = f"sm_{capability[0]}{capability[1]}"
        key = "\n".join([text, architecture, *FLAGS, *map(str, _ask(_nvrtc().nvrtcVersion()))])
        binary = cached(key, lambda: compile_cubin(text, architecture))
        with torch.cuda.device(device):
            torch.cuda.current_stream(device)  # now there is a context
            module = _ask(_driver().cuModuleLoadData(binary))
            names = [
                "move_few",
                *["move_many"] * self._many,
                *["count"] * ("#define OPTIONS" in text),
            ]
            self._functions = {
                name: _ask(_driver().cuModuleGetFunction(module, name.encode())) for name in names
            }
        self._layout: tuple[array[int], list[int]] | None = None
        self._without_overlap: array[int] | None = None

    def __call__(
        self, sizes: array[int], pointers: array[int], numbers: array[float], stride: int
    ) -> bool:
        """Move rows, or do nothing and say so; see :class:`~._cpp.CppKernel`."""
        if any([FLOAT_MAX < abs(n) < float("inf") for n in numbers]):
            return False
        if self._overlap(sizes, pointers):
            return False
        self._launch(sizes, pointers, array("q", numbers.tobytes()), stride)
        return True

    def move_counted(
        self,
        sizes: array[int],
        pointers: array[int],
        steps: array[int],
        options: array[int],
        found_inf: int,
    ) -> bool:
        """Count the steps of rows on the device, work out there what follows, and move the rows.

        Args:
            sizes: how many elements each row has.
            pointers: the addresses of the rows' tensors, column after column.
            steps: the addresses of the rows' step counts, in float32; or nothing.
            options: the numbers that are options, as bits, or their addresses on the device.
            found_inf: the address of a float on the device, which is 1 if nothing is to be moved;
                or 0.
        """
        if self._overlap(sizes, pointers):
            return False
        numbers = torch.empty(
            len(sizes) * self._numbers + 1, dtype=torch.float64, device=self.device
        )
        address, width = numbers.data_ptr(), 8 * self._numbers
        most = FEW_WORDS - len(options)
        for start in range(0, len(sizes), most):
            rows = min(most, len(sizes) - start)
            header = [rows, address + start * width, self._numbers, found_inf]
            words = array("q", header) + steps[start : start + rows] + options
            self._call("count", words, -(-rows // THREADS))
        self._launch(sizes, pointers, array("q"), self._numbers, address, found_inf)
        return True

    def _overlap(self, sizes: array[int], pointers: array[int]) -> bool:
        """Whether memory that is written belongs to something else, too, or there is none."""
        if pointers == self._without_overlap and self._layout and self._layout[0] == sizes:
            return False
        rows = len(sizes)
        pieces = sorted(
            (pointers[c * rows + i], pointers[c * rows + i] + size * itemsize, written)
            for c, (written, itemsize) in enumerate(self._columns)
            for i, size in enumerate(sizes)
            if size
        )
        any_end = written_end = 0
        for begin, end, written in pieces:
            if not begin or begin < written_end or (written and begin < any_end):
                return True
            any_end = max(any_end, end)
            written_end = max(written_end, end) if written else written_end
        self._without_overlap = pointers
        return False

    def _launch(
        self,
        sizes: array[int],
        pointers: array[int],
        numbers: array[int],
        stride: int,
        address: int = 0,
        found_inf: int = 0,
    ) -> None:
        """Move rows by as few launches as their tables allow."""
        if self._layout is None or self._layout[0] != sizes:
            self._layout = sizes, list(accumulate((-(-s // CHUNK) for s in sizes), initial=0))
        first = self._layout[1]
        rows, width = len(sizes), 2 + len(self._columns)
        in_table = stride if not address else 0  # words of each row's numbers
        shared = 0 if stride else len(numbers)
        needed = rows * (width + in_table) + shared
        name, words = ("move_few", FEW_WORDS) if needed <= FEW_WORDS or not self._many else (
            "move_many", MANY_WORDS)  # fmt: skip
        most = (words - shared) // (width + in_table)
        for start in range(0, rows, most):
            end = min(start + most, rows)
            if blocks := first[end] - first[start]:
                own = address + 8 * start * stride if address else 0
                table = array("q", [end - start, own, stride, found_inf])
                table.extend([f - first[start] for f in first[start:end]])
                table += sizes[start:end]
                for c in range(len(self._columns)):
                    table += pointers[c * rows + start : c * rows + end]
                table += numbers[start * in_table : end * in_table] if stride else numbers
                self._call(name, table, blocks)

    def _call(self, name: str, table: array[int], blocks: int) -> None:
        driver = _driver()
        with torch.cuda.device(self.device):
            words = MANY_WORDS if name == "move_many" else FEW_WORDS
            table.frombytes(bytes(8 * (HEADER + words - len(table))))  # a launch copies it whole
            parameters = array("Q", [table.buffer_info()[0]])
            stream = torch.cuda.current_stream(self.device).cuda_stream
            launched = driver.cuLaunchKernel(
                self._functions[name], blocks, 1, 1, THREADS, 1, 1, 0, stream,
                parameters.buffer_info()[0], 0,
            )  # fmt: skip
            _ask(launched)


def compile_cubin(text: str, architecture: str) -> bytes:
    """Compile CUDA C++ for an architecture such as ``sm_90``; no GPU is needed.

    Raises:
        RuntimeError: NVRTC is not there or refuses.
    """
    nvrtc = _nvrtc()
    program = _ask(nvrtc.nvrtcCreateProgram(text.encode(), b"kernel.cu", 0, [], []))
    flags = [flag.encode() for flag in (f"--gpu-architecture={architecture}", *FLAGS)]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    if int(error):
        log = bytes(_ask(nvrtc.nvrtcGetProgramLogSize(program)))
        _ask(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"NVRTC could not compile the update: {log.decode(errors='replace')}")
    binary = bytes(_ask(nvrtc.nvrtcGetCUBINSize(program)))
    _ask(nvrtc.nvrtcGetCUBIN(program, binary))
    _ask(nvrtc.nvrtcDestroyProgram(program))
    return binary


@lru_cache(maxsize=1)
def takes_large_tables() -> bool:
    """Whether driver and compiler know parameters of 32 KB, as from CUDA 12.1 on."""
    driver = _ask(_driver().cuDriverGetVersion())
    return driver >= 12_010 and tuple(_ask(_nvrtc().nvrtcVersion())) >= (12, 1)


def _ask(answer: tuple[Any, ...]) -> Any:
    """What a function of NVIDIA's returned, without its error code.

    Raises:
        RuntimeError: there was an error.
    """
    error, *values = answer
    if int(error):
        raise RuntimeError(f"fused=True: CUDA answers {error!r}")
    return values[0] if len(values) == 1 else values


@lru_cache(maxsize=1)
def _nvrtc() -> Any:
    return _bindings("nvrtc")


@lru_cache(maxsize=1)
def _driver() -> Any:
    return _bindings("driver")


def _bindings(name: str) -> Any:
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise RuntimeError(
            "fused=True on a GPU needs NVIDIA's package cuda-bindings, which torch's own wheels "
            f"for Linux bring: pip install cuda-bindings; foreach and loop need none ({error})"
        ) from error
