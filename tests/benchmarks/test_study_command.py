"""The study's command: its folder, interruptions, workers, and what it says to bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from benchmarks.study import report, running
from benchmarks.study.running import units
from benchmarks.study.trial import PROTOCOL, SEARCH, Settings, Trial, train
from tests.benchmarks.files import events, read
from tests.benchmarks.study_jobs import TINY_STUDY, contents, run_study, trial_files


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has tests of its own."""
    monkeypatch.setattr(report, "write", lambda out: (out / "report.md").write_text("report"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda out: (out / "report.md").write_text("report"))
        assert run_study(out) == 0
    return out


def test_every_trial_has_a_file_of_what_it_was_and_what_came_of_it(finished: Path) -> None:
    found = contents(finished)
    assert {path.stem for path in (finished / "trials").iterdir()} == {
        Trial(one["phase"], one["track"], Settings(**one["settings"])).key for one in found
    }
    assert {one["phase"] for one in found} == {"search", "final"}
    for one in found:
        assert set(one) == {"protocol", "phase", "track", "settings", "result"}
        assert one["protocol"] == PROTOCOL
        assert one["settings"]["dataset"] == "drawn"
        assert (one["settings"]["train_size"], one["settings"]["validation_size"]) == (200, 40)
        assert set(one["result"]["targets"]) == {"0.97", "0.98"}
        assert one["result"]["seconds"] > 0
        assert (one["result"]["test_loss"] is None) == (one["phase"] == "search")


def test_the_study_says_what_it_is_and_who_won(finished: Path) -> None:
    content = read(finished / "study.json")
    assert content["protocol"] == PROTOCOL
    assert content["settings"]["optimizers"] == ["sgd", "adam"]
    assert content["settings"]["dataset"] == "drawn"
    assert {"machine", "versions"} <= set(content)
    assert [(one["optimizer"], one["track"]) for one in content["winners"]] == [
        ("sgd", "lr"), ("adam", "lr"),
    ]  # fmt: skip
    for one in content["winners"]:
        assert read(finished / "trials" / f"{one['key']}.json")["settings"]["lr"] == one["lr"]


def test_each_finalist_is_one_run_of_tensorboard_with_its_settings(finished: Path) -> None:
    runs = finished / "runs"
    assert {str(path.parent.relative_to(runs)) for path in runs.rglob("events*")} == {
        f"lr/relu/{optimizer}/seed_{seed}" for optimizer in ("sgd", "adam") for seed in (42, 43)
    }
    directory = runs / "lr" / "relu" / "adam" / "seed_42"
    found = events(directory)
    assert {
        "accuracy/test", "accuracy/validation", "loss/train", "loss/test", "gradient_norm/layer_1",
    } <= set(found.Tags()["scalars"])  # fmt: skip
    result = read(directory / "run.json")["result"]
    assert found.Scalars("loss/test")[-1].value == pytest.approx(result["test_loss"])
    plugin = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"schedule" in plugin


def test_a_finished_study_runs_nothing_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> NoReturn:
        raise AssertionError("something was trained")

    monkeypatch.setattr(running, "train", refuse)
    before = trial_files(finished)
    assert run_study(finished) == 0
    assert trial_files(finished) == before


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
    assert f"another command is at work on the study in --out {out}" in capsys.readouterr().err
    assert len(trained) == len(set(trained)) == len(trial_files(out))


def test_a_stacked_study_finds_the_same_trials(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "stacked"
    assert run_study(out, "--stack", "8") == 0
    assert set(trial_files(out)) == set(trial_files(finished))
    for one in contents(out):
        assert one["result"]["seconds"] is None or one["phase"] == "final"
    for one, other in zip(contents(out), contents(finished), strict=True):
        if one["result"]["validation_loss"] is not None:  # rounding, in single precision
            assert one["result"]["validation_loss"] == pytest.approx(
                other["result"]["validation_loss"], rel=1e-2
            )


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
    finished: Path,
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
    assert set(after) == set(trial_files(finished))
    for one, other in zip(contents(out), contents(finished), strict=True):
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


COMMAND = [sys.executable, "-m", "benchmarks.study", "--no-published", *TINY_STUDY]
ENDLESS = ("--workers", "2", "--epochs", "100000", "--test-size", "61")


def processes_of(group: int) -> list[int]:
    found = subprocess.run(["ps", "-eo", "pid,pgid"], capture_output=True, text=True, check=True)
    rows = [line.split() for line in found.stdout.splitlines()[1:]]
    return [int(pid) for pid, its in rows if int(its) == group]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A study that two processes are in the middle of."""
    child = subprocess.Popen(
        [*COMMAND, *ENDLESS, "--out", str(tmp_path / "endless")],
        start_new_session=True, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    # Itself, multiprocessing's tracker and two workers.
    wait_until(lambda: len(processes_of(child.pid)) >= 4)
    time.sleep(3)
    yield child
    for process in processes_of(child.pid):
        os.kill(process, signal.SIGKILL)
    child.communicate()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_no_worker_outlives_the_command(
    endless: subprocess.Popen[str], number: signal.Signals, status: int
) -> None:
    os.kill(endless.pid, number)
    assert endless.wait(60) == status
    wait_until(lambda: not processes_of(endless.pid))


def test_workers_find_what_one_process_finds(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert run_study(out, "--workers", "2") == 0
    for one, other in zip(contents(out), contents(finished), strict=True):
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
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # a cluster in one process, but it asks for the machine's address
    distributed = pytest.importorskip("distributed", reason="Dask is an extra")
    with distributed.Client(processes=False, n_workers=2, threads_per_worker=1,
                            dashboard_address=None) as client:  # fmt: skip
        address = client.scheduler.address
        assert run_study(tmp_path / "study", "--scheduler", address, "--device", "cpu") == 0
    for one, other in zip(contents(tmp_path / "study"), contents(finished), strict=True):
        assert one["result"]["curves"] == other["result"]["curves"]


def test_units_hold_only_what_can_be_stacked() -> None:
    made = [
        Trial(SEARCH, "lr", Settings("relu", optimizer, lr))
        for optimizer in ("sgd", "adam")
        for lr in (0.1, 0.2, 0.3)
    ]
    assert [len(unit) for unit in units(made, 2)] == [2, 1, 2, 1]
    assert [trial for unit in units(made, 2) for trial in unit] == made


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--optimizers", "adma"), "no 'adma' here; valid are sgd"),
        (("--nets", "tanh"), "no 'tanh' here"),
        (("--budget", "huge"), "invalid choice: 'huge'"),
        (("--schedule", "linear"), "invalid choice: 'linear'"),
        (("--seeds", "0"), "'0' is not a whole number from 1 up"),
        (("--tracks", "all"), "choose both"),
        (("--tracks", "lr", "all"), "add --samples"),
        (("--batch-size", "1000"), "--batch-size 1000 is more than the 200"),
        (("--train-size", "5"), "--train-size 5 leaves no image"),
        (("--scheduler", "nonsense"), "--scheduler nonsense"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    arguments: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_study(tmp_path / "new", *arguments)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def refusal(out: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    before = trial_files(out)
    with pytest.raises(SystemExit):
        run_study(out, *arguments)
    assert trial_files(out) == before
    return capsys.readouterr().err


def test_a_study_with_other_settings_is_not_mixed_in(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds a study with schedule constant, not step" in refusal(
        finished, capsys, "--schedule", "step"
    )
    assert "with optimizers" in refusal(finished, capsys, "--optimizers", "rmsprop")


def test_another_protocol_is_not_mixed_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"protocol": 0, "settings": {}}))
    assert "by protocol 0, whose trials cannot be mixed" in refusal(tmp_path, capsys)


def test_what_is_no_study_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty and holds no study" in refusal(tmp_path, capsys)


def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert run_study(out) == 0
    path = min((out / "trials").iterdir())
    path.write_text("{")
    assert str(path) in refusal(out, capsys)
    path.unlink()
    assert run_study(out) == 0
    (out / "study.json").write_text("[]")
    assert "study.json" in refusal(out, capsys)


def test_published_numbers_are_measured_on_mnist_alone(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_study(finished) == 0
    assert "The published numbers are of MNIST" in capsys.readouterr().out
    assert run_study(finished, "--no-published") == 0
    assert "published" not in capsys.readouterr().out
