"""Glorot and Bengio's deep sigmoid net: with five hidden layers it never leaves its plateau.

1,000 units to a layer, weights of variance 1/(3 · inputs), biases 0, plain SGD on batches of 10.
Their picture is of images with shapes in them; MNIST is among their data, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.nets import CLASSES, PIXELS
from benchmarks.study.published.case import (
    Case,
    Figure,
    Lab,
    Measured,
    Settings,
    unit_pixels,
    within,
)
from benchmarks.study.published.nets import build, uniform
from benchmarks.study.published.teaching import epochs_of
from benchmarks.trainee import evaluate
from torch_scratch_optim import ScratchSGD

DEPTH, WIDTH, BATCH, SEED = 5, 1000, 10, 0
GUESSING = math.log(CLASSES)  # the loss of a net that takes all classes for equally likely


def top_activation(net: nn.Sequential, images: Tensor) -> float:
    """The mean output of the last hidden layer: a sigmoid's is 1/2 at rest, 0 when saturated."""
    with torch.no_grad():
        return float(net[:-1](images).mean())


def measure(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    steps, rates = settings["steps"], settings["rates"]
    images, labels = unit_pixels(lab.digits.train_images), lab.digits.train_labels
    lab.expect(steps * len(rates))
    losses, tops, before = {}, {}, math.nan
    for lr in rates:
        net = build([PIXELS, *[WIDTH] * DEPTH, CLASSES], nn.Sigmoid, uniform, SEED).to(lab.device)
        before = top_activation(net, images[:1000])
        some = slice(0, steps * BATCH)
        for _ in epochs_of(
            net, ScratchSGD(net.parameters(), lr=lr), images[some], labels[some],
            batch_size=BATCH, epochs=-(-steps * BATCH // len(labels)), seed=SEED,
            on_step=lab.step,
        ):  # fmt: skip
            pass
        losses[lr] = evaluate(net, images[:10_000], labels[:10_000])[0]
        tops[lr] = top_activation(net, images[:1000])
    best = min(losses, key=lambda lr: losses[lr])
    listed = ", ".join(f"{lr:g}: {losses[lr]:.3f} and {tops[lr]:.3f}" for lr in rates)
    return {
        "stuck": Measured(
            losses[best] / GUESSING,
            note=f"after {steps:,} steps; training loss and activation by learning rate {listed}",
        ),
        "top": Measured(min(tops.values()), note=f"before training {before:.3f}"),
    }


CASE = Case(
    title="Glorot and Bengio: the stuck sigmoid net",
    source="X. Glorot, Y. Bengio, Understanding the difficulty of training deep feedforward "
    "neural networks, AISTATS 2010, section 3.1",
    budgets={
        "quick": {"steps": 100, "rates": (0.1,)},
        "standard": {"steps": 1500, "rates": (0.01, 0.1)},
        "full": {"steps": 60_000, "rates": (0.01, 0.03, 0.1, 0.3)},
    },
    figures={
        "stuck": Figure(
            "training loss / loss of guessing, best learning rate",
            1.0,
            within(0.02, "the batch that came last moves the biases of the output"),
        ),
        "top": Figure(
            "mean activation of the top hidden layer",
            0.0,
            within(0.1, "theirs is read off a picture"),
        ),
    },
    measure=measure,
    one_thread=False,
)
