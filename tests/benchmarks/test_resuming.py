"""Whatever ends a job, its finished runs are kept, and --resume runs the others alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, NoReturn

import pytest

from benchmarks.mnist import __main__ as mnist
from benchmarks.mnist.__main__ import main
from benchmarks.mnist.pair import TrainConfig, train_pair
from tests.benchmarks.conftest import Job
from tests.benchmarks.files import TWO, events, read, run_files

pytestmark = pytest.mark.slow


def interrupt_second_pair(monkeypatch: pytest.MonkeyPatch, how: Any) -> list[str]:
    """Let the second pair be interrupted in the middle; returns the pairs that were begun."""
    begun: list[str] = []

    def interrupted(config: TrainConfig, digits: Any, out: Path, on_steps: Any) -> None:
        begun.append(config.optimizer)

        def stop_halfway(steps: int) -> None:
            if len(begun) == 2:
                how()
            on_steps(steps)

        train_pair(config, digits, out, stop_halfway)

    monkeypatch.setattr(mnist, "train_pair", interrupted)
    return begun


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


def be_terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("how", "status"), [(press_ctrl_c, 130), (be_terminated, 143)])
def test_resuming_loses_nothing_and_repeats_nothing(
    how: Any,
    status: int,
    job: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "job"
    handler = signal.getsignal(signal.SIGTERM)
    interrupt_second_pair(monkeypatch, how)
    assert job(*TWO) == status
    assert f"--resume --out {out}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is handler
    kept = run_files(out)
    assert set(kept) == {"relu/sgd/ours", "relu/sgd/torch"}
    assert len(read(out / "summary.json")["comparisons"]) == 1

    # As after a crash, where nothing could be tidied up.
    (out / "relu" / "adam" / "ours").mkdir(parents=True)
    (out / "relu" / "adam" / "ours" / "events.out.tfevents.0.left.over").write_bytes(b"")
    begun = interrupt_second_pair(monkeypatch, how)
    assert main(["--resume", "--out", str(out)]) == 0
    assert begun == ["adam"]
    after = run_files(out)
    assert len(after) == 4
    assert kept.items() <= after.items()
    for directory in after:
        events(out / directory)

    monkeypatch.setattr(mnist, "train_pair", train_pair)
    assert job(*TWO, out=tmp_path / "uninterrupted") == 0
    for directory in after:
        one, other = (read(tmp_path / name / directory / "run.json")["curves"]
                      for name in ("job", "uninterrupted"))  # fmt: skip
        assert one == other


def test_resume_alone_takes_the_newest_job_in_runs(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("older", "newer"):
        assert job(*TWO, "--no-reference", out=Path("runs") / name) == 0
    os.utime("runs/older/settings.json", (1, 1))
    capsys.readouterr()
    assert main(["--resume"]) == 0
    shown = capsys.readouterr().out
    assert "Results go to runs/newer" in shown
    assert "2 of 2 pairs were finished before" in shown
    assert "tensorboard --logdir runs/newer\n" in shown


def test_an_error_in_one_pair_keeps_those_that_are_finished(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> NoReturn:
        raise RuntimeError("a bug")

    interrupt_second_pair(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="a bug"):
        job(*TWO)
    assert "Resume with:" in capsys.readouterr().out
    assert set(run_files(tmp_path / "job")) == {"relu/sgd/ours", "relu/sgd/torch"}


def test_a_full_disk_ends_the_job_with_one_line(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> NoReturn:
        raise OSError(28, "No space left on device")

    interrupt_second_pair(monkeypatch, fail)
    assert job(*TWO) == 1
    assert "No space left on device; finished runs are kept" in capsys.readouterr().out
