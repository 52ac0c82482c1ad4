"""What torch keeps in Python of CUDA, and NVIDIA's driver, for the simulated GPUs.

Importing this module puts it in place, for the rest of the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from typing import Any, NamedTuple

import torch

from .build import library

if not library().exists():
    raise RuntimeError("start with: python -m tests.simulated_gpu")
# A module that Python loads from the file.
_loader = ExtensionFileLoader("_device", str(library()))
device: Any = importlib.util.module_from_spec(
    importlib.util.spec_from_loader("_device", _loader)  # type: ignore[arg-type]  # it is there
)

GIB = 2**30


def index_of(given: Any = None) -> int:
    """The index of a device, which may be a number, a name, or none for the current one."""
    if isinstance(given, int) and given >= 0:
        return given
    index = None if given is None or isinstance(given, int) else torch.device(given).index
    return int(device.get_device()) if index is None else index


class Stream:
    def __init__(self, device: Any = None, priority: int = 0, stream_id: int | None = None) -> None:
        self.device = torch.device("cuda", index_of(device))
        self.device_index = self.device.index
        self.stream_id = _new_stream() if stream_id is None else stream_id
        self.cuda_stream = 16 * self.stream_id  # an address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.device_index, self.stream_id))

    def synchronize(self) -> None:
        synchronize()

    def query(self) -> bool:
        return True

    def wait_stream(self, stream: Stream) -> None:
        assert isinstance(stream, Stream)

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, Event)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event


def _new_stream() -> int:
    return int(device.new_stream())


class Event:
    def __init__(self, enable_timing: bool = False, **options: bool) -> None:
        self._is_timed, self._at = enable_timing, 0.0

    def record(self, stream: Stream | None = None) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        synchronize()

    def query(self) -> bool:
        return True

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        assert self._is_timed
        assert end._is_timed
        assert 0 < self._at <= end._at
        return 1000 * (end._at - self._at)


@contextlib.contextmanager
def stream(chosen: Stream | None) -> Iterator[None]:
    if chosen is None:
        yield
        return
    before = device.get_device(), device.get_stream(chosen.device_index)
    set_stream(chosen)
    try:
        yield
    finally:
        device.set_stream(chosen.device_index, before[1])
        device.set_device(before[0])


def set_stream(chosen: Stream) -> None:
    device.set_device(chosen.device_index)
    device.set_stream(chosen.device_index, chosen.stream_id)


def current_stream(of: Any = None) -> Stream:
    return Stream(index_of(of), stream_id=device.get_stream(index_of(of)))


def synchronize(of: Any = None) -> None:
    if device.is_capturing():
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


class CUDAGraph:
    def __init__(self, keep_graph: bool = False) -> None:
        self._graph = device.Graph()
        self._is_captured = False

    def capture_begin(self, *options: Any, **more: Any) -> None:
        assert device.get_stream(device.get_device()), "graphs are not captured on default streams"
        self._graph.begin()

    def capture_end(self) -> None:
        self._graph.end()
        self._is_captured = True
        if not len(self._graph):
            warnings.warn("The CUDA Graph is empty.", stacklevel=2)

    def replay(self) -> None:
        if not self._is_captured:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        self._graph.replay()

    def reset(self) -> None:
        self._graph, self._is_captured = device.Graph(), False

    def pool(self) -> tuple[int, int]:
        return 0, 0


class Properties(NamedTuple):
    name: str = "simulated GPU"
    major: int = 9
    minor: int = 0
    total_memory: int = 4 * GIB
    multi_processor_count: int = 132
    max_threads_per_multi_processor: int = 2048
    warp_size: int = 32


class Profile:
    """Counts launches, for ``torch.profiler.profile``."""

    def __init__(self, **options: Any) -> None:
        self._launches = 0

    def __enter__(self) -> Profile:
        self._launches = -device.launches()
        return self

    def __exit__(self, *error: object) -> None:
        self._launches += device.launches()

    def key_averages(self) -> list[Any]:
        return [types.SimpleNamespace(key="cudaLaunchKernel", count=self._launches)]


def _exchange_device(index: int) -> int:
    before = int(device.get_device())
    device.set_device(index)
    return before


# Of torch's extension in C++, of its module in Python.
IN_C: dict[str, Any] = {
    "_cuda_init": lambda: None,
    "_cuda_isInBadFork": lambda: False,
    "_cuda_getCompiledVersion": lambda: 13_000,
    "_cuda_getArchFlags": lambda: "sm_90",
    "_cuda_getDeviceCount": lambda: device.DEVICES,
    "_cuda_getDevice": lambda: device.get_device(),
    "_cuda_setDevice": lambda index: device.set_device(index),
    "_cuda_getCurrentRawStream": lambda index: 16 * device.get_stream(index),
    "_cuda_set_sync_debug_mode": lambda mode: device.set_waiting_is_an_error(mode == 2),
    "_cuda_get_sync_debug_mode": lambda: 2 * device.waiting_is_an_error(),
    "_cuda_sleep": lambda cycles: None,
    "_cuda_emptyCache": lambda: None,
    "_host_emptyCache": lambda: None,
}
IN_PYTHON: dict[str, Any] = {
    "Stream": Stream,
    "Event": Event,
    "CUDAGraph": CUDAGraph,
    "stream": stream,
    "set_stream": set_stream,
    "current_stream": current_stream,
    "default_stream": lambda of=None: Stream(index_of(of), stream_id=0),
    "synchronize": synchronize,
    "_cuda_isCurrentStreamCapturing": lambda: device.is_capturing(),
    "graph_pool_handle": lambda: (0, 1),
    "_exchange_device": _exchange_device,
    # Another function: torch's compiler tells the two apart.
    "_maybe_exchange_device": lambda index: _exchange_device(index),
    "_cudart": object(),
    "is_available": lambda: True,
    "device_count": lambda: device.DEVICES,
    "get_device_properties": lambda of=None: Properties(),
    "get_device_name": lambda of=None: Properties().name,
    "get_device_capability": lambda of=None: (Properties().major, Properties().minor),
    "is_bf16_supported": lambda including_emulation=True: True,
    "memory_allocated": lambda of=None: device.allocated(index_of(of)),
    "memory_reserved": lambda of=None: device.allocated(index_of(of)),
    "max_memory_allocated": lambda of=None: device.peak(index_of(of)),
    "reset_peak_memory_stats": lambda of=None: device.reset_peak(index_of(of)),
    "mem_get_info": lambda of=None: (4 * GIB - device.allocated(index_of(of)), 4 * GIB),
}


def _new_storage(cls: Any, *size: Any, device: Any = None, **options: Any) -> Any:
    if device is not None and torch.device(device).type == "cuda":
        return torch.empty(*size, dtype=torch.uint8, device=device).untyped_storage()
    more = {} if device is None else {"device": device}
    return torch._C.StorageBase.__new__(cls, *size, **more, **options)


def _copy_storage(self: Any, source: Any, non_blocking: bool | None = None) -> Any:
    mine, theirs = (
        torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        for storage in (self, source)
    )
    mine.copy_(theirs)
    return self


class Lazy:
    """NVIDIA's two modules, which are made when the package asks for them."""

    def __init__(self) -> None:
        self._made: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = _driver()
        return getattr(self._made, name)


