"""Published cases: verdicts, running, resuming, on synthetic digits; the figures need MNIST."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common.command import CannotRun
from benchmarks.common.data import Digits
from benchmarks.reproductions import algoperf, deepobs, glorot_bengio, nielsen
from benchmarks.reproductions.case import (
    BUDGETS,
    REPORTED_EVERY,
    Case,
    Figure,
    Lab,
    Measured,
    Settings,
    among_our_seeds,
    within,
)
from benchmarks.reproductions.cases import CASES
from benchmarks.reproductions.parts import Parts
from benchmarks.reproductions.running import RESULT, run_cases
from tests.benchmarks.files import read

TINY: dict[str, Settings] = {
    "nielsen_gradients": {"seeds": 3},
    "glorot_bengio_stuck": {"rates": (0.1,), "images": 100, "epochs": 1},
    "adam_paper_order": {"epochs": 2},
    "algoperf_target": {"rates": (1e-3, 1e-2), "epochs": 2},
    "nielsen_overfitting": {"seeds": (0,), "epochs": 2},
    "deepobs_adam": {"seeds": (42, 43), "epochs": 2},
    "deepobs_momentum": {"seeds": (42, 43), "epochs": 2, "until": 0.97},
    "deepobs_adam_rates": {"rates": (1e-3,), "epochs": 1},
}


# Verdicts and tolerances


@pytest.mark.parametrize(
    ("theirs", "margin", "ours", "verdict"),
    [
        (0.5, 0.125, 0.625, "reproduced"),
        (0.5, 0.125, 0.626, "differs"),
        (0.5, 0.125, 0.375, "reproduced"),
        (0.5, 0.125, 0.374, "differs"),
        ((2, 4), 0, 4, "reproduced"),
        ((2, 4), 1, 5, "reproduced"),
        ((2, 4), 1, 0.9, "differs"),
        ((2, 4), 1, math.inf, "differs"),
        ((2, 4), 1, math.nan, "differs"),
    ],
)
def test_a_margin_decides(theirs: Any, margin: float, ours: float, verdict: str) -> None:
    row = Figure("q", theirs, within(margin, "so")).row(Measured(ours))
    assert row["verdict"] == verdict
    assert row["theirs"] == theirs


def test_a_single_draw_of_theirs_must_be_a_possible_draw_of_ours() -> None:
    figure = Figure("q", 0.3, among_our_seeds("one seed"))
    assert figure.row(Measured(0.5, (0.2, 0.6)))["verdict"] == "reproduced"
    assert figure.row(Measured(0.5, (0.4, 0.6)))["verdict"] == "differs"
    assert figure.row(Measured(0.2, (0.1, 0.25)))["verdict"] == "differs"
    assert figure.row(Measured(0.3))["verdict"] == "differs"  # no spread, no judgement


def test_what_was_not_measured_is_not_run_and_says_why() -> None:
    row = Figure("q", 0.3, within(1, "so"), "Odd.").row(None, "no time")
    assert (row["verdict"], row["ours"], row["note"]) == ("not run", None, "Odd. no time")


def test_a_figure_that_nobody_published_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing is published for other"):
        a_case([]).rows({"other": Measured(1.0)}, "")


# All cases


def test_every_case_knows_its_budgets_and_sources() -> None:
    assert set(TINY) == set(CASES)
    for case in CASES.values():
        assert set(case.budgets) <= set(BUDGETS)
        assert "full" in case.budgets
        assert case.source
        assert case.figures


@pytest.mark.parametrize("name", CASES)
def test_every_case_measures_only_what_was_published(
    name: str, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepobs, "SIZES", (784, 16, 10))
    monkeypatch.setattr(deepobs, "EPOCHS", 2)
    monkeypatch.setattr(nielsen, "FULL_EPOCHS", 2)
    monkeypatch.setattr(algoperf, "EPOCHS", 2)
    monkeypatch.setattr(glorot_bengio, "WIDTH", 16)
    monkeypatch.setattr(glorot_bengio, "LONG_ENOUGH", 10)
    case = replace(CASES[name], budgets={"quick": TINY[name]})
    shares: list[float] = []
    (found,) = run_cases(
        [name], tmp_path, on_progress=lambda _, share: shares.append(share),
        budget="quick", cases={name: case}, digits=digits,
    )  # fmt: skip
    assert [row["quantity"] for row in found["rows"]] == [
        figure.quantity for figure in case.figures.values()
    ]
    assert any(row["verdict"] != "not run" for row in found["rows"])
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)


# Running


def a_case(calls: list[str], **settings: Any) -> Case:
    def measure(lab: Lab, given: Settings) -> Mapping[str, Measured]:
        calls.append(str(dict(given)))
        return {"one": Measured(1.0)}

    return Case(
        "A case", "A source", {"quick": settings, "standard": settings | {"n": (1, 2)}},
        {"one": Figure("one", 1, within(0, "so")), "two": Figure("two", 2, within(0, "so"))},
        measure,
    )  # fmt: skip


def test_a_case_is_not_run_again_with_the_same_settings(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []

    def run(case: Case, budget: str) -> str:
        (found,) = run_cases(
            ["a"], tmp_path, budget=budget, cases={"a": case, "b": case}, digits=digits
        )
        return str(found["settings"]["budget"])

    assert run(a_case(calls, m=1), "quick") == "quick"
    assert run(a_case(calls, m=1), "quick") == "quick"
    assert len(calls) == 1
    assert run(a_case(calls, m=1), "standard") == "standard"
    assert run(a_case(calls, m=1), "standard") == "standard"
    assert len(calls) == 2
    assert run(a_case(calls, m=1), "quick") == "standard"  # what took longer is kept
    assert len(calls) == 2
    assert run(a_case(calls, m=2), "quick") == "quick"  # other settings, another experiment
    assert len(calls) == 3


def test_the_file_has_what_a_report_needs(digits: Digits, tmp_path: Path) -> None:
    case = a_case([])
    run_cases(["b"], tmp_path, budget="standard", cases={"b": case}, digits=digits)
    run_cases(["a"], tmp_path, budget="standard", cases={"a": case}, digits=digits)
    content = read(tmp_path / RESULT)
    assert content["machine"]["cores"] >= 1
    assert "torch" in content["versions"]
    assert [found["case"] for found in content["cases"]] == ["b", "a"]
    found = content["cases"][0]
    assert (found["title"], found["source"]) == ("A case", "A source")
    assert found["settings"] == {"budget": "standard", "dataset": digits.name, "n": [1, 2]}
    one, two = found["rows"]
    assert (one["theirs"], one["ours"], one["verdict"]) == (1, 1.0, "reproduced")
    assert one["tolerance"] == "no margin: so"
    assert (two["ours"], two["verdict"]) == (None, "not run")
    assert two["note"] == "the budget standard does not reach it"


def test_a_budget_without_settings_runs_nothing(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []
    (found,) = run_cases(["a"], tmp_path, budget="full", cases={"a": a_case(calls)}, digits=digits)
    assert calls == []
    assert {row["verdict"] for row in found["rows"]} == {"not run"}


def test_without_mnist_nothing_is_run_until_it_is_there(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []
    cases = {"a": a_case(calls)}
    (found,) = run_cases(["a"], tmp_path, tmp_path / "nothing", budget="quick", cases=cases)
    assert calls == []
    assert {row["verdict"] for row in found["rows"]} == {"not run"}
    assert "no MNIST" in found["rows"][0]["note"]
    run_cases(["a"], tmp_path, budget="quick", cases=cases, digits=digits)
    assert len(calls) == 1


def test_an_interrupted_case_costs_only_itself(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []

    def interrupted(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
        raise KeyboardInterrupt

    cases = {"a": a_case(calls), "b": replace(a_case(calls), measure=interrupted)}
    with pytest.raises(KeyboardInterrupt):
        run_cases(["a", "b"], tmp_path, budget="quick", cases=cases, digits=digits)
    assert [found["case"] for found in read(tmp_path / RESULT)["cases"]] == ["a"]
    cases["b"] = a_case(calls)
    assert len(run_cases(["a", "b"], tmp_path, budget="quick", cases=cases, digits=digits)) == 2
    assert len(calls) == 2


def test_of_an_interrupted_case_the_finished_parts_are_kept(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []
    last: list[float] = []

    def stopping_at(stop: str | None) -> Case:
        def compute(key: str) -> list[float]:
            if key == stop:
                raise KeyboardInterrupt
            calls.append(key)
            return [1.0, math.inf]

        def measure(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
            lab.expect(300)
            values = [lab.once(key, 100, partial(compute, key)) for key in ("p", "q", "r")]
            last.append(values[0][1])
            return {"one": Measured(values[0][0])}

        return replace(a_case([], m=1), measure=measure)

    def run(case: Case, budget: str = "quick") -> None:
        run_cases(["a"], tmp_path, budget=budget, cases={"a": case}, digits=digits)

    with pytest.raises(KeyboardInterrupt):
        run(stopping_at("r"))
    assert calls == ["p", "q"]
    with pytest.raises(KeyboardInterrupt):
        run(stopping_at("q"), "standard")  # other settings, other parts
    assert calls == ["p", "q", "p"]
    run(stopping_at(None), "standard")
    assert calls == ["p", "q", "p", "q", "r"]
    assert math.isnan(last[-1])  # JSON has no infinity, and NaN reaches nothing either
    assert [path.name for path in tmp_path.iterdir()] == [RESULT]  # nothing is left over


def test_finished_parts_count_as_progress(digits: Digits, tmp_path: Path) -> None:
    shares: list[float] = []
    lab = Lab(digits, shares.append, Parts(tmp_path, "a", {}))
    for _ in range(2):
        lab.expect(2 * REPORTED_EVERY)
        lab.once("p", REPORTED_EVERY, lambda: 1)
    for _ in range(REPORTED_EVERY):
        lab.step()
    assert shares == [1.0]


def test_damaged_parts_are_an_error_that_names_the_file(digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.json").write_text('{"settings": {}')
    with pytest.raises(CannotRun, match=r"parts/a.json is damaged, remove it"):
        run_cases(["a"], tmp_path, budget="quick", cases={"a": a_case([])}, digits=digits)


@pytest.mark.parametrize(("one_thread", "inside"), [(True, 1), (False, 2)])
def test_small_nets_have_one_thread_and_give_the_others_back(
    one_thread: bool, inside: int, digits: Digits, tmp_path: Path
) -> None:
    seen: list[int] = []

    def measure(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
        seen.append(torch.get_num_threads())
        return {}

    case = replace(a_case([]), measure=measure, one_thread=one_thread)
    torch.set_num_threads(2)
    try:
        run_cases(["a"], tmp_path, budget="quick", cases={"a": case}, digits=digits)
        assert seen == [inside]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)  # as conftest has it


def test_bad_input_is_refused_before_anything_is_run(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []
    cases = {"a": a_case(calls)}
    with pytest.raises(CannotRun, match="no case 'b'; there are a"):
        run_cases(["a", "b"], tmp_path, cases=cases, digits=digits)
    with pytest.raises(CannotRun, match="no budget 'huge'"):
        run_cases(["a"], tmp_path, budget="huge", cases=cases, digits=digits)
    (tmp_path / RESULT).write_text('{"cases": 3}')
    with pytest.raises(CannotRun, match="does not hold reproduced cases"):
        run_cases(["a"], tmp_path, cases=cases, digits=digits)
    assert calls == []
    assert (tmp_path / RESULT).read_text() == '{"cases": 3}'
