"""The layout of a study's files, which is checked when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common.command import CannotRun
from benchmarks.common.nets import ACTIVATIONS
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.reading import (
    Shape,
    among,
    columns,
    faults,
    mapping,
    number,
    perhaps,
    positive,
    read_results,
    share,
    text,
    whole,
    within_limits,
    yes_or_no,
)
from benchmarks.study.trial import FINAL, PHASES, SCHEDULES, SEARCH_SPACES, TARGETS, TIMING

STUDY_FILE = "study.json"
TRIALS = "trials"
DATASETS = ("mnist", "synthetic")
OPTIONS = ("momentum", "beta2", "eps", "weight_decay")

MEASURES = ("train", "validation", "test")
TRIAL: Shape = {
    "protocol": whole(),
    "phase": among(PHASES),
    "search_space": among(SEARCH_SPACES),
    "settings": {
        "net": among(ACTIVATIONS),
        "optimizer": among(OPTIMIZERS),
        "lr": positive,
        "options": mapping(among(OPTIONS), number),
        "schedule": among(SCHEDULES),
        "dataset": among(DATASETS),
        **within_limits("epochs", "batch_size", "train_size", "validation_size", "test_size"),
        **within_limits("depth", "width", "seed"),
    },
    "result": {
        "diverged": yes_or_no,
        "diverged_at_step": perhaps(whole()),
        "seconds": perhaps(number),
        **{f"{part}_loss": perhaps(number) for part in MEASURES},
        "train_accuracy": perhaps(number),
        **{f"{part}_accuracy": perhaps(share) for part in MEASURES[1:]},
        "loss_gap": perhaps(number),
        "accuracy_gap": perhaps(number),
        "targets": {
            str(target): dict.fromkeys(("step", "epoch", "seconds"), perhaps(number))
            for target in TARGETS
        },
        "curves": columns(
            ("step", "epoch", "train_loss", *(f"{part}_{measure}" for part in MEASURES[1:]
                                              for measure in ("loss", "accuracy"))),
            perhaps(number), 1, step=whole(), epoch=number,
        ),
        "gradient_norms": mapping(text, lambda value: isinstance(value, list)),
    },
}  # fmt: skip
MEASURED: Shape = {"validation_loss": number, "validation_accuracy": share}  # unless it diverged


def read_trial(path: Path) -> dict[str, Any]:
    """A trial as `Store.keep` writes it.

    Raises:
        CannotRun: the file holds something else.
    """
    content = read_results(path, TRIAL, "a trial")
    result, depth = content["result"], content["settings"]["depth"]
    checks: dict[str, Any] = {} if result["diverged"] else dict(MEASURED)
    if result["diverged"]:
        checks["diverged_at_step"] = whole()
    elif content["phase"] == FINAL:
        checks["test_accuracy"] = share
    if content["phase"] == TIMING:
        checks["seconds"] = number
    if result["gradient_norms"]:
        layers = {"step", "output", *(f"layer_{number}" for number in range(1, depth + 1))}
        checks["gradient_norms"] = columns(layers, perhaps(number), step=whole())
    if wrong := next(faults(result, checks, "result"), None):
        raise CannotRun(f"{path} does not hold a trial: {wrong}; remove it")
    return content
