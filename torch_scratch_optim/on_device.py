"""Steps that stay on the device: none of their numbers is read on the host.

So a CUDA graph can replay them and torch.compile can trace them; and parameters that are shared out
to several processes (DTensor) move where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as torchs


def check_devices(group: dict[str, Any], params: list[Tensor], state: Mapping[Any, Any]) -> None:
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
    # Asked of an uninitialised CUDA, torch would try to start it.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def count_on_device(steps: list[Tensor]) -> Tensor:
    """Count one more step, and say how many that makes, one number for each parameter."""
    device = steps[0].device
    if len(set(map(id, steps))) == len(steps):
        torch._foreach_add_(steps, 1)
        counts = [step.to(device) for step in steps]
    else:  # what is shared is counted once for each
        counts = [step.add_(1).to(device, copy=True) for step in steps]
    # In double precision, as Python counts, or 1 − β₂ᵗ would have few digits.
    return torch.stack(counts).double()


def shards(columns: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """This process's parts of tensors, cut as the parameter is; ordinary tensors as they are."""
    return {
        symbol: [
            _local(redistributed_like(t, p)) for t, p in zip(column, columns["p"], strict=True)
        ]
        for symbol, column in columns.items()
    }


def _local(tensor: Any) -> Any:
    return tensor.to_local() if hasattr(tensor, "placements") else tensor


def redistributed_like(tensor: Any, p: Any) -> Any:
    """A tensor cut as the parameter is: a copy, unless it is so already.

    A gradient may still be a summand in each process, and so may state that torch's SGD copied.
    """
    if getattr(p, "placements", None) == getattr(tensor, "placements", None):
        return tensor
    return tensor.redistribute(placements=p.placements)
