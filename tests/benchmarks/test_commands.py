"""Situations × commands: each begins, is interrupted, fails and ends as every other does."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.challenges import __main__ as challenges
from benchmarks.challenges.artifacts import write_artifacts
from benchmarks.common import claims, record, signals
from benchmarks.common import command as command_module
from benchmarks.common.command import LIMITS, whole_number
from benchmarks.common.data import DATA_DIR_VARIABLE, SYNTHETIC_NAME, Digits
from benchmarks.common.plots import png
from benchmarks.common.reading import within_limits
from benchmarks.common.record import RunRecorder
from benchmarks.equivalence import __main__ as equivalence
from benchmarks.equivalence import figures as equivalence_figures
from benchmarks.gradient_release import __main__ as gradient_release
from benchmarks.gradient_release.release import measure
from benchmarks.mnist import __main__ as mnist
from benchmarks.mnist import options as mnist_options
from benchmarks.reproductions import __main__ as reproductions
from benchmarks.reproductions import running as reproductions_running
from benchmarks.seeds import __main__ as seeds
from benchmarks.seeds import analysis as seeds_analysis
from benchmarks.seeds import figure as seeds_figure
from benchmarks.step_time import __main__ as step_time
from benchmarks.step_time import figures as step_time_figures
from benchmarks.step_time.timer import Effort
from benchmarks.study import __main__ as study
from benchmarks.study import options as study_options
from benchmarks.study import running as study_running
from benchmarks.study.trial import split
from tests.benchmarks.children import ROOT, child, processes_of, wait_until
from tests.benchmarks.conftest import SMALL_NET, TINY
from tests.benchmarks.files import TWO, read, refused
from tests.benchmarks.study_jobs import TINY_STUDY, run_study
from tests.benchmarks.test_challenges_command import TINY as SIZES
from tests.benchmarks.test_reproductions import a_case

pytestmark = pytest.mark.slow

SEEDS = (*TWO, "--dataset", "synthetic", "--workers", "0")
FEW_SEEDS = seeds.Sizes(seeds=2, epochs=1, train_size=40, validation_size=20, test_size=20)
EFFORT = Effort(rounds=2, few_rounds=1, seconds=0.01, warm_up=1, copied_bytes=2**16)
PROGRAMS = (
    "mnist", "study", "study.report", "study.stacking_speed", "reproductions", "challenges",
    "step_time", "equivalence", "gradient_release", "seeds",
)  # fmt: skip


ONE = ("--optimizers", "sgd")
QUICK = ("--budget", "quick")


@dataclass(frozen=True)
class Command:
    """How to run it in little time, and the function in which it works."""

    main: Callable[..., int]
    working: str
    kept: str = "finished "

    def run(self, out: Path, *more: str) -> int:
        return self.main("--out", str(out), *more)


COMMANDS = {
    "mnist": Command(
        lambda *more: mnist.main([*TINY, *SMALL_NET, *ONE, "--nets", "relu", *more]),
        "benchmarks.mnist.__main__:train_pair",
    ),
    "study": Command(lambda *more: run_study(Path(), *more), "benchmarks.study.running:train"),
    "reproductions": Command(
        lambda *more: reproductions.main(["--budget", "quick", *more]),
        "benchmarks.reproductions.running:_run",
    ),
    "challenges": Command(
        lambda *more: challenges.main(["saddle_points", "--dataset", "synthetic", *more], SIZES),
        "benchmarks.challenges.__main__:draw",
    ),
    "step_time": Command(
        lambda *more: step_time.main(
            [*ONE, "--models", "mnist", "--engine", "loop", *more], EFFORT
        ),
        "benchmarks.step_time.timer:Timer.measure",
    ),
    "equivalence": Command(
        lambda *more: equivalence.main(
            [*ONE, *QUICK, "--dtypes", "float32", "--engine", "loop", "--steps", "2", *more], 1
        ),
        "benchmarks.equivalence.__main__:compare_case",
    ),
    "seeds": Command(
        lambda *more: seeds.main([*SEEDS, *more], dict.fromkeys(seeds.BUDGETS, FEW_SEEDS)),
        "benchmarks.seeds.__main__:train",
    ),
    "gradient_release": Command(
        lambda *more: gradient_release.main([*ONE, "--width", "8", "--layers", "1", *more]),
        "benchmarks.gradient_release.__main__:_apart",
    ),
}  # fmt: skip


@pytest.fixture(params=COMMANDS)
def command(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, digits: Digits,
    no_pictures: None, no_report: None,
) -> Command:  # fmt: skip
    """A command whose work takes no time, and of which it does not matter what comes out."""
    monkeypatch.setattr(reproductions, "CASES", {"a": a_case([])})
    monkeypatch.setattr(reproductions_running, "CASES", {"a": a_case([])})
    monkeypatch.setattr(reproductions, "load_mnist", lambda *arguments: digits)
    light = dataclasses.replace(
        challenges.EXPERIMENTS["saddle_points"],
        measure=lambda setup, on_progress: {}, findings=lambda results: [],
    )  # fmt: skip
    monkeypatch.setattr(challenges, "draw", lambda name, results: {"figure": png(Figure())})
    monkeypatch.setitem(challenges.EXPERIMENTS, "saddle_points", light)
    monkeypatch.setattr(gradient_release, "_apart", lambda **settings: measure(**settings))
    monkeypatch.setattr(equivalence_figures, "draw_atlas", lambda recorded: b"picture")
    monkeypatch.setattr(step_time_figures, "draw_ratios", lambda recorded: b"picture")
    monkeypatch.setattr(seeds_analysis, "DRAWS", 10)
    monkeypatch.setattr(seeds_analysis, "COVERAGE_DRAWS", 10)
    monkeypatch.setattr(seeds_figure, "draw", lambda recorded: b"picture")
    return COMMANDS[request.param]


@pytest.fixture(autouse=True)
def hears_ctrl_c() -> Iterator[None]:
    """Also where pytest was begun with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def meanwhile(
    command: Command, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]
) -> list[None]:
    """Let something happen when the command first works; returns a list of what it did."""
    done: list[None] = []
    work = resolve_name(command.working)

    def interposed(*arguments: Any, **options: Any) -> Any:
        done.append(None)
        if len(done) == 1:
            happens()
        return work(*arguments, **options)

    place, _, name = command.working.replace(":", ".").rpartition(".")
    monkeypatch.setattr(resolve_name(place), name, interposed)
    return done


