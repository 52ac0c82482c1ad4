"""Train five optimizers, ours and torch's side by side, on a deep sigmoid net and a deep ReLU net.

python -m benchmarks.mnist --help
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common import processes
from benchmarks.common.command import CannotRun, Job, bars, conduct, pick_device, run, say
from benchmarks.common.data import SYNTHETIC_NAME, Digits, find_data_dir
from benchmarks.common.implementations import torchs_default_is_its_loop
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.reading import text
from benchmarks.common.record import conditions, write_json
from benchmarks.mnist.options import BUDGETS, DEFAULTS, OF_THE_JOB, build_parser
from benchmarks.mnist.pair import SCRATCH, TORCH, TrainConfig, train_pair
from benchmarks.mnist.report import (
    EXPLANATION,
    SETTINGS_FILE,
    TORCHS_DEFAULT,
    Pair,
    describe,
    describe_torchs_default,
    is_finished,
    read_job,
    terminal_tables,
    write_report,
)

SHOWN_EVERY = 20  # steps between two updates of the progress bars


def main(arguments: Sequence[str] | None = None) -> int:
    if processes.rank() == 0:
        return conduct(build_parser(), arguments, _lead)
    return conduct(build_parser(), arguments, _follow, Console(quiet=True))


def _follow(given: argparse.Namespace, job: Job) -> int:
    """Train along with the first process, which reports; what this one would report is dropped."""
    with processes.joined(), tempfile.TemporaryDirectory() as dropped:
        content, missing = processes.broadcast()
        digits = _load(content, pick_device(content["settings"]["device"]), job)
        for config in missing:
            train_pair(config, digits, Path(dropped))
    return 0


def _lead(given: argparse.Namespace, job: Job) -> int:
    asked = {name: value for name, value in vars(given).items() if name in OF_THE_JOB}
    with processes.joined():
        out = job.begin(SETTINGS_FILE)
        content = _resumed_job(out, asked) if given.resume else _new_job(asked)
        job.check_budget(content["settings"]["budget"])
        if (batch := content["settings"]["batch_size"]) % processes.count():
            raise CannotRun(
                f"--batch-size {batch} cannot be shared out evenly to {processes.count()} processes"
            )
        device = pick_device(content["settings"]["device"])
        if device.type == "cuda" and processes.lacks_gpus():
            raise CannotRun("each process needs a GPU: start fewer, or add --device cpu")
        content["settings"]["device"] = device.type
        content["settings"]["capture"] = _is_captured(content["settings"]["capture"], device)
        digits = _load(content, device, job)
        _begin(out, content, digits, device, job)
        pairs = _train_all(out, content, digits, job.console)
        _conclude(out, content, pairs, job)
    return 0


def _new_job(asked: dict[str, Any]) -> dict[str, Any]:
    data_dir, named = find_data_dir(asked.pop("data_dir", None))
    settings = DEFAULTS | asked
    settings = BUDGETS[settings["budget"]] | settings
    rates = {name: OPTIMIZERS[name].lr for name in settings["optimizers"]}
    if unknown := [name for name in settings["lr"] if name not in rates]:
        raise CannotRun(f"--lr names {unknown[0]}, which is not among the optimizers to be run")
    settings["lr"] = rates | settings["lr"]
    parameter = torch.zeros(1, requires_grad=True)
    for config in _configs(settings | {"capture": False}):
        for option, implementation in (("--engine", SCRATCH), ("--torch-engine", TORCH)):
            try:
                config.make_optimizer(implementation, [parameter])
            except NotImplementedError as problem:
                raise CannotRun(f"{option}: {problem}") from problem
    if named and not text(str(data_dir)):
        raise CannotRun(f"cannot read {data_dir}: the name is not plain text")
    return {"settings": settings, "data_dir": str(data_dir) if named else None}


def _resumed_job(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The job as it was begun; options need not be repeated, but may not differ."""
    job = read_job(out)
    if "data_dir" in asked:
        job["data_dir"] = str(asked.pop("data_dir"))
    for name, value in asked.items():
        stored = job["settings"][name]
        if name == "lr":
            stored = {key: stored.get(key) for key in value}
        if value not in (stored, "auto"):
            option = "--" + name.replace("_", "-")
            raise CannotRun(
                f"{option} differs from the job in {out}, which has {stored}; "
                "leave it out to resume, or begin a new job"
            )
    return job


def _is_captured(asked: bool | None, device: torch.device) -> bool:
    """Whether steps are captured in a CUDA graph: on a GPU, unless several processes train."""
    if asked and device.type != "cuda":
        raise CannotRun("--capture needs a CUDA device")
    if asked and processes.count() > 1:
        raise CannotRun("--capture works in a single process")
    return device.type == "cuda" and processes.count() == 1 if asked is None else asked


