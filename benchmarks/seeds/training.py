"""Train one optimizer at one learning rate from many seeds at once.

The rules of the optimizers are elementwise, so nets that differ in their seeds alone are one net
whose parameters have a further dimension, stepped by one optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks.common import training
from benchmarks.common.data import Digits
from benchmarks.common.nets import CLASSES, build_net
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.stacks import StackedNets
from benchmarks.common.training import Batch, shuffled, stacked_cross_entropy, step_for

INPUTS = 14 * 14  # the images at half their resolution
DEPTHS = {"relu": 5, "sigmoid": 3}
WIDTH, BATCH_SIZE = 32, 32
CHANCE = 1 / CLASSES  # the accuracy of a run that diverged


@dataclass(frozen=True)
class Split:
    """Images N x 196 and labels: for training, for choosing learning rates, for the ranking."""

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def split(digits: Digits, train_size: int) -> Split:
    """The first `train_size` training images are trained on, the others validate."""
    images, labels = _halve(digits.train_images), digits.train_labels
    return Split(
        images[:train_size],
        labels[:train_size],
        images[train_size:],
        labels[train_size:],
        _halve(digits.test_images),
        digits.test_labels,
    )


def _halve(images: Tensor) -> Tensor:
    return avg_pool2d(images.view(-1, 1, 28, 28), 2).flatten(1)


_data: Split


def begin(data: Split) -> None:
    """Prepare a process to train: one thread, for with nets this small threads mostly wait."""
    global _data
    _data = data
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # numbers near 1e-40 would make a step several times slower


def _batches(data: Split, seeds: range, epochs: int) -> Iterator[Batch]:
    """A batch of each seed, stacked."""
    for epoch in range(1, epochs + 1):
        orders = (shuffled(data.labels, BATCH_SIZE, seed, epoch) for seed in seeds)
        for indices in map(torch.stack, zip(*orders, strict=True)):
            yield data.images[indices], data.labels[indices]


def train(
    net: str, optimizer: str, lr: float, seeds: range, epochs: int, data: Split | None = None
) -> dict[str, Any]:
    """Train from each seed, which decides the initial weights and the order of the batches.

    Returns what the results hold of these runs. A run is equal to one that is trained by itself up
    to rounding.

    Args:
        data: by default that which the process began with.
    """
    data = data or _data
    device = data.images.device
    nets = StackedNets(
        [build_net(net, DEPTHS[net], WIDTH, seed, inputs=INPUTS).to(device) for seed in seeds]
    )
    options = {"capturable": True} if device.type == "cuda" else {}
    stepper = OPTIMIZERS[optimizer].make_scratch([nets.parameter], lr, **options)
    step = step_for(device)(nets, stepper, stacked_cross_entropy)
    for _ in training.train(step, _batches(data, seeds, epochs)):
        pass

    def accuracies(images: Tensor, labels: Tensor) -> list[float]:
        with torch.no_grad():
            scores = nets.of_same(images)
        right = (scores.argmax(2) == labels).double().mean(1)
        return torch.where(scores.isfinite().all(2).all(1), right, CHANCE).tolist()

    return {
        "net": net,
        "optimizer": optimizer,
        "lr": lr,
        "first_seed": seeds.start,
        "validation_accuracy": accuracies(data.validation_images, data.validation_labels),
        "test_accuracy": accuracies(data.test_images, data.test_labels),
    }