def _driver() -> Any:
    from ..cuda_without_gpu.on_cpu import Cuda

    class Driver(Cuda):
        """The stand-in of `tests/cuda_without_gpu`, for several processes and for graphs."""

        def nvrtcCompileProgram(self, *arguments: Any) -> tuple[Any, ...]:
            return self._alone(super().nvrtcCompileProgram, *arguments)

        def cuModuleLoadData(self, binary: bytes) -> tuple[Any, ...]:
            return self._alone(super().cuModuleLoadData, binary)

        def _alone(
            self, function: Callable[..., tuple[Any, ...]], *arguments: Any
        ) -> tuple[Any, ...]:
            with (self.folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                return function(*arguments)

        def cuLaunchKernel(self, function: Any, *arguments: Any) -> tuple[Any, ...]:
            *_, parameters, _ = arguments
            done = super().cuLaunchKernel(function, *arguments)
            assert self.launches.pop().stream == current_stream().cuda_stream
            device.count_launch()
            if device.is_capturing():
                device.record(_again(function, arguments, parameters))
            return done

    def _again(function: Any, arguments: Any, parameters: int) -> Callable[[], None]:
        """The same launch, with a copy of what it takes by value."""
        size = 32_760 if function.name == "move_many" else 4096
        (address,) = (ctypes.c_int64 * 1).from_address(parameters)
        table = ctypes.create_string_buffer(ctypes.string_at(address, size), size)
        pointer = (ctypes.c_int64 * 1)(ctypes.addressof(table))

        def launch() -> None:
            kept = table  # the pointer does not keep it
            error = function.launcher(arguments[0], arguments[3], ctypes.addressof(pointer))
            assert kept is not None
            assert not error, error

        return launch

    folder = library().parent / "kernels"
    folder.mkdir(exist_ok=True)
    made = Driver(folder)
    made.version = 13_000
    # Whatever thread asks: torch.cuda.device, which makes contexts, is torch's own here.
    vars(made)["_within"] = types.SimpleNamespace(context=True)
    return made


def _install() -> None:
    _loader.exec_module(device)
    for name, value in IN_C.items():
        setattr(torch._C, name, value)
    for module in (torch.cuda, torch.cuda.streams, torch.cuda.graphs, torch.cuda.memory):
        for name, value in IN_PYTHON.items():
            if module is torch.cuda or hasattr(module, name):
                setattr(module, name, value)
    generators = tuple(device.default_generator(index) for index in range(device.DEVICES))
    torch.cuda.default_generators = generators
    torch.version.cuda = "13.0"
    for owner, name, value in (
        (torch.UntypedStorage, "__new__", _new_storage),
        (torch.UntypedStorage, "copy_", _copy_storage),
        (torch.profiler, "profile", Profile),
    ):
        setattr(owner, name, value)
    modules: dict[str, Any] = sys.modules
    modules["cuda.bindings.driver"] = modules["cuda.bindings.nvrtc"] = Lazy()


_install()
