"""Reproductions: verdicts, running, resuming, on synthetic digits; the figures need MNIST."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
    at_least,
    below,
    within,
)
from benchmarks.reproductions.cases import CASES
from benchmarks.reproductions.parts import Parts
from benchmarks.reproductions.running import RESULT, Experiment, run_cases
from tests.benchmarks.files import read
from torch_scratch_optim import ScratchSGD

pytestmark = pytest.mark.slow

TINY: dict[str, Settings] = {
    "quadratic_sgd": {"seeds": 2},
    "quadratic_momentum": {"seeds": 2},
    "quadratic_adam": {"seeds": 2},
    "nielsen_gradients": {"seeds": 3},
    "glorot_bengio_stuck": {"rates": (0.1,), "images": 100, "epochs": 1},
    "adam_paper_order": {"epochs": 2},
    "algoperf_target": {"rates": (1e-3, 1e-2), "epochs": 2},
    "nielsen_overfitting": {"seeds": (0,), "epochs": 2},
    "nielsen_rates": {"seeds": (0, 1), "epochs": 1},
    "nielsen_initialisation": {"seeds": (0, 1), "epochs": 1},
    "nielsen_sizes": {"seeds": (0, 1), "sizes": (100, 200), "images_seen": 1000},
    "deepobs_adam": {"seeds": (42, 43), "epochs": 2},
    "deepobs_momentum": {"seeds": (42, 43), "epochs": 2, "until": 0.97},
    "deepobs_adam_rates": {"rates": (1e-3,), "epochs": 1},
}


# Verdicts and tolerances


@pytest.mark.parametrize(
    ("published", "margin", "ours", "verdict"),
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
def test_a_margin_decides(published: Any, margin: float, ours: float, verdict: str) -> None:
    row = Figure("q", published, within(margin, "so")).row(Measured(ours))
    assert row["verdict"] == verdict
    assert row["published"] == published


def test_a_single_draw_of_theirs_must_be_a_possible_draw_of_ours() -> None:
    figure = Figure("q", 0.3, among_our_seeds("one seed"))
    assert figure.holds(Measured(0.5, (0.2, 0.6)))
    assert not figure.holds(Measured(0.5, (0.4, 0.6)))
    assert not figure.holds(Measured(0.2, (0.1, 0.25)))
    assert not figure.holds(Measured(0.3))  # no spread, no judgement


@pytest.mark.parametrize(
    ("published", "spread", "holds"),
    [
        (10.0, (11.0, 12.0), True),
        (10.0, (11.1, 12.0), False),
        (10.0, (8.0, 9.0), True),
        (10.0, (8.0, 8.9), False),
        ((10.0, 20.0), (11.0, 18.0), True),
        ((10.0, 20.0), (11.0, 17.9), False),
    ],
)
def test_a_spread_can_be_widened_by_a_share(
    published: Any, spread: tuple[float, float], holds: bool
) -> None:
    figure = Figure("q", published, among_our_seeds("so", 0.1))
    assert figure.holds(Measured(math.nan, spread)) is holds


@pytest.mark.parametrize(
    ("tolerance", "ours", "holds"),
    [
        (below(1.0, "an order"), 0.99, True),
        (below(1.0, "an order"), 1.0, False),
        (below(1.0, "an order"), math.nan, False),
        (at_least(0.97, "a target"), 0.97, True),
        (at_least(0.97, "a target"), 0.969, False),
    ],
)
def test_orders_and_targets_are_one_sided(tolerance: Any, ours: float, holds: bool) -> None:
    assert Figure("q", "in words", tolerance).holds(Measured(ours)) is holds


def test_what_was_not_measured_is_not_run_and_says_why() -> None:
    row = Figure("q", 0.3, within(1, "so"), "Odd.").row(None, "no time")
    assert (row["verdict"], row["ours"], row["note"]) == ("not run", None, "Odd. no time")


def test_a_figure_that_nobody_published_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing is published for other"):
        a_case([]).rows({"other": Measured(1.0)})


# All cases


def test_every_case_knows_its_budgets_and_sources() -> None:
    assert set(TINY) == set(CASES)
    for case in CASES.values():
        assert set(case.wrong) <= set(case.budgets) <= set(BUDGETS)
        assert "full" in case.budgets
        assert case.source
        assert case.figures
        assert bool(case.optimizers) == bool(case.wrong_names())


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
    case = replace(CASES[name], budgets={"quick": TINY[name]}, wrong={})
    shares: list[float] = []
    (result,) = run_cases(
        [name], tmp_path, on_experiment=lambda *about: shares.append,
        budget="quick", cases={name: case}, digits=digits,
    )  # fmt: skip
    assert [row["quantity"] for row in result["rows"]] == [
        figure.quantity for figure in case.figures.values()
    ]
    assert any(row["verdict"] != "not run" for row in result["rows"])
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)


# Running


def a_case(calls: list[str], **settings: Any) -> Case:
    """Two figures, of which one is measured: 1, as published, or 2 with a wrong optimizer."""

    def measure(lab: Lab, given: Settings) -> Mapping[str, Measured]:
        calls.append(str(dict(given)) if lab.wrong is None else lab.wrong)
        return {"one": Measured(1.0 if lab.wrong is None else 2.0, seeds=3)}

    return Case(
        "A case", "A source", {"quick": settings, "standard": settings | {"n": (1, 2)}},
        {
            "one": Figure("one", 1, within(0, "so")),
            "two": Figure("two", 2, within(0, "so"), budget="full"),
        },
        measure,
    )  # fmt: skip


def against_wrong(case: Case) -> Case:
    return replace(case, optimizers=(ScratchSGD,), wrong={"quick": {}, "standard": {"k": 1}})


def test_a_case_is_not_run_again_with_the_same_settings(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []

    def run(case: Case, budget: str) -> str:
        (result,) = run_cases(
            ["a"], tmp_path, budget=budget, cases={"a": case, "b": case}, digits=digits
        )
        return str(result["settings"]["budget"])

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
    case = a_case(calls, m=2)
    assert run(replace(case, figures={"one": case.figures["one"]}), "quick") == "quick"
    assert len(calls) == 4  # other figures, another table


WRONG = ["learning rate × 1.5", "never trained"]


def test_wrong_optimizers_are_tried_after_all_right_ones(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []
    cases = {name: against_wrong(a_case(calls)) for name in "ab"}
    experiments: list[Experiment] = []

    def note(experiment: Experiment, number: int, total: int) -> Callable[[float], None]:
        experiments.append(experiment)
        assert (number, total) == (len(experiments), 6)
        return lambda share: None

    result, _ = run_cases(
        ["a", "b"], tmp_path, on_experiment=note, budget="quick", cases=cases, digits=digits
    )
    right = [Experiment("a"), Experiment("b")]
    assert experiments == [*right, *(Experiment(name, wrong) for name in "ab" for wrong in WRONG)]
    one, two = result["rows"]
    assert one["wrong"] == {name: {"value": 2.0, "rejected": True} for name in WRONG}
    assert one["verdict"] == "reproduced"
    assert two["wrong"] == {}  # it is not measured


def test_wrong_optimizers_are_not_tried_again_with_the_same_settings(
    digits: Digits, tmp_path: Path
) -> None:
    calls: list[str] = []

    def run(budget: str, try_wrong: bool = True) -> list[str]:
        calls.clear()
        case = against_wrong(a_case(calls))
        run_cases(
            ["a"], tmp_path, budget=budget, cases={"a": case}, digits=digits, try_wrong=try_wrong
        )
        return list(calls)

    assert run("quick", try_wrong=False) == ["{}"]
    assert run("quick") == WRONG
    assert run("quick") == []
    assert run("standard") == ["{'n': (1, 2)}", *WRONG]
    assert run("quick") == []


def test_an_interruption_keeps_wrong_optimizers_that_were_tried(
    digits: Digits, tmp_path: Path
) -> None:
    calls: list[str] = []
    case = against_wrong(a_case(calls))

    def interrupted(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
        if lab.wrong == WRONG[1]:
            raise KeyboardInterrupt
        return case.measure(lab, settings)

    cases = {"a": replace(case, measure=interrupted)}
    with pytest.raises(KeyboardInterrupt):
        run_cases(["a"], tmp_path, budget="quick", cases=cases, digits=digits)
    (result,) = read(tmp_path / RESULT)["cases"]
    assert list(result["rows"][0]["wrong"]) == WRONG[:1]
    calls.clear()
    run_cases(["a"], tmp_path, budget="quick", cases={"a": case}, digits=digits)
    assert calls == WRONG[1:]


def test_the_file_has_what_a_table_needs(digits: Digits, tmp_path: Path) -> None:
    case = a_case([])
    run_cases(["b"], tmp_path, budget="standard", cases={"b": case}, digits=digits)
    run_cases(["a"], tmp_path, budget="standard", cases={"a": case}, digits=digits)
    content = read(tmp_path / RESULT)
    assert content["machine"]["cores"] >= 1
    assert "torch" in content["versions"]
    assert [result["case"] for result in content["cases"]] == ["b", "a"]
    result = content["cases"][0]
    assert (result["title"], result["source"]) == ("A case", "A source")
    assert result["settings"] == {"budget": "standard", "dataset": digits.name, "n": [1, 2]}
    one, two = result["rows"]
    assert (one["published"], one["ours"], one["verdict"]) == (1, 1.0, "reproduced")
    assert one["tolerance"] == "no margin: so"
    assert one["seeds"] == [1, 3]
    assert one["wrong"] is None, "nothing is trained"
    assert (two["ours"], two["verdict"]) == (None, "not run")
    assert two["note"] == "--budget full runs it"


def test_a_budget_without_settings_runs_nothing(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []
    (result,) = run_cases(["a"], tmp_path, budget="full", cases={"a": a_case(calls)}, digits=digits)
    assert calls == []
    assert {row["verdict"] for row in result["rows"]} == {"not run"}


def test_without_mnist_only_what_does_not_need_it_is_run(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []
    cases = {
        "a": against_wrong(a_case(calls)),
        "b": replace(a_case(calls, b=1), needs_mnist=False),
    }
    a, b = run_cases(["a", "b"], tmp_path, tmp_path / "nothing", budget="quick", cases=cases)
    assert calls == ["{'b': 1}"]
    assert {row["verdict"] for row in a["rows"]} == {"not run"}
    assert "no MNIST" in a["rows"][0]["note"]
    assert b["rows"][0]["verdict"] == "reproduced"
    run_cases(["a", "b"], tmp_path, budget="quick", cases=cases, digits=digits)
    assert calls == ["{'b': 1}", "{}", *WRONG]


def test_an_interrupted_case_costs_only_itself(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []

    def interrupted(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
        raise KeyboardInterrupt

    cases = {"a": a_case(calls), "b": replace(a_case(calls), measure=interrupted)}
    with pytest.raises(KeyboardInterrupt):
        run_cases(["a", "b"], tmp_path, budget="quick", cases=cases, digits=digits)
    assert [result["case"] for result in read(tmp_path / RESULT)["cases"]] == ["a"]
    cases["b"] = a_case(calls)
    assert len(run_cases(["a", "b"], tmp_path, budget="quick", cases=cases, digits=digits)) == 2
    assert len(calls) == 2


def test_an_interruption_keeps_the_results_of_a_smaller_budget(
    digits: Digits, tmp_path: Path
) -> None:
    def interrupted(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
        raise KeyboardInterrupt

    cases = {"a": a_case([]), "b": a_case([])}
    run_cases(["a", "b"], tmp_path, budget="quick", cases=cases, digits=digits)
    cases["b"] = replace(cases["b"], measure=interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_cases(["a", "b"], tmp_path, budget="standard", cases=cases, digits=digits)
    budgets = [result["settings"]["budget"] for result in read(tmp_path / RESULT)["cases"]]
    assert budgets == ["standard", "quick"]


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
        lab.expect(4 * REPORTED_EVERY)
        lab.once("p", 2 * REPORTED_EVERY, lambda: 1)
    for _ in range(2 * REPORTED_EVERY):
        lab.step()
    assert shares == [0.75]  # the end is told by whoever runs the case


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
