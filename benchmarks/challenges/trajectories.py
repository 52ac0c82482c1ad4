"""Trajectories of an optimizer on a test function, for many learning rates and starts at once.

Rules are elementwise, so a tensor of starting points holds as many independent trajectories; each
learning rate is a parameter group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler, StepLR

from benchmarks.common.optimizers import MakeOptimizer
from benchmarks.common.test_functions import Objective

MakeScheduler = Callable[[torch.optim.Optimizer, int], LRScheduler]  # for so many steps

PERTURBATIONS, PERTURBATION = 9, 1e-12

SCHEDULES: dict[str, MakeScheduler | None] = {
    "constant": None,
    "exponential": lambda optimizer, steps: ExponentialLR(optimizer, 0.01 ** (1 / steps)),
    "step": lambda optimizer, steps: StepLR(optimizer, max(1, steps // 3), 0.1),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
}


def minimize(
    objective: Objective,
    make: MakeOptimizer,
    rates: Sequence[float],
    starts: Sequence[Sequence[float]],
    steps: int,
    *,
    schedule: MakeScheduler | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    options: Sequence[Mapping[str, Any]] | None = None,
) -> Tensor:
    """All positions: step (0 is the start) × learning rate × start × coordinate, in float64.

    `options` are further options of each learning rate's parameter group; `transform` maps the
    gradients (learning rate × start × coordinate) to those of the step.
    """
    points: list[Tensor] = [nn.Parameter(torch.tensor(starts, dtype=torch.float64)) for _ in rates]
    groups = [
        {"params": [p], "lr": lr, **more}
        for p, lr, more in zip(points, rates, options or [{}] * len(rates), strict=True)
    ]
    optimizer = make(groups, lr=rates[0])
    scheduler = schedule(optimizer, steps) if schedule is not None else None
    positions = torch.empty(steps + 1, *torch.stack(points).shape, dtype=torch.float64)
    positions[0] = torch.stack(points).detach()
    for step in range(steps):
        gradients = objective.gradient(positions[step])
        if transform is not None:
            gradients = transform(gradients)
        for p, gradient in zip(points, gradients, strict=True):
            p.grad = gradient
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        positions[step + 1] = torch.stack(points).detach()
    return positions


def first_step(condition: Tensor) -> Tensor:
    """The first step (dimension 0) at which the condition holds; NaN where it never does."""
    first = condition.to(torch.uint8).argmax(0).double()
    return torch.where(condition.any(0), first, torch.nan)


def perturbed(start: tuple[float, ...]) -> list[tuple[float, ...]]:
    """Starts that differ by rounding errors; where their ends differ, a trajectory is chaotic."""
    return [(start[0] + k * PERTURBATION, *start[1:]) for k in range(PERTURBATIONS)]
