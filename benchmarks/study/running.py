"""Hand trials to workers: processes of this machine, or those of a Dask cluster.

Workers train and hand back results; this process alone writes files, so that nothing has to be
locked. With Dask any number of machines share the work: it deals trials out, and deals them out
again when a worker is lost. No digits have to be on those machines: they are sent along.
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
from benchmarks.study.trial import PROTOCOL, OnStep, Split, Trial, train

Unit = list[Trial]  # what is trained together
Results = list[dict[str, Any]]
OnKept = Callable[[Trial, dict[str, Any]], None]


@dataclass(frozen=True)
class Workers:
    submit: Callable[[Unit], Future[Results]]
    count: int


def run_trials(
    study: Study, store: Store, some: Workers, stack: int, on_kept: OnKept
) -> dict[str, dict[str, Any]]:
    """Run what is missing until nothing is; returns all trials."""
    known = store.trials()
    flying: dict[Future[Results], Unit] = {}
    while True:
        begun = {trial.key for unit in flying.values() for trial in unit}
        open_trials = [one for one in missing(study, known) if one.key not in begun]
        for unit in units(open_trials, stack):
            if len(flying) == some.count:
                break
            flying[some.submit(unit)] = unit
        if not flying:
            return known
        done = wait(flying, return_when=FIRST_COMPLETED).done
        # Those that failed come last: what the others found is kept first.
        for future in sorted(done, key=lambda one: one.exception() is not None):
            for trial, result in zip(flying.pop(future), future.result(), strict=True):
                known[trial.key] = store.keep(trial, result)
                on_kept(trial, known[trial.key])


def units(trials: Sequence[Trial], stack: int) -> Iterator[Unit]:
    """Put together what can be stacked, up to `stack` trials."""
    for _, alike in groupby(trials, stackable):
        group = list(alike)
        for start in range(0, len(group), stack):
            yield group[start : start + stack]


def work(unit: Unit, data: Split, on_step: OnStep = lambda: None) -> Results:
    if len(unit) == 1:
        return [train(unit[0], data, on_step)]
    return train_stack(unit, data, on_step)


@contextmanager
def this_process(data: Split) -> Iterator[Workers]:
    """No workers: each trial is trained at once."""

    def submit(unit: Unit) -> Future[Results]:
        future: Future[Results] = Future()
        future.set_result(work(unit, data))
        return future

    yield Workers(submit, 1)


@contextmanager
def processes(count: int, data: Split) -> Iterator[Workers]:
    """Processes of a single thread: for nets this small, threads mostly wait for one another."""
    with _laid_down(data) as path, workers(count, _begin, path, data.images.device) as some:
        yield Workers(lambda unit: some.submit(_work, unit), count)


@contextmanager
def _laid_down(data: Split) -> Iterator[str]:
    """A file that others map into memory: one copy of the digits, however many workers.

    Where Linux names what a process has open the file has no name of its own, so that it is gone
    with the last process, even one that is killed.
    """
    opened = Path("/proc", str(os.getpid()), "fd")
    make = tempfile.TemporaryFile if opened.exists() else tempfile.NamedTemporaryFile
    with make(prefix="study-") as file:
        try:
            torch.save(vars(data), file)
            file.flush()
        except RuntimeError as problem:  # torch's word for a file that takes only a part
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
        CannotRun: it is not there, has no workers, or does not know this version of the study.
    """
    where = "benchmarks.study.trial:PROTOCOL"
    with _client(address) as client:
        found = client.run(resolve_name, where, on_error="return")
        if not found:
            raise CannotRun(f"--scheduler {address} has no workers: start some with `dask worker`")
        try:
            found[address] = client.run_on_scheduler(resolve_name, where)
        except ImportError as problem:
            found[address] = problem
    for member, protocol in found.items():
        if isinstance(protocol, ImportError):
            raise CannotRun(f"{member} does not know the study: {protocol}; see the end of --help")
        if protocol != PROTOCOL:
            raise CannotRun(f"{member} has the study's protocol {protocol}, not {PROTOCOL}")


def _client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as problem:
        raise CannotRun("--scheduler needs Dask: pip install 'dask[distributed]'") from problem
    make: Any = Client  # which is typed in part
    try:
        return make(address, timeout=10)
    except (OSError, ValueError) as problem:
        raise CannotRun(f"--scheduler {address}: {problem}") from problem


def _work_in_cluster(unit: Unit, data: Split) -> Results:
    one_thread()
    return work(unit, data)
