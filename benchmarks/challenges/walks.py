"""Walks on a landscape: many learning rates and many starts at once.

Rules are elementwise, so a tensor of starts is as many walks, which know nothing of each other;
and a learning rate is a parameter group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LRScheduler,
    StepLR,
)

from benchmarks.common.landscapes import Landscape
from benchmarks.common.optimizers import MakeOptimizer

Schedule = Callable[[torch.optim.Optimizer, int], LRScheduler]

SCHEDULES: dict[str, Schedule | None] = {
    "constant": None,
    "exponential": lambda optimizer, steps: ExponentialLR(optimizer, 0.01 ** (1 / steps)),
    "step": lambda optimizer, steps: StepLR(optimizer, max(1, steps // 3), 0.1),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
}


def walk(
    landscape: Landscape,
    make: MakeOptimizer,
    rates: Sequence[float],
    starts: Sequence[Sequence[float]],
    steps: int,
    *,
    schedule: Schedule | None = None,
    bend: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """All positions: step (0 is the start) × learning rate × start × coordinate, in float64.

    `bend` turns the gradients, learning rate × start × coordinate, into those that are stepped on.
    """
    walkers: list[Tensor] = [nn.Parameter(torch.tensor(starts, dtype=torch.float64)) for _ in rates]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(walkers, rates, strict=True)]
    optimizer = make(groups, lr=rates[0])
    scheduler = schedule(optimizer, steps) if schedule is not None else None
    positions = torch.empty(steps + 1, *torch.stack(walkers).shape, dtype=torch.float64)
    positions[0] = torch.stack(walkers).detach()
    for step in range(steps):
        gradients = landscape.gradient(positions[step])
        if bend is not None:
            gradients = bend(gradients)
        for p, gradient in zip(walkers, gradients, strict=True):
            p.grad = gradient
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        positions[step + 1] = torch.stack(walkers).detach()
    return positions


def first_step(reached: Tensor) -> Tensor:
    """The first step (dimension 0) at which something is true; NaN where it never is."""
    first = reached.to(torch.uint8).argmax(0).double()
    return torch.where(reached.any(0), first, torch.nan)


def rounded(values: Tensor, digits: int = 5) -> list[float]:
    """Numbers for a file that people read."""
    return [float(f"{x:.{digits}g}") for x in values.tolist()]
