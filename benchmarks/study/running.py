"""Hand trials to workers: processes of this machine, or those of a Dask cluster.

Workers train and hand back results; this process alone writes files, so that nothing has to be
locked. With Dask any number of machines share the work: it deals trials out, and deals them out
again when a worker is lost. No digits have to be on those machines: they are sent along.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from multiprocessing.connection import wait as wait_for_end
from multiprocessing.synchronize import Event
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from benchmarks.command import CannotRun
from benchmarks.study.protocol import Study, missing
from benchmarks.study.stacked import stackable, train_stack
from benchmarks.study.store import Store
from benchmarks.study.trial import PROTOCOL, OnStep, Split, Trial, train

Unit = list[Trial]  # what is trained together
Results = list[dict[str, Any]]
OnKept = Callable[[Trial, dict[str, Any]], None]


class Stopped(Exception):
    """A worker was told to leave its trial."""


@dataclass(frozen=True)
class Workers:
    submit: Callable[[Unit], Future[Results]]
    count: int


def run_trials(
    study: Study, store: Store, workers: Workers, stack: int, on_kept: OnKept
) -> dict[str, dict[str, Any]]:
    """Run what is missing until nothing is; returns all trials."""
    known = store.trials()
    flying: dict[Future[Results], Unit] = {}
    try:
        while True:
            begun = {trial.key for unit in flying.values() for trial in unit}
            open_trials = [one for one in missing(study, known) if one.key not in begun]
            for unit in units(open_trials, stack):
                if len(flying) == workers.count:
                    break
                flying[workers.submit(unit)] = unit
            if not flying:
                return known
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                for trial, result in zip(flying.pop(future), future.result(), strict=True):
                    known[trial.key] = store.keep(trial, result)
                    on_kept(trial, known[trial.key])
    except BrokenProcessPool as problem:
        raise OSError("a worker ended without a word (out of memory?)") from problem


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
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        # Mapped into memory by all: there is one copy of the digits, however many workers.
        digits = Path(folder) / "digits.pt"
        torch.save(vars(data), digits)
        executor = ProcessPoolExecutor(
            count, context, initializer=_begin, initargs=(digits, data.images.device, stop)
        )
        try:
            yield Workers(lambda unit: executor.submit(_work, unit), count)
        finally:
            stop.set()
            executor.shutdown(cancel_futures=True)


_data: Split
_stop: Event


def _begin(digits: Path, device: torch.device, stop: Event) -> None:
    global _data, _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    one_thread()
    _data = Split(**torch.load(digits, mmap=True, map_location=device))
    _stop = stop


def _leave_with_parent() -> None:
    """A parent that is killed cannot tell its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a worker"
    wait_for_end([parent.sentinel])
    os._exit(1)


def one_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # numbers near 1e-40 would make a step several times slower


def _work(unit: Unit) -> Results:
    def check() -> None:
        if _stop.is_set():
            raise Stopped

    return work(unit, _data, check)


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
