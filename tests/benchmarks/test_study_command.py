"""The study's command: what it leaves in its folder, and what it says to bad input."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from benchmarks.study import running
from benchmarks.study.trial import PROTOCOL, Settings, Trial
from tests.benchmarks.files import events, read
from tests.benchmarks.study_jobs import contents, run_study, trial_files

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report")]


def test_every_trial_has_a_file_of_what_it_was_and_what_came_of_it(finished_study: Path) -> None:
    found = contents(finished_study)
    assert {path.stem for path in (finished_study / "trials").iterdir()} == {
        Trial(one["phase"], one["search_space"], Settings(**one["settings"])).key for one in found
    }
    assert {one["phase"] for one in found} == {"search", "selection", "final"}
    for one in found:
        assert set(one) == {"protocol", "phase", "search_space", "settings", "result"}
        assert one["protocol"] == PROTOCOL
        assert one["settings"]["dataset"] == "synthetic"
        assert (one["settings"]["train_size"], one["settings"]["validation_size"]) == (200, 40)
        assert set(one["result"]["targets"]) == {"0.97", "0.98"}
        assert one["result"]["seconds"] > 0
        assert (one["result"]["test_loss"] is None) == (one["phase"] != "final")


def test_the_study_says_what_it_is_and_who_won(finished_study: Path) -> None:
    content = read(finished_study / "study.json")
    assert content["protocol"] == PROTOCOL
    assert content["settings"]["optimizers"] == ["sgd", "adam"]
    assert content["settings"]["dataset"] == "synthetic"
    assert {"machine", "versions"} <= set(content)
    assert [(one["optimizer"], one["search_space"]) for one in content["winners"]] == [
        ("sgd", "lr"), ("adam", "lr"),
    ]  # fmt: skip
    for one in content["winners"]:
        assert read(finished_study / "trials" / f"{one['key']}.json")["settings"]["lr"] == one["lr"]


def test_each_finalist_is_one_run_of_tensorboard_with_its_settings(finished_study: Path) -> None:
    runs = finished_study / "runs"
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
    finished_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> NoReturn:
        raise AssertionError("something was trained")

    monkeypatch.setattr(running, "train", refuse)
    before = trial_files(finished_study)
    assert run_study(finished_study) == 0
    assert trial_files(finished_study) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--optimizers", "adma"), "no 'adma' here; valid are sgd"),
        (("--nets", "tanh"), "no 'tanh' here"),
        (("--budget", "huge"), "no 'huge' here; valid are quick, standard, full, gpu"),
        (("--schedule", "linear"), "no 'linear' here"),
        (("--seeds", "0"), "'0' is not a whole number from 1 up"),
        (("--search-spaces", "all"), "choose both"),
        (("--search-spaces", "lr", "all"), "add --samples"),
        (("--batch-size", "1000"), "--batch-size 1000 is more than the 200"),
        (("--train-size", "5"), "--train-size 5 leaves no image"),
        pytest.param(
            ("--scheduler", "nonsense"), "--scheduler nonsense",
            marks=pytest.mark.skipif(find_spec("distributed") is None, reason="needs '.[cluster]'"),
        ),
    ],
)  # fmt: skip
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
    finished_study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds a study with schedule constant, not step" in refusal(
        finished_study, capsys, "--schedule", "step"
    )
    assert "with optimizers" in refusal(finished_study, capsys, "--optimizers", "rmsprop")


def test_another_protocol_is_not_mixed_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"protocol": 0, "settings": {}}))
    assert "by protocol 0, whose trials cannot be mixed" in refusal(tmp_path, capsys)


def test_what_is_no_study_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty; choose another directory (" in refusal(tmp_path, capsys)


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
