"""What a CUDA graph can capture of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as torchs


def check_capturable(group: dict[str, Any], params: list[Tensor], state: Mapping[Any, Any]) -> None:
    """Refuse, in torch's words, capturable parameters or step counts that a graph cannot hold."""
    if any(p.grad is not None and p.grad.is_sparse for p in params):
        raise RuntimeError("capturable=True does not support sparse gradients")
    if is_capturing() and any(isinstance(v, Tensor) and v.is_cpu for v in group.values()):
        raise RuntimeError("a CUDA graph would freeze options that are tensors on the CPU")
    if group.get("fused") or torch.compiler.is_compiling():
        return  # torch's fused steps take any device, and a compiler sees to that itself
    devices = torchs._get_capturable_supported_devices()
    homes = [(p.device.type, state.get(p, {}).get("step", p).device.type) for p in params]
    if not all(home == count and home in devices for home, count in homes):
        raise AssertionError(
            f"If capturable=True, params and state_steps must be on supported devices: {devices}."
        )


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    # A compiler cannot trace the question; asked of an uninitialised CUDA, torch would start it.
    if torch.compiler.is_compiling() or not torch.cuda.is_initialized():
        return False
    return torch.cuda.is_current_stream_capturing()
