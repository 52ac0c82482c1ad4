"""Folders of results from elsewhere: nothing in them is believed, run, or followed out of them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.common import record
from benchmarks.common.data import Digits
from benchmarks.common.record import write_json
from benchmarks.mnist import __main__ as mnist
from benchmarks.mnist import figures
from benchmarks.reproductions import __main__ as reproductions
from benchmarks.reproductions import running as reproductions_running
from benchmarks.reproductions.case import Lab, Measured
from benchmarks.reproductions.table import markdown_tables, terminal_table
from benchmarks.study.report import __main__ as study_report
from tests.benchmarks.conftest import SMALL_NET, TINY
from tests.benchmarks.files import read, refused
from tests.benchmarks.made_up_study import write_made_up_study
from tests.benchmarks.study_jobs import run_study
from tests.benchmarks.test_reproductions import a_case

pytestmark = pytest.mark.slow

ONE_PAIR = ("--nets", "relu", "--optimizers", "sgd")
ESCAPE = "\x1b]0;title\x07"
EVIL = "x/../../../evil"
DEEP = "[" * 100_000
BROKEN = {
    "no JSON": "{", "no object": "[]", "not a number": '{"a": NaN}', "infinite": '{"a": 1e999}',
    "nested": '{"a": ' + DEEP, "nested less": '{"a": ' + "[" * 200 + "]" * 200 + "}",
    "twice": '{"a": 1, "a": 2}', "a long number": '{"a": ' + "1" * 5000 + "}", "no text": "\udcff",
    "empty": "", "lacks all": "{}",
}  # fmt: skip
# A path in the file, and what stands there; None: it is missing.
OF_A_JOB = [
    ("settings.nets", [EVIL]), ("settings.nets", "relu"), ("settings.nets", []),
    ("settings.optimizers", [EVIL]), ("settings.optimizers", [["sgd"]]), ("settings.lr", {}),
    ("settings.lr", {"sgd": "0.1"}), ("settings.epochs", 0), ("settings.epochs", True),
    ("settings.depth", 10**30), ("settings.batch_size", -1), ("settings.dataset", "cifar"),
    ("settings.device", EVIL), ("settings.reference", 1), ("settings.seed", 0.5),
    ("settings", None), ("settings.width", None), ("dataset", "$\\frac$"), ("dataset", "MNIST"),
    ("versions", []), ("machine", None), ("data_dir", 3), ("machine.device", ESCAPE),
    ("torchs_default_differs", [EVIL]), ("torchs_default_differs", "sgd"),
]  # fmt: skip
OF_A_RUN = [
    ("net", "sigmoid"), ("optimizer", EVIL), ("implementation", "torch"), ("lr", -1),
    ("test_accuracy", 2), ("train_loss", "0.1"), ("comparison", {}), ("curves.test.loss", [0.1]),
    ("curves.test", None), ("curves.layers.gradient_norm", {}), ("diverged", 0),
    ("dataset", "<b>"), ("optimizer_ms_per_step", 0),
]  # fmt: skip
OF_A_STUDY = [
    ("settings.dataset", EVIL), ("settings.dataset", "cifar"), ("settings", []), ("settings", None),
    ("machine", None), ("versions", 3), ("protocol", None), ("protocol", "1"),
]  # fmt: skip
OF_A_TRIAL = [
    ("search_space", EVIL), ("phase", EVIL), ("settings.net", EVIL), ("settings.optimizer", EVIL),
    ("settings.optimizer", ["sgd"]), ("settings.schedule", "<script>"), ("settings.lr", 0),
    ("settings.lr", "0.1"), ("settings.options", {EVIL: 1}), ("settings.seed", 10**30),
    ("settings.dataset", EVIL), ("settings.depth", -1), ("settings", None), ("settings.lr", 0.5),
    ("result", None), ("result.diverged", None), ("result.validation_accuracy", 2),
    ("result.validation_accuracy", None), ("result.validation_loss", "0.1"),
    ("result.targets", {}), ("result.curves.step", []), ("result.curves.step", [0.5, 1.5]),
    ("result.curves", {}), ("result.gradient_norms", {"step": [1]}), ("result.seconds", "long"),
]  # fmt: skip
OF_A_CASE = [
    ("cases", {}), ("cases", [3]), ("cases.0.case", 3), ("cases.0.title", ["x"]),
    ("cases.0.settings", {}), ("cases.0.settings.budget", EVIL), ("cases.0.rows", []),
    ("cases.0.rows.0.verdict", "<b>"), ("cases.0.rows.0.ours", "1"), ("cases.0.seconds", None),
    ("cases.0.rows.0.published", [1]), ("cases", None), ("cases.0.title", ESCAPE),
    ("cases.0.rows.0.note", "a\n# b"), ("cases.0.rows.0.quantity", "\u202e"),
    ("cases.0.wrong", None), ("cases.0.wrong", {EVIL: 3}), ("cases.0.rows.0.seeds", [-1, 1]),
    ("cases.0.rows.0.wrong", {"a": {"value": "1"}}),
]  # fmt: skip


def spoil(path: Path, place: str, value: Any) -> None:
    content = inside = read(path)
    *above, last = [int(name) if name.isdigit() else name for name in place.split(".")]
    for name in above:
        inside = inside[name]
    if value is None:
        del inside[last]
    else:
        inside[last] = value
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def finished_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("job") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_curves", lambda *arguments: b"curves")
        patch.setattr(figures, "draw_gradient_flow", lambda *arguments: b"gradient flow")
        assert mnist.main([*TINY, *SMALL_NET, *ONE_PAIR, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def finished_cases(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    out = tmp_path_factory.mktemp("cases") / "out"
    reproductions_running.run_cases(
        ["a"], out, budget="quick", cases={"a": a_case([])}, digits=digits
    )
    return out


@pytest.fixture
def poisoned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path, str, Callable[[Path], None], Callable[[Path], object]], None]:
    """A copy of a folder with one bad file is refused, by name, and nothing is written."""

    def check(
        folder: Path, name: str, spoil: Callable[[Path], None], run: Callable[[Path], object]
    ) -> None:
        out = tmp_path / "at" / "some" / "depth"
        shutil.copytree(folder, out)
        path = min(out.glob(name))
        spoil(path)
        before = {one: one.lstat().st_mtime_ns for one in tmp_path.rglob("*") if one.is_file()}
        assert str(path) in refused(lambda: run(out), capsys)
        assert before == {
            one: one.lstat().st_mtime_ns for one in tmp_path.rglob("*") if one.is_file()
        }

    return check


def resume_job(out: Path) -> int:
    return mnist.main(["--resume", "--out", str(out)])


def run_reproductions(out: Path) -> int:
    return reproductions.main(["--budget", "quick", "--resume", "--out", str(out)])


def report_study(out: Path) -> int:
    return study_report.main([str(out)])


OF_A_REPORTED_STUDY = [
    (name, ESCAPE) for name in ("machine.device", "machine.processor", "versions.torch")
]
FILES: dict[str, tuple[str, str, Callable[[Path], int], Sequence[tuple[str, Any]]]] = {
    "job": ("finished_job", "settings.json", resume_job, OF_A_JOB),
    "run": ("finished_job", "relu/sgd/ours/run.json", resume_job, OF_A_RUN),
    "study": ("finished_study", "study.json", run_study, OF_A_STUDY),
    "trial": ("finished_study", "trials/*.json", run_study, OF_A_TRIAL),
    "reported trial": ("finished_study", "trials/*.json", report_study, OF_A_TRIAL),
    "reported study": ("finished_study", "study.json", report_study, OF_A_REPORTED_STUDY),
    "case": ("finished_cases", "reproductions.json", run_reproductions, OF_A_CASE),
}


@pytest.mark.usefixtures("no_report", "no_pictures")
@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        pytest.param(kind, place, value, id=f"{kind}-{place}-{number}")
        for kind, (*_, faults) in FILES.items()
        for number, (place, value) in enumerate(faults)
        # A rate that is possible is told by the trial's name alone, which a report does not need.
        if not (kind == "reported trial" and value == 0.5)
    ],
)
def test_a_file_with_a_bad_value_is_named(
    kind: str, place: str, value: Any, poisoned: Any, request: pytest.FixtureRequest,
    small_table: None,
) -> None:  # fmt: skip
    folder, name, run, _ = FILES[kind]
    poisoned(request.getfixturevalue(folder), name, lambda path: spoil(path, place, value), run)


@pytest.mark.usefixtures("no_report", "no_pictures")
@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_broken_is_named(
    kind: str, text: str, poisoned: Any, request: pytest.FixtureRequest, small_table: None
) -> None:
    folder, name, run, _ = FILES[kind]

    def write(path: Path) -> None:
        path.write_text(text, errors="surrogateescape")

    poisoned(request.getfixturevalue(folder), name, write, run)


@pytest.mark.parametrize("text", [text for text in BROKEN.values() if text != "{}"])
def test_only_what_a_command_could_have_written_is_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError):  # noqa: PT011  # json has words of its own
        record.read_json(path)


def test_a_file_that_is_too_big_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.json").write_text("{}" + " " * 98)
    monkeypatch.setattr(record, "MOST_BYTES", 100)
    assert record.read_json(tmp_path / "file.json") == {}
    monkeypatch.setattr(record, "MOST_BYTES", 99)
    with pytest.raises(ValueError, match="too big"):
        record.read_json(tmp_path / "file.json")


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(3 * 2**30)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.usefixtures("no_report", "no_pictures")
@pytest.mark.parametrize("how", [huge, pipe, directory])
@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_file_of_results_is_not_read(
    kind: str, how: Callable[[Path], None], poisoned: Any, request: pytest.FixtureRequest,
    small_table: None,
) -> None:  # fmt: skip
    folder, name, run, _ = FILES[kind]
    poisoned(request.getfixturevalue(folder), name, how, run)


@pytest.fixture
def small_table(monkeypatch: pytest.MonkeyPatch, digits: Digits) -> None:
    for module in (reproductions, reproductions_running):
        monkeypatch.setattr(module, "CASES", {"a": a_case([])})
    monkeypatch.setattr(reproductions, "load_mnist", lambda *arguments: digits)


def test_a_part_that_its_case_did_not_compute_is_named(
    tmp_path: Path, digits: Digits, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], small_table: None,
) -> None:  # fmt: skip
    def measure(lab: Lab, settings: Any) -> dict[str, Measured]:
        return {"one": Measured(lab.once("p", 1, lambda: [1.0])[0] + 1)}

    case = dataclasses.replace(a_case([]), measure=measure)
    for module in (reproductions, reproductions_running):
        monkeypatch.setattr(module, "CASES", {"a": case})
    settings = reproductions_running.settings_of(case.budgets, "quick", digits.name)
    write_json(tmp_path / "reproductions.json", {"cases": []})
    write_json(tmp_path / "parts" / "a.json", {"settings": settings, "parts": {"p": ["evil"]}})
    assert "parts/a.json is damaged, remove it" in refused(
        lambda: run_reproductions(tmp_path), capsys
    )


@pytest.mark.usefixtures("no_report", "no_pictures")
@pytest.mark.parametrize(
    ("kind", "name"), [("study", "trials"), ("study", "runs"), ("job", "relu")]
)
def test_a_link_does_not_lead_writes_out_of_the_folder(
    kind: str, name: str, tmp_path: Path, request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, _, run, _ = FILES[kind]
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(request.getfixturevalue(folder), out)
    shutil.rmtree(out / name)
    elsewhere.mkdir()
    (out / name).symlink_to(elsewhere)
    if name == "runs":  # of which those of finals are written again
        for path in (out / "trials").iterdir():
            if read(path)["phase"] == "final":
                path.unlink()
    assert run(out) == 1
    assert "A link leads out of the folder" in capsys.readouterr().out
    assert not list(elsewhere.iterdir())


def test_texts_from_elsewhere_are_no_markup(tmp_path: Path) -> None:
    write_made_up_study(tmp_path, [])
    evil = "<script>alert(1)</script> [here](https://evil) ![x](y) [/bold] | `a`"
    for name in ("machine.processor", "machine.device", "versions.torch", "versions.python"):
        spoil(tmp_path / "study.json", name, evil)
    spoil(tmp_path / "study.json", "command", f"`{evil}`")
    assert report_study(tmp_path) == 0
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "&lt;script&gt;alert(1)" in text
        assert "<script>alert" not in text
    # In Markdown a bracket without a backslash before it begins a link.
    assert not re.findall(r"(?<!\\)\[(here|x|/bold)", text)
    assert not list(tmp_path.parent.glob("evil*"))


def test_tables_of_reproductions_have_no_markup() -> None:
    evil = "[/bold] [red](https://evil) <b> | `a`"
    row: dict[str, Any] = dict.fromkeys(
        ("quantity", "note", "tolerance", "verdict", "published"), evil
    )
    row |= {
        "ours": None,
        "our_spread": None,
        "seeds": [1, 0],
        "wrong": {evil: {"value": 1.0, "rejected": True}},
    }
    result: dict[str, Any] = {"title": evil, "source": evil, "note": evil, "rows": [row]}
    result |= {"settings": {"budget": evil}, "wrong": {evil: {"budget": evil}}}
    result |= {"wrong_names": [evil]}
    console = Console(record=True, width=400, file=io.StringIO())
    console.print(terminal_table(result))
    assert console.export_text().count(evil) == 6
    written = markdown_tables([result])
    assert not re.findall(r"(?<!\\)[\[`]|<b>", written)
    assert written.splitlines()[-1].count(r"\|") == 6  # in the row