def _load(content: dict[str, Any], device: torch.device, job: Job) -> Digits:
    settings = content["settings"]
    sizes = settings["train_size"], settings["test_size"]
    data_dir = None if content["data_dir"] is None else Path(content["data_dir"])
    return job.load_digits(settings["dataset"], data_dir, device, *sizes)


def _begin(
    out: Path, content: dict[str, Any], digits: Digits, device: torch.device, job: Job
) -> None:
    now = conditions(device, job.given.command)
    if "dataset" not in content:
        content.update(dataset=digits.name, **now)
        # What "auto" came to is kept: a resumed job must not go on with other data.
        settings = content["settings"]
        settings["dataset"] = "synthetic" if digits.name == SYNTHETIC_NAME else "mnist"
        # On a CPU torch's default is its loop.
        if device.type == "cuda" and settings["reference"] and settings["torch_engine"] == "loop":
            content[TORCHS_DEFAULT] = [
                name
                for name in settings["optimizers"]
                if not torchs_default_is_its_loop(OPTIMIZERS[name], device)
            ]
        write_json(out / SETTINGS_FILE, content)
    job.keep(out, "finished runs")
    if any(content[key] != now[key] for key in ("versions", "machine")):
        say(job.console, "Note: this job began with other versions or on another machine.")
    train, test = len(digits.train_labels), len(digits.test_labels)
    say(
        job.console,
        f"Data: {digits.name}, {train:,} training and {test:,} test images on {device}",
    )


def _train_all(out: Path, job: dict[str, Any], digits: Digits, console: Console) -> list[Pair]:
    configs = list(_configs(job["settings"]))
    missing = [config for config in configs if not _is_done(out, config)]
    if len(missing) < len(configs):
        say(console, f"{len(configs) - len(missing)} of {len(configs)} pairs were finished before")
    if processes.count() > 1:
        say(console, f"{processes.count()} processes train, each on its part of every batch")
        processes.broadcast((job, missing))
    pairs = write_report(out)
    images = len(digits.train_labels)
    with bars(console) as shown:
        everything = shown.add_task(
            "all", total=sum(config.epochs * config.steps_per_epoch(images) for config in missing)
        )
        for config in missing:
            total, done = config.epochs * config.steps_per_epoch(images), 0
            title = f"{config.net} {OPTIMIZERS[config.optimizer].title}"
            one = shown.add_task(title, total=total)

            def on_steps(steps: int, one: Any = one) -> None:
                nonlocal done
                done += steps
                if done % SHOWN_EVERY == 0:
                    shown.advance(one, SHOWN_EVERY)
                    shown.advance(everything, SHOWN_EVERY)

            train_pair(config, digits, out, on_steps)
            shown.remove_task(one)
            shown.advance(everything, total - done // SHOWN_EVERY * SHOWN_EVERY)
            pairs = write_report(out)
            finished = next(
                pair
                for pair in pairs
                if (pair.net, pair.optimizer) == (config.net, config.optimizer)
            )
            place = f"[{configs.index(config) + 1}/{len(configs)}]"
            say(shown.console, f"{place} {title}: {_in_a_line(finished)}")
    return pairs


def _configs(settings: dict[str, Any]) -> Iterator[TrainConfig]:
    for net in settings["nets"]:
        for optimizer in settings["optimizers"]:
            yield TrainConfig(
                net=net,
                optimizer=optimizer,
                lr=settings["lr"][optimizer],
                **{
                    name: settings[name]
                    for name in (
                        "epochs", "batch_size", "seed", "depth", "width", "engine", "torch_engine",
                        "capture", "reference",
                    )
                },
            )  # fmt: skip


def _is_done(out: Path, config: TrainConfig) -> bool:
    return is_finished(out, config.net, config.optimizer, config.implementations())


def _in_a_line(pair: Pair) -> str:
    ours, comparison = pair.ours, pair.ours["comparison"]
    if ours["diverged"]:
        result = f"diverged at step {ours['diverged_at_step']}"
    else:
        result = f"test accuracy {100 * ours['test_accuracy']:.2f} %"
    compared = f", difference from torch: {describe(comparison)}" if comparison else ""
    seconds = sum(run["seconds"] for run in (ours, pair.torchs) if run is not None)
    return f"{result}{compared}, {seconds:.1f} s"


def _conclude(out: Path, content: dict[str, Any], pairs: list[Pair], job: Job) -> None:
    for table in terminal_tables(content, pairs):
        job.console.print(table)
    job.console.print(EXPLANATION, style="dim", markup=False, highlight=False)
    compared = [pair.ours["comparison"] for pair in pairs if pair.ours["comparison"]]
    same = [c for c in compared if c["parameters_equal"] and c["max_abs_loss_difference"] == 0]
    if compared:
        say(job.console, f"\n{len(same)} of {len(compared)} pairs are equal, bit for bit.")
    if sentence := describe_torchs_default(content):
        say(job.console, sentence)
    job.end(out, "summary.md", recorded=("summary.json", "*.png"), tensorboard=".")


if __name__ == "__main__":
    run(main)
