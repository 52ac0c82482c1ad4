"""Epochs of training, as the publications have them: batches, schedules, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from benchmarks.common.nets import CLASSES
from benchmarks.common.training import Batch, LossFunction, Step, shuffled, train


def epochs_of(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    on_step: Callable[[], None],
    loss: LossFunction = cross_entropy,
    drop_last: bool = False,
    reshuffle: bool = True,
    schedule: Callable[[int], float] | None = None,
) -> Iterator[int]:
    """Train, and yield the number of each epoch as soon as it has ended.

    Args:
        drop_last: leave out the last batch of an epoch if it is not full.
        reshuffle: in each epoch; else all epochs have the order of the first.
        schedule: what the learning rate is multiplied by at a step; the first step is 1.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    step, numbers = Step(net, optimizer, loss), count(1)

    def batches(epoch: int) -> Iterator[Batch]:
        for indices in shuffled(labels, batch_size, seed, epoch if reshuffle else 1):
            if drop_last and len(indices) < batch_size:
                return
            if schedule is not None:
                factor = schedule(next(numbers))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            yield images[indices], labels[indices]

    for epoch in range(1, epochs + 1):
        if any(rates):  # else nothing moves
            for _ in train(step, batches(epoch)):
                on_step()
        yield epoch


def sigmoid_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Each class judged by a sigmoid of its own: summed over classes, averaged over images.

    Scores of several nets, stacked, give the sum of their losses.
    """
    wanted = one_hot(labels, CLASSES).to(scores.dtype).expand_as(scores)
    return binary_cross_entropy_with_logits(scores, wanted, reduction="sum") / len(labels)


def steps_per_epoch(images: int, batch_size: int, drop_last: bool = False) -> int:
    return images // batch_size if drop_last else -(-images // batch_size)
