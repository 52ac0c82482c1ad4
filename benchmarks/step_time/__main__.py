"""Time `optimizer.step()` of ours and torch's implementations on models of several kinds.

python -m benchmarks.step_time --help
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common.command import Job, Parser, bars, conduct, pick_device, run, say
from benchmarks.common.implementations import ENGINES, LR, SIDES
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.options import add_budget, add_device, add_names, add_out, add_seed
from benchmarks.common.reading import begin_results
from benchmarks.common.record import conditions, write_atomically, write_json
from benchmarks.common.shapes import MODELS
from benchmarks.step_time.report import (
    EXPLANATION,
    RECORDED,
    Group,
    doubts,
    groups_of,
    report,
    terminal_table,
)
from benchmarks.step_time.timer import APART, FAILED, QUICK, SHARED, Effort, Timer, Timing

PROGRAM = "python -m benchmarks.step_time"
RESULT = "step_time.json"
QUICK_MODELS = ("mnist", "tiny")
EXAMPLES = f"""examples:
  {PROGRAM}
  {PROGRAM} --budget quick
  {PROGRAM} --models big gpt2 --optimizers adam --engine fused

Let nothing else run meanwhile: a step waits for its slowest thread, so that a single busy
program makes short steps a hundred times as long. Where that cannot be helped, set
OMP_NUM_THREADS=1 in the environment.
"""
FACTS = {
    "denormals": "none by construction: parameters and gradients lie between 0.5 and 1.5 in "
    f"magnitude, the learning rate is {LR:g}; counted after the run (denormals_in_group). "
    "Flushing of denormals is left as torch has it: off",
    "memory": f"{APART}: every implementation has its own parameters, gradients and state; "
    f"{SHARED}: too big for that, so all of a group work on one set of parameters, gradients and "
    "state, many times as large as the caches",
    "first_step_ms": "timed apart, with the making of the state; includes compilation where "
    "first_in_process is true, from torch's compile cache on disk if it is there",
    "peak_extra_bytes": "of a step, CPU: rise of peak resident memory; CUDA: of allocated memory",
    "bandwidth_share": "the algorithm's least traffic / time / bandwidth of copying a big tensor "
    "(read and written), copied once in each round",
    "median_ms": "CPU: of the call; CUDA: between two events on the device, idle at first, so that "
    "waits for the host are included; host_ms is the time of the call, launches is the number of "
    "kernel launches of one step, counted by torch.profiler after the timing",
}


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Time the steps of optimizers alone, ours and torch's in turn, in one process.",
        epilog=EXAMPLES,
    )
    add_names(parser, "optimizers", OPTIMIZERS)
    add_names(parser, "models", MODELS)
    add_names(parser, "engine", ENGINES)
    add_device(parser)
    add_budget(
        parser,
        {
            "quick": f"few rounds, and {' and '.join(QUICK_MODELS)} alone unless --models says "
            "otherwise, to see that it works",
            "standard": f"{Effort.rounds} rounds of all",
        },
    )
    add_seed(parser, "the values and the order of the implementations")
    add_out(parser)
    return parser


def main(arguments: Sequence[str] | None = None, effort: Effort | None = None) -> int:
    return conduct(build_parser(), arguments, partial(_work, effort=effort))


def _work(given: argparse.Namespace, job: Job, effort: Effort | None) -> int:
    out, console = job.begin(RESULT), job.console
    device = pick_device(given.device)
    begun = _begin(given, device, effort or (QUICK if given.budget == "quick" else Effort()))
    recorded = begin_results(out / RESULT, begun, RECORDED, given.resume)
    job.keep(out, "finished measurements")
    try:
        _measure_all(recorded, out, device, console)
    finally:
        _write(recorded, out)
    console.print(terminal_table(recorded))
    console.print(EXPLANATION, style="dim", markup=False, highlight=False)
    if warning := doubts(recorded):
        say(console, warning)
    job.end(out, "step_time.md", recorded=(RESULT, "*.png"))
    return int(any(cell["status"] == FAILED for cell in recorded["cells"]))


def _begin(given: argparse.Namespace, device: torch.device, effort: Effort) -> dict[str, Any]:
    models = given.models or list(QUICK_MODELS if given.budget == "quick" else MODELS)
    engines = given.engine or list(ENGINES)
    return {
        "settings": {
            "optimizers": given.optimizers or list(OPTIMIZERS),
            "models": models,
            "implementations": [f"{side}-{engine}" for side in SIDES for engine in engines],
            "device": device.type,
            "budget": given.budget,
            "seed": given.seed,
            "lr": LR,
            "dtype": "float32",
            "effort": asdict(effort),
        },
        "facts": FACTS,
        "models": {name: MODELS[name].describe() for name in models},
        **conditions(device, given.command),
        "cells": [],
    }


def _measure_all(
    recorded: dict[str, Any], out: Path, device: torch.device, console: Console
) -> None:
    """Group by group, written after each: an interrupted job keeps what it has."""
    settings = recorded["settings"]
    timer = Timer(device, Effort(**settings["effort"]), settings["seed"])
    groups = [(model, name) for model in settings["models"] for name in settings["optimizers"]]
    finished = {(cell["model"], cell["optimizer"]) for cell in recorded["cells"]}
    with bars(console) as shown:
        everything = shown.add_task("all", total=len(groups))
        for place, (model, optimizer) in enumerate(groups, start=1):
            if (model, optimizer) in finished:
                shown.advance(everything)
                continue
            title = f"{MODELS[model].title}, {OPTIMIZERS[optimizer].title}"
            one = shown.add_task(title, total=1.0)

            def on_progress(stage: str, share: float, one: Any = one, title: str = title) -> None:
                shown.update(one, description=f"{title}: {stage}", completed=min(share, 1.0))

            cells = timer.measure(
                model,
                MODELS[model].shapes(),
                optimizer,
                settings["implementations"],
                on_progress,
            )
            shown.remove_task(one)
            shown.advance(everything)
            recorded["cells"] += cells
            write_json(out / RESULT, recorded)
            write_atomically(out / "step_time.md", report(recorded))
            row = groups_of(recorded)[-1]
            say(shown.console, f"[{place}/{len(groups)}] {title}: {_in_a_line(row, cells)}")


def _in_a_line(group: Group, cells: list[Timing]) -> str:
    times = [f"{name} {ms:.3g}" for name in group.cells if (ms := group.median(name)) is not None]
    parts = [f"{', '.join(times) or 'nothing'} ms"]
    parts += [f"{cell['implementation']} {cell['status']}" for cell in cells if "reason" in cell]
    if any(cell.get("denormals_in_group") for cell in cells):
        parts.append("with denormal values: do not trust these times")
    return "; ".join(parts)


def _write(recorded: dict[str, Any], out: Path) -> None:
    from benchmarks.step_time import figures  # matplotlib takes a second to import

    if recorded["cells"]:
        write_atomically(out / "step_time.md", report(recorded))
        write_atomically(out / "step_time.png", figures.draw_ratios(recorded))


if __name__ == "__main__":
    run(main)
