"""The running of a study: alone, in stacks, by workers, and through every interruption."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from benchmarks.common.command import CannotRun
from benchmarks.common.record import write_json
from benchmarks.study import __main__ as study_command
from benchmarks.study import report as study_report
from benchmarks.study import running
from benchmarks.study.files import read_trial
from benchmarks.study.protocol import BUDGETS, missing
from benchmarks.study.running import Workers, units
from benchmarks.study.stacked import LARGEST_STACK, largest_stack
from benchmarks.study.trial import FINAL, PHASES, SEARCH, TIMING, Settings, Split, Trial, train
from tests.benchmarks.children import child, processes_of, wait_until
from tests.benchmarks.files import read
from tests.benchmarks.study_jobs import TINY_STUDY, contents, run_study, trial_files

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report")]


@pytest.fixture(scope="module")
def stacked_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stacked") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_report, "write", lambda out: {"comparisons": []})
        assert run_study(out, "--stack", "8") == 0
    return out


def test_a_stacked_study_finds_the_same_trials(finished_study: Path, stacked_study: Path) -> None:
    stacked = [one for one in contents(stacked_study) if one["phase"] != TIMING]
    for one, other in zip(stacked, contents(finished_study), strict=True):
        assert one["settings"] == other["settings"]
        assert one["result"]["seconds"] is None or one["phase"] == "search"
        if one["result"]["validation_loss"] is not None:  # rounding, in single precision
            assert one["result"]["validation_loss"] == pytest.approx(
                other["result"]["validation_loss"], rel=1e-2
            )


def timed(out: Path) -> list[dict[str, Any]]:
    return [one for one in contents(out) if one["phase"] == TIMING]


def test_stacked_finals_are_timed_alone(finished_study: Path, stacked_study: Path) -> None:
    assert timed(finished_study) == []
    finals = [one["settings"] for one in contents(stacked_study) if one["phase"] == FINAL]
    assert len(timed(stacked_study)) == len(finals) == 4  # two optimizers, two seeds
    for one in timed(stacked_study):
        assert one["settings"] in finals
        assert one["result"]["seconds"] > 0
        assert one["result"]["test_loss"] is None


def test_a_resumed_study_times_only_what_is_missing(
    stacked_study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "study"
    shutil.copytree(stacked_study, out)
    (lost, *_) = [path for path in (out / "trials").iterdir() if read(path)["phase"] == TIMING]
    lost.unlink()
    before = trial_files(out)
    trained: list[str] = []

    def noted(trial: Trial, data: Any, on_step: Any) -> Any:
        trained.append(trial.key)
        return train(trial, data, on_step)

    monkeypatch.setattr(running, "train", noted)
    assert run_study(out, "--stack", "8") == run_study(out, "--stack", "8") == 0
    assert trained == [lost.stem]
    assert "learning rate" not in capsys.readouterr().out, "it chooses nothing"
    assert before.items() <= trial_files(out).items()
    assert set(trial_files(out)) == set(trial_files(stacked_study))


@pytest.mark.parametrize("seconds", [None, "fast"])
def test_a_timing_trial_without_seconds_is_refused(
    seconds: object, stacked_study: Path, tmp_path: Path
) -> None:
    content = timed(stacked_study)[0]
    content["result"]["seconds"] = seconds
    write_json(tmp_path / "trial.json", content)
    with pytest.raises(CannotRun, match=r"result\.seconds"):
        read_trial(tmp_path / "trial.json")


def test_no_other_trial_is_trained_beside_a_timing_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: Any = None
    pending: dict[Future[Any], list[Trial]] = {}
    beside: dict[str, list[int]] = {phase: [] for phase in PHASES}  # units that were pending

    def submit(unit: list[Trial]) -> Future[Any]:
        assert all(other[0].phase != TIMING for other in pending.values())
        beside[unit[0].phase].append(len(pending))
        future: Future[Any] = Future()
        pending[future] = unit
        return future

    def finish_one(futures: Any, return_when: str) -> Any:
        (first, *_) = futures
        first.set_result(running.work(pending.pop(first), data))
        return SimpleNamespace(done={first})

    @contextmanager
    def three_workers(of_study: Split) -> Iterator[Workers]:
        nonlocal data
        data = of_study
        yield Workers(submit, 3)

    monkeypatch.setattr(study_command, "this_process", three_workers)
    monkeypatch.setattr(running, "wait", finish_one)
    assert run_study(tmp_path / "study", "--stack", "2") == 0
    assert max(beside[SEARCH]) == 2
    assert beside[TIMING] == [0] * 4


def test_two_commands_do_not_work_on_one_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    trained: list[str] = []

    def meanwhile(trial: Trial, data: Any, on_step: Any) -> Any:
        if not trained:
            with pytest.raises(SystemExit):
                run_study(out)
        trained.append(trial.key)
        return train(trial, data, on_step)

    monkeypatch.setattr(running, "train", meanwhile)
    assert run_study(out) == 0
    assert f"another command is at work in --out {out}" in capsys.readouterr().err
    assert len(trained) == len(set(trained)) == len(trial_files(out))


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


def be_terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fill_the_disk() -> NoReturn:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("how", "status"), [(press_ctrl_c, 130), (be_terminated, 143), (fill_the_disk, 1)]
)
def test_whatever_ends_a_study_the_same_command_goes_on(
    how: Callable[[], None],
    status: int,
    finished_study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "study"
    trained: list[str] = []

    def interrupted(trial: Trial, data: Any, on_step: Any) -> Any:
        if len(trained) == 4:
            how()
        trained.append(trial.key)
        return train(trial, data, on_step)

    monkeypatch.setattr(running, "train", interrupted)
    assert run_study(out) == status
    assert f"--out {out}" in capsys.readouterr().out
    kept = trial_files(out)
    assert len(kept) == 4

    monkeypatch.setattr(running, "train", train)
    assert run_study(out) == 0
    after = trial_files(out)
    assert kept.items() <= after.items()
    assert set(after) == set(trial_files(finished_study))
    for one, other in zip(contents(out), contents(finished_study), strict=True):
        for result in (one["result"], other["result"]):
            result.pop("seconds")
            result.pop("targets")
        assert one == other


def test_a_disk_that_is_full_leaves_no_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fsync, calls = os.fsync, []

    def fail_later(file: int) -> None:
        calls.append(file)
        if len(calls) == 4:
            fill_the_disk()
        fsync(file)

    monkeypatch.setattr(os, "fsync", fail_later)
    assert run_study(tmp_path / "study") == 1
    assert "No space left on device; finished trials are kept" in capsys.readouterr().out
    assert len(contents(tmp_path / "study")) == 2
    assert not list((tmp_path / "study").rglob("*.partial"))


ENDLESS = ("--workers", "2", "--epochs", "100000", "--test-size", "61")


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A study that two processes are in the middle of."""
    names = ("-m", "benchmarks.study", *TINY_STUDY, *ENDLESS, "--out", str(tmp_path / "endless"))
    (tmp_path / "temporary").mkdir()
    with child(*names, TMPDIR=str(tmp_path / "temporary")) as process:
        wait_until(lambda: len(processes_of(process.pid, "spawn_main")) == 2)
        time.sleep(3)
        yield process


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_no_worker_outlives_the_command(
    endless: subprocess.Popen[str], number: signal.Signals, status: int, tmp_path: Path
) -> None:
    os.kill(endless.pid, number)
    assert endless.wait(60) == status
    wait_until(lambda: not processes_of(endless.pid))
    assert not list((tmp_path / "temporary").rglob("*")), "the digits are gone with them"


