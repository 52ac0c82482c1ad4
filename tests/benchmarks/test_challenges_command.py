"""The command: its files, its events, its errors, its rooms, and the results that are recorded."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, NoReturn

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from benchmarks.challenges import __main__ as command
from benchmarks.challenges import gallery, vanishing_gradients
from benchmarks.challenges.__main__ import EXPERIMENTS, OF_ALL, main
from benchmarks.challenges.keeping import FACTS_FILE, keep, scalars
from benchmarks.challenges.setup import Sizes
from benchmarks.common.data import SYNTHETIC_NAME
from benchmarks.common.landscapes import LANDSCAPES
from tests.benchmarks.files import events, read
from tests.benchmarks.test_layout import ROOT, imported

pytestmark = pytest.mark.slow

TINY = Sizes(
    rates=5, steps=60, escape_steps=30, repeats=5, seeds=2, depths=(5, 10), width=16,
    images=200, epochs=1, few_images=60, few_epochs=10, batches=(16, 32), plateau_steps=12,
    test_images=50,
)  # fmt: skip
DRAWN = ("--dataset", "synthetic", "--optimizers", "sgd", "adam")
RESULTS = ROOT / "benchmarks" / "results" / "challenges"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "job"
    looks = dict(mpl.rcParams)
    with pytest.MonkeyPatch.context() as patch:
        few = {name: LANDSCAPES[name] for name in ("wavy", "rosenbrock")}
        patch.setattr(gallery, "LANDSCAPES", few)
        patch.setattr(vanishing_gradients, "TANH_STEPS_OF_SGD", 200)
        main([*DRAWN, "--gallery", "--out", str(out)], TINY)
    assert dict(mpl.rcParams) == looks, "the settings of matplotlib belong to the caller"
    return out


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_an_experiment_leaves_pictures_facts_and_events(name: str, finished: Path) -> None:
    directory = finished / name
    pictures = {path.stem: path.read_bytes() for path in directory.glob("*.png")}
    assert pictures
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    content = read(directory / FACTS_FILE)
    assert content["experiment"] == name
    assert content["optimizers"] == ["sgd", "adam"]
    assert content["dataset"] == (SYNTHETIC_NAME if EXPERIMENTS[name].needs_digits else None)
    assert content["findings"]
    assert str(finished) not in (directory / FACTS_FILE).read_text()
    found = events(directory)
    assert set(found.Tags()["images"]) == set(pictures)
    tags = set(found.Tags()["scalars"])
    assert {tag for tag, _, _ in scalars(content["facts"])} == tags


def test_nothing_temporary_is_left(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == set(EXPERIMENTS)


def test_the_pictures_can_be_drawn_again_from_the_file(finished: Path) -> None:
    for name, experiment in EXPERIMENTS.items():
        facts = read(finished / name / FACTS_FILE)["facts"]
        assert set(experiment.draw(facts)) == {p.stem for p in (finished / name).glob("*.png")}


def test_an_interruption_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> NoReturn:
        raise KeyboardInterrupt

    broken = dataclasses.replace(EXPERIMENTS["saddle_points"], draw=interrupted)
    monkeypatch.setitem(command.EXPERIMENTS, "saddle_points", broken)
    out = tmp_path / "out"
    names = ("local_minima", "saddle_points")
    # One picture is enough here.
    quick = dataclasses.replace(EXPERIMENTS["local_minima"], draw=lambda facts: {"f": Figure()})
    monkeypatch.setitem(command.EXPERIMENTS, "local_minima", quick)
    assert main([*names, *DRAWN, "--out", str(out)], TINY) == 130
    assert [path.name for path in out.iterdir()] == ["local_minima"]
    read(out / "local_minima" / FACTS_FILE)
    assert "finished experiments are kept" in capsys.readouterr().out


def test_a_directory_that_could_not_be_filled_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SyntaxError, match="not a PNG"):
        keep(tmp_path / "half", {"facts": {}}, {"picture": b"not a PNG file"})
    assert not list(tmp_path.iterdir())


def test_numbers_are_found_with_their_names_and_steps() -> None:
    facts = {
        "one": 1, "curve": {"step": [10, 20], "loss": [0.5, 0.25]}, "yes": True, "word": "text",
        "rows": [[1, math.nan, 2], [3]], "none": None,
    }  # fmt: skip
    assert list(scalars(facts)) == [
        ("one", 1, 0),
        ("curve/step", 10, 0), ("curve/step", 20, 1),
        ("curve/loss", 0.5, 10), ("curve/loss", 0.25, 20),
        ("rows/0", 1, 0), ("rows/0", 2, 2), ("rows/1", 3, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["sadle_points"], f"valid are {', '.join(OF_ALL)}, all"),
        (["--optimizers", "sgdd"], "valid are sgd, momentum"),
        (["--seed", "-1"], "not a whole number"),
        (["--out", "FILE/below"], "not a directory"),
        (["--out", "DIR"], "DIR is not empty; choose another directory"),
        (["saddle_points", "--dataset", "mnist", "--data-dir", "FILE"], "FILE"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    Path("DIR/local_minima").mkdir(parents=True)
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_who_measures_does_not_draw_and_who_draws_does_not_measure() -> None:
    folder = ROOT / "benchmarks" / "challenges"
    for path in set(folder.glob("*.py")) - {folder / "__main__.py", folder / "keeping.py"}:
        names = imported(path)
        assert not any(name.startswith("matplotlib") for name in names), path
        assert not any("slides" in name for name in names), path
    for path in (folder / "slides").glob("*.py"):
        names = imported(path)
        for room in ("lessons", "walks", "keeping"):
            assert f"benchmarks.challenges.{room}" not in names, path


def test_nothing_else_imports_the_challenges() -> None:
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert not any(name.startswith("benchmarks.challenges") for name in imported(path)), path


@pytest.mark.parametrize("name", OF_ALL)
def test_the_recorded_results_are_as_computed_and_private_to_no_machine(name: str) -> None:
    text = (RESULTS / name / FACTS_FILE).read_text(encoding="utf-8")
    assert not re.search(r'"/|/home|/tmp|/work', text)
    content = read(RESULTS / name / FACTS_FILE)
    assert content["dataset"] == ("MNIST" if EXPERIMENTS[name].needs_digits else None)
    # What is recorded is what the program finds in these facts today.
    assert [
        {"claim": found.claim, "figures": found.figures, "verdict": found.verdict}
        for found in EXPERIMENTS[name].findings(content["facts"])
    ] == content["findings"]
    assert "WRONG" not in text
    assert {path.stem for path in (RESULTS / name).glob("*.png")} == set(
        EXPERIMENTS[name].draw(content["facts"])
    )
