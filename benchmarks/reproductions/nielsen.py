"""Michael Nielsen, Neural Networks and Deep Learning: sigmoid nets with 30 units to a layer.

Pixels from 0 to 1, ten sigmoid outputs with a cross-entropy each, batches of 10, plain SGD with
learning rate η and weight decay λ / n, n the number of training images. All figures of his are of
one seed; the files in his repository have them, the chapters say how they were made.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.nets import CLASSES, PIXELS
from benchmarks.reproductions.case import (
    BUDGETS,
    Case,
    Figure,
    Lab,
    Measured,
    Settings,
    among_our_seeds,
    unit_pixels,
    within,
)
from benchmarks.reproductions.nets import Initialise, SideBySide, build, large_normal, normal
from benchmarks.reproductions.training import (
    epochs_of,
    sigmoid_cross_entropy,
    steps_per_epoch,
)
from torch_scratch_optim import ScratchSGD

WIDTH, IMAGES = 30, 1000
SIZES = (PIXELS, WIDTH, CLASSES)
BATCH, FULL_EPOCHS = 10, 400
OVERFITTING_LR, LAMBDA = 0.5, 5.0  # λ where all images are trained on
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
    measured = {}
    for hidden in NORMS:
        norms = []
        for seed in range(settings["seeds"]):
            norms.append(bias_gradient_norms(lab, hidden, seed))
            lab.step()
        measured[f"first_{hidden}"] = _spread([layers[0] for layers in norms])
        measured[f"last_{hidden}"] = _spread([layers[-1] for layers in norms])
        measured[f"ratio_{hidden}"] = _spread([layers[-1] / layers[0] for layers in norms])
    return measured


def _spread(values: Sequence[float]) -> Measured:
    """The median, and the middle 95 % of the seeds."""
    numbers = torch.tensor(values, dtype=torch.float64)
    low, median, high = torch.quantile(numbers, numbers.new_tensor([0.025, 0.5, 0.975])).tolist()
    note = (
        f"ours is the median of {len(values)} seeds, of which the middle 95 % lie within "
        f"{low:.2g} … {high:.2g} and all within {min(values):.2g} … {max(values):.2g}"
    )
    return Measured(median, (low, high), note, len(values))


def _norm_figures() -> dict[str, Figure]:
    tolerance = among_our_seeds(
        "published lies within the middle 95 % of our seeds: his is one seed"
    )
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


def fit(
    lab: Lab,
    initialise: Initialise,
    images: Tensor,
    labels: Tensor,
    *,
    lr: float,
    decay: float,
    seeds: Sequence[int],
    epochs: int,
) -> Iterator[tuple[int, SideBySide]]:
    """Train a net for each seed, all on the same batches; give them after each epoch.

    Args:
        decay: his λ over the number of images: weights, not biases, shrink by η λ / n at each step.
    """
    nets = SideBySide([build(SIZES, nn.Sigmoid, initialise, seed) for seed in seeds])
    nets.to(lab.device)
    groups: list[dict[str, Any]] = [
        {"params": list(nets.weights), "weight_decay": decay},
        {"params": list(nets.biases)},
    ]
    for epoch in epochs_of(
        nets, lab.make(ScratchSGD, groups, lr=lr), images, labels,
        batch_size=BATCH, epochs=epochs, seed=0, on_step=lab.step, loss=sigmoid_cross_entropy,
    ):  # fmt: skip
        yield epoch, nets


def accuracies(nets: SideBySide, images: Tensor, labels: Tensor) -> list[float]:
    with torch.no_grad():
        right = nets(images).argmax(-1) == labels
    accuracy: list[float] = right.double().mean(-1).tolist()
    return accuracy


def costs(nets: SideBySide, images: Tensor, labels: Tensor, decay: float = 0.0) -> list[float]:
    """Each net's mean cost, with the penalty of weight decay."""
    with torch.no_grad():
        squares = sum(weight.square().sum((1, 2)) for weight in nets.weights)
        penalties = (0.5 * decay * squares).tolist()
        return [
            sigmoid_cross_entropy(scores, labels).item() + penalty
            for scores, penalty in zip(nets(images), penalties, strict=True)
        ]