def test_workers_find_what_one_process_finds(finished_study: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert run_study(out, "--workers", "2") == 0
    for one, other in zip(contents(out), contents(finished_study), strict=True):
        assert one["result"]["curves"] == other["result"]["curves"]


def die(unit: object) -> NoReturn:
    os._exit(1)


def test_a_worker_that_dies_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "_work", die)
    assert run_study(tmp_path / "study", "--workers", "1") == 1
    assert "a worker ended without a word" in capsys.readouterr().out


def test_a_cluster_of_dask_trains_the_same(
    finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # a cluster in one process, but it asks for the machine's address
    distributed = pytest.importorskip("distributed", reason="Dask is an extra")
    with distributed.Client(processes=False, n_workers=2, threads_per_worker=1,
                            dashboard_address=None) as client:  # fmt: skip
        address = client.scheduler.address
        assert run_study(tmp_path / "study", "--scheduler", address, "--device", "cpu") == 0
    for one, other in zip(contents(tmp_path / "study"), contents(finished_study), strict=True):
        assert one["result"]["curves"] == other["result"]["curves"]


def test_units_hold_only_what_can_be_stacked() -> None:
    made = [
        Trial(SEARCH, "lr", Settings("relu", optimizer, lr, seed=seed))
        for optimizer in ("sgd", "adam")
        for lr, seed in ((0.1, 0), (0.2, 0), (0.2, 1))
    ]
    assert [len(unit) for unit in units(made, 2)] == [2, 1, 2, 1]
    assert [trial for unit in units(made, 2) for trial in unit] == made


def test_each_timing_trial_is_a_unit() -> None:
    made = [Trial(TIMING, "lr", Settings("relu", "sgd", 0.1, seed=seed)) for seed in (1, 2, 3)]
    assert list(units(made, LARGEST_STACK)) == [[trial] for trial in made]


@pytest.mark.parametrize(
    ("changes", "workers", "free", "nets"),
    [
        ({}, 1, 2**40, LARGEST_STACK),
        # 167,818 parameters, their gradients and two state tensors; 1,000 x 1,300 activations.
        ({}, 1, 20 * 4 * (4 * 167_818 + 1_300_000), 10),
        ({}, 2, 20 * 4 * (4 * 167_818 + 1_300_000), 5),
        # 128 times the batch: 784 pixels and 1,300 activations with their gradients.
        ({"batch_size": 16_384}, 1, 20 * 4 * (4 * 167_818 + 16_384 * 3_384), 10),
        ({"width": 10_000}, 1, 2**20, 1),
    ],
)
def test_a_stack_is_as_large_as_the_memory_of_a_gpu_allows(
    changes: dict[str, int],
    workers: int,
    free: int,
    nets: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings("relu", "adam", 0.1, **changes)  # type: ignore[arg-type]  # of various types
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**41))
    assert largest_stack(settings, torch.device("cuda"), workers) == nets
    assert largest_stack(settings, torch.device("cpu"), workers) == 1


def test_all_seeds_of_an_optimizer_are_one_stack_on_a_gpu() -> None:
    study = BUDGETS["gpu"]
    assert (study.seeds, study.grid.count) == (100, 36)
    search = missing(study, {})
    assert {len(unit) for unit in units(search, LARGEST_STACK)} == {36}
    finals = [replace(search[0], phase=FINAL, settings=replace(search[0].settings, seed=seed))
              for seed in range(study.seeds)]  # fmt: skip
    assert list(units(finals, LARGEST_STACK)) == [finals]
