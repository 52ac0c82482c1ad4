"""AlgoPerf's development workload MNIST: 784-128-10 with sigmoid, 97 % within 7,813 steps.

The workload takes the mean and the deviation of pixels scaled to 0 … 1 from raw pixels, which go
from 0 to 255: its inputs are 255 times as large as standardised ones. The target is tried on both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.common.data import DEVIATION, MEAN
from benchmarks.common.nets import CLASSES, PIXELS
from benchmarks.common.training import evaluate
from benchmarks.reproductions.case import (
    Case,
    Figure,
    Lab,
    Measured,
    Settings,
    at_least,
    unit_pixels,
)
from benchmarks.reproductions.nets import build, lecun_truncated
from benchmarks.reproductions.training import epochs_of, steps_per_epoch
from torch_scratch_optim import ScratchAdam

SIZES = (PIXELS, 128, CLASSES)
TRAIN_SHARE, BATCH, EPOCHS = 5 / 6, 64, 10  # 50,000 images: 7,810 full batches in 10 epochs
RATES = (1e-4, 1e-3, 1e-2)
SEED = 0

Inputs = Callable[[Tensor], Tensor]


def as_fed(images: Tensor) -> Tensor:
    """The workload's inputs."""
    return (unit_pixels(images) * 255 - MEAN) / DEVIATION


def measure(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    rates, epochs = settings["rates"], settings["epochs"]
    steps = epochs * steps_per_epoch(training_images(lab), BATCH, drop_last=True)
    lab.expect(2 * len(rates) * steps)
    measured = {}
    for key, inputs in (("standardised", lambda images: images), ("fed", as_fed)):
        best = {
            lr: lab.once(f"{key} {lr:g}", steps, partial(best_epoch, lab, inputs, lr, epochs))
            for lr in rates
        }
        lr = max(best, key=lambda rate: best[rate]["validation"])
        listed = ", ".join(f"{rate:g}: {best[rate]['validation']:.4f}" for rate in rates)
        note = (
            f"best with Adam at {lr:g}, after {best[lr]['epoch']:.0f} of {epochs} epochs; "
            f"validation accuracy by learning rate {listed}; before training "
            f"{saturated(lab, inputs):.0%} of the hidden units are within 0.01 of 0 or 1"
        )
        measured[f"{key}_validation"] = Measured(best[lr]["validation"], note=note)
        measured[f"{key}_test"] = Measured(best[lr]["test"], note="the same net, not chosen by it")
    return measured if epochs == EPOCHS else {}


def training_images(lab: Lab) -> int:
    """The others are for validation."""
    return round(TRAIN_SHARE * len(lab.digits.train_labels))


def fresh_net(lab: Lab) -> nn.Sequential:
    return build(SIZES, nn.Sigmoid, lecun_truncated, SEED).to(lab.device)


def saturated(lab: Lab, inputs: Inputs) -> float:
    """The share of the hidden layer's outputs that are all but 0 or 1, before training."""
    with torch.no_grad():
        hidden = fresh_net(lab)[:-1](inputs(lab.digits.train_images[:1000]))
    return float(((hidden < 0.01) | (hidden > 0.99)).float().mean())


def best_epoch(lab: Lab, inputs: Inputs, lr: float, epochs: int) -> dict[str, float]:
    """The epoch of the highest validation accuracy, with the test accuracy that it has."""
    digits, training = lab.digits, training_images(lab)
    images, tests = inputs(digits.train_images), inputs(digits.test_images)
    labels = digits.train_labels
    net = fresh_net(lab)
    best = {"validation": -1.0}
    for epoch in epochs_of(
        net, lab.make(ScratchAdam, net.parameters(), lr=lr), images[:training], labels[:training],
        batch_size=BATCH, epochs=epochs, seed=SEED, on_step=lab.step, drop_last=True,
    ):  # fmt: skip
        _, validation = evaluate(net, images[training:], labels[training:])
        if validation > best["validation"]:
            _, test = evaluate(net, tests, digits.test_labels)
            best = {"validation": validation, "test": test, "epoch": float(epoch)}
    return best


def _figures() -> dict[str, Figure]:
    target = at_least(0.97, "a target; learning rate and epoch are chosen by validation alone")
    note = "Its authors never ran the algorithms that set targets on this workload."
    return {
        f"{key}_{split}": Figure(
            f"{split} accuracy, {pixels}", "at least 0.97", target, note, budget="standard"
        )
        for key, pixels in (
            ("standardised", "standardised pixels"),
            ("fed", "pixels as the workload feeds them"),
        )
        for split in ("validation", "test")
    }


CASE = Case(
    title="AlgoPerf: MNIST to 97 %",
    source="mlcommons/algorithmic-efficiency, algoperf/workloads/mnist, 2023",
    budgets={
        "quick": {"rates": (1e-3,), "epochs": 1},
        "standard": {"rates": RATES, "epochs": EPOCHS},
        "full": {"rates": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "epochs": EPOCHS},
    },
    figures=_figures(),
    measure=measure,
    note="The workload scales pixels twice: its inputs are 255 times as large as standardised "
    "ones, and most hidden units are saturated from the start.",
    optimizers=(ScratchAdam,),
    wrong={
        "standard": {"rates": (1e-3,), "epochs": EPOCHS},
        "full": {"rates": RATES, "epochs": EPOCHS},
    },
)
