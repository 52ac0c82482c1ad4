"""Michael Nielsen, Neural Networks and Deep Learning: sigmoid nets with 30 units to a layer.

Pixels from 0 to 1, ten sigmoid outputs with a cross-entropy each, the first 1,000 images.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.common.nets import CLASSES, PIXELS
from benchmarks.reproductions.case import (
    Case,
    Figure,
    Lab,
    Measured,
    Settings,
    among_our_seeds,
    unit_pixels,
    within,
)
from benchmarks.reproductions.nets import SideBySide, build, large_normal, normal
from benchmarks.reproductions.training import (
    epochs_of,
    sigmoid_cross_entropy,
    steps_per_epoch,
)
from torch_scratch_optim import ScratchSGD

WIDTH, IMAGES = 30, 1000
SIZES = (PIXELS, WIDTH, CLASSES)
BATCH, LR, FULL_EPOCHS = 10, 0.5, 400
WATCHED = 50  # epochs after each of which the test cost is taken; later, after each tenth

REPOSITORY = "M. Nielsen, Neural Networks and Deep Learning, 2015"
NORMS = {2: (0.0657, 0.3092), 3: (0.0118, 0.2831), 4: (0.0030, 0.2851)}  # first, last hidden layer


def bias_gradient_norms(lab: Lab, hidden: int, seed: int) -> list[float]:
    """Of each hidden layer: the norm of the mean gradient of its biases, before training."""
    net = build([PIXELS, *[WIDTH] * hidden, CLASSES], nn.Sigmoid, normal, seed).to(lab.device)
    images = unit_pixels(lab.digits.train_images[:IMAGES])
    loss = sigmoid_cross_entropy(net(images), lab.digits.train_labels[:IMAGES])
    biases = [part.bias for part in net if isinstance(part, nn.Linear)][:-1]
    return [gradient.norm().item() for gradient in torch.autograd.grad(loss, biases)]


def measure_norms(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    lab.expect(len(NORMS) * settings["seeds"])
    found = {}
    for hidden in NORMS:
        norms = []
        for seed in range(settings["seeds"]):
            norms.append(bias_gradient_norms(lab, hidden, seed))
            lab.step()
        found[f"first_{hidden}"] = _spread([layers[0] for layers in norms])
        found[f"last_{hidden}"] = _spread([layers[-1] for layers in norms])
        found[f"ratio_{hidden}"] = _spread([layers[-1] / layers[0] for layers in norms])
    return found


def _spread(values: Sequence[float]) -> Measured:
    """The median, and the middle 95 % of the seeds."""
    numbers = torch.tensor(values, dtype=torch.float64)
    low, median, high = torch.quantile(numbers, numbers.new_tensor([0.025, 0.5, 0.975])).tolist()
    note = (
        f"ours is the median of {len(values)} seeds, of which the middle 95 % lie within "
        f"{low:.2g} … {high:.2g} and all within {min(values):.2g} … {max(values):.2g}"
    )
    return Measured(median, (low, high), note)


def _norm_figures() -> dict[str, Figure]:
    tolerance = among_our_seeds("his is one seed")
    figures = {}
    for hidden, (first, last) in NORMS.items():
        where = f"{hidden} hidden layers"
        figures[f"first_{hidden}"] = Figure(
            f"{where}: gradient norm, first hidden layer", first, tolerance
        )
        figures[f"last_{hidden}"] = Figure(
            f"{where}: gradient norm, last hidden layer", last, tolerance
        )
        figures[f"ratio_{hidden}"] = Figure(
            f"{where}: last / first", round(last / first, 1), tolerance
        )
    return figures


def measure_overfitting(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    """Train on 1,000 images without and with weight decay."""
    seeds, epochs = settings["seeds"], settings["epochs"]
    steps = epochs * steps_per_epoch(IMAGES, BATCH)
    lab.expect(2 * steps)
    plain = lab.once("plain", steps, partial(overfit, lab, 0.0, seeds, epochs))
    found = {"best_epoch": _median(plain["best_epoch"])}
    if epochs == FULL_EPOCHS:
        decayed = lab.once("decayed", steps, partial(overfit, lab, 0.1, seeds, epochs))
        without, with_decay = plain["test_accuracy"], decayed["test_accuracy"]
        found |= {
            "train": _median(plain["train_accuracy"]),
            "test": _median(without),
            "cost": _median(plain["test_cost"]),
            "decayed": _median(with_decay),
            "gain": _median([b - a for a, b in zip(without, with_decay, strict=True)]),
        }
    return found


def _median(values: Sequence[float]) -> Measured:
    note = f"median of {len(values)} seeds, {min(values):.4g} … {max(values):.4g}"
    return Measured(statistics.median(values), (min(values), max(values)), note)


def overfit(lab: Lab, decay: float, seeds: Sequence[int], epochs: int) -> dict[str, list[float]]:
    """Train a net for each seed, all on the same batches, with his λ = `decay`.

    Weights, not biases, shrink by η λ / images at each step.
    """
    nets = SideBySide([build(SIZES, nn.Sigmoid, large_normal, seed) for seed in seeds])
    nets.to(lab.device)
    groups: list[dict[str, Any]] = [
        {"params": list(nets.weights), "weight_decay": decay / IMAGES},
        {"params": list(nets.biases)},
    ]
    digits = lab.digits
    images, labels = unit_pixels(digits.train_images[:IMAGES]), digits.train_labels[:IMAGES]
    tests = unit_pixels(digits.test_images)
    costs: dict[int, list[float]] = {}
    for epoch in epochs_of(
        nets, ScratchSGD(groups, lr=LR), images, labels,
        batch_size=BATCH, epochs=epochs, seed=0, on_step=lab.step, loss=sigmoid_cross_entropy,
    ):  # fmt: skip
        if epoch <= WATCHED or epoch % 10 == 0 or epoch == epochs:
            with torch.no_grad():
                scores = nets(tests)
            costs[epoch] = [sigmoid_cross_entropy(one, digits.test_labels).item() for one in scores]
    with torch.no_grad():
        train_right, test_right = nets(images).argmax(-1) == labels, scores.argmax(-1)
    return {
        "train_accuracy": train_right.double().mean(-1).tolist(),
        "test_accuracy": (test_right == digits.test_labels).double().mean(-1).tolist(),
        "test_cost": costs[epochs],
        "best_epoch": [
            float(min((cost[one], epoch) for epoch, cost in costs.items())[1])
            for one in range(len(seeds))
        ],
    }


NORM_CASE = Case(
    title="Nielsen: gradients at the start",
    source=f"{REPOSITORY}, chapter 5; fig/norms_during_training_*.json",
    budgets={"quick": {"seeds": 50}, "standard": {"seeds": 200}, "full": {"seeds": 1000}},
    figures=_norm_figures(),
    measure=measure_norms,
)
OVERFITTING_CASE = Case(
    title="Nielsen: overfitting on 1,000 images",
    source=f"{REPOSITORY}, chapter 3; fig/overfitting.json",
    budgets={
        "quick": {"seeds": (0,), "epochs": 30},
        "standard": {"seeds": tuple(range(3)), "epochs": FULL_EPOCHS},
        "full": {"seeds": tuple(range(10)), "epochs": FULL_EPOCHS},
    },
    figures={
        "train": Figure("training accuracy after 400 epochs", 1.0, within(0.0, "every image")),
        "test": Figure("test accuracy after 400 epochs", 0.8223, within(0.015, "his is one seed")),
        "best_epoch": Figure(
            "epoch of the lowest test cost", 15, within(5, "the curve is flat there")
        ),
        "cost": Figure("test cost after 400 epochs", 1.773, within(0.2, "his is one seed")),
        "decayed": Figure(
            "test accuracy after 400 epochs, λ = 0.1", 0.871, within(0.015, "his is one seed")
        ),
        "gain": Figure("what λ = 0.1 adds to test accuracy", 0.0487, within(0.02, "one seed")),
    },
    measure=measure_overfitting,
)
