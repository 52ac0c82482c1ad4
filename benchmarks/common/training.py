"""The one training loop, the order of batches, and evaluation.

`train` yields after each step, so that whoever uses it measures what it likes in between, and two
runs advance in lockstep by `zip`. What belongs between the gradients and the update, such as the
time of a step, hooks into the optimizer (`register_step_pre_hook`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common.synthetic import seeded_generator

EVALUATION_BATCH = 10_000
WARM_UP = 3  # eager steps before one is captured, as torch's documentation asks for

Batch = tuple[Tensor, Tensor]  # images and labels
LossFunction = Callable[[Tensor, Tensor], Tensor]


def stacked_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of each net: scores are nets x images x classes, labels are [nets x] images."""
    nets_by_images = scores.shape[:2]
    all_labels = labels.expand(nets_by_images).flatten()
    losses = cross_entropy(scores.flatten(0, 1), all_labels, reduction="none")
    return losses.view(nets_by_images).mean(1)


class Step:
    """A training step, done when called with a batch; returns its loss, which needs no gradient.

    Stacked nets, which train at once, have a loss each.
    """

    untimed = 0  # steps at first that take longer than others

    def __init__(
        self,
        net: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        loss_function: LossFunction = cross_entropy,
    ) -> None:
        self.net, self.optimizer, self.loss_function = net, optimizer, loss_function

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        loss = self.backward(images, labels)
        self.optimizer.step()
        return loss

    def backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Leave the gradients in the parameters, and return the loss."""
        self.optimizer.zero_grad()
        loss = self.loss_function(self.net(images), labels)
        loss.backward(torch.ones_like(loss))
        return loss.detach()


class CapturedStep(Step):
    """The step as a CUDA graph, which is captured once and replayed: one launch for all kernels.

    The graph contains the update if the optimizer is capturable; otherwise the optimizer steps
    eagerly after each replay. The first steps and batches of another size are eager.

    Args:
        eager_every: one step in so many is eager, too: a replayed update calls no hooks of the
            optimizer.
    """

    untimed = WARM_UP + 1  # those that are eager, and that which is captured
    _graph: torch.cuda.CUDAGraph | None = None
    _shape: torch.Size | None = None  # of the images of the first batch, which others have
    _side: torch.cuda.Stream  # one, for each has a cache of memory
    _done = 0

    def __init__(self, *arguments: Any, eager_every: int | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._eager_every = eager_every

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        number, self._done = self._done, self._done + 1
        if self._shape is None:
            self._shape, self._side = images.shape, torch.cuda.Stream()
        is_other = images.shape != self._shape
        is_due = self._eager_every is not None and number % self._eager_every == 0
        if number < WARM_UP or is_due or is_other:
            return self._on_side_stream(images, labels)
        if self._graph is None:
            self._graph = self._capture(images, labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        for p, gradient in self._gradients:
            p.grad = gradient
        if not self._captures_update():
            self.optimizer.step()
        return self._loss.clone()

    def _captures_update(self) -> bool:
        return all(group.get("capturable") for group in self.optimizer.param_groups)

    def _on_side_stream(self, images: Tensor, labels: Tensor) -> Tensor:
        """What is captured later must not have run on the default stream before."""
        side, here = self._side, torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            loss = super().__call__(images, labels)
        here.wait_stream(side)
        return loss

    def _capture(self, images: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph:
        """Nothing is computed meanwhile: the graph works on the tensors that are kept here."""
        graph = torch.cuda.CUDAGraph()
        self._images, self._labels = images.clone(), labels.clone()
        captured = super().__call__ if self._captures_update() else self.backward
        with torch.cuda.graph(graph):
            self._loss = captured(self._images, self._labels)
        groups = self.optimizer.param_groups
        self._gradients = [(p, p.grad) for group in groups for p in group["params"]]
        return graph


def step_for(device: torch.device) -> type[Step]:
    """The kind of step that is fastest there, for an optimizer that is capturable on a GPU."""
    return CapturedStep if device.type == "cuda" else Step


def train(step: Step, batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Train on one batch after another, and yield the loss of each when its step is done.

    The gradients stay until the next step.
    """
    for images, labels in batches:
        yield step(images, labels)


def shuffled(labels: Tensor, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The indices of each batch: an order that depends on the seed and the epoch alone."""
    generator = seeded_generator("batches", seed, epoch)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    return iter(torch.split(order, batch_size))


def batches(
    images: Tensor, labels: Tensor, batch_size: int, seed: int, epochs: Iterable[int]
) -> Iterator[Batch]:
    """The batches of one epoch after another."""
    for epoch in epochs:
        for indices in shuffled(labels, batch_size, seed, epoch):
            yield images[indices], labels[indices]


@torch.no_grad()
def evaluate(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy."""
    loss = torch.zeros((), dtype=torch.float64, device=images.device)
    right = torch.zeros((), dtype=torch.int64, device=images.device)
    parts = zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
    for some_images, some_labels in parts:
        scores = net(some_images)
        loss += cross_entropy(scores, some_labels, reduction="sum")
        right += (scores.argmax(1) == some_labels).sum()
    return loss.item() / len(labels), right.item() / len(labels)
