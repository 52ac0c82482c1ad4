"""The command line of `python -m benchmarks.study`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from benchmarks.common.command import Parser
from benchmarks.common.nets import ACTIVATIONS
from benchmarks.common.options import (
    ABSENT,
    add_budget,
    add_choice,
    add_data,
    add_device,
    add_names,
    add_number,
    add_out,
)
from benchmarks.study.protocol import BUDGETS, TIMING_SEEDS, TUNED, Study
from benchmarks.study.stacked import LARGEST_STACK
from benchmarks.study.trial import SCHEDULES, SEARCH_SPACES

PROGRAM = "python -m benchmarks.study"
EXAMPLES = f"""examples:
  {PROGRAM} --budget quick
  {PROGRAM} --budget standard --schedule cosine --out runs/cosine
  {PROGRAM} --scheduler tcp://HOST:8786 --device cpu

A study can use the workers of several machines. In the folder that holds `benchmarks`, start
    PYTHONPATH=. dask scheduler
on one of them,
    PYTHONPATH=. dask worker tcp://HOST:8786 --nworkers CORES --nthreads 1
on each, and this command with --scheduler here. Only this command writes results.
"""


def build_parser() -> Parser:
    """Options of the study have no default here: those that are absent are those of the budget."""
    parser = Parser(
        prog=PROGRAM,
        description="Compare the optimizers on a deep sigmoid net and a deep ReLU net. All have\n"
        "the same grid of learning rates. The best rates are trained again with a few seeds, one\n"
        "is chosen on validation images, and trained with further seeds, the same for all.",
        epilog=EXAMPLES,
    )
    what = parser.add_argument_group("what is run")
    add_budget(
        what,
        {
            "quick": "minutes, to see how it works",
            "standard": "half an hour on two cores",
            "full": "days on two cores",
            "gpu": "as full, with 100 seeds, for a GPU",
        },
        "quick",
    )
    add_names(what, "nets", ACTIVATIONS, "both")
    add_names(what, "optimizers", TUNED)
    add_names(what, "search-spaces", SEARCH_SPACES, "of the budget")
    add_choice(
        what,
        "schedule",
        SCHEDULES,
        "of the learning rate: constant, cosine down to 0, or in steps: a tenth at half, a "
        "hundredth at three quarters (default: constant)",
        ABSENT,
    )
    for name, text in (
        ("epochs", "passes over the training images"),
        ("seeds", "runs of each chosen setting, which the tables report"),
        ("samples", "trials for each dimension of the search space all"),
        ("batch-size", "images in a batch; the last of an epoch may have fewer"),
        ("depth", "hidden layers"),
        ("width", "units in each"),
        ("train-size", "training images, a sixth of which is for validation"),
        ("test-size", "test images"),
    ):
        add_number(what, name, f"{text} (default: of the budget)", ABSENT)

    data = parser.add_argument_group("the data")
    add_data(data)

    how = parser.add_argument_group("how it is run")
    add_number(
        how,
        "workers",
        "processes of one thread each; 0 trains in this process (default: one for each core, or "
        "one on a GPU)",
    )
    how.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="the Dask scheduler whose workers train, instead of processes of this machine",
    )
    add_number(
        how,
        "stack",
        "train up to N trials at once, as one net of N times the parameters; they have no seconds "
        f"of their own, so each chosen setting is trained alone with {TIMING_SEEDS} of its seeds, "
        f"to time it (default: as many as a GPU's memory holds, at most {LARGEST_STACK}; 1 on a "
        "CPU, where stacks are not faster)",
    )
    add_device(how)

    result = parser.add_argument_group("the result")
    add_out(result)
    return parser


def study_of(given: Mapping[str, Any]) -> Study:
    """The study that was asked for.

    Raises:
        CannotRun: it is impossible.
    """
    known = {field.name for field in fields(Study)} - {"budget"}
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if name in known and value is not None
    }
    study = replace(BUDGETS[given["budget"]], **chosen)
    study.check()
    return study


def default_workers(device: torch.device) -> int:
    if device.type == "cuda":
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
