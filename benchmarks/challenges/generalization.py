"""Optimization against generalization: what a net that knows its images by heart is worth."""

from __future__ import annotations

import math
import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.challenges.lessons import learn
from benchmarks.challenges.setup import MORE_DATA, Facts, Finding, OnProgress, Setup
from benchmarks.challenges.walks import rounded
from benchmarks.common.landscapes import LANDSCAPES
from benchmarks.common.nets import build_net
from benchmarks.common.optimizers import OPTIMIZERS, MakeOptimizer
from benchmarks.common.synthetic import seeded_generator
from benchmarks.common.training import evaluate

NET = "relu"
DEPTH = 2
BATCH = 50
EQUAL_LOSS = 0.01  # of training, at which the optimizers are compared
# Weight decay, coupled (L2, in the gradient) and decoupled: as many values for each.
DECAYS = {"adam": (1e-4, 1e-3, 1e-2), "adamw": (0.1, 1.0, 10.0)}
DECAY_TITLES = {"adam": "L2 in Adam", "adamw": "AdamW"}
DEGREES = tuple(range(0, 20))
POINTS = 20
NOISE = 0.2


def measure(setup: Setup, on_progress: OnProgress) -> Facts:
    on_progress("polynomials", 0.0)
    facts: Facts = {
        "fit": _fit(setup), "equal_loss": EQUAL_LOSS, "images": setup.sizes.few_images,
        "batch_size": BATCH, "epochs": setup.sizes.few_epochs, "depth": DEPTH,
        "width": setup.sizes.width, "optimizers": {}, "cures": {},
    }  # fmt: skip
    seeds = range(setup.seed, setup.seed + min(3, setup.sizes.seeds))
    jobs = len(setup.optimizers) * len(seeds) + 9
    for number, name in enumerate(setup.optimizers):
        entry = OPTIMIZERS[name]
        runs = []
        for place, seed in enumerate(seeds):
            on_progress(f"{entry.title}, seed {seed}", (number * len(seeds) + place) / jobs)
            runs.append(_train(setup, entry.make_scratch, entry.lr, seed))
        facts["optimizers"][name] = {
            "lr": entry.lr,
            "curve": runs[0],
            "turn": _turn(runs[0]),
            "at_equal_loss": [_at_loss(run, EQUAL_LOSS) for run in runs],
        }
    for number, (name, train) in enumerate(_cures(setup).items()):
        on_progress(name, (jobs - 9 + number) / jobs)
        curve = train()
        facts["cures"][name] = {"curve": curve, "end": _end(curve)}
    stopped = facts["cures"]["none"]["curve"]
    best = min(range(len(stopped["step"])), key=lambda k: stopped["validation_loss"][k])
    facts["cures"]["early stopping"] = {"end": _end(stopped, best), "step": stopped["step"][best]}
    return facts


def _cures(setup: Setup) -> dict[str, Any]:
    """Runs of Adam: as it is, with weight decay of either kind, with more images."""
    lr = OPTIMIZERS["adam"].lr
    # AdamW decays by default: without it would be a decay unasked.
    train = partial(_train, setup, lr=lr, seed=setup.seed)
    cures = {"none": partial(train, OPTIMIZERS["adam"].make_scratch)}
    for name, decays in DECAYS.items():
        for decay in decays:
            make = partial(OPTIMIZERS[name].scratch, weight_decay=decay)
            cures[f"{DECAY_TITLES[name]}, λ = {decay:g}"] = partial(train, make)
    for times in MORE_DATA:
        cures[f"{times} × the data"] = partial(train, OPTIMIZERS["adam"].make_scratch, times=times)
    return cures


def _train(
    setup: Setup, make: MakeOptimizer, lr: float, seed: int, times: int = 1
) -> dict[str, list[float]]:
    """The curves of one training, looked at after every epoch or two over the few images."""
    digits, count = setup.the_digits(), setup.sizes.few_images
    images, labels = digits.train_images[: count * times], digits.train_labels[: count * times]
    # Validation images lie behind all that any run trains on.
    held_out = slice(count * max(MORE_DATA), count * (max(MORE_DATA) + 1))
    sets = {
        "train": (images, labels),
        "validation": (digits.train_images[held_out], digits.train_labels[held_out]),
        "test": (digits.test_images, digits.test_labels),
    }
    net = build_net(NET, DEPTH, setup.sizes.width, seed)
    curve: dict[str, list[float]] = {"step": []}

    def look(step: int) -> None:
        curve["step"].append(step)
        for name, (some, theirs) in sets.items():
            loss, accuracy = evaluate(net, some, theirs)
            curve.setdefault(f"{name}_loss", []).append(float(f"{loss:.5g}"))
            curve.setdefault(f"{name}_accuracy", []).append(float(f"{accuracy:.5g}"))

    per_epoch = math.ceil(count / BATCH)
    every = per_epoch if setup.sizes.few_epochs < 30 else 2 * per_epoch
    learn(
        net, make(net.parameters(), lr=lr), images, labels, batch_size=BATCH,
        steps=per_epoch * setup.sizes.few_epochs, seed=seed, look=look, look_every=every,
    )  # fmt: skip
    return curve


def _end(curve: dict[str, list[float]], place: int = -1) -> Facts:
    return {name: values[place] for name, values in curve.items()}


def _turn(curve: dict[str, list[float]]) -> Facts:
    """Where the test loss is lowest, and what comes after."""
    place = min(range(len(curve["step"])), key=lambda k: curve["test_loss"][k])
    return {"at": _end(curve, place), "end": _end(curve)}


