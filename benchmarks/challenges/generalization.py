"""Optimization against generalization: a net that fits its training images exactly."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.challenges.experiment import (
    MORE_DATA,
    Curve,
    Finding,
    OnProgress,
    Results,
    Setup,
    rounded,
)
from benchmarks.challenges.optimizers import OPTIMIZERS
from benchmarks.challenges.training import train
from benchmarks.common.optimizers import MakeOptimizer
from benchmarks.common.synthetic import seeded_generator
from benchmarks.common.test_functions import TEST_FUNCTIONS
from benchmarks.common.training import evaluate

NET = "relu"
DEPTH = 2
BATCH = 50
EQUAL_LOSS = 0.01  # the training loss at which the optimizers are compared
# Weight decay, coupled (L2, in the gradient) and decoupled: as many values for each.
DECAYS = {"adam": (1e-3, 1e-2, 1e-1), "adamw": (0.1, 1.0, 10.0)}
DECAY_TITLES = {"adam": "L2 in Adam", "adamw": "AdamW"}
NO_REMEDY, EARLY_STOPPING = "none", "early stopping"
SEEDS = 3
DEGREES = tuple(range(0, 20))
POINTS = 20
NOISE = 0.2
LearningCurve = dict[str, list[float]]


def measure(setup: Setup, on_progress: OnProgress) -> Results:
    on_progress("polynomials", 0.0)
    results: Results = {
        "fit": _fit(setup), "equal_loss": EQUAL_LOSS, "images": setup.sizes.few_images,
        "batch_size": BATCH, "epochs": setup.sizes.few_epochs, "depth": DEPTH,
        "width": setup.sizes.width, "optimizers": {}, "remedies": {},
    }  # fmt: skip
    seeds = range(setup.seed, setup.seed + min(SEEDS, setup.sizes.seeds))
    remedies = _remedies(setup)
    jobs = len(setup.optimizers) + len(remedies)
    for number, name in enumerate(setup.optimizers):
        optimizer = OPTIMIZERS[name]
        on_progress(optimizer.title, number / jobs)
        runs = [_train(setup, optimizer.make_scratch, optimizer.lr, seed) for seed in seeds]
        results["optimizers"][name] = {
            "lr": optimizer.lr,
            "curve": runs[0],
            "turn": _turn(runs[0]),
            "at_equal_loss": [_at_loss(run, EQUAL_LOSS) for run in runs],
        }
    for number, (name, train_with) in enumerate(remedies.items(), start=len(setup.optimizers)):
        on_progress(name, number / jobs)
        runs = [train_with(seed) for seed in seeds]
        results["remedies"][name] = [_at(run) for run in runs]
        if name == NO_REMEDY:
            stopped = [_at(run, _lowest(run["validation_loss"])) for run in runs]
    results["remedies"][EARLY_STOPPING] = stopped
    return results


def _remedies(setup: Setup) -> dict[str, Callable[[int], LearningCurve]]:
    """Runs of Adam: as it is, with weight decay of either kind, with more images."""
    lr = OPTIMIZERS["adam"].lr
    # AdamW decays by default: as the baseline it would be a remedy itself.
    adam = partial(_train, setup, OPTIMIZERS["adam"].make_scratch, lr)
    remedies: dict[str, Callable[[int], LearningCurve]] = {NO_REMEDY: adam}
    for name, decays in DECAYS.items():
        for decay in decays:
            make = partial(OPTIMIZERS[name].scratch, weight_decay=decay)
            remedies[f"{DECAY_TITLES[name]}, λ = {decay:g}"] = partial(_train, setup, make, lr)
    for times in MORE_DATA:
        remedies[f"{times} × the data"] = partial(adam, times=times)
    return remedies


def _train(
    setup: Setup, make: MakeOptimizer, lr: float, seed: int, times: int = 1
) -> LearningCurve:
    """Loss and accuracy on all three sets, after every epoch or two over the few images."""
    digits, count = setup.require_digits(), setup.sizes.few_images
    images, labels = digits.train_images[: count * times], digits.train_labels[: count * times]
    # Validation images lie behind all that any run trains on.
    held_out = slice(count * max(MORE_DATA), count * (max(MORE_DATA) + 1))
    sets = {
        "train": (images, labels),
        "validation": (digits.train_images[held_out], digits.train_labels[held_out]),
        "test": (digits.test_images, digits.test_labels),
    }
    net = setup.build_net(NET, DEPTH, setup.sizes.width, seed)
    curve: LearningCurve = {"step": []}

    def record(step: int) -> None:
        curve["step"].append(step)
        for name, (inputs, targets) in sets.items():
            loss, accuracy = evaluate(net, inputs, targets)
            curve.setdefault(f"{name}_loss", []).append(float(f"{loss:.5g}"))
            curve.setdefault(f"{name}_accuracy", []).append(float(f"{accuracy:.5g}"))

    per_epoch = math.ceil(count / BATCH)
    every = per_epoch if setup.sizes.few_epochs < 30 else 2 * per_epoch
    train(
        net, make(net.parameters(), lr=lr), images, labels, batch_size=BATCH,
        steps=per_epoch * setup.sizes.few_epochs, seed=seed, callback=record,
        callback_every=every,
    )  # fmt: skip
    return curve


def _lowest(values: list[float]) -> int:
    return min(range(len(values)), key=values.__getitem__)


def _at(curve: LearningCurve, index: int = -1) -> Results:
    return {name: values[index] for name, values in curve.items()}


def _turn(curve: LearningCurve) -> Results:
    """Where the test loss is lowest, and the end."""
    return {"lowest": _at(curve, _lowest(curve["test_loss"])), "end": _at(curve)}


def _at_loss(curve: LearningCurve, loss: float) -> Results | None:
    """The test set where the training loss has this value, between the two records around it."""
    after = next((k for k, value in enumerate(curve["train_loss"]) if value <= loss), None)
    if not after:
        return None
    high, low = (math.log(curve["train_loss"][k]) for k in (after - 1, after))
    share = (high - math.log(loss)) / (high - low)

    def interpolated(name: str) -> float:
        left, right = curve[name][after - 1 : after + 1]
        return left + share * (right - left)

    return {
        "step": interpolated("step"),
        "gap": interpolated("test_loss") - loss,
        "test_accuracy": interpolated("test_accuracy"),
    }


def _fit(setup: Setup) -> Results:
    """Polynomials of every degree, fitted to noisy points of a known function."""
    generator = seeded_generator("noisy points", setup.seed)
    truth = TEST_FUNCTIONS["wavy"]
    ((low, high),) = truth.domain

    def scaled(x: Tensor) -> Tensor:
        return (2 * x - low - high) / (high - low)

    def basis(x: Tensor, degree: int) -> Tensor:
        # Chebyshev polynomials: with powers of x the equations would be ill-conditioned.
        angle = scaled(x).clamp(-1, 1).acos()
        return torch.stack([(k * angle).cos() for k in range(degree + 1)], -1)

    x = torch.linspace(low, high, POINTS, dtype=torch.float64)
    y = truth.value(x[:, None]) + NOISE * torch.randn(
        POINTS, generator=generator, dtype=torch.float64
    )
    fine = torch.linspace(low, high, 301, dtype=torch.float64)
    exact = truth.value(fine[:, None])
    curves, train, test = {}, [], []
    for degree in DEGREES:
        weights = torch.linalg.lstsq(basis(x, degree), y[:, None], driver="gelsd").solution
        prediction = (basis(fine, degree) @ weights)[:, 0]
        train.append((basis(x, degree) @ weights - y[:, None]).square().mean().item())
        test.append((prediction - exact).square().mean().item())
        curves[str(degree)] = rounded(prediction, 4)
    best = min(DEGREES, key=lambda degree: test[degree])
    shown = sorted({1, best, DEGREES[-1]})
    return {
        "x": rounded(x), "y": rounded(y), "noise": NOISE, "degrees": DEGREES,
        "train_error": train, "test_error": test, "best_degree": best,
        "fine": rounded(fine), "exact": rounded(exact),
        "curves": {str(degree): curves[str(degree)] for degree in shown},
    }  # fmt: skip


def curves(results: Results) -> list[Curve]:
    return [
        Curve(f"{key}/{name}", runs["curve"]["step"], runs["curve"][key])
        for name, runs in results["optimizers"].items()
        for key in ("train_loss", "test_loss", "test_accuracy")
    ]


def findings(results: Results) -> list[Finding]:
    fit = results["fit"]
    claims = [
        Finding(
            "through 20 points a polynomial of degree 19 passes exactly",
            f"mean square error {fit['train_error'][-1]:.1e}; of the true function "
            f"{fit['test_error'][-1]:.1e}, at degree {fit['best_degree']} "
            f"{fit['test_error'][fit['best_degree']]:.1e}",
            fit["train_error"][-1] < 1e-12,
            theory=True,
        )
    ]
    for name, runs in results["optimizers"].items():
        lowest, end = runs["turn"]["lowest"], runs["turn"]["end"]
        claims.append(
            Finding(
                f"{OPTIMIZERS[name].title}: the test loss rises while the training loss falls",
                f"training loss {lowest['train_loss']:.3g} → {end['train_loss']:.3g}, test loss "
                f"{lowest['test_loss']:.3f} → {end['test_loss']:.3f}, test accuracy "
                f"{lowest['test_accuracy']:.1%} → {end['test_accuracy']:.1%}",
                end["test_loss"] > 1.05 * lowest["test_loss"]
                and end["train_loss"] < lowest["train_loss"],
            )
        )
    gaps = mean_gaps(results)
    if len(gaps) > 1:
        spread = max(statistics.stdev(values) if len(values) > 1 else 0 for values in gaps.values())
        means = {name: statistics.fmean(values) for name, values in gaps.items()}
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        claims.append(
            Finding(
                "at equal training loss all optimizers generalize equally",
                f"gap at training loss {results['equal_loss']:g}: {OPTIMIZERS[low].title} "
                f"{means[low]:.3f} … {OPTIMIZERS[high].title} {means[high]:.3f}; "
                f"standard deviation over seeds at most {spread:.3f}",
                means[high] - means[low] < 2 * spread,
            )
        )
    baseline = results["remedies"][NO_REMEDY]
    for name, ends in results["remedies"].items():
        if name != NO_REMEDY:
            claims.append(
                Finding(
                    f"Adam on few images generalizes better with: {name}",
                    f"mean test loss {_mean('test_loss', baseline):.3f} → "
                    f"{_mean('test_loss', ends):.3f}, accuracy "
                    f"{_mean('test_accuracy', baseline):.1%} → {_mean('test_accuracy', ends):.1%}",
                    is_better(baseline, ends),
                )
            )
    return claims


def mean_gaps(results: Results) -> dict[str, list[float]]:
    """The gap of each optimizer and seed that reached the training loss compared at."""
    reached = {
        name: [at["gap"] for at in runs["at_equal_loss"] if at is not None]
        for name, runs in results["optimizers"].items()
    }
    return {name: gaps for name, gaps in reached.items() if gaps}


def _mean(key: str, ends: list[Results]) -> float:
    return statistics.fmean(end[key] for end in ends)


def is_better(baseline: list[Results], ends: list[Results]) -> bool | None:
    """Whether loss and accuracy are better for every seed; None: one of the two is."""
    pairs = [*zip(baseline, ends, strict=True)]
    better = (
        all(end["test_loss"] < none["test_loss"] for none, end in pairs),
        all(end["test_accuracy"] > none["test_accuracy"] for none, end in pairs),
    )
    return all(better) or (None if any(better) else False)
