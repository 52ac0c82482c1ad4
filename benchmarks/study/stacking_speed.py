"""How much faster stacked trials are than the same trials one by one.

python -m benchmarks.study.stacking_speed --help
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.common.command import (
    CannotRun,
    Job,
    Names,
    Parser,
    conduct,
    pick_device,
    reason,
    run,
    whole_number,
)
from benchmarks.common.nets import CLASSES, PIXELS
from benchmarks.common.options import add_device, add_names
from benchmarks.common.record import conditions, write_json
from benchmarks.study.protocol import TUNED
from benchmarks.study.running import one_thread
from benchmarks.study.stacked import train_stack
from benchmarks.study.trial import SEARCH, OnStep, Settings, Split, Trial, train

STEPS = 60
WARM_UP = 10  # steps that are not timed
VALIDATION = 100  # images; evaluations are not timed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m benchmarks.study.stacking_speed",
        description="Time the steps of K nets in a stack, and of one net by itself. On a processor "
        "both have one thread, as the workers of the study do.",
    )
    add_names(parser, "optimizers", TUNED, "adam")
    for name, limit, default, text in (
        ("trials", "stack", [4, 16], "trials in a stack"),
        ("widths", "width", [16, 128], "units in each of five hidden layers"),
    ):
        parser.add_argument(
            f"--{name}", type=whole_number(limit), nargs="+", action=Names, metavar="N",
            help=f"{text} (default: {' '.join(map(str, default))})",
        )  # fmt: skip
    parser.add_argument("--batch-size", type=whole_number("batch_size"), default=128, metavar="N")
    add_device(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes, if anywhere")
    return conduct(parser, arguments, _work)


def _work(given: argparse.Namespace, job: Job) -> int:
    device = pick_device(given.device)
    if given.out is not None:
        try:
            write_json(given.out, {"rows": []})
        except (OSError, ValueError) as problem:
            raise CannotRun(f"--out {given.out} cannot be written: {reason(problem)}") from problem
        job.kept = f"nothing is in {given.out}"
    if device.type == "cpu":
        one_thread()
    rows = [
        measure(optimizer, width, trials, given.batch_size, device)
        for optimizer in given.optimizers or ["adam"]
        for width in given.widths or [16, 128]
        for trials in given.trials or [4, 16]
    ]
    if given.out is not None:
        write_json(given.out, conditions(device, given.command) | {"rows": rows})
    job.console.print(_table(rows))
    return 0


def measure(
    optimizer: str, width: int, trials: int, batch_size: int, device: torch.device
) -> dict[str, Any]:
    """Medians of a step's time in milliseconds, for one trial."""
    images = STEPS * batch_size
    data = Split(*(tensor.to(device) for tensor in _noise(images)))
    made = [
        Trial(SEARCH, "lr", Settings(
            "relu", optimizer, 1e-3 * (1 + number / trials), epochs=1, batch_size=batch_size,
            width=width, train_size=images, validation_size=VALIDATION,
        ))
        for number in range(trials)
    ]  # fmt: skip
    alone = _milliseconds(lambda on_step: train(made[0], data, on_step), device)
    stacked = _milliseconds(lambda on_step: train_stack(made, data, on_step), device) / trials
    return {
        "optimizer": optimizer,
        "width": width,
        "batch_size": batch_size,
        "trials": trials,
        "alone_ms": alone,
        "stacked_ms": stacked,
        "speed_up": alone / stacked,
    }


def _noise(images: int) -> list[torch.Tensor]:
    """Images and labels of the three parts: what they show takes no time."""
    parts = [(torch.randn(n, PIXELS), torch.arange(n) % CLASSES) for n in (images, VALIDATION, 1)]
    return [tensor for part in parts for tensor in part]


def _milliseconds(run: Callable[[OnStep], object], device: torch.device) -> float:
    """The median time from the end of a step to the end of the next."""
    ends: list[float] = []

    def on_step() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())

    run(on_step)
    return 1000 * statistics.median(b - a for a, b in pairwise(ends[WARM_UP:]))


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="A step of one trial, ms")
    for column in ("optimizer", "width", "trials", "by itself", "in a stack", "speed-up"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for row in rows:
        numbers = f"{row['alone_ms']:.3f}", f"{row['stacked_ms']:.3f}", f"{row['speed_up']:.2f}×"
        table.add_row(row["optimizer"], str(row["width"]), str(row["trials"]), *numbers)
    return table


if __name__ == "__main__":
    run(main)
