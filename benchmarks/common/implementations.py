"""Implementations of an algorithm on equal parameters, to be timed or compared.

Values are chosen so that no number ever becomes denormal: a CPU takes several times as long for
those, which would distort the times.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.optimizers import OptimizerEntry
from benchmarks.common.shapes import Shape
from torch_scratch_optim.equivalence import compare, random_model

ENGINES: dict[str, dict[str, bool]] = {
    "default": {},
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
SIDES = ("ours", "torch")
IMPLEMENTATIONS = tuple(f"{side}-{engine}" for side in SIDES for engine in ENGINES)

LR = 1e-6  # so small that no value nears zero, however many steps are taken
CHUNK = 2**24  # elements that are checked together


def make_parameters(shapes: Sequence[Shape], seed: int, device: torch.device) -> list[nn.Parameter]:
    """Parameters and gradients whose values lie between 0.5 and 1.5, of either sign."""
    generator = torch.Generator(device).manual_seed(seed)

    def values(shape: Shape) -> Tensor:
        tensor = torch.empty(shape, device=device).uniform_(-1, 1, generator=generator)
        return tensor.add_(tensor.sign().mul_(0.5))

    parameters = [nn.Parameter(values(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = values(tuple(parameter.shape))
    return parameters


def cloned(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    clones = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for clone, parameter in zip(clones, parameters, strict=True):
        assert parameter.grad is not None
        clone.grad = parameter.grad.clone()
    return clones


def maker(name: str, entry: OptimizerEntry, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    """What makes, for instance, `ours-fused` or `torch-default`, given parameters.

    Raises:
        NotImplementedError: there is no such implementation.
    """
    side, _, engine = name.partition("-")
    make = entry.scratch if side == "ours" else entry.reference
    known = inspect.signature(make).parameters
    wanted = ENGINES[engine]
    if missing := [option for option, on in wanted.items() if on and option not in known]:
        raise NotImplementedError(f"{getattr(make, '__name__', make)} has no {missing[0]}=True")
    chosen = {option: on for option, on in wanted.items() if option in known}
    return partial(make, **{**entry.options, **options, **chosen})


def torchs_default_is_its_loop(entry: OptimizerEntry, device: torch.device) -> bool:
    """Whether torch's default has the bits of torch's own loop on a device, as 20 steps show."""
    default, loop = (maker(f"torch-{name}", entry, lr=entry.lr) for name in ("default", "loop"))
    return compare(default, loop, random_model().to(device), steps=20).equal


def share_state(optimizer: torch.optim.Optimizer, shared: dict[tuple[int, str], Tensor]) -> None:
    """Let an optimizer share the state of those before it; its own, except the step, is freed.

    Loading a checkpoint does not copy tensors that already have the right dtype and device.
    """
    checkpoint = optimizer.state_dict()
    for index, own in checkpoint["state"].items():
        checkpoint["state"][index] = {
            name: shared.setdefault((index, name), value)
            if isinstance(value, Tensor) and name != "step"
            else value
            for name, value in own.items()
        }
    optimizer.load_state_dict(checkpoint)


def state_columns(entry: OptimizerEntry) -> int:
    """How many state values torch's optimizer keeps for each parameter element."""
    (p,) = make_parameters([(3,)], 0, torch.device("cpu"))
    optimizer = entry.reference([p], lr=LR, **entry.options)
    optimizer.step()
    return len(state_of(optimizer))


def state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [
        value
        for own in optimizer.state.values()
        for name, value in own.items()
        if isinstance(value, Tensor) and name != "step"
    ]


def count_denormals(tensors: Sequence[Tensor]) -> int:
    """Numbers so small that a CPU takes a slow path for them."""
    return sum(
        int(((chunk != 0) & (chunk.abs() < torch.finfo(chunk.dtype).tiny)).sum())
        for tensor in tensors
        for chunk in tensor.detach().reshape(-1).split(CHUNK)
    )
