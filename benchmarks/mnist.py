"""The main experiment: five optimizers, ours and torch's in lockstep, on two deep nets.

python -m benchmarks.mnist --help
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import processes
from benchmarks.command import (
    RUNS,
    CannotRun,
    Parser,
    bars,
    check_writable,
    exit_status,
    load_shown,
    pick_device,
    say,
    termination_raises,
    writing_to,
)
from benchmarks.data import DRAWN_NAME, DataError, Digits, default_data_dir
from benchmarks.mnist_options import DEFAULTS, PROGRAM, build_parser
from benchmarks.optimizers import CONTENDERS
from benchmarks.options import check_new, default_out
from benchmarks.record import machine, read_json, versions, write_json
from benchmarks.report import (
    EXPLANATION,
    SETTINGS_FILE,
    Pair,
    describe_twin,
    is_finished,
    terminal_tables,
    write_report,
)
from benchmarks.trainee import Plan
from benchmarks.training import train_pair

SHOWN_EVERY = 20  # steps between two updates of the progress bars


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    given = vars(parser.parse_args(arguments))
    with processes.together():
        return _lead(parser, given) if processes.rank() == 0 else _follow()


def _follow() -> int:
    """Train along with the first process, which reports; what this one would report is dropped."""
    with termination_raises(), tempfile.TemporaryDirectory() as dropped:
        job, missing = processes.told_by_the_first()
        digits = _load(job, pick_device(job["settings"]["device"]), Console(quiet=True))
        for plan in missing:
            train_pair(plan, digits, Path(dropped))
    return 0


def _lead(parser: Parser, given: dict[str, Any]) -> int:
    console = Console()
    try:
        out, job = _resumed_job(given) if given.pop("resume") else _new_job(given)
        if (batch := job["settings"]["batch_size"]) % processes.count():
            raise CannotRun(
                f"--batch-size {batch} cannot be shared out evenly to {processes.count()} processes"
            )
        check_writable(out)
        device = pick_device(job["settings"]["device"])
        job["settings"]["device"] = device.type
        with termination_raises():
            digits = _load(job, device, console)
            _begin(out, job, digits, device, console)
    except (CannotRun, DataError) as problem:
        parser.error(str(problem))
    except KeyboardInterrupt as interruption:
        say(console, "Interrupted before anything was trained.")
        return exit_status(interruption)
    try:
        with termination_raises():
            pairs = _train_all(out, job, digits, console)
    except KeyboardInterrupt as interruption:
        say(console, f"Interrupted; {_how_to_resume(out)}")
        return exit_status(interruption)
    except OSError as problem:
        say(console, f"Cannot go on: {problem}; {_how_to_resume(out)}")
        return 1
    except BaseException:
        say(console, f"Stopped by an error; {_how_to_resume(out)}")
        raise
    _conclude(out, job, pairs, console)
    return 0


def _new_job(given: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    out = Path(given.pop("out", None) or default_out())
    check_new(out, "; with --resume it goes on" if (out / SETTINGS_FILE).exists() else "")
    data_dir = given.pop("data_dir", default_data_dir())
    settings = DEFAULTS | given
    rates = {name: CONTENDERS[name].lr for name in settings["optimizers"]}
    if strangers := [name for name in settings["lr"] if name not in rates]:
        raise CannotRun(f"--lr names {strangers[0]}, which is not among the optimizers to be run")
    settings["lr"] = rates | settings["lr"]
    return out, {"settings": settings, "data_dir": str(data_dir)}


def _resumed_job(given: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    out = given.pop("out", None)
    if out is None:
        jobs = sorted(RUNS.glob(f"*/{SETTINGS_FILE}"), key=lambda path: path.stat().st_mtime)
        if not jobs:
            raise CannotRun(f"there is no job to resume in {RUNS}; name one with --out DIR")
        out = jobs[-1].parent
    try:
        job = read_json(out / SETTINGS_FILE)
    except FileNotFoundError as problem:
        raise CannotRun(f"there is no job to resume in {out}: no {SETTINGS_FILE}") from problem
    except (OSError, ValueError) as problem:
        raise CannotRun(f"cannot read {out / SETTINGS_FILE}: {problem}") from problem
    if "data_dir" in given:
        job["data_dir"] = str(given.pop("data_dir"))
    for name, value in given.items():
        stored = job["settings"][name]
        if name == "lr":
            stored = {key: stored.get(key) for key in value}
        if value not in (stored, "auto"):
            option = "--" + name.replace("_", "-")
            raise CannotRun(
                f"{option} differs from the job in {out}, which has {stored}; "
                "leave it out to resume, or begin a new job"
            )
    return out, job


def _load(job: dict[str, Any], device: torch.device, console: Console) -> Digits:
    settings = job["settings"]
    sizes = settings["train_size"], settings["test_size"]
    return load_shown(settings["dataset"], Path(job["data_dir"]), device, *sizes, console)


def _begin(
    out: Path, job: dict[str, Any], digits: Digits, device: torch.device, console: Console
) -> None:
    now = {"versions": versions(), "machine": machine(device)}
    if "dataset" not in job:
        job.update(dataset=digits.name, **now)
        # What "auto" came to is kept: a resumed job must not go on with other data.
        job["settings"]["dataset"] = "drawn" if digits.name == DRAWN_NAME else "mnist"
        with writing_to(out):
            write_json(out / SETTINGS_FILE, job)
    elif any(job[key] != value for key, value in now.items()):
        say(console, "Note: this job began with other versions or on another machine.")
    train, test = len(digits.train_labels), len(digits.test_labels)
    say(console, f"Data: {digits.name}, {train:,} training and {test:,} test images on {device}")
    say(console, f"Results go to {out}")


def _train_all(out: Path, job: dict[str, Any], digits: Digits, console: Console) -> list[Pair]:
    plans = list(_plans(job["settings"]))
    missing = [plan for plan in plans if not _is_done(out, plan)]
    if len(missing) < len(plans):
        say(console, f"{len(plans) - len(missing)} of {len(plans)} pairs were finished before")
    if processes.count() > 1:
        say(console, f"{processes.count()} processes train, each on its part of every batch")
        processes.told_by_the_first((job, missing))
    pairs = write_report(out)
    images = len(digits.train_labels)
    with bars(console) as shown:
        everything = shown.add_task(
            "all", total=sum(plan.epochs * plan.steps_per_epoch(images) for plan in missing)
        )
        for plan in missing:
            total, done = plan.epochs * plan.steps_per_epoch(images), 0
            title = f"{plan.net} {CONTENDERS[plan.optimizer].title}"
            one = shown.add_task(title, total=total)

            def on_steps(steps: int, one: Any = one) -> None:
                nonlocal done
                done += steps
                if done % SHOWN_EVERY == 0:
                    shown.advance(one, SHOWN_EVERY)
                    shown.advance(everything, SHOWN_EVERY)

            train_pair(plan, digits, out, on_steps)
            shown.remove_task(one)
            shown.advance(everything, total - done // SHOWN_EVERY * SHOWN_EVERY)
            pairs = write_report(out)
            finished = next(
                pair for pair in pairs if (pair.net, pair.optimizer) == (plan.net, plan.optimizer)
            )
            place = f"[{plans.index(plan) + 1}/{len(plans)}]"
            say(shown.console, f"{place} {title}: {_in_a_line(finished)}")
    return pairs


def _plans(settings: dict[str, Any]) -> Iterator[Plan]:
    for net in settings["nets"]:
        for optimizer in settings["optimizers"]:
            yield Plan(
                net=net,
                optimizer=optimizer,
                lr=settings["lr"][optimizer],
                **{
                    name: settings[name]
                    for name in (
                        "epochs", "batch_size", "seed", "depth", "width", "foreach", "reference"
                    )
                },
            )  # fmt: skip


def _is_done(out: Path, plan: Plan) -> bool:
    return is_finished(out, plan.net, plan.optimizer, plan.implementations())


def _in_a_line(pair: Pair) -> str:
    ours, twin = pair.ours, pair.ours["twin"]
    if ours["diverged"]:
        result = f"diverged at step {ours['diverged_at_step']}"
    else:
        result = f"test accuracy {100 * ours['test_accuracy']:.2f} %"
    compared = "" if twin is None else f", twins differ by {describe_twin(twin)}"
    seconds = sum(run["seconds"] for run in (ours, pair.torchs) if run is not None)
    return f"{result}{compared}, {seconds:.1f} s"


def _conclude(out: Path, job: dict[str, Any], pairs: list[Pair], console: Console) -> None:
    for table in terminal_tables(job, pairs):
        console.print(table)
    console.print(EXPLANATION, style="dim", markup=False, highlight=False)
    twins = [pair.ours["twin"] for pair in pairs if pair.ours["twin"] is not None]
    same = [t for t in twins if t["parameters_equal"] and t["max_abs_loss_difference"] == 0]
    if twins:
        say(console, f"\n{len(same)} of {len(twins)} pairs of twins are equal, bit for bit.")
    say(console, f"Tables and pictures: summary.md, curves.png, gradient_flow.png in {out}")
    logs = RUNS if out.parent == RUNS else out
    say(console, f"Next, look at the runs:\n\n    tensorboard --logdir {logs}\n")


def _how_to_resume(out: Path) -> str:
    return f"finished runs are kept. Go on with:\n\n    {PROGRAM} --resume --out {out}\n"


if __name__ == "__main__":
    sys.exit(main())
