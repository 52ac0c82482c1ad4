"""A made-up study, with results that can be checked by mental arithmetic.

Ten seeds. On the ReLU net Adam wins; AdamW is as good, now a little better, now a little worse;
Momentum is half a point behind at each seed; RMSProp diverges on two seeds; SGD gets to 97 % on
five. On the sigmoid net Adam trains and SGD stays at chance. Of six learning rates the last makes
every optimizer diverge. On the ReLU net Adam had two candidates; one of them failed on one of
three seeds.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.common.record import write_json

Trial = dict[str, Any]

SEEDS = tuple(range(42, 52))
RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
STEPS = tuple(range(0, 1001, 100))
PER_EPOCH = 500
WOBBLE = (0.0, 1e-3, -1e-3, 5e-4, -5e-4, 1e-3, -1e-3, 5e-4, -5e-4, 0.0)  # of a seed, for everybody
TURN = (1, -1, 1, -1, 1, -1, 1, -1, 1, -1.5)  # who is ahead, AdamW or Adam
SMALL = 2e-4
LEVELS = {
    ("relu", "sgd"): 0.97, ("relu", "momentum"): 0.975, ("relu", "rmsprop"): 0.978,
    ("relu", "adam"): 0.98, ("relu", "adamw"): 0.98,
    ("sigmoid", "sgd"): 0.1, ("sigmoid", "adam"): 0.96,
}  # fmt: skip
BEST = {"sgd": 1e-1, "momentum": 1e-2, "rmsprop": 1e-3, "adam": 1e-3, "adamw": 1e-3}
CANDIDATES = {1e-3: (0.97, 0.98, 0.975), 1e-4: (0.98, 0.1, 0.985)}
OPTIONS = {"momentum": {"momentum": 0.9}}
LAYERS = ("layer_1", "layer_2", "output")


def trial(
    net: str, optimizer: str, phase: str, lr: float, seed: int, accuracy: float | None,
    **changed: Any,
) -> Trial:  # fmt: skip
    """One trial that ends with `accuracy` on every data set; None: it diverged at step 300.

    Like those of a search, a final that is `stacked` has no seconds.
    """
    settings = {
        "net": net, "optimizer": optimizer, "lr": lr, "options": OPTIONS.get(optimizer, {}),
        "schedule": "constant", "seed": seed, "epochs": 2, "batch_size": 100, "depth": 2,
        "width": 16, "dataset": "synthetic", "train_size": 50_000, "validation_size": 10_000,
        "test_size": 10_000,
    }  # fmt: skip
    search_space = changed.pop("search_space", "lr")
    alone = phase in ("final", "timing") and not changed.pop("stacked", False)
    return {
        "protocol": 2,
        "phase": phase,
        "search_space": search_space,
        "settings": settings | changed,
        "result": _result(net, accuracy, alone),
    }


def _result(net: str, accuracy: float | None, alone: bool) -> dict[str, Any]:
    diverged = accuracy is None
    steps = [step for step in STEPS if not diverged or step <= 300]
    end = 0.1 if accuracy is None else accuracy
    accuracies = [0.1 + (end - 0.1) * (1 - math.exp(-step / 100)) for step in steps]
    if not diverged:
        accuracies[-1] = end
    losses: list[float | None] = [0.05 + 2.25 * (1 - one) / 0.9 for one in accuracies]
    if diverged:
        losses[-1] = None
    loss = losses[-1]
    return {
        "diverged": diverged,
        "diverged_at_step": 300 if diverged else None,
        "steps": steps[-1],
        "seconds": steps[-1] / 100 if alone else None,
        "train_loss": None if loss is None else loss - 0.02,
        "validation_loss": loss,
        "test_loss": loss,
        "train_accuracy": None if diverged else end + 0.005,
        "validation_accuracy": None if diverged else end,
        "test_accuracy": None if diverged else end,
        "loss_gap": None if diverged else 0.02,
        "accuracy_gap": None if diverged else 0.005,
        "targets": {
            name: _target(float(name), steps, accuracies, alone) for name in ("0.97", "0.98")
        },
        "curves": {
            "step": steps,
            "epoch": [step / PER_EPOCH for step in steps],
            "train_loss": [None, *losses[1:]],
            "validation_loss": losses,
            "validation_accuracy": accuracies,
            "test_loss": losses,
            "test_accuracy": accuracies,
        },
        "gradient_norms": {"step": steps}
        | {
            name: [
                (0.1 ** (2 - place) if net == "sigmoid" else 1.0) * (1 + step / 1000)
                for step in steps
            ]
            for place, name in enumerate(LAYERS)
        },
    }


def _target(
    target: float, steps: list[int], accuracies: list[float], alone: bool
) -> dict[str, Any]:
    for step, accuracy in zip(steps, accuracies, strict=True):
        if accuracy >= target:
            seconds = step / 100 if alone else None
            return {"step": step, "epoch": step / PER_EPOCH, "seconds": seconds}
    return {"step": None, "epoch": None, "seconds": None}


def final_accuracy(net: str, optimizer: str, seed: int) -> float | None:
    number = SEEDS.index(seed)
    level = LEVELS[net, optimizer]
    if net == "sigmoid":
        return level + (WOBBLE[number] if optimizer == "adam" else 0.0)
    if optimizer == "sgd":
        return 0.971 if number < 5 else 0.969
    if optimizer == "rmsprop" and number >= 8:
        return None
    ahead = SMALL * TURN[number] if optimizer == "adamw" else 0.0
    behind = 1e-4 * number if optimizer == "momentum" else 0.0
    return level + WOBBLE[number] + ahead - behind


def search_accuracy(net: str, optimizer: str, lr: float) -> float | None:
    """A tenth of it is lost with each decade from the best learning rate, a hundredth below it."""
    if lr == RATES[-1]:
        return None
    decades = math.log10(lr / BEST[optimizer])
    loss = 0.1 * decades if decades > 0 else -0.008 * decades
    return max(0.1, LEVELS[net, optimizer] - loss)


def made_up_trials() -> list[Trial]:
    trials = []
    for net, optimizer in LEVELS:
        for lr in RATES:
            accuracy = search_accuracy(net, optimizer, lr)
            trials.append(trial(net, optimizer, "search", lr, 0, accuracy))
        for seed in SEEDS:
            accuracy = final_accuracy(net, optimizer, seed)
            trials.append(trial(net, optimizer, "final", BEST[optimizer], seed, accuracy))
    for lr, accuracies in CANDIDATES.items():
        for seed, accuracy in enumerate(accuracies, start=21):
            trials.append(trial("relu", "adam", "selection", lr, seed, accuracy))
    return trials


STUDY = {
    "protocol": 2,
    "settings": {"budget": "quick"},
    "command": "python -m benchmarks.study --budget quick --epochs 7 --lr '~(1)'",
    "machine": {"system": "Linux x86_64", "processor": "An Imaginary Processor", "cores": 2,
                "torch_threads": 1, "device": "cpu"},
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
}  # fmt: skip


def write_made_up_study(out: Path, trials: list[Trial] | None = None) -> None:
    write_json(out / "study.json", STUDY)
    for one in made_up_trials() if trials is None else trials:
        text = json.dumps([one["phase"], one["search_space"], one["settings"]])
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        write_json(out / "trials" / f"{name}.json", one)
