"""DeepOBS' test problem mnist_mlp: 784-1000-500-100-10 with ReLU, at a constant learning rate.

Pixels from 0 to 1. The last batch is dropped where it is not full, for evaluation, too: accuracies
are of 9,984 images. All epochs have the same batches, as in quadratic_deep. DeepOBS shuffles
through a buffer of 20,000 images; here all are shuffled.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from benchmarks.common.nets import CLASSES, PIXELS
from benchmarks.common.training import evaluate
from benchmarks.reproductions.case import (
    Case,
    Figure,
    Interval,
    Lab,
    Measured,
    Settings,
    unit_pixels,
    within,
)
from benchmarks.reproductions.nets import build, truncated_normal
from benchmarks.reproductions.training import epochs_of, steps_per_epoch
from benchmarks.reproductions.wrong import Optimizer
from torch_scratch_optim import ScratchAdam, ScratchMomentum

SIZES = (PIXELS, 1000, 500, 100, CLASSES)
DEVIATION, BATCH = 0.03, 128
EVALUATED = 10_000 // BATCH * BATCH
SEEDS, EPOCHS = (42, 43, 44), 100
SOURCE = (
    "F. Schneider, L. Balles, P. Hennig, DeepOBS, ICLR 2019; "
    "baselines/mnist_mlp of fsschneider/DeepOBS, commit 9510202"
)

LATEST_98 = 12  # the last epoch in which 98 % may come for the first time

Curve = list[dict[str, float]]  # after each epoch


@dataclass(frozen=True)
class Setting:
    optimizer: Optimizer
    lr: float
    options: Mapping[str, float] = field(default_factory=dict)


def train(lab: Lab, setting: Setting, seed: int, epochs: int, until: float = math.inf) -> Curve:
    """Train for `epochs`, or to the first epoch whose test accuracy reaches `until`."""
    net = build(SIZES, nn.ReLU, truncated_normal(DEVIATION), seed).to(lab.device)
    digits = lab.digits
    images, tests = unit_pixels(digits.train_images), unit_pixels(digits.test_images[:EVALUATED])
    labels, test_labels = digits.train_labels, digits.test_labels[:EVALUATED]
    optimizer = lab.make(setting.optimizer, net.parameters(), lr=setting.lr, **setting.options)
    curve: Curve = []
    for _ in epochs_of(
        net, optimizer, images, labels, batch_size=BATCH, epochs=epochs, seed=seed,
        on_step=lab.step, drop_last=True, reshuffle=False,
    ):  # fmt: skip
        train_loss, _ = evaluate(net, images[:EVALUATED], labels[:EVALUATED])
        test_loss, test_accuracy = evaluate(net, tests, test_labels)
        curve.append(
            {"train_loss": train_loss, "test_loss": test_loss, "test_accuracy": test_accuracy}
        )
        if test_accuracy >= until:
            break
    return curve


def measure(
    setting: Setting, lab: Lab, settings: Settings, *, turning: bool = False
) -> Mapping[str, Measured]:
    seeds, epochs, until = settings["seeds"], settings["epochs"], settings.get("until", math.inf)
    steps = epochs * steps_per_epoch(len(lab.digits.train_labels), BATCH, drop_last=True)
    lab.expect(len(seeds) * steps)
    curves = [
        lab.once(f"seed {seed}", steps, partial(train, lab, setting, seed, epochs, until))
        for seed in seeds
    ]
    measured = {"epoch_1": _over_seeds([curve[0]["test_accuracy"] for curve in curves])}
    if epochs > 1:
        measured["97"] = _over_seeds([first_epoch(curve, 0.97) for curve in curves])
    if epochs >= LATEST_98:
        measured["98"] = _over_seeds([first_epoch(curve, 0.98) for curve in curves])
    if epochs == EPOCHS:
        measured["final"] = _over_seeds([curve[-1]["test_accuracy"] for curve in curves])
        measured |= _turning(curves) if turning else {}
    return measured


def first_epoch(curve: Curve, target: float) -> float:
    """The first epoch that reached a test accuracy; infinite: none did."""
    reached = [n for n, point in enumerate(curve, start=1) if point["test_accuracy"] >= target]
    return min(reached, default=math.inf)


def _over_seeds(values: list[float]) -> Measured:
    listed = ", ".join(f"{value:.6g}" for value in values)
    note = f"median of our seeds: {listed}" if len(values) > 1 else "one seed"
    return Measured(statistics.median(values), (min(values), max(values)), note, len(values))


def _turning(curves: list[Curve]) -> dict[str, Measured]:
    """While the training loss goes on falling, the test loss turns and the accuracy does not."""
    test_losses = [[epoch["test_loss"] for epoch in curve] for curve in curves]
    best = [losses.index(min(losses)) for losses in test_losses]
    pairs = list(zip(curves, best, strict=True))
    return {
        "lowest": _over_seeds([curve[i]["test_loss"] for curve, i in pairs]),
        "turns": _over_seeds([i + 1.0 for i in best]),
        "last_test": _over_seeds([curve[-1]["test_loss"] for curve in curves]),
        "last_train": _over_seeds([curve[-1]["train_loss"] for curve in curves]),
        "gain": _over_seeds(
            [curve[-1]["test_accuracy"] - curve[i]["test_accuracy"] for curve, i in pairs]
        ),
    }


def measure_rates(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    rates, epochs = settings["rates"], settings["epochs"]
    steps = epochs * steps_per_epoch(len(lab.digits.train_labels), BATCH, drop_last=True)
    lab.expect(len(rates) * steps)
    measured = {}
    for lr in rates:
        run = partial(train, lab, Setting(ScratchAdam, lr), SEEDS[0], epochs)
        measured[f"{lr:g}"] = Measured(lab.once(f"lr {lr:g}", steps, run)[-1]["test_accuracy"])
    return measured


EARLY = within(0.005, "one epoch leaves a range of 0.004 to 0.013 between their own seeds")
NEIGHBOUR = within(1, "an epoch more or less, for accuracies are looked at once in an epoch")
FINAL = within(0.0015, "their seeds differ by 0.0012")
BUDGETS = {
    "quick": {"seeds": SEEDS[:1], "epochs": 1},
    "standard": {"seeds": SEEDS, "epochs": 6, "until": 0.97},
    "full": {"seeds": SEEDS, "epochs": EPOCHS},
}
EARLY_WRONG = {"seeds": SEEDS[:1], "epochs": 6, "until": 0.97}


def _curve_figures(
    epoch_1: Interval, epoch_97: float | Interval, epoch_98: Interval, final: float | Interval
) -> dict[str, Figure]:
    of_seeds = partial(Figure, seeds=3)
    return {
        "epoch_1": of_seeds("test accuracy after epoch 1", epoch_1, EARLY),
        "97": of_seeds(
            "first epoch with 97 % on the test set", epoch_97, NEIGHBOUR, budget="standard"
        ),
        "98": of_seeds("first epoch with 98 % on the test set", epoch_98, NEIGHBOUR, budget="full"),
        "final": of_seeds("test accuracy after 100 epochs", final, FINAL, budget="full"),
    }


ADAM = Case(
    title="DeepOBS mnist_mlp: Adam, learning rate 6.31e-4",
    source=SOURCE,
    budgets=BUDGETS,
    figures=_curve_figures((0.9556, 0.9595), (2, 4), (7, 9), (0.98556, 0.98678))
    | {
        "lowest": Figure(
            "lowest test loss", 0.0764, within(0.01, "theirs is one seed"), budget="full"
        ),
        "turns": Figure(
            "epoch of the lowest test loss",
            17,
            within(10, "the curve is flat"),
            "From epoch to epoch the test loss jumps by up to 0.05, more than it rises from the "
            "fifth epoch to the eightieth: where it is lowest is chance.",
            budget="full",
        ),
        "last_test": Figure(
            "test loss after 100 epochs", 0.2019, within(0.06, "one seed"), budget="full"
        ),
        "last_train": Figure(
            "training loss after 100 epochs",
            8e-10,
            within(1e-7, "all but a few of the images have a loss of 0 in float32"),
            budget="full",
        ),
        "gain": Figure(
            "test accuracy after 100 epochs, less that at the lowest test loss",
            0.0013,
            within(0.0025, "both are uncertain by 0.0012"),
            budget="full",
        ),
    },
    measure=partial(measure, Setting(ScratchAdam, 6.3095734448e-4), turning=True),
    optimizers=(ScratchAdam,),
    wrong={"standard": EARLY_WRONG, "full": {"seeds": SEEDS[:1], "epochs": LATEST_98}},
    one_thread=False,
)
MOMENTUM = Case(
    title="DeepOBS mnist_mlp: Momentum 0.99, learning rate 3.98e-3",
    source=SOURCE,
    budgets=BUDGETS,
    figures=_curve_figures((0.927, 0.940), 3, (7, 11), 0.9856),
    measure=partial(measure, Setting(ScratchMomentum, 3.9810717055e-3, {"momentum": 0.99})),
    optimizers=(ScratchMomentum,),
    wrong={"standard": EARLY_WRONG, "full": {"seeds": SEEDS[:1], "epochs": LATEST_98}},
    one_thread=False,
)
ADAM_RATES = Case(
    title="DeepOBS mnist_mlp: Adam at three learning rates",
    source=SOURCE,
    budgets={"full": {"rates": (1e-4, 1e-3, 1e-2), "epochs": EPOCHS}},
    figures={
        "0.0001": Figure(
            "test accuracy after 100 epochs, learning rate 1e-4", 0.97897, FINAL, budget="full"
        ),
        "0.001": Figure(
            "test accuracy after 100 epochs, learning rate 1e-3", 0.98588, FINAL, budget="full"
        ),
        "0.01": Figure(
            "test accuracy after 100 epochs, learning rate 1e-2",
            0.95292,
            within(0.03, "a single seed of a training that jumps"),
            budget="full",
        ),
    },
    measure=measure_rates,
    optimizers=(ScratchAdam,),
    one_thread=False,
)
