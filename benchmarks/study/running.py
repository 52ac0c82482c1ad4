"""Hand trials to workers: processes of this machine, or those of a Dask cluster.

Workers train and return results. Only this process writes files, so nothing has to be locked.
With Dask any number of machines share the work, and the trials of a lost worker are run again.
Those machines need no data set: the digits are sent to them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from benchmarks.common.command import CannotRun
from benchmarks.common.workers import workers
from benchmarks.study.protocol import Study, missing
from benchmarks.study.stacked import stackable, train_stack
from benchmarks.study.store import Store
from benchmarks.study.trial import PROTOCOL, TIMING, OnStep, Split, Trial, run_key_of, train

Unit = list[Trial]  # what is trained together
Results = list[dict[str, Any]]
OnKept = Callable[[Trial, dict[str, Any]], None]


@dataclass(frozen=True)
class Workers:
    submit: Callable[[Unit], Future[Results]]
    count: int


def run_trials(
    study: Study, store: Store, pool: Workers, stack: int, on_kept: OnKept
) -> dict[str, dict[str, Any]]:
    """Run what is missing until nothing is; returns all trials.

    A trial that is in both search spaces is run once and kept for each of them. While a timing
    trial is run, the other workers wait.
    """
    known = store.trials()
    results = {run_key_of(content): content["result"] for content in known.values()}
    running: dict[Future[Results], Unit] = {}

    def keep(trial: Trial, result: dict[str, Any]) -> None:
        known[trial.key] = store.keep(trial, result)
        results[trial.run_key] = known[trial.key]["result"]
        on_kept(trial, known[trial.key])

    while True:
        while shared := [trial for trial in missing(study, known) if trial.run_key in results]:
            for trial in shared:
                keep(trial, results[trial.run_key])
        begun = {trial.run_key for unit in running.values() for trial in unit}
        waiting = [trial for trial in missing(study, known) if trial.run_key not in begun]
        for unit in units(waiting, stack):
            if len(running) >= (1 if unit[0].phase == TIMING else pool.count):
                break
            running[pool.submit(unit)] = unit
        if not running:
            return known
        done = wait(running, return_when=FIRST_COMPLETED).done
        # The results of the others are kept before an exception is raised.
        for future in sorted(done, key=lambda future: future.exception() is not None):
            for trial, result in zip(running.pop(future), future.result(), strict=True):
                keep(trial, result)


def units(trials: Sequence[Trial], stack: int) -> Iterator[Unit]:
    """Group neighbours that can be stacked, up to `stack` trials in each."""
    for _, neighbours in groupby(trials, stackable):
        group = list(neighbours)
        for start in range(0, len(group), stack):
            yield group[start : start + stack]


def work(unit: Unit, data: Split, on_step: OnStep = lambda: None) -> Results:
    if len(unit) == 1:
        return [train(unit[0], data, on_step)]
    return train_stack(unit, data, on_step)


@contextmanager
def this_process(data: Split) -> Iterator[Workers]:
    """No workers: each trial is trained when it is submitted."""

    def submit(unit: Unit) -> Future[Results]:
        future: Future[Results] = Future()
        future.set_result(work(unit, data))
        return future

    yield Workers(submit, 1)


@contextmanager
def processes(count: int, data: Split) -> Iterator[Workers]:
    """Processes of one thread each: with nets this small, threads mostly wait for one another."""
    with _laid_down(data) as path, workers(count, _begin, path, data.images.device) as pool:
        yield Workers(lambda unit: pool.submit(_work, unit), count)


@contextmanager
def _laid_down(data: Split) -> Iterator[str]:
    """A file that all workers map into memory, so that there is one copy of the digits.

    Where /proc lists open files it has no other name, so it vanishes with the last process that
    has it open, even if that is killed.
    """
    opened = Path("/proc", str(os.getpid()), "fd")
    make = tempfile.TemporaryFile if opened.exists() else tempfile.NamedTemporaryFile
    with make(prefix="study-") as file:
        try:
            torch.save(vars(data), file)
            file.flush()
        except RuntimeError as problem:  # which torch raises for a file that was cut short
            raise OSError(f"no room for the digits in {tempfile.gettempdir()}") from problem
        yield str(opened / str(file.fileno())) if opened.exists() else file.name


_data: Split


def _begin(digits: str, device: torch.device) -> None:
    global _data
    one_thread()
    _data = Split(**torch.load(digits, mmap=True, map_location=device, weights_only=True))


def one_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # numbers near 1e-40 would make a step several times slower


def _work(unit: Unit) -> Results:
    return work(unit, _data)


@contextmanager
def cluster(address: str, data: Split) -> Iterator[Workers]:
    """The workers of the Dask scheduler at an address."""
    with _client(address) as client:
        sent = client.scatter(data, broadcast=True)
        executor = client.get_executor(pure=False)
        try:
            yield Workers(
                lambda unit: executor.submit(_work_in_cluster, unit, sent),
                sum(client.nthreads().values()),
            )
        finally:
            executor.shutdown(wait=False)


def check_cluster(address: str) -> None:
    """Refuse a cluster that cannot train, or would train something else.

    Raises:
        CannotRun: it is absent, has no workers, or has another version of the study.
    """
    where = "benchmarks.study.trial:PROTOCOL"
    with _client(address) as client:
        protocols = client.run(resolve_name, where, on_error="return")
        if not protocols:
            raise CannotRun(f"--scheduler {address} has no workers: start some with `dask worker`")
        try:
            protocols[address] = client.run_on_scheduler(resolve_name, where)
        except ImportError as problem:
            protocols[address] = problem
    for member, protocol in protocols.items():
        if isinstance(protocol, ImportError):
            raise CannotRun(f"{member} does not know the study: {protocol}; see the end of --help")
        if protocol != PROTOCOL:
            raise CannotRun(f"{member} has the study's protocol {protocol}, not {PROTOCOL}")


def _client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as problem:
        raise CannotRun("--scheduler needs Dask: pip install 'dask[distributed]'") from problem
    make_client: Any = Client  # which is only partly typed
    try:
        return make_client(address, timeout=10)
    except (OSError, ValueError) as problem:
        raise CannotRun(f"--scheduler {address}: {problem}") from problem


def _work_in_cluster(unit: Unit, data: Split) -> Results:
    one_thread()
    return work(unit, data)
