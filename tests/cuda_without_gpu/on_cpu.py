"""A GPU that is a CPU: NVIDIA's two modules, as far as the package uses them.

The package's CUDA text is compiled by a C++ compiler with ``on_cpu.h`` and runs, one thread
after another, on tensors that are on the CPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor

from torch_scratch_optim import _cpp, _cuda, _fused, _kernels

HEADER = Path(__file__).with_name("on_cpu.h")
# As NVRTC without fast math; and what would stop a kernel on a GPU is noted.
FLAGS = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-fno-math-errno"]
FLAGS += ["-fsanitize=alignment,bounds", "-nostdlib"]  # what is not linked takes no time
CONTRACTING = ["-ffp-contract=fast", "-march=native", "-O2"]


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_MISALIGNED_ADDRESS = 716


class NvrtcResult(IntEnum):
    NVRTC_SUCCESS = 0
    NVRTC_ERROR_OUT_OF_MEMORY = 1
    NVRTC_ERROR_INVALID_OPTION = 5
    NVRTC_ERROR_COMPILATION = 6


class _Device(str):
    """A device that is ``cuda:0`` to those who ask, and the CPU to torch, which reads the string.

    So tensors that are made on it are where the kernels of the stand-in can reach them.
    """

    type = "cuda"

    def __str__(self) -> str:
        return "cuda:0"

    __repr__ = __str__


DEVICE = cast(torch.device, _Device("cpu"))


class Launch(NamedTuple):
    """What the driver was given: the kernel, its grid and block, the stream, the first words of its
    table (rows, address of numbers, stride, address of found_inf)."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    stream: int
    header: tuple[int, int, int, int]


@dataclass
class Program:
    """What NVRTC compiles."""

    text: str
    flags: list[str] = field(default_factory=list)
    log: bytes = b"\0"
    binary: bytes = b""


@dataclass
class Function:
    name: str
    launcher: Any  # None where nothing is run


class Cuda:
    """Driver and compiler, and the knobs of both.

    Args:
        folder: where libraries are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Of the driver and NVRTC. An old driver takes tables of one size, which compile faster.
        self.version, self.compiler = 12_000, (12, 8)
        self.capability = (9, 0)
        self.stream = 0xBEEF0
        self.capturing = False
        self.runs = True  # otherwise launches are only noted, and binaries are the real NVRTC's
        self.launches: list[Launch] = []
        self.programs: list[Program] = []
        self.failing: dict[str, IntEnum] = {}  # functions that answer with an error
        self._within = threading.local()  # as in CUDA, each thread has its own context

    # Torch's.

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        """For ``torch.cuda.device``."""
        assert device is DEVICE
        before = getattr(self._within, "context", False)
        self._within.context = True
        try:
            yield
        finally:
            self._within.context = before

    def current_stream(self, device: torch.device | None = None) -> Any:
        """For ``torch.cuda.current_stream``: without a device, that of the current one."""
        here = device is DEVICE or getattr(self._within, "context", False)
        return NamedStream(self.stream if here else 0)

    # The driver's.

    def cuDriverGetVersion(self) -> tuple[Any, ...]:
        return self._answer("cuDriverGetVersion", self.version)

    def cuModuleLoadData(self, binary: bytes) -> tuple[Any, ...]:
        if not getattr(self._within, "context", False):
            return CUresult.CUDA_ERROR_INVALID_CONTEXT, None
        if not self.runs:
            return self._answer("cuModuleLoadData", binary)
        # The loader takes a file of the same inode for the same library, so none is removed.
        path = self.folder / f"{hashlib.sha256(binary).hexdigest()}.so"
        if not path.exists():
            path.write_bytes(binary)
        return self._answer("cuModuleLoadData", ctypes.CDLL(str(path)))

    def cuModuleGetFunction(self, module: Any, name: bytes) -> tuple[Any, ...]:
        if isinstance(module, bytes):  # a cubin, in whose table of symbols the name stands
            launcher = None
            found = b"\0" + name + b"\0" in module
        else:
            launcher = getattr(module, f"launch_{name.decode()}", None)
            found = launcher is not None
        if not found:
            return CUresult.CUDA_ERROR_NOT_FOUND, None
        return self._answer("cuModuleGetFunction", Function(name.decode(), launcher))

    def cuLaunchKernel(
        self,
        function: Function,
        grid_x: int, grid_y: int, grid_z: int,
        block_x: int, block_y: int, block_z: int,
        shared: int,
        stream: int,
        parameters: int,
        extra: int,
    ) -> tuple[Any, ...]:  # fmt: skip
        grid, block = (grid_x, grid_y, grid_z), (block_x, block_y, block_z)
        if min(*grid, *block) < 1 or grid_x >= 2**31 or block_x > 1024 or extra:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        if not getattr(self._within, "context", False):
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
        (error,) = self._answer("cuLaunchKernel")
        if error:
            return (error,)
        (table,) = (ctypes.c_int64 * 1).from_address(parameters)
        header = tuple((ctypes.c_int64 * 4).from_address(table))
        self.launches.append(Launch(function.name, grid, block, shared, stream, cast(Any, header)))
        if function.launcher is None:
            return (CUresult.CUDA_SUCCESS,)
        call = function.launcher
        call.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p]
        return (CUresult(call(grid_x, block_x, parameters)),)

    # NVRTC's.

    def nvrtcVersion(self) -> tuple[Any, ...]:
        return self._answer("nvrtcVersion", *self.compiler)

    def nvrtcCreateProgram(
        self, text: bytes, name: bytes, count: int, headers: list[bytes], names: list[bytes]
    ) -> tuple[Any, ...]:
        assert (count, headers, names) == (0, [], [])
        self.programs.append(Program(text.decode()))
        return self._answer("nvrtcCreateProgram", self.programs[-1])

    def nvrtcCompileProgram(
        self, program: Program, count: int, flags: list[bytes]
    ) -> tuple[Any, ...]:
        program.flags = [flag.decode() for flag in flags]
        major, minor = self.capability
        known = {f"--gpu-architecture=sm_{major}{minor}", "--fmad=false", "--std=c++17"}
        if count != len(flags) or not known.issuperset(program.flags):
            return (NvrtcResult.NVRTC_ERROR_INVALID_OPTION,)
        # Where nvcc contracts, so does this compiler.
        exact = "--fmad=false" in program.flags
        contract = ["-ffp-contract=off"] if exact else CONTRACTING
        key = hashlib.sha256(f"{program.text}{contract}".encode()).hexdigest()
        source, library = self.folder / f"{key}.cpp", self.folder / f"{key}.bin"
        include = f'#include "{HEADER}"\n'
        source.write_text(f"{include}#line 1\n{program.text}\n{include}", encoding="utf-8")
        done = subprocess.run(
            [
                *_cpp.require_compiler(),
                *FLAGS,
                *contract,
                str(source),
                "-o",
                str(library),
                "-lm",
                "-lc",
            ],
            capture_output=True,
        )
        if done.returncode:
            program.log = done.stderr + b"\0"
            return (NvrtcResult.NVRTC_ERROR_COMPILATION,)
        program.binary = library.read_bytes()
        return self._answer("nvrtcCompileProgram")

    def nvrtcGetProgramLogSize(self, program: Program) -> tuple[Any, ...]:
        return self._answer("nvrtcGetProgramLogSize", len(program.log))

    def nvrtcGetProgramLog(self, program: Program, into: bytes) -> tuple[Any, ...]:
        _fill(into, program.log)
        return self._answer("nvrtcGetProgramLog")

    def nvrtcGetCUBINSize(self, program: Program) -> tuple[Any, ...]:
        return self._answer("nvrtcGetCUBINSize", len(program.binary))

    def nvrtcGetCUBIN(self, program: Program, into: bytes) -> tuple[Any, ...]:
        _fill(into, program.binary)
        return self._answer("nvrtcGetCUBIN")

    def nvrtcDestroyProgram(self, program: Program) -> tuple[Any, ...]:
        assert program in self.programs
        return self._answer("nvrtcDestroyProgram")

    def _answer(self, function: str, *values: Any) -> tuple[Any, ...]:
        """An error code and values, as all functions of NVIDIA's return them."""
        error = self.failing.get(function, CUresult.CUDA_SUCCESS)
        return (error, *[None if error else value for value in values])


