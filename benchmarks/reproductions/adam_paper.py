"""The Adam paper's logistic regression on MNIST: the order of three methods.

Batches of 128, learning rates α/√t, an L2 penalty, each method at the best of a grid. The paper
shows curves alone, and leaves out the penalty and the grid: those here are our choice. AdaGrad is
run once more at a constant α, for it decays by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmarks.common.nets import CLASSES, PIXELS
from benchmarks.common.training import evaluate
from benchmarks.reproductions.case import (
    Case,
    Figure,
    Lab,
    Measured,
    Settings,
    below,
    unit_pixels,
    within,
)
from benchmarks.reproductions.nets import build, zeros
from benchmarks.reproductions.training import epochs_of, steps_per_epoch
from benchmarks.reproductions.wrong import Optimizer
from torch_scratch_optim import ScratchAdaGrad, ScratchAdam, ScratchMomentum

BATCH, SEED, PENALTY = 128, 0, 1e-4


@dataclass(frozen=True)
class Method:
    title: str
    optimizer: Optimizer
    rates: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    decays: bool = True


METHODS = {
    "adam": Method("Adam", ScratchAdam, (0.01, 0.03, 0.1, 0.3, 1.0)),
    "nesterov": Method(
        "SGD with Nesterov momentum",
        ScratchMomentum,
        (0.1, 0.3, 1.0, 3.0, 10.0),
        {"momentum": 0.9, "nesterov": True},
    ),
    "adagrad": Method("AdaGrad", ScratchAdaGrad, (0.03, 0.1, 0.3, 1.0, 3.0)),
    # Its own sum of squares lets its steps shrink like 1/√t already.
    "adagrad_alone": Method(
        "AdaGrad without that decay", ScratchAdaGrad, (0.01, 0.03, 0.1, 0.3, 1.0), decays=False
    ),
}


def costs(lab: Lab, images: Tensor, method: Method, lr: float, epochs: int) -> list[float]:
    """The training cost, the penalty included, after each epoch."""
    net = build((PIXELS, CLASSES), nn.Identity, zeros, SEED).to(lab.device)
    labels = lab.digits.train_labels
    optimizer = lab.make(
        method.optimizer, net.parameters(), lr=lr, weight_decay=PENALTY, **method.options
    )
    costs_by_epoch = []
    for _ in epochs_of(
        net, optimizer, images, labels,
        batch_size=BATCH, epochs=epochs, seed=SEED, on_step=lab.step,
        schedule=(lambda step: step**-0.5) if method.decays else None,
    ):  # fmt: skip
        penalty = sum(weights.detach().square().sum().item() for weights in net.parameters())
        costs_by_epoch.append(evaluate(net, images, labels)[0] + PENALTY / 2 * penalty)
    return costs_by_epoch


def measure(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    epochs = settings["epochs"]
    images = unit_pixels(lab.digits.train_images)
    steps = epochs * steps_per_epoch(len(images), BATCH)
    lab.expect(sum(len(method.rates) for method in METHODS.values()) * steps)
    best, descriptions = {}, {}
    for name, method in METHODS.items():
        by_rate = {
            lr: lab.once(f"{name} {lr:g}", steps, partial(costs, lab, images, method, lr, epochs))
            for lr in method.rates
        }
        lr = min(by_rate, key=lambda rate: by_rate[rate][-1])
        best[name] = by_rate[lr]
        edge = " at the edge of its grid" if lr in (method.rates[0], method.rates[-1]) else ""
        descriptions[name] = f"{method.title} {best[name][-1]:.4f} (α = {lr:g}{edge})"

    def ratio(name: str, to: str, epoch: int) -> float:
        return best[name][epoch] / best[to][epoch]

    def ahead(name: str, epoch: int) -> Measured:
        alone = ratio(name, "adagrad_alone", epoch)
        note = (
            f"AdaGrad's place hangs on the paper's α/√t: at a constant α the ratio is {alone:.3f}"
        )
        return Measured(ratio(name, "adagrad", epoch), note=note)

    measured = {f"{name}_first": ahead(name, 0) for name in ("adam", "nesterov")}
    if epochs > 1:
        note = f"after {epochs} epochs: {', '.join(descriptions.values())}"
        measured |= {name: ahead(name, -1) for name in ("adam", "nesterov")}
        measured["alike"] = Measured(ratio("adam", "nesterov", -1), note=note)
    return measured


def _ahead(method: str, when: str, budget: str) -> Figure:
    return Figure(
        f"{method} ahead of AdaGrad {when}: ratio of training costs",
        "below 1",
        below(1.0, "an order: the paper shows curves alone"),
        budget=budget,
    )


CASE = Case(
    title="Adam paper: logistic regression on MNIST",
    source="D. Kingma, J. Ba, Adam, ICLR 2015, section 6.1, figure 1 (curves alone)",
    budgets={
        "quick": {"epochs": 1},
        "standard": {"epochs": 5},
        "full": {"epochs": 45},
    },
    figures={
        "alike": Figure(
            "Adam like SGD with Nesterov momentum at the end: ratio of training costs",
            1.0,
            within(0.03, "the paper calls them similar; its curves lie on one another"),
            budget="standard",
        ),
        "adam_first": _ahead("Adam", "after epoch 1", "quick"),
        "nesterov_first": _ahead("Nesterov", "after epoch 1", "quick"),
        "adam": _ahead("Adam", "at the end", "standard"),
        "nesterov": _ahead("Nesterov", "at the end", "standard"),
    },
    measure=measure,
    note="All methods have the paper's learning rates α/√t, each the best α of a grid. AdaGrad's "
    "place hangs on that: it decays by itself, and at a constant α it does as well as the others.",
    optimizers=(ScratchAdam, ScratchMomentum, ScratchAdaGrad),
    decays=True,
    wrong={"standard": {"epochs": 1}, "full": {"epochs": 5}},
)
