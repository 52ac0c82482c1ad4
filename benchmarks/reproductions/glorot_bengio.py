"""Glorot and Bengio's deep sigmoid net: with five hidden layers it never leaves its plateau.

1,000 units to a layer, weights of variance 1/(3 · inputs), biases 0, plain SGD on batches of 10.
Their picture is of images with shapes in them; MNIST is among their data, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.common.nets import CLASSES, PIXELS
from benchmarks.common.training import evaluate
from benchmarks.reproductions.case import (
    Case,
    Figure,
    Lab,
    Measured,
    Settings,
    unit_pixels,
    within,
)
from benchmarks.reproductions.nets import build, uniform
from benchmarks.reproductions.training import epochs_of, steps_per_epoch
from torch_scratch_optim import ScratchSGD

DEPTH, WIDTH, BATCH, SEED = 5, 1000, 10, 0
LONG_ENOUGH = 1000  # steps; before, the loss still swings about that of guessing
GUESSING = math.log(CLASSES)  # the loss of a net that takes all classes for equally likely


def top_activation(net: nn.Sequential, images: Tensor) -> float:
    """The mean output of the last hidden layer: a sigmoid's is 1/2 at rest, 0 when saturated."""
    with torch.no_grad():
        return float(net[:-1](images).mean())


def plateau(lab: Lab, lr: float, images: int, epochs: int) -> dict[str, float]:
    """Train on the first `images`; say where the loss and the top hidden layer are then."""
    pixels = unit_pixels(lab.digits.train_images[:images])
    labels = lab.digits.train_labels[:images]
    net = build([PIXELS, *[WIDTH] * DEPTH, CLASSES], nn.Sigmoid, uniform, SEED).to(lab.device)
    before = top_activation(net, pixels[:1000])
    for _ in epochs_of(
        net, lab.make(ScratchSGD, net.parameters(), lr=lr), pixels, labels,
        batch_size=BATCH, epochs=epochs, seed=SEED, on_step=lab.step,
    ):  # fmt: skip
        pass
    return {
        "loss": evaluate(net, pixels[:10_000], labels[:10_000])[0],
        "before": before,
        "top": top_activation(net, pixels[:1000]),
    }


def measure(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    rates, images, epochs = settings["rates"], settings["images"], settings["epochs"]
    steps = epochs * steps_per_epoch(images, BATCH)
    lab.expect(len(rates) * steps)
    runs = {
        lr: lab.once(f"lr {lr:g}", steps, partial(plateau, lab, lr, images, epochs)) for lr in rates
    }
    if steps < LONG_ENOUGH:
        return {}
    best = min(runs.values(), key=lambda run: run["loss"])
    losses = ", ".join(f"{lr:g}: {run['loss']:.4f}" for lr, run in runs.items())
    tops = ", ".join(f"{lr:g}: {run['top']:.3f}" for lr, run in runs.items())
    return {
        "stuck": Measured(
            best["loss"] / GUESSING,
            note=f"after {steps:,} steps; training loss by learning rate {losses}, of guessing "
            f"{GUESSING:.4f}",
        ),
        "top": Measured(
            min(run["top"] for run in runs.values()),
            note=f"by learning rate {tops}; before training {best['before']:.3f}",
        ),
    }


CASE = Case(
    title="Glorot and Bengio: the stuck sigmoid net",
    source="X. Glorot, Y. Bengio, Understanding the difficulty of training deep feedforward "
    "neural networks, AISTATS 2010, section 3.1",
    budgets={
        "quick": {"rates": (0.1,), "images": 1000, "epochs": 1},
        "standard": {"rates": (0.01, 0.1), "images": 15_000, "epochs": 1},
        "full": {"rates": (0.01, 0.1), "images": 60_000, "epochs": 5},
    },
    figures={
        "stuck": Figure(
            "training loss / loss of guessing, best learning rate",
            1.0,
            within(0.02, "the batch that came last moves the biases of the output"),
            budget="standard",
        ),
        "top": Figure(
            "mean activation of the top hidden layer",
            0.0,
            within(0.1, "theirs is read off a picture"),
            budget="standard",
        ),
    },
    measure=measure,
    optimizers=(ScratchSGD,),
    wrong={
        "standard": {"rates": (0.01, 0.1), "images": 15_000, "epochs": 1},
        "full": {"rates": (0.01, 0.1), "images": 15_000, "epochs": 1},
    },
    one_thread=False,
    note="That the net is stuck says nothing of the optimizer: a net that is never trained has the "
    "same loss.",
)
