"""Compare the optimizers on deep nets, with equal tuning and several seeds.

python -m benchmarks.study --help
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common.command import CannotRun, Job, bars, conduct, pick_device, run, say
from benchmarks.study.files import STUDY_FILE
from benchmarks.study.options import build_parser, default_workers, study_of
from benchmarks.study.progress import Progress
from benchmarks.study.protocol import Study, missing
from benchmarks.study.running import (
    Workers,
    check_cluster,
    cluster,
    processes,
    run_trials,
    this_process,
)
from benchmarks.study.stacked import largest_stack
from benchmarks.study.store import Store
from benchmarks.study.trial import Split, dataset_of, split

# What the documentation shows.
RECORDED = (
    "summary.json",
    "figures/?_relu_lr_behind_the_best.svg",
    "figures/?_sigmoid_lr_sensitivity.svg",
)
AsWorkers = AbstractContextManager[Workers]


def main(arguments: Sequence[str] | None = None) -> int:
    return conduct(build_parser(), arguments, _work)


def _work(options: argparse.Namespace, job: Job) -> int:
    given, console = vars(options), job.console
    study = study_of(given)
    out = job.begin(STUDY_FILE)
    store = Store(out)
    store.check(study)
    device = pick_device(given["device"])
    if given["scheduler"] is not None:
        if device.type == "cuda":
            raise CannotRun("--scheduler trains on its workers' processors: add --device cpu")
        check_cluster(given["scheduler"])
    study, data = _load(study, store, given["data_dir"], device, job)
    store.check(study)
    _begin(store, study, device, given, job)
    settings = missing(study, {})[0].settings  # all trials' nets and batches are as large
    stack = given["stack"] or largest_stack(settings, device, given["workers"] or 1)
    _run(study, store, _workers(given, data, device), stack, console)
    _report(store, job)
    return 0


def _load(
    study: Study, store: Store, data_dir: Path | None, device: torch.device, job: Job
) -> tuple[Study, Split]:
    # A study that began with "auto" goes on with the data set that it began with.
    kind = (store.dataset or "auto") if study.dataset == "auto" else study.dataset
    digits = job.load_digits(kind, data_dir, device, study.train_size, study.test_size)
    return replace(study, dataset=dataset_of(digits)), split(digits, study.validation_size)


def _workers(
    given: Mapping[str, Any], data: Split, device: torch.device
) -> Callable[[], AsWorkers]:
    if given["scheduler"] is not None:
        return partial(cluster, given["scheduler"], data)
    count = default_workers(device) if given["workers"] is None else given["workers"]
    return partial(processes, count, data) if count else partial(this_process, data)


def _begin(
    store: Store,
    study: Study,
    device: torch.device,
    given: Mapping[str, Any],
    job: Job,
) -> None:
    console = job.console
    how = {"workers": given["workers"], "scheduler": given["scheduler"] is not None}
    as_before = store.begin(study, device, how, given["command"])
    job.keep(store.out, "finished trials")
    if not as_before:
        say(console, "Note: this study began with other versions or on another machine.")
    sizes = study.train_size - study.validation_size, study.validation_size, study.test_size
    training, validation, test = (f"{size:,}" for size in sizes)
    say(
        console,
        f"Data: {study.dataset}, {training} images train, {validation} validate, {test} test",
    )


def _run(
    study: Study,
    store: Store,
    workers: Callable[[], AsWorkers],
    stack: int,
    console: Console,
) -> None:
    with bars(console) as shown:
        progress = Progress(study, store.trials(), shown)
        if progress.left():
            with workers() as pool:
                run_trials(study, store, pool, stack, progress.kept)
    store.keep_winners(study, store.trials())


def _report(store: Store, job: Job) -> None:
    from benchmarks.study import report
    from benchmarks.study.report.tables import result_table
    from benchmarks.study.report.texts import heading, verdict
    from benchmarks.study.report.writing import PAGE

    facts = report.write(store.out)
    for comparison in facts["comparisons"]:
        if comparison["ranking"]:
            job.console.print(result_table(comparison).for_terminal(heading(comparison)))
            say(job.console, f"{verdict(comparison)}\n")
    job.end(store.out, PAGE, recorded=RECORDED, tensorboard="runs")


if __name__ == "__main__":
    run(main)