def _at_loss(curve: dict[str, list[float]], loss: float) -> Facts | None:
    """The test set where the training loss is just that, between the two looks around it."""
    place = next((k for k, value in enumerate(curve["train_loss"]) if value <= loss), None)
    if place is None or place == 0:
        return None
    above, below = (math.log(curve["train_loss"][k]) for k in (place - 1, place))
    share = (above - math.log(loss)) / (above - below)

    def between(name: str) -> float:
        before, after = curve[name][place - 1 : place + 1]
        return before + share * (after - before)

    return {
        "step": between("step"),
        "gap": between("test_loss") - loss,
        "test_accuracy": between("test_accuracy"),
    }


def _fit(setup: Setup) -> Facts:
    """Polynomials of every degree through noisy points of a function that we know."""
    generator = seeded_generator("noisy points", setup.seed)
    truth = LANDSCAPES["wavy"]
    ((low, high),) = truth.domain

    def between(x: Tensor) -> Tensor:
        return (2 * x - low - high) / (high - low)

    def basis(x: Tensor, degree: int) -> Tensor:
        # Chebyshev's polynomials: powers of x would make the equations badly conditioned.
        angle = between(x).clamp(-1, 1).acos()
        return torch.stack([(k * angle).cos() for k in range(degree + 1)], -1)

    x = torch.linspace(low, high, POINTS, dtype=torch.float64)
    y = truth.at(x[:, None]) + NOISE * torch.randn(POINTS, generator=generator, dtype=torch.float64)
    fine = torch.linspace(low, high, 301, dtype=torch.float64)
    exact = truth.at(fine[:, None])
    curves, train, test = {}, [], []
    for degree in DEGREES:
        weights = torch.linalg.lstsq(basis(x, degree), y[:, None], driver="gelsd").solution
        guess = (basis(fine, degree) @ weights)[:, 0]
        train.append((basis(x, degree) @ weights - y[:, None]).square().mean().item())
        test.append((guess - exact).square().mean().item())
        curves[str(degree)] = rounded(guess, 4)
    best = min(DEGREES, key=lambda degree: test[degree])
    shown = sorted({1, best, DEGREES[-1]})
    return {
        "x": rounded(x), "y": rounded(y), "noise": NOISE, "degrees": DEGREES,
        "train_error": train, "test_error": test, "best_degree": best,
        "fine": rounded(fine), "exact": rounded(exact),
        "curves": {str(degree): curves[str(degree)] for degree in shown},
    }  # fmt: skip


def findings(facts: Facts) -> list[Finding]:
    fit = facts["fit"]
    found = [
        Finding(
            "through 20 points a polynomial of degree 19 passes exactly",
            f"mean square error {fit['train_error'][-1]:.1e}; of the true function "
            f"{fit['test_error'][-1]:.1e}, at degree {fit['best_degree']} "
            f"{fit['test_error'][fit['best_degree']]:.1e}",
            fit["train_error"][-1] < 1e-12,
            theory=True,
        )
    ]
    for name, its in facts["optimizers"].items():
        at, end = its["turn"]["at"], its["turn"]["end"]
        found.append(
            Finding(
                f"{OPTIMIZERS[name].title}: the test loss turns while the training loss falls",
                f"training loss {at['train_loss']:.3g} → {end['train_loss']:.3g}, test loss "
                f"{at['test_loss']:.3f} → {end['test_loss']:.3f}, test accuracy "
                f"{at['test_accuracy']:.1%} → {end['test_accuracy']:.1%}",
                end["test_loss"] > 1.05 * at["test_loss"] and end["train_loss"] < at["train_loss"],
            )
        )
    gaps = mean_gaps(facts)
    if len(gaps) > 1:
        spread = max(statistics.stdev(values) if len(values) > 1 else 0 for values in gaps.values())
        means = {name: statistics.fmean(values) for name, values in gaps.items()}
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        found.append(
            Finding(
                "at equal training loss the optimizers generalize alike",
                f"gap at training loss {facts['equal_loss']:g}: {OPTIMIZERS[low].title} "
                f"{means[low]:.3f} … {OPTIMIZERS[high].title} {means[high]:.3f}; "
                f"spread over seeds at most {spread:.3f}",
                means[high] - means[low] < 2 * spread,
            )
        )
    none = facts["cures"]["none"]["end"]
    for name, its in facts["cures"].items():
        if name != "none":
            end = its["end"]
            found.append(
                Finding(
                    f"Adam on few images, cured by: {name}",
                    f"test loss {none['test_loss']:.3f} → {end['test_loss']:.3f}, accuracy "
                    f"{none['test_accuracy']:.1%} → {end['test_accuracy']:.1%}",
                    _cured(none, end),
                )
            )
    return found


def mean_gaps(facts: Facts) -> dict[str, list[float]]:
    """The gap of each optimizer and seed that reached the training loss compared at."""
    reached = {
        name: [at["gap"] for at in its["at_equal_loss"] if at is not None]
        for name, its in facts["optimizers"].items()
    }
    return {name: gaps for name, gaps in reached.items() if gaps}


def _cured(none: Facts, end: Facts) -> bool | None:
    """A lower test loss is half the cure; the accuracy must gain half a percent as well."""
    better = (
        end["test_loss"] < 0.95 * none["test_loss"],
        end["test_accuracy"] > none["test_accuracy"] + 0.005,
    )
    return all(better) or (None if any(better) else False)