# A folder has one command


def test_the_second_command_on_a_folder_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "new" / "out"
    said: list[str] = []

    def again() -> None:
        said.append(refused(lambda: command.run(out), capsys))
        said.append(refused(lambda: command.run(out, "--resume"), capsys))

    done = meanwhile(command, monkeypatch, again)
    assert command.run(out) == 0
    assert done
    for line in said:
        assert "another command is at work" in line
        assert f"--out {out}" in line
    assert not (out / claims.LOCK).exists()


def test_a_lock_that_was_left_behind_locks_nothing(command: Command, tmp_path: Path) -> None:
    (tmp_path / claims.LOCK).touch()
    assert command.run(tmp_path) == 0
    assert not (tmp_path / claims.LOCK).exists()


# The options that all commands have


def test_a_directory_with_something_in_it_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").touch()
    said = refused(lambda: command.run(tmp_path), capsys)
    assert "is not empty; choose another directory (" in said
    said = refused(lambda: command.run(tmp_path, "--resume"), capsys)
    assert "there is no job to resume in" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_finished_job_is_gone_on_with_by_resume_alone(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert command.run(tmp_path) == 0
    said = refused(lambda: command.run(tmp_path), capsys)
    assert "choose another directory; with --resume it goes on" in said

    def again() -> NoReturn:
        raise AssertionError("something was done again")

    done = meanwhile(command, monkeypatch, again)
    assert command.run(tmp_path, "--resume") == 0
    assert not done


def test_every_job_ends_with_what_to_open_next(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(tmp_path) == 0
    path, *others = capsys.readouterr().out.partition("Next, open:")[2].split("\n")[2:]
    assert Path(path.strip()).exists()
    assert [line.strip() for line in others if "tensorboard" in line] in (
        [], [f"tensorboard --logdir {tmp_path}"], [f"tensorboard --logdir {tmp_path / 'runs'}"],
    )  # fmt: skip


def test_a_file_of_results_says_by_what_and_where_it_was_made(
    command: Command, tmp_path: Path
) -> None:
    assert command.run(tmp_path / "out") == 0
    found = [read(path) for path in (tmp_path / "out").rglob("*.json")]
    contents = [content for content in found if "machine" in content]
    assert contents
    for content in contents:
        assert content["command"].startswith("python -m benchmarks.")
        assert str(tmp_path) not in content["command"]
        assert {"torch", "python"} <= set(content["versions"])
        assert {"processor", "torch_threads", "device"} <= set(content["machine"])


def test_results_are_recorded_but_not_of_quick_runs_or_synthetic_digits(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    said = refused(lambda: command.run(tmp_path / "out", *QUICK, "--record"), capsys)
    assert "--record takes no results of --budget quick" in said
    assert not (tmp_path / "out").exists()
    if command in (COMMANDS["mnist"], COMMANDS["study"], COMMANDS["challenges"], COMMANDS["seeds"]):
        more = ("--budget", "standard", "--record")
        said = refused(lambda: command.run(tmp_path / "out", *more), capsys)
        assert f"--record takes no results of {SYNTHETIC_NAME}" in said
        monkeypatch.setattr(command_module, "SYNTHETIC_NAME", "other digits")
    assert command.run(tmp_path / "out", "--budget", "standard", "--record") == 0
    (folder,) = (tmp_path / "results").iterdir()
    assert f"Recorded in {folder}" in capsys.readouterr().out
    recorded = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".json" for path in recorded)
    for path in recorded:
        original = tmp_path / "out" / path.relative_to(folder)
        assert path.read_bytes() == original.read_bytes()


PARSERS = {
    "mnist": mnist_options.build_parser, "study": study_options.build_parser,
    "challenges": challenges.build_parser, "step_time": step_time.build_parser,
    "equivalence": equivalence.build_parser, "gradient_release": gradient_release.build_parser,
    "reproductions": reproductions.build_parser, "seeds": seeds.build_parser,
}  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
def test_the_same_options_have_the_same_names(name: str) -> None:
    parser = PARSERS[name]()
    options = {option for action in parser._actions for option in action.option_strings}
    assert options >= {"--budget", "--device", "--out", "--resume", "--record", "--help"}
    assert parser.prog == f"python -m benchmarks.{name}"
    assert argparse.SUPPRESS not in parser.format_help()
    for old in ("quick", "foreach", "engines", "implementations"):
        assert f"--{old}" not in options


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused_before_anything_is_computed(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(lambda: command.run(tmp_path / "out", "--device", "cuda"), capsys)
    assert "--device cuda: torch finds no CUDA device here" in said


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--budgte", "quick"], "there is no option --budgte; did you mean --budget?"),
        (["--optimizer=adam"], "there is no option --optimizer; did you mean --optimizers?"),
        (["--optimizers", "adma"], "did you mean adam?"),
        (["--budget", "standart"], "did you mean standard?"),
        (["--xyz"], "there is no option --xyz ("),
    ],
)
def test_a_typo_is_told_what_may_have_been_meant(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hint in refused(lambda: step_time.main(arguments), capsys)


def test_the_command_that_is_recorded_says_no_more_than_what_was_computed() -> None:
    words = ["--lr", "adam=1", "--out", "a b", "--data-dir=x", "--record", "--seed=3", "--resume"]
    given = PARSERS["mnist"]().read(words)
    assert given.command == "python -m benchmarks.mnist --lr adam=1 --seed=3"
    assert given.again == f"{given.command.replace(' --seed', ' --data-dir=x --record --seed')}"


# Interruptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_work_and_keeps_what_is_finished(
    number: signal.Signals, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def come() -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("nothing was raised")

    before = [signal.getsignal(one) for one in signals.NUMBERS]
    meanwhile(command, monkeypatch, come)
    assert command.run(tmp_path / "out") == 128 + number
    assert f"Interrupted; {command.kept}" in capsys.readouterr().out
    assert [signal.getsignal(one) for one in signals.NUMBERS] == before
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob(claims.LOCK))


def test_a_second_signal_does_not_break_off_what_the_first_began(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ended: list[str] = []

    def come_twice() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            ended.append("in order")

    meanwhile(command, monkeypatch, come_twice)
    assert command.run(tmp_path / "out") == 143
    assert ended
    assert "Interrupted" in capsys.readouterr().out


def test_what_breaks_after_a_signal_is_no_error(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def break_when_interrupted() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("release unlocked lock") from None

    meanwhile(command, monkeypatch, break_when_interrupted)
    assert command.run(tmp_path / "out") == 130
    assert "Interrupted" in capsys.readouterr().out


def test_a_signal_that_was_lost_can_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with signals.noted() as heard, heard.as_exceptions():
        for now[0] in (0.0, signals.REPEATED):
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # at once, and nothing is raised
    assert heard.came == [signal.SIGINT] * 2


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the fixture puts it back
    with signals.noted() as heard, heard.as_exceptions():
        os.kill(os.getpid(), signal.SIGINT)
    assert heard.came == []


def test_a_signal_raises_nothing_before_the_work_and_after_it() -> None:
    worked: list[None] = []
    with signals.noted() as heard:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), heard.as_exceptions():
            worked.append(None)
        os.kill(os.getpid(), signal.SIGINT)
    assert not worked


def test_a_signal_while_a_folder_is_claimed_leaves_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = claims._lock

    def come(*arguments: Any) -> Any:
        taken = lock(*arguments)
        assert (tmp_path / "out" / claims.LOCK).exists()
        os.kill(os.getpid(), signal.SIGINT)
        return taken

    monkeypatch.setattr(claims, "_lock", come)
    assert command.run(tmp_path / "out") == 130
    assert not list(tmp_path.iterdir())


def test_a_signal_while_a_claim_ends_leaves_no_lock(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_ours = claims._Claim.is_ours

    def come(claim: Any) -> bool:
        if not claims._claims:  # it has ended
            os.kill(os.getpid(), signal.SIGINT)
        return is_ours(claim)

    monkeypatch.setattr(claims._Claim, "is_ours", come)
    assert command.run(tmp_path) == 0
    assert not (tmp_path / claims.LOCK).exists()


def test_a_held_signal_comes_after_the_block() -> None:
    ended: list[None] = []

    def hold() -> None:
        with signals.held():
            os.kill(os.getpid(), signal.SIGINT)
            ended.append(None)

    with signals.noted() as heard, heard.as_exceptions(), pytest.raises(KeyboardInterrupt):
        hold()
    assert ended


def test_a_process_that_is_begun_while_signals_are_held_sees_no_ctrl_c() -> None:
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    for block, blocked in ((signals.held(), "True\n"), (signals.noted(), "False\n")):
        with block:
            found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert found.stdout == blocked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_signal_during_imports_ends_the_program_with_a_line(
    name: str, number: signal.Signals
) -> None:
    # What is imported is written to stderr; the handler stands as soon as NumPy's turn has come.
    with child("-X", "importtime", "-m", f"benchmarks.{name}") as process:
        assert process.stderr is not None
        while "numpy" not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        os.kill(process.pid, number)
        out, problems = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    assert out == "Interrupted.\n"
    assert "Traceback" not in problems


def test_who_imports_the_package_keeps_their_handlers() -> None:
    code = (
        "import signal; b = signal.getsignal(2); import benchmarks; print(b is signal.getsignal(2))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "True\n"


def test_ctrl_c_while_workers_begin_prints_no_traceback(tmp_path: Path) -> None:
    out = tmp_path / "study"
    names = (*TINY_STUDY, "--workers", "2", "--epochs", "100000")
    with child("-m", "benchmarks.study", *names, "--out", str(out)) as process:
        wait_until(lambda: bool(processes_of(process.pid, "spawn_main")))
        time.sleep(1)  # they are in the middle of their imports
        for _ in range(2):  # a terminal sends it to all of them
            os.killpg(process.pid, signal.SIGINT)
        said, problems = process.communicate(timeout=100)
        assert process.returncode == 130
        assert problems == ""
        assert f"--out {out}" in said
        wait_until(lambda: not processes_of(process.pid))


STREAMS = {
    "full": (">/dev/full", 1, "finished runs are kept"),
    "closed": (">&-", 0, ""),
    "ascii": ("| cat >&2", 0, "ours"),
}


@pytest.mark.parametrize(("redirection", "status", "said"), STREAMS.values(), ids=STREAMS)
def test_a_standard_output_that_cannot_take_all_breaks_nothing(
    redirection: str, status: int, said: str, tmp_path: Path
) -> None:
    arguments = (*TINY, *SMALL_NET, *ONE, "--nets", "relu", "--epochs", "1", "--out", "out")
    found = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$0" "$@" {redirection}', sys.executable, "-m",
         "benchmarks.mnist", *arguments],
        capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == status, found.stderr
    assert said in found.stderr
    assert "Error" not in found.stderr
    assert "nothing was begun" not in found.stderr


# Folders that cannot be written


def test_a_folder_that_is_removed_meanwhile_ends_the_work(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    meanwhile(command, monkeypatch, lambda: shutil.rmtree(out))
    assert command.run(out) == 1
    assert "Removed or cleared meanwhile" in capsys.readouterr().out
    assert not out.exists(), "it is not made anew"


def test_what_took_the_place_of_the_folder_is_not_deleted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    theirs = out / "run" / "run.json"
    with suppress(FileNotFoundError), claims.claimed(out):
        recorder = RunRecorder(theirs.parent)
        out.rename(tmp_path / "moved")
        theirs.parent.mkdir(parents=True)
        theirs.touch()
        recorder.abandon()
        assert theirs.exists()
        with pytest.raises(FileNotFoundError):
            RunRecorder(theirs.parent)
        assert theirs.exists()
        with pytest.raises(FileNotFoundError):
            write_artifacts(theirs.parent, {"results": {}}, {})
        assert [path.name for path in out.iterdir()] == ["run"]
    assert theirs.exists()


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        OverflowError("too large"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried"),
        RuntimeError("numel: integer multiplication overflow"),
    ],
    ids=str,
)
def test_what_does_not_fit_in_memory_ends_the_work_with_a_line(
    problem: Exception, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail() -> None:
        raise problem

    meanwhile(command, monkeypatch, fail)
    assert command.run(tmp_path / "out") == 1
    assert f"Cannot go on: {' '.join(str(problem).split())}" in capsys.readouterr().out


def test_a_full_disk_ends_the_work_and_leaves_no_part_of_a_file(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fill(file: int) -> None:
        raise OSError(28, "No space left on device")

    meanwhile(command, monkeypatch, lambda: monkeypatch.setattr(os, "fsync", fill))
    assert command.run(tmp_path / "out") == 1
    said = capsys.readouterr()
    assert f"No space left on device; {command.kept}" in said.out
    assert "Traceback" not in said.err
    assert not list(tmp_path.rglob("*.partial"))


OUTS = {
    "too long": "x" * 300,
    "too long below": "new/" + "x" * 300,
    "too long in all": "/".join(["x" * 200] * 30),
    "no text": "a\0b",
    "a file": "file",
    "below a file": "file/below",
    "a loop": "loop/below",
    "nowhere": "/proc/below",
    "no UTF-8": "\udcff",
    "a link as lock": "linked",
    "a directory as lock": "locked",
}


@pytest.mark.parametrize("out", OUTS.values(), ids=OUTS)
def test_an_output_folder_that_cannot_be_is_refused(
    out: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    Path("linked").mkdir()
    Path("linked", claims.LOCK).symlink_to("../file")
    Path("locked", claims.LOCK).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    said = refused(lambda: command.run(Path(out)), capsys)
    assert "cannot be written" in said
    assert (f"{claims.LOCK} in it" in said) == (out in ("linked", "locked"))
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("file").read_text() == "mine"


# Limits


def test_what_can_be_asked_for_can_be_read_back() -> None:
    for name, (least, most) in LIMITS.items():
        parse, check = whole_number(name), within_limits(name)[name]
        for number, fits in ((least, True), (most, True), (least - 1, False), (most + 1, False)):
            assert check(number) == fits
            if fits:
                assert parse(str(number)) == number
            else:
                with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number"):
                    parse(str(number))


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        *((mnist.main, (f"--{name}", str(10**12))) for name in
          ("depth", "width", "epochs", "batch-size", "train-size", "test-size")),
        (mnist.main, ("--lr", "sgd=1e200")),
        *((study.main, (f"--{name}", str(10**12))) for name in
          ("depth", "width", "epochs", "batch-size", "train-size", "test-size", "seeds", "samples",
           "workers", "stack")),
        (gradient_release.main, ("--width", "10000000")),
        (gradient_release.main, ("--layers", "10000000")),
        (equivalence.main, ("--steps", "10000000")),
    ],
)  # fmt: skip
def test_what_no_file_of_results_could_say_is_refused(
    main: Callable[..., int], arguments: tuple[str, ...], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert f"argument {arguments[0]}" in refused(
        lambda: main([*arguments, "--out", str(out)]), capsys
    )
    assert not out.exists()


# Data

NAMED = (
    ("mistyped", "no MNIST in mistyped"), ("file", "file is not a directory"),
    ("x" * 300, "File name too long"), ("half", "is missing"),
)  # fmt: skip


@pytest.mark.parametrize("name", ["mnist", "study", "challenges", "reproductions"])
@pytest.mark.parametrize(
    ("how", "directory", "complaint"),
    [
        *(("environment", *one) for one in NAMED),
        *(("option", *one) for one in (*NAMED, ("a\0b", "cannot read a\\x00b"))),
    ],
)
def test_a_directory_that_was_named_must_hold_mnist(
    how: str, directory: str, complaint: str, name: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("half/MNIST/raw").mkdir(parents=True)
    Path("half/MNIST/raw/t10k-labels-idx1-ubyte").touch()
    before = sorted(tmp_path.rglob("*"))
    arguments = ["--out", "out"]
    if how == "option":
        arguments += ["--data-dir", directory]
    else:
        monkeypatch.setenv(DATA_DIR_VARIABLE, directory)
    mains: dict[str, Callable[[], int]] = {
        "mnist": lambda: mnist.main(arguments),
        "study": lambda: study.main([*arguments, "--workers", "0"]),
        "challenges": lambda: challenges.main(["saddle_points", *arguments]),
        "reproductions": lambda: reproductions.main(arguments),
    }
    said = refused(mains[name], capsys)
    assert complaint in said
    assert ("choose --dataset synthetic" in said) == (
        name != "reproductions" and "no MNIST" in said
    )
    assert sorted(tmp_path.rglob("*")) == before


# Workers


def test_the_digits_are_laid_down_in_a_file_without_a_name(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with study_running._laid_down(split(digits, 40)) as path:
        found = torch.load(path, mmap=True, weights_only=True)
        assert torch.equal(found["labels"], digits.train_labels[:-40])
        assert not list(tmp_path.iterdir())
