"""The command: its files, events and errors, its modules, and the recorded results."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from benchmarks.challenges import __main__ as command
from benchmarks.challenges import depth, gallery, vanishing_gradients
from benchmarks.challenges.__main__ import EXPERIMENTS, main
from benchmarks.challenges.artifacts import FACTS_FILE, draw, write_artifacts
from benchmarks.challenges.experiment import Results, Sizes
from benchmarks.challenges.local_minima import GLOBAL, LEFT
from benchmarks.challenges.optimizers import CORRECTED
from benchmarks.common.data import SYNTHETIC_NAME
from benchmarks.common.plots import png
from benchmarks.common.test_functions import TEST_FUNCTIONS
from tests.benchmarks.files import events, read
from tests.benchmarks.test_layout import ROOT, imported

pytestmark = pytest.mark.slow

TINY = Sizes(
    rates=5, conditions=(3, 10), beta_conditions=(4,), halvings=4, steps=60, escape_steps=30,
    repeats=5, seeds=2, depths=(5, 10), width=16, images=200, epochs=1, few_images=60,
    few_epochs=10, batches=(16, 32), plateau_steps=12, test_images=50,
)  # fmt: skip
SYNTHETIC = ("--dataset", "synthetic", "--optimizers", "sgd", "adam")
RESULTS = ROOT / "benchmarks" / "results" / "challenges"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "job"
    looks = dict(mpl.rcParams)
    with pytest.MonkeyPatch.context() as patch:
        few = {name: TEST_FUNCTIONS[name] for name in ("wavy", "rosenbrock")}
        patch.setattr(gallery, "TEST_FUNCTIONS", few)
        patch.setattr(vanishing_gradients, "TANH_STEPS_OF_SGD", 200)
        remedies = {name: vanishing_gradients.REMEDIES[name] for name in ("none", "Adam")}
        patch.setattr(vanishing_gradients, "REMEDIES", remedies)
        patch.setattr(vanishing_gradients, "REMEDY_DEPTHS", (2, 3))
        patch.setattr(depth, "TRAINED_DEPTHS", (2,))
        main([*SYNTHETIC, "--out", str(out)], TINY)
    assert dict(mpl.rcParams) == looks, "the settings of matplotlib belong to the caller"
    return out


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_an_experiment_writes_figures_facts_and_events(name: str, finished: Path) -> None:
    directory = finished / name
    figures = {path.stem: path.read_bytes() for path in directory.glob("*.png")}
    assert figures
    assert all(content.startswith(b"\x89PNG") for content in figures.values())
    content = read(directory / FACTS_FILE)
    assert content["experiment"] == name
    assert content["optimizers"] == ["sgd", "adam"]
    assert content["dataset"] == (SYNTHETIC_NAME if EXPERIMENTS[name].needs_digits else None)
    assert content["findings"]
    assert str(finished) not in (directory / FACTS_FILE).read_text()
    tags = events(directory).Tags()
    assert set(tags["images"]) == set(figures)
    assert set(tags["scalars"]) == {c.tag for c in EXPERIMENTS[name].curves(content["results"])}


def test_tensorboard_has_images_and_a_few_dozen_curves(finished: Path) -> None:
    scalars = [tag for name in EXPERIMENTS for tag in events(finished / name).Tags()["scalars"]]
    assert 5 < len(scalars) < 60


def test_nothing_temporary_is_left(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == set(EXPERIMENTS)


def test_figures_can_be_drawn_from_the_file(finished: Path) -> None:
    for name in EXPERIMENTS:
        results = read(finished / name / FACTS_FILE)["results"]
        assert set(draw(name, results)) == {p.stem for p in (finished / name).glob("*.png")}


def test_an_interruption_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str, results: Results) -> dict[str, bytes]:
        if name == "saddle_points":
            raise KeyboardInterrupt
        return {"figure": png(Figure())}

    monkeypatch.setattr(command, "draw", interrupted)
    out = tmp_path / "out"
    names = ("local_minima", "saddle_points")
    assert main([*names, *SYNTHETIC, "--out", str(out)], TINY) == 130
    assert [path.name for path in out.iterdir()] == ["local_minima"]
    read(out / "local_minima" / FACTS_FILE)
    assert "finished experiments are kept" in capsys.readouterr().out


def test_a_directory_that_could_not_be_filled_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SyntaxError, match="not a PNG"):
        write_artifacts(tmp_path / "half", {"results": {}}, {"figure": b"not a PNG file"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["sadle_points"], f"valid are {', '.join(EXPERIMENTS)}, all"),
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


def test_measuring_modules_do_not_draw_and_drawing_modules_do_not_measure() -> None:
    folder = ROOT / "benchmarks" / "challenges"
    for path in set(folder.glob("*.py")) - {folder / "artifacts.py"}:
        names = imported(path)
        assert not any(name.startswith("matplotlib") for name in names), path
        assert not any("figures" in name for name in names), path
    for path in (folder / "figures").glob("*.py"):
        for name in imported(path):
            modules = {f"benchmarks.challenges.{m}" for m in ("training", "trajectories")}
            assert not name.startswith(tuple(modules)), path


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_recorded_results_are_what_the_program_computes_from_them(name: str) -> None:
    text = (RESULTS / name / FACTS_FILE).read_text(encoding="utf-8")
    assert not re.search(r'"/|/home|/tmp|/work', text)
    content = read(RESULTS / name / FACTS_FILE)
    assert content["dataset"] == ("MNIST" if EXPERIMENTS[name].needs_digits else None)
    assert [
        {"claim": finding.claim, "measured": finding.measured, "verdict": finding.verdict}
        for finding in EXPERIMENTS[name].findings(content["results"])
    ] == content["findings"]
    assert "WRONG" not in text
    assert all(len(curve.steps) > 10 for curve in EXPERIMENTS[name].curves(content["results"]))
    assert {path.stem for path in (RESULTS / name).glob("*.png")} == set(
        draw(name, content["results"])
    )


def recorded(name: str) -> Results:
    results: Results = read(RESULTS / name / FACTS_FILE)["results"]
    return results


def test_the_recorded_depths_are_those_that_the_page_gives() -> None:
    text = (ROOT / "docs" / "depth.md").read_text(encoding="utf-8")
    results = recorded("depth")
    layers = {
        name: format(by_eps[f"{results['default_eps'][name]:g}"]["measured"], ".1f")
        for name, by_eps in results["halving"].items()
    }
    sentence = "at {adam} hidden layers for Adam, {rmsprop} for RMSProp and {adagrad} for AdaGrad"
    assert sentence.format(**layers) in " ".join(text.split())
    adam = [row["measured"] for row in results["halving"]["adam"].values()]
    assert f"ten times smaller is worth {(adam[-1] - adam[0]) / 12:.1f} layers" in text
    assert f"{results['underflow']:.0e}" == "8e-22"
    accuracy = {
        depth: max(statistics.median(r["test_accuracy"] for r in runs) for runs in by_eps.values())
        for depth, by_eps in results["training"]["by_depth"].items()
    }
    assert accuracy["4"] > 0.8
    assert accuracy["10"] < 0.2
    assert max(run["test_accuracy"] for run in results["training"]["by_depth"]["6"]["0.0001"]) < 0.2
    assert min(run["test_accuracy"] for run in results["training"]["by_depth"]["6"]["1e-06"]) > 0.5


def gallery_page() -> str:
    return " ".join((ROOT / "docs" / "gallery.md").read_text(encoding="utf-8").split())


def test_the_recorded_local_minima_are_those_that_the_gallery_describes() -> None:
    results, text = recorded("local_minima"), gallery_page()
    bands, paths = results["bands"], results["paths"]
    assert bands["constant"]["momentum"]["pieces"] == 1  # "within a band of learning rates"
    assert bands["constant"]["sgd"]["rates"] == 0  # "SGD never does"
    assert "RMSProp's first step is ten times the learning rate" in text
    assert [round(paths[name]["first_step"], 1) for name in ("rmsprop", CORRECTED)] == [10, 1]
    first_left = {name: row.index(LEFT) for name, row in results["outcomes"]["constant"].items()}
    assert first_left["rmsprop"] < first_left[CORRECTED]
    runs = {name: sum(by_name[name]["rates"] for by_name in bands.values()) for name in paths}
    counts = {1: "one", 4: "four"}
    assert f"in the global minimum in {counts[runs['rmsprop']]} runs" in text
    assert f"With bias correction there is {counts[runs[CORRECTED]]} such run" in text
    # "in each of them its first step alone crosses the barrier"
    for by_name in results["outcomes"].values():
        for lr, outcome in zip(results["rates"], by_name["rmsprop"], strict=True):
            crosses = results["start"] + 10 * lr > results["minima"]["barrier"]
            assert crosses or outcome != GLOBAL


def test_the_recorded_test_functions_are_those_that_the_gallery_describes() -> None:
    results, text = recorded("gallery"), gallery_page()
    assert f"the best of {len(results['rates'])} learning rates" in text
    assert f"after {results['steps']} steps" in text
    rastrigin = results["functions"]["rastrigin"]
    assert min(best["distance"] for best in rastrigin.values()) > gallery.NEAR
    assert rastrigin["adagrad"]["lr"] == pytest.approx(10 * rastrigin["rmsprop"]["lr"])


def test_the_recorded_steps_are_those_that_the_gallery_describes() -> None:
    tanh = recorded("vanishing_gradients")["tanh"]
    steps = {name: run["steps_to_0"] for name, run in tanh["by_optimizer"].items()}
    assert f"{tanh['gradient_at_start']:.3f}" == "0.001"
    assert 24 < steps["adam"] < 60 < 2000 < steps["sgd"]  # "a few dozen", "thousands"
    assert f"RMSProp takes {steps['rmsprop']:.0f}, because" in gallery_page()
    assert f"With bias correction it takes {steps[CORRECTED]:.0f}." in gallery_page()
    saddle = recorded("saddle_points")["escape_steps"]["saddle"]
    for plain, corrected, adam in zip(
        *(saddle[name]["0.01"][:-1] for name in ("rmsprop", CORRECTED, "adam")), strict=True
    ):
        assert 3 * plain < corrected < adam < 1.5 * corrected  # "several times", "close to"
    pitfalls = recorded("pitfalls")
    assert max(pitfalls["bias_correction"]["step_size"]["rmsprop"]) == pytest.approx(10)
    varying = {
        (kind, name)
        for kind in ("free", "clipped")
        for name, best in pitfalls["clipping"][kind].items()
        if best["high"] > 1.01 * best["low"]
    }
    assert varying == {("clipped", "adagrad")}
    remedies = recorded("vanishing_gradients")["remedies"]
    assert {len(rates) for rates in remedies["rates"].values()} == {5}


def test_the_recorded_remedies_are_those_that_the_gallery_names() -> None:
    best = recorded("vanishing_gradients")["remedies"]["by_depth"]
    trains = {name for name, run in best["20"].items() if run["test_accuracy"] > 0.5}
    assert trains == {"batch normalisation", "residual connections", "ReLU, He initialisation"}
    # A rate at the edge of its grid might not be the best one.
    assert not any(run["at_edge"] for by_remedy in best.values() for run in by_remedy.values())


def test_recorded_results_are_of_one_torch_and_one_machine() -> None:
    contents = [read(RESULTS / name / FACTS_FILE) for name in EXPERIMENTS]
    for key in ("budget", "optimizers", "seed", "versions", "machine"):
        assert all(content[key] == contents[0][key] for content in contents), key
