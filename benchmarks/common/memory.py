"""How much memory is free, and how much a piece of work takes at its peak."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc(5)
SLACK = 2**22  # bytes by which the kernel's two counts may differ although the peak was reset


def free_bytes(device: torch.device) -> int | None:
    """None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _kib(Path("/proc/meminfo"), "MemAvailable")


def peak_extra_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """By how much memory rises above what is there before `work`; None where nobody counts it.

    On a CPU this is resident memory of the process, in whole pages: small temporaries that fit into
    what the allocator already holds do not appear.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _give_freed_memory_back()
    try:
        RESET.write_text(RESET_PEAK)
    except OSError:
        work()
        return None
    resident, peak = _kib(STATUS, "VmRSS"), _kib(STATUS, "VmHWM")
    work()
    after = _kib(STATUS, "VmHWM")
    if resident is None or peak is None or after is None or peak > resident + SLACK:
        return None
    return max(0, after - resident)


def _give_freed_memory_back() -> None:
    """Otherwise temporaries hide in what earlier ones have left."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def _kib(path: Path, name: str) -> int | None:
    """A line such as `VmHWM:  1692 kB`, in bytes."""
    if not path.exists():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
