"""The command that reproduces published results: progress, interruption, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.common.data import Digits
from benchmarks.reproductions import __main__ as command
from benchmarks.reproductions import running
from benchmarks.reproductions.case import REPORTED_EVERY, Case, Lab, Measured, Settings
from benchmarks.reproductions.running import RESULT
from tests.benchmarks.children import ROOT
from tests.benchmarks.files import read
from tests.benchmarks.test_reproductions import WRONG, a_case, against_wrong

pytestmark = pytest.mark.slow


@pytest.fixture
def small_table(
    monkeypatch: pytest.MonkeyPatch, digits: Digits
) -> tuple[list[str], dict[str, Case]]:
    """One case in the place of all; MNIST is the synthetic digits."""
    calls: list[str] = []
    cases = {"a": a_case(calls), "b": a_case(calls)}
    for module in (command, running):
        monkeypatch.setattr(module, "CASES", cases)
    monkeypatch.setattr(command, "load_mnist", lambda *arguments, **options: digits)
    return calls, cases


def test_the_command_runs_and_shows_every_case(
    small_table: tuple[list[str], dict[str, Case]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--budget", "quick", "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "[2/2] A case: " in shown
    assert "2 of 4 figures reproduced, 0 differ, 2 not run." in shown
    assert "nothing is trained (2).\n" in shown
    assert command.main([*arguments, "--resume"]) == 0
    calls, _ = small_table
    assert len(calls) == 2


def test_wrong_optimizers_are_tried_unless_they_are_left_out(
    small_table: tuple[list[str], dict[str, Case]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls, cases = small_table
    cases["a"] = against_wrong(cases["a"])
    arguments = ["a", "--budget", "quick", "--out", str(tmp_path / "out")]
    assert command.main([*arguments, "--no-wrong"]) == 0
    assert calls == ["{}"]
    assert "not tried" in capsys.readouterr().out
    assert command.main([*arguments, "--resume"]) == 0
    assert calls == ["{}", *WRONG]
    shown = capsys.readouterr().out
    assert "[2/2] A case; wrong: never trained: " in shown
    assert "never trained (2 of 2)" in " ".join(shown.split())


def test_a_long_experiment_says_how_far_it_is(
    small_table: tuple[list[str], dict[str, Case]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
        lab.expect(4 * REPORTED_EVERY)
        for _ in range(2 * REPORTED_EVERY):
            lab.step()
        return {}

    monkeypatch.setattr(command, "REPORT_SECONDS", 0)
    _, cases = small_table
    cases["a"] = replace(cases["a"], measure=slow)
    assert command.main(["a", "--budget", "quick", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "[1/1] A case: 25%\n[1/1] A case: 50%\n[1/1] A case: 0 s\n" in shown


def test_a_case_without_mnist_runs_without_mnist(
    small_table: tuple[list[str], dict[str, Case]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, cases = small_table
    monkeypatch.setattr(command, "load_mnist", lambda *arguments: pytest.fail("it is loaded"))
    cases["a"] = replace(cases["a"], needs_mnist=False)
    assert command.main(["a", "--budget", "quick", "--out", str(tmp_path)]) == 0
    assert calls == ["{}"]


def test_an_interrupted_command_says_how_to_go_on(
    small_table: tuple[list[str], dict[str, Case]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
        raise KeyboardInterrupt

    _, cases = small_table
    cases["b"] = replace(cases["b"], measure=interrupted)
    assert command.main(["--budget", "quick", "--out", str(tmp_path)]) == 130
    shown = capsys.readouterr().out
    assert f"--budget quick --resume --out {tmp_path}" in shown
    assert [result["case"] for result in read(tmp_path / RESULT)["cases"]] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["other"], "no 'other' here"),
        (["--budget", "huge"], "no 'huge' here"),
        (["--out", "{}/file/deeper"], "is not a directory"),
        (["--data-dir", "{}/file"], "{}/file is not a directory"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        command.main([argument.format(tmp_path) for argument in arguments])
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert message.format(tmp_path) in shown
    assert shown.count("\n") == 1


def test_without_mnist_the_command_stops_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--data-dir", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert f"no MNIST in {tmp_path}" in shown
    assert "--dataset" not in shown, "there is no such choice"
    assert not (tmp_path / "out").exists()


def test_the_old_name_says_the_new_one() -> None:
    command = [sys.executable, "-m", "benchmarks.study.published", "--budget", "quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "This command is now python -m benchmarks.reproductions\n"
