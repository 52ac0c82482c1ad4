"""Lessons of a net: train it, look at it now and then, and tell when it has learnt enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common.training import shuffled

WINDOW = 10  # steps whose mean loss counts: single batches are too noisy


@dataclass(frozen=True)
class Lesson:
    losses: list[float]  # of every step
    reached: bool  # whether the mean of the last losses came below `until`

    @property
    def steps(self) -> int:
        return len(self.losses)


def learn(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    until: float = -math.inf,
    scale: float = 1.0,
    look: Callable[[int], bool | None] | None = None,
    look_every: int = 1,
) -> Lesson:
    """Train for `steps` steps, or until the mean loss of the last few is below `until`.

    The loss is multiplied by `scale` for the backward pass alone. `look` is called with the count
    of steps taken, at the start, too; returning True ends the lesson.
    """
    net.train()
    losses: list[float] = []
    done = bool(look is not None and look(0))
    epoch = 0
    while len(losses) < steps and not done:
        epoch += 1
        for indices in shuffled(labels, batch_size, seed, epoch):
            optimizer.zero_grad()
            loss = cross_entropy(net(images[indices]), labels[indices])
            (loss if scale == 1 else loss * scale).backward()
            optimizer.step()
            losses.append(loss.item())
            if sum(losses[-WINDOW:]) / WINDOW < until and len(losses) >= WINDOW:
                return Lesson(losses, True)
            if look is not None and len(losses) % look_every == 0:
                done = bool(look(len(losses)))
            if len(losses) == steps or done or not math.isfinite(losses[-1]):
                return Lesson(losses, False)
    return Lesson(losses, False)


def curve_of(losses: Sequence[float], size: int = 10) -> dict[str, list[float]]:
    """Means of neighbouring steps, and the steps at which they end."""
    starts = range(0, len(losses), size)
    means = [sum(some) / len(some) for some in (losses[start : start + size] for start in starts)]
    return {
        "step": [min(start + size, len(losses)) for start in starts],
        "loss": [float(f"{mean:.4g}") for mean in means],
    }
