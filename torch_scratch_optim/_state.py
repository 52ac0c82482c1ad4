"""The state of parameters: made before a first step, counted at each."""

from __future__ import annotations

from functools import cache
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._capture import is_capturing
from ._options import Group
from .engines import KIND

if TYPE_CHECKING:
    from .optimizer import ScratchOptimizer

WIDE = {torch.float32, torch.float64}
HOST = {(torch.device("cpu"), torch.float32)}  # where torch keeps step counts


def states(
    optimizer: ScratchOptimizer, group: Group, params: list[Tensor], symbols: dict[str, str]
) -> tuple[list[Group], dict[Tensor, Group]]:
    """The state of each parameter; and new state, which is not stored yet.

    As in torch, an empty state is created, and one in which something is missing is an error.
    """
    if not symbols and not optimizer.counts_steps:
        return [], {}
    present: list[Any] = list(map(optimizer.state.get, params))
    missing = [not state for state in present]
    if not optimizer.counts_steps:  # as in torch's SGD, whose buffer is absent or None before
        name = next(iter(symbols.values()))
        missing = [not state or state.get(name) is None for state in present]
    if True not in missing:
        return present, {}
    if any(p.grad.is_sparse for p in params if p.grad is not None):
        optimizer._sparse_engine(group)  # which may refuse
    if is_capturing():
        raise RuntimeError("step() makes state: it cannot be captured before it has run once")
    new = {p: optimizer.new_state(p, group) for p in compress(params, missing)}
    return [new.get(p) or state for p, state in zip(params, present, strict=True)], new


def step_count(value: float, p: Tensor, group: Group) -> Tensor:
    """A step count as torch keeps it: 0-d, in float32 unless the default is float64."""
    double = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    dtype = torch.float64 if double else torch.float32
    return torch.tensor(value, dtype=dtype, device=step_device(p, group))


def step_device(p: Tensor, group: Group) -> torch.device:
    """Where a step count is kept: on a GPU if it is counted there, as by torch's fused steps."""
    on_device = group.get("capturable") or (group.get("fused") and p.is_cuda)
    return p.device if on_device else torch.device("cpu")


def is_shared(steps: list[Tensor]) -> bool:
    """Whether parameters share a step count, which is then counted once for each of them."""
    return len(set(map(id, steps))) < len(steps)


def next_counts(steps: list[Tensor]) -> list[float]:
    """The count of the coming step for each parameter; the counts stay as they are."""
    if not all(isinstance(step, Tensor) for step in steps):
        raise RuntimeError(
            "API has changed, `state_steps` argument must contain a list of singleton tensors"
        )
    counts = [n + 1.0 for n in map(Tensor.item, steps)]
    whole = {step.dtype for step in steps} <= WIDE and all(
        n % 1 == 0 and n <= 2**24 for n in counts
    )
    if whole and not is_shared(steps):
        return counts
    # Counted on copies, with the rounding of their dtype.
    copies = {id(step): step.clone() for step in steps}
    return [copies[id(step)].add_(1).item() for step in steps]


def count(steps: list[Tensor]) -> None:
    """Count one more step."""
    plain = {*map(type, steps)} == {Tensor} and not torch._C._len_torch_dispatch_stack()
    if plain and {*map(KIND, steps)} == HOST and not is_shared(steps):
        torch._foreach_add_(steps, [_one()] * len(steps))
    else:
        for step in steps:
            step.add_(1)


@cache
def _one() -> Tensor:
    """Adding the number 1 would create such a tensor at each step."""
    return torch.tensor(1.0, device="cpu")


def count_on_device(steps: list[Tensor], device: torch.device) -> Tensor:
    """Count one more step; return the new counts on a device, one number for each parameter."""
    first = steps[0].device  # copied from there at once
    if torch.compiler.is_compiling() or is_shared(steps):  # a compiler may not know what id is
        counts = [step.add_(1).to(first, copy=True) for step in steps]
    else:
        torch._foreach_add_(steps, 1)
        counts = [step.to(first) for step in steps]
    # In double precision, as Python counts, or 1 − β₂ᵗ would have few digits.
    return torch.stack(counts).double().to(device)
