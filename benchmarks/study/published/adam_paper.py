"""The Adam paper's logistic regression on MNIST: the order of three methods.

Batches of 128, learning rates α/√t, an L2 penalty, each method at the best of a grid. The paper
shows curves alone, and leaves out the penalty and the grid: those here are our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

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
from benchmarks.study.published.nets import build, zeros
from benchmarks.study.published.teaching import epochs_of, steps_per_epoch
from benchmarks.trainee import evaluate
from torch_scratch_optim import ScratchAdaGrad, ScratchAdam, ScratchMomentum

BATCH, SEED, PENALTY = 128, 0, 1e-4


@dataclass(frozen=True)
class Method:
    make: Callable[..., Any]
    rates: tuple[float, ...]


METHODS = {
    "adam": Method(ScratchAdam, (0.003, 0.01, 0.03, 0.1, 0.3)),
    "nesterov": Method(
        partial(ScratchMomentum, momentum=0.9, nesterov=True), (0.03, 0.1, 0.3, 1.0, 3.0)
    ),
    "adagrad": Method(ScratchAdaGrad, (0.01, 0.03, 0.1, 0.3, 1.0)),
}


def costs(lab: Lab, images: Tensor, method: Method, lr: float, epochs: int) -> list[float]:
    """The training cost, the penalty included, after each epoch."""
    net = build((PIXELS, CLASSES), nn.Identity, zeros, SEED).to(lab.device)
    labels = lab.digits.train_labels
    optimizer = method.make(net.parameters(), lr=lr, weight_decay=PENALTY)
    found = []
    for _ in epochs_of(
        net, optimizer, images, labels,
        batch_size=BATCH, epochs=epochs, seed=SEED, on_step=lab.step,
        schedule=lambda step: step**-0.5,
    ):  # fmt: skip
        penalty = sum(weights.detach().square().sum().item() for weights in net.parameters())
        found.append(evaluate(net, images, labels)[0] + PENALTY / 2 * penalty)
    return found


def measure(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    epochs = settings["epochs"]
    images = unit_pixels(lab.digits.train_images)
    runs = sum(len(method.rates) for method in METHODS.values())
    lab.expect(runs * epochs * steps_per_epoch(len(images), BATCH))
    best, where = {}, {}
    for name, method in METHODS.items():
        by_rate = {lr: costs(lab, images, method, lr, epochs) for lr in method.rates}
        where[name] = min(by_rate, key=lambda lr: by_rate[lr][-1])
        best[name] = by_rate[where[name]]
    note = f"after epochs 1 and {epochs}: " + "; ".join(
        f"{name} {best[name][0]:.4f}, {best[name][-1]:.4f} (α = {where[name]:g}"
        + (", at the edge of the grid)" if where[name] in _edges(name) else ")")
        for name in METHODS
    )
    first, last = ({name: curve[i] for name, curve in best.items()} for i in (0, -1))
    return {
        "alike": Measured(last["adam"] / last["nesterov"], note=note),
        "adam_first": Measured(first["adam"] / first["adagrad"]),
        "nesterov_first": Measured(first["nesterov"] / first["adagrad"]),
        "adam": Measured(last["adam"] / last["adagrad"]),
        "nesterov": Measured(last["nesterov"] / last["adagrad"]),
    }


def _edges(name: str) -> tuple[float, float]:
    rates = METHODS[name].rates
    return rates[0], rates[-1]


def _ahead(method: str, when: str) -> Figure:
    return Figure(f"training cost {when}: {method} / AdaGrad", (0.0, 1.0), within(0.0, "an order"))


CASE = Case(
    title="Adam paper: logistic regression on MNIST",
    source="D. Kingma, J. Ba, Adam, ICLR 2015, section 6.1, figure 1 (curves alone)",
    budgets={
        "quick": {"epochs": 1},
        "standard": {"epochs": 10},
        "full": {"epochs": 45},
    },
    figures={
        "alike": Figure(
            "training cost at the end: Adam / SGD with Nesterov momentum",
            1.0,
            within(0.03, "the paper calls them similar; its curves lie on one another"),
        ),
        "adam_first": _ahead("Adam", "after epoch 1"),
        "nesterov_first": _ahead("Nesterov", "after epoch 1"),
        "adam": _ahead("Adam", "at the end"),
        "nesterov": _ahead("Nesterov", "at the end"),
    },
    measure=measure,
)