def training_and_validation(lab: Lab) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """His first 50,000 images, and the 10,000 that he validates with."""
    images, labels = unit_pixels(lab.digits.train_images), lab.digits.train_labels
    split = len(labels) * 5 // 6
    return images[:split], labels[:split], images[split:], labels[split:]


def _median(values: Sequence[float]) -> Measured:
    note = f"median of {len(values)} seeds, {min(values):.4g} … {max(values):.4g}"
    return Measured(statistics.median(values), (min(values), max(values)), note, len(values))


# Chapter 3: overfitting


def measure_overfitting(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    """Train on 1,000 images without and with weight decay."""
    seeds, epochs = settings["seeds"], settings["epochs"]
    steps = epochs * steps_per_epoch(IMAGES, BATCH)
    lab.expect(2 * steps)
    plain = lab.once("plain", steps, partial(overfit, lab, 0.0, seeds, epochs))
    measured = {"best_epoch": _median(plain["best_epoch"])}
    if epochs == FULL_EPOCHS:
        decayed = lab.once("decayed", steps, partial(overfit, lab, 0.1, seeds, epochs))
        without, with_decay = plain["test_accuracy"], decayed["test_accuracy"]
        measured |= {
            "train": _median(plain["train_accuracy"]),
            "test": _median(without),
            "cost": _median(plain["test_cost"]),
            "decayed": _median(with_decay),
            "gain": _median([b - a for a, b in zip(without, with_decay, strict=True)]),
        }
    return measured


def overfit(lab: Lab, decay: float, seeds: Sequence[int], epochs: int) -> dict[str, list[float]]:
    """Train on the first images, with his λ = `decay`, and follow the test cost."""
    digits = lab.digits
    images, labels = unit_pixels(digits.train_images[:IMAGES]), digits.train_labels[:IMAGES]
    tests, test_labels = unit_pixels(digits.test_images), digits.test_labels
    by_epoch: dict[int, list[float]] = {}
    for epoch, nets in fit(
        lab, large_normal, images, labels,
        lr=OVERFITTING_LR, decay=decay / IMAGES, seeds=seeds, epochs=epochs,
    ):  # fmt: skip
        if epoch <= WATCHED or epoch % 10 == 0 or epoch == epochs:
            by_epoch[epoch] = costs(nets, tests, test_labels)
    return {
        "train_accuracy": accuracies(nets, images, labels),
        "test_accuracy": accuracies(nets, tests, test_labels),
        "test_cost": by_epoch[epochs],
        "best_epoch": [
            float(min((costs_then[i], epoch) for epoch, costs_then in by_epoch.items())[1])
            for i in range(len(seeds))
        ],
    }


# Chapter 3: three learning rates

RATES = {0.025: (0.8781, 0.5175, 0.3392), 0.25: (0.4950, 0.3738, 0.3388), 2.5: (0.92, 0.78, 0.86)}
RATE_EPOCHS = (1, 5, 30)


def measure_rates(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    """The training cost after 1, 5 and 30 epochs, for each learning rate."""
    seeds, epochs = settings["seeds"], settings["epochs"]
    images, labels, *_ = training_and_validation(lab)
    steps = epochs * steps_per_epoch(len(labels), BATCH)
    lab.expect(len(RATES) * steps)

    def train(lr: float) -> dict[str, list[float]]:
        decay = LAMBDA / len(labels)
        nets_by_epoch = fit(
            lab, normal, images, labels, lr=lr, decay=decay, seeds=seeds, epochs=epochs
        )
        return {
            f"{lr}, {epoch}": costs(nets, images, labels, decay)
            for epoch, nets in nets_by_epoch
            if epoch in RATE_EPOCHS
        }

    measured: dict[str, Measured] = {}
    for lr in RATES:
        by_key = lab.once(f"learning rate {lr}", steps, partial(train, lr))
        measured |= {key: _median(values) for key, values in by_key.items()}
    return measured


# Chapter 3: initial weights

INITIAL = {"normal": normal, "large": large_normal}


def measure_initialisation(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    """The validation accuracy after 1 and 30 epochs from small and from large weights."""
    seeds, epochs = settings["seeds"], settings["epochs"]
    images, labels, validation, validation_labels = training_and_validation(lab)
    steps = epochs * steps_per_epoch(len(labels), BATCH)
    lab.expect(len(INITIAL) * steps)

    def train(name: str) -> dict[str, list[float]]:
        nets_by_epoch = fit(
            lab, INITIAL[name], images, labels,
            lr=0.1, decay=LAMBDA / len(labels), seeds=seeds, epochs=epochs,
        )  # fmt: skip
        return {
            f"{name}, {epoch}": accuracies(nets, validation, validation_labels)
            for epoch, nets in nets_by_epoch
            if epoch in (1, 30)
        }

    measured: dict[str, Measured] = {}
    for name in INITIAL:
        by_key = lab.once(name, steps, partial(train, name))
        measured |= {key: _median(values) for key, values in by_key.items()}
    return measured


# Chapter 3: sizes of the training set

BY_SIZE = {
    100: 0.6909, 200: 0.7637, 500: 0.8529, 1000: 0.8885, 2000: 0.9127, 5000: 0.9324,
    10_000: 0.9489, 20_000: 0.9585, 50_000: 0.9597,
}  # fmt: skip
IMAGES_SEEN = 1_500_000  # by each net in training, with repetition


def measure_sizes(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
    """The validation accuracy of nets that were trained on few images or on many."""
    seeds, sizes, seen = settings["seeds"], settings["sizes"], settings["images_seen"]
    images, labels, validation, validation_labels = training_and_validation(lab)
    lab.expect(len(sizes) * seen // BATCH)

    def train(size: int) -> list[float]:
        *_, (_, nets) = fit(
            lab, large_normal, images[:size], labels[:size],
            lr=0.5, decay=1e-4, seeds=seeds, epochs=seen // size,
        )  # fmt: skip
        return accuracies(nets, validation, validation_labels)

    return {
        str(size): _median(lab.once(str(size), seen // BATCH, partial(train, size)))
        for size in sizes
    }


ONE_SEED = "his is one seed"
NORM_CASE = Case(
    title="Nielsen: gradients at the start",
    source=f"{REPOSITORY}, chapter 5; fig/norms_during_training_*.json",
    budgets={"quick": {"seeds": 50}, "standard": {"seeds": 200}, "full": {"seeds": 1000}},
    figures=_norm_figures(),
    measure=measure_norms,
    note="Nothing is trained: these figures check the net, its initial weights and the loss.",
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
        "train": Figure(
            "training accuracy after 400 epochs", 1.0, within(0.0, "every image"), budget="standard"
        ),
        "test": Figure(
            "test accuracy after 400 epochs", 0.8223, within(0.015, ONE_SEED), budget="standard"
        ),
        "best_epoch": Figure(
            "epoch of the lowest test cost", 15, within(5, "the curve is flat there")
        ),
        "cost": Figure(
            "test cost after 400 epochs", 1.773, within(0.2, ONE_SEED), budget="standard"
        ),
        "decayed": Figure(
            "test accuracy after 400 epochs, λ = 0.1",
            0.871,
            within(0.015, ONE_SEED),
            budget="standard",
        ),
        "gain": Figure(
            "what λ = 0.1 adds to test accuracy", 0.0487, within(0.02, ONE_SEED), budget="standard"
        ),
    },
    measure=measure_overfitting,
    optimizers=(ScratchSGD,),
    decays=True,
    wrong={
        "standard": {"seeds": (0,), "epochs": FULL_EPOCHS},
        "full": {"seeds": tuple(range(3)), "epochs": FULL_EPOCHS},
    },
)


def _rate_figures() -> dict[str, Figure]:
    margins = {0.025: 0.03, 0.25: 0.025, 2.5: 0.2}
    budgets = dict(zip(RATE_EPOCHS, BUDGETS, strict=True))
    return {
        f"{lr}, {epoch}": Figure(
            f"η = {lr}: training cost after epoch {epoch}",
            cost,
            within(margins[lr], ONE_SEED if lr < 1 else f"{ONE_SEED}, and its cost jumps"),
            budget=budgets[epoch],
        )
        for lr, published in RATES.items()
        for epoch, cost in zip(RATE_EPOCHS, published, strict=True)
    }


RATES_CASE = Case(
    title="Nielsen: three learning rates",
    source=f"{REPOSITORY}, chapter 3; fig/multiple_eta.json",
    budgets={
        "quick": {"seeds": (0,), "epochs": 1},
        "standard": {"seeds": tuple(range(3)), "epochs": 5},
        "full": {"seeds": tuple(range(3)), "epochs": 30},
    },
    figures=_rate_figures(),
    measure=measure_rates,
    optimizers=(ScratchSGD,),
    decays=True,
    wrong={
        "standard": {"seeds": (0,), "epochs": 5},
        "full": {"seeds": (0,), "epochs": 30},
    },
)
INITIALISATION_CASE = Case(
    title="Nielsen: small and large initial weights",
    source=f"{REPOSITORY}, chapter 3; fig/weight_initialization_30.json",
    budgets={
        "quick": {"seeds": (0,), "epochs": 1},
        "standard": {"seeds": tuple(range(3)), "epochs": 1},
        "full": {"seeds": tuple(range(3)), "epochs": 30},
    },
    figures={
        f"{name}, {epoch}": Figure(
            f"weights {weights}: validation accuracy after epoch {epoch}",
            accuracy,
            within(margin, ONE_SEED),
            budget=budget,
        )
        for name, weights, published in (
            ("normal", "N(0, 1/n)", (0.9270, 0.9650)),
            ("large", "N(0, 1)", (0.8643, 0.9637)),
        )
        for epoch, accuracy, margin, budget in zip(
            (1, 30), published, (0.01, 0.004), ("quick", "full"), strict=True
        )
    },
    measure=measure_initialisation,
    optimizers=(ScratchSGD,),
    decays=True,
    wrong={
        "standard": {"seeds": (0,), "epochs": 1},
        "full": {"seeds": (0,), "epochs": 30},
    },
)
SIZES_CASE = Case(
    title="Nielsen: sizes of the training set",
    source=f"{REPOSITORY}, chapter 3; fig/more_data.json",
    budgets={
        "standard": {"seeds": tuple(range(3)), "sizes": (100, 1000), "images_seen": IMAGES_SEEN},
        "full": {"seeds": tuple(range(3)), "sizes": tuple(BY_SIZE), "images_seen": IMAGES_SEEN},
    },
    figures={
        str(size): Figure(
            f"validation accuracy, {size:,} training images",
            accuracy,
            within(0.03 if size < 1000 else 0.015 if size < 10_000 else 0.007, ONE_SEED),
            budget="standard" if size in (100, 1000) else "full",
        )
        for size, accuracy in BY_SIZE.items()
    },
    measure=measure_sizes,
    optimizers=(ScratchSGD,),
    decays=True,
    wrong={
        "standard": {"seeds": (0,), "sizes": (1000,), "images_seen": IMAGES_SEEN},
        "full": {"seeds": (0,), "sizes": tuple(BY_SIZE), "images_seen": IMAGES_SEEN},
    },
)
