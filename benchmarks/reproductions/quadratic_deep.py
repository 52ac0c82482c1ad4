"""DeepOBS' test problem quadratic_deep: ½ (θ − x)ᵀ Q (θ − x) in 100 dimensions, at a constant rate.

90 eigenvalues of Q lie between 0 and 1, ten between 30 and 60. The problem and its data come from
NumPy's generators at fixed seeds, so the start is theirs to all digits; a seed decides only the
order of the data, which is the same in all epochs. (Their losses by batch repeat with the period
of an epoch; with a new order in each, Momentum ends at 88.4 instead of 87.05.)
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from benchmarks.common.synthetic import seeded_generator
from benchmarks.reproductions.case import (
    Case,
    Figure,
    Interval,
    Lab,
    Measured,
    Settings,
    among_our_seeds,
    within,
)
from benchmarks.reproductions.wrong import Optimizer
from torch_scratch_optim import ScratchAdam, ScratchMomentum, ScratchSGD

DIMENSIONS, SAMPLES, BATCH, EPOCHS = 100, 1000, 128, 100
STEPS = SAMPLES // BATCH  # in an epoch: the last batch is dropped where it is not full
SOURCE = (
    "F. Schneider, L. Balles, P. Hennig, DeepOBS, ICLR 2019; "
    "baselines/quadratic_deep of fsschneider/DeepOBS, commit 873bbc2, test_losses"
)


@cache
def hessian() -> Tensor:
    random = RandomState(42)
    eigenvalues = [*random.uniform(0, 1, 90), *random.uniform(30, 60, 10)]
    turned = rotation(DIMENSIONS, random)
    return torch.tensor(turned.T @ np.diag(eigenvalues) @ turned, dtype=torch.float32)


def rotation(dimensions: int, random: RandomState) -> np.ndarray[Any, Any]:
    """A random rotation by the subgroup algorithm (P. Diaconis, M. Shahshahani, 1987)."""
    angle = 2 * np.pi * random.uniform()
    cos, sin = np.cos(angle), np.sin(angle)
    result = np.array([[cos, sin], [-sin, cos]])
    for size in range(3, dimensions + 1):
        v = random.normal(size=size)
        mirror = np.eye(size)[0] - v / np.linalg.norm(v)
        mirror /= np.linalg.norm(mirror)
        block = np.eye(size)
        block[1:, 1:] = result
        result = block - 2 * np.outer(mirror, mirror @ block)
    return -result


def data(seed: int) -> Tensor:
    normal = RandomState(seed).normal(0, 0.6, (SAMPLES, DIMENSIONS))
    return torch.tensor(normal, dtype=torch.float32)


def loss(theta: Tensor, x: Tensor) -> Tensor:
    difference = theta - x
    return 0.5 * ((difference @ hessian()) * difference).sum(-1)


@dataclass(frozen=True)
class Setting:
    """An optimizer with its options, and the published test losses by epoch."""

    optimizer: Optimizer
    lr: float
    published: Mapping[int, Interval | float]  # of one seed, or of two
    options: Mapping[str, float] = field(default_factory=dict)

    def key(self, epoch: int) -> str:
        return f"{self.lr:g}, {epoch}"


SETTINGS = (
    Setting(ScratchSGD, 1e-3, {1: 234.31936, 10: 106.59131, 100: 95.85273}),
    Setting(ScratchSGD, 1.5848931925e-2, {1: 105.44536, 10: 93.09847, 100: 87.51817}),
    Setting(
        ScratchMomentum, 1.5848931925e-4,
        {1: 266.04545, 5: 270.89820, 10: 197.55952, 50: 90.55559, 100: 87.23647},
        {"momentum": 0.99},
    ),
    Setting(
        ScratchMomentum, 2.5118864315e-3,
        {1: (270.90601, 271.19324), 10: (134.14201, 134.31712), 100: (87.02500, 87.07139)},
        {"momentum": 0.99},
    ),
    Setting(
        ScratchAdam, 2.5118864315e-3,
        {1: 333.00884, 10: 199.69299, 50: 104.15149, 100: 98.07711},
    ),
    Setting(
        ScratchAdam, 3.9810717055e-2,
        {1: (141.74577, 141.78705), 3: (119.61658, 120.03363), 10: (94.68596, 94.69738),
         100: (87.06753, 87.12283)},
    ),
)  # fmt: skip


def follow(lab: Lab, setting: Setting, seeds: int) -> list[list[float]]:
    """After each epoch, with the start as epoch 0: the test loss of each seed.

    The mean of the loss over a batch is the loss at the batch's mean and a constant, so batches
    are replaced by their means. The seeds' parameters are the rows of one tensor: an update works
    element by element, so each moves as it would alone.
    """
    test = data(43)[: STEPS * BATCH]
    constant = loss(test.mean(0), test).mean()
    batches = torch.stack([batch_means(seed) for seed in range(seeds)], dim=1)
    theta = torch.ones(seeds, DIMENSIONS, requires_grad=True)
    optimizer = lab.make(setting.optimizer, [theta], lr=setting.lr, **setting.options)
    losses = []
    for epoch in range(EPOCHS + 1):
        for batch in batches if epoch else ():
            optimizer.zero_grad()
            loss(theta, batch).sum().backward()
            optimizer.step()
            lab.step()
        losses.append((loss(theta, test.mean(0)) + constant).tolist())
    return losses


def batch_means(seed: int) -> Tensor:
    """The means of the batches of an epoch."""
    order = torch.randperm(SAMPLES, generator=seeded_generator("batches", seed, 1))
    batches = data(42)[order[: STEPS * BATCH]].reshape(STEPS, BATCH, DIMENSIONS)
    return batches.mean(1)


def measure(optimizer: Optimizer, lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    seeds, steps = settings["seeds"], EPOCHS * STEPS
    tried = [setting for setting in SETTINGS if setting.optimizer is optimizer]
    lab.expect(len(tried) * steps)
    measured = {}
    for setting in tried:
        run = partial(follow, lab, setting, seeds)
        losses = lab.once(f"learning rate {setting.lr:g}", steps, run)
        if optimizer is ScratchSGD:
            measured["start"] = Measured(losses[0][0], seeds=seeds)
        for epoch in setting.published:
            values = losses[epoch]
            spread = min(values), max(values)
            note = f"our seeds: {spread[0]:.2f} … {spread[1]:.2f}"
            measured[setting.key(epoch)] = Measured(statistics.median(values), spread, note, seeds)
    return measured


def _case(optimizer: Optimizer, title: str, more: Mapping[str, Figure]) -> Case:
    near = among_our_seeds("within the range of our seeds ± 0.2 %", 0.002)
    seeds = {"quick": {"seeds": 5}, "standard": {"seeds": 20}, "full": {"seeds": 20}}
    figures = {
        setting.key(epoch): Figure(
            f"learning rate {setting.lr:.3g}: test loss after epoch {epoch}",
            published,
            near,
            seeds=2 if isinstance(published, tuple) else 1,
        )
        for setting in SETTINGS
        if setting.optimizer is optimizer
        for epoch, published in setting.published.items()
    }
    return Case(
        title=f"DeepOBS quadratic_deep: {title}",
        source=SOURCE,
        budgets=seeds,
        figures={**more, **figures},
        measure=partial(measure, optimizer),
        note="Theirs and ours differ by the order of the data alone, which is the same in all "
        "epochs.",
        optimizers=(optimizer,),
        wrong=seeds,
        needs_mnist=False,
    )


SGD = _case(
    ScratchSGD,
    "SGD",
    {
        "start": Figure(
            "test loss before training",
            353.4467643,
            within(1e-3, "rounding of float32; the problem and its data are the published ones"),
        )
    },
)
MOMENTUM = _case(ScratchMomentum, "Momentum 0.99", {})
ADAM = _case(ScratchAdam, "Adam", {})