class NamedStream(NamedTuple):
    cuda_stream: int


def _fill(buffer: bytes, content: bytes) -> None:
    """As NVIDIA's modules: they write what they are given, although Python calls it constant."""
    assert len(buffer) == len(content) > 1
    ctypes.memmove(ctypes.c_char_p(buffer), content, len(content))


def install(cuda: Cuda, monkeypatch: pytest.MonkeyPatch, compiler: bool = True) -> None:
    """Have the package find `cuda`, and take all tensors for tensors on a GPU, except those that
    :func:`on_host` has marked.

    Args:
        cuda: the stand-in.
        monkeypatch: undoes it.
        compiler: also in place of NVRTC.
    """
    modules = cast(dict[str, Any], sys.modules)
    monkeypatch.setitem(modules, "cuda.bindings.driver", cuda)
    if compiler:
        monkeypatch.setitem(modules, "cuda.bindings.nvrtc", cuda)
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_current_stream_capturing": lambda: cuda.capturing,
        "get_device_capability": lambda device: cuda.capability,
        "device": cuda.device,
        "current_stream": cuda.current_stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    device, on_cpu = Tensor.device, _is_on_host
    for name, of in {
        "device": lambda t: device.__get__(t) if on_cpu(t) else DEVICE,
        "is_cuda": lambda t: not on_cpu(t),
        "is_cpu": on_cpu,
    }.items():
        monkeypatch.setattr(Tensor, name, property(of))
    monkeypatch.setattr(_kernels, "_kernels", {})
    monkeypatch.setattr(_kernels, "_texts", WeakKeyDictionary())
    monkeypatch.setattr(_fused, "_proved", {})


def forget() -> None:
    """Empty what the package remembers of driver and compiler."""
    for module in (_cuda, _fused, _kernels):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                cast(Callable[[], None], function.cache_clear)()


def on_host(tensor: Tensor) -> Tensor:
    """Mark a tensor as one that is on the CPU."""
    cast(Any, tensor).on_host = True
    return tensor


def _is_on_host(tensor: Tensor) -> bool:
    return hasattr(tensor, "on_host")
