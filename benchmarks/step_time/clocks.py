"""Clocks that time one call: on a CPU the call itself, on a GPU its kernels and the host apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]

# Functions of CUDA's runtime and driver that launch a kernel, also with a suffix such as ExC.
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchCooperativeKernel", "cuLaunchKernel")


@dataclass(frozen=True)
class Time:
    """Seconds from the beginning to the end of the work, and until the call returned."""

    seconds: float
    host_seconds: float


class Clock:
    """For a CPU, where work is done when the call returns."""

    def time(self, work: Work) -> Time:
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        return Time(seconds, seconds)

    def details(self, times: Sequence[Time], work: Work) -> dict[str, float]:
        """What a cell says besides seconds. `work` is done at most once."""
        return {}


class DeviceClock(Clock):
    """For the current GPU, which works on while the call returns.

    The device is idle at first, so its seconds include those in which it waits for the host.
    """

    def __init__(self) -> None:
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time(self, work: Work) -> Time:
        torch.cuda.synchronize()
        self._start.record()
        host = super().time(work)
        self._end.record()
        torch.cuda.synchronize()
        return Time(self._start.elapsed_time(self._end) / 1000, host.host_seconds)

    def details(self, times: Sequence[Time], work: Work) -> dict[str, float]:
        return {
            "host_ms": 1e3 * statistics.median(each.host_seconds for each in times),
            "launches": _launches(work),
        }


def _launches(work: Work) -> int:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    return sum(event.count for event in profiled.key_averages() if event.key.startswith(LAUNCHES))


def clock_of(device: torch.device) -> Clock:
    return DeviceClock() if device.type == "cuda" else Clock()
