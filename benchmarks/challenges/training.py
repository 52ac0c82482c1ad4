"""Train a net on few images, with a callback and an early end when a target loss is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common.training import shuffled

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
    loss_scale: float = 1.0,
    callback: Callable[[int], None] | None = None,
    callback_every: int = 1,
) -> TrainingResult:
    """Train for `steps` steps, or until the mean loss of the last few is below `target_loss`.

    The loss is multiplied by `loss_scale` for the backward pass alone. `callback` is called with
    the number of steps taken, first with 0. A loss that is not finite ends the training.
    """
    net.train()
    losses: list[float] = []
    if callback is not None:
        callback(0)
    epoch = 0
    while len(losses) < steps:
        epoch += 1
        for indices in shuffled(labels, batch_size, seed, epoch):
            optimizer.zero_grad()
            loss = cross_entropy(net(images[indices]), labels[indices])
            (loss if loss_scale == 1 else loss * loss_scale).backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) >= WINDOW and sum(losses[-WINDOW:]) / WINDOW < target_loss:
                return TrainingResult(losses, reached=True)
            if callback is not None and len(losses) % callback_every == 0:
                callback(len(losses))
            if len(losses) == steps or not math.isfinite(losses[-1]):
                return TrainingResult(losses, reached=False)
    return TrainingResult(losses, reached=False)


def mean_losses(losses: Sequence[float], window: int = 10) -> dict[str, list[float]]:
    """The mean loss of each window of steps, and the step at which the window ends."""
    starts = range(0, len(losses), window)
    windows = [losses[start : start + window] for start in starts]
    return {
        "step": [min(start + window, len(losses)) for start in starts],
        "loss": [float(f"{sum(values) / len(values):.4g}") for values in windows],
    }
