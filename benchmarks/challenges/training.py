"""Train a net on few images, with a callback and an early end when a target loss is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common import training
from benchmarks.common.training import LossFunction, Step, batches

WINDOW = 10  # steps whose mean loss is compared with the target: single batches are too noisy


@dataclass(frozen=True)
class TrainingResult:
    losses: list[float]  # of every step
    reached: bool  # whether the mean of the last losses came below the target

    @property
    def steps(self) -> int:
        return len(self.losses)


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    target_loss: float = -math.inf,
    loss_function: LossFunction = cross_entropy,
    callback: Callable[[int], None] | None = None,
    callback_every: int = 1,
) -> TrainingResult:
    """Train for `steps` steps, or until the mean loss of the last few is below `target_loss`.

    `callback` is called with the number of steps taken, first with 0. A loss that is not finite
    ends the training.
    """
    net.train()
    losses: list[float] = []
    if callback is not None:
        callback(0)
    step = Step(net, optimizer, loss_function)
    endless = batches(images, labels, batch_size, seed, epochs=count(1))
    for loss in training.train(step, islice(endless, steps)):
        losses.append(loss.item())
        if len(losses) >= WINDOW and sum(losses[-WINDOW:]) / WINDOW < target_loss:
            return TrainingResult(losses, reached=True)
        if callback is not None and len(losses) % callback_every == 0:
            callback(len(losses))
        if not math.isfinite(losses[-1]):
            break
    return TrainingResult(losses, reached=False)


def mean_losses(losses: Sequence[float], window: int = 10) -> dict[str, list[float]]:
    """The mean loss of each window of steps, and the step at which the window ends."""
    starts = range(0, len(losses), window)
    windows = [losses[start : start + window] for start in starts]
    return {
        "step": [min(start + window, len(losses)) for start in starts],
        "loss": [float(f"{sum(values) / len(values):.4g}") for values in windows],
    }
