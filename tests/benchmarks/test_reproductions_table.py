"""The tables of reproductions: what a reader is told of a row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.reproductions.case import Figure, Measured, within
from benchmarks.reproductions.cases import CASES
from benchmarks.reproductions.table import (
    HEADINGS,
    cells,
    how_it_was_run,
    markdown_tables,
    rejected,
    summary,
    summary_of_checks,
    with_cases,
)
from benchmarks.reproductions.wrong import NEVER_TRAINED, WRONG
from tests.benchmarks.test_reproductions import a_case, against_wrong

NO_OPTIMIZER = "checks the net and the data, not the optimizer"


def a_row(ours: Measured | None = None, **more: Any) -> dict[str, Any]:
    figure = Figure("accuracy", (0.5, 0.625), within(0.25, "so"), seeds=2)
    return figure.row(ours, "--budget full runs it") | {"wrong": {}} | more


def a_reproduced_row(wrong: dict[str, bool] | None) -> dict[str, Any]:
    """With wrong optimizers that were tried, and whether they are rejected."""
    if wrong is None:
        return a_row(Measured(0.5), wrong=None)
    tried = {name: {"value": 1.0, "rejected": bad} for name, bad in wrong.items()}
    return a_row(Measured(0.5), wrong=tried)


def a_result(
    *rows: dict[str, Any], tried: Iterable[str] = (), applicable: Iterable[str] = ()
) -> dict[str, Any]:
    settings = {"budget": "quick", "dataset": None}
    return {
        "case": "b",
        "title": "A case",
        "source": "?",
        "rows": [*rows],
        "settings": settings,
        "wrong": dict.fromkeys(tried, settings),
        "wrong_names": [*applicable],
    }


def told(row: dict[str, Any]) -> dict[str, str]:
    return dict(zip(HEADINGS, cells(row, a_result(row)), strict=True))


def test_a_row_tells_all_that_it_was_judged_by() -> None:
    assert told(a_row(Measured(0.75, (0.5, 0.875), seeds=3))) == {
        "quantity": "accuracy",
        "published": "0.5 … 0.625",
        "ours": "0.75 (0.5 … 0.875)",
        "tolerance": "± 0.25: so",
        "seeds": "2 / 3",
        "verdict": "reproduced",
        "rejects": "not tried: none was run here",
    }


def test_a_row_that_differs_says_what_is_known_of_it() -> None:
    row = told(a_row(Measured(2.0, note="Odd.")))
    assert row["verdict"] == "differs: Odd."
    assert row["rejects"] == "the right optimizer, too"


def test_a_row_that_was_not_run_names_the_budget() -> None:
    row = told(a_row(None))
    assert (row["ours"], row["seeds"]) == ("–", "2 / 0")
    assert row["verdict"] == "not run: --budget full runs it"
    assert row["rejects"] == "–"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (None, f"nothing is trained: {NO_OPTIMIZER}"),
        ({"a": False, "b": False}, f"nothing (0 of 2): {NO_OPTIMIZER}"),
        ({"a": False, NEVER_TRAINED: False}, f"nothing (0 of 2): {NO_OPTIMIZER}"),
        ({"a": False}, "nothing (0 of 1, 1 not tried): no check of the optimizer yet"),
        ({"a": True, "b": False, "c": True}, "a, c (2 of 3)"),
        ({"a": True}, "a (1 of 1, 1 not tried)"),
        (
            {"a": False, NEVER_TRAINED: True},
            "never trained (1 of 2): checks that it trains, not by which formula",
        ),
        ({"a": True, NEVER_TRAINED: True}, "a, never trained (2 of 2)"),
        (
            {"a": True, NEVER_TRAINED: False},
            "a (1 of 2); a net that is never trained passes",
        ),
    ],
)
def test_a_row_lists_what_it_rejects_or_says_what_it_checks(
    wrong: dict[str, bool] | None, text: str
) -> None:
    applicable = [*(wrong or {})] if len(wrong or {}) != 1 else ["a", "b"]
    row = a_reproduced_row(wrong)
    assert rejected(row, a_result(row, tried=wrong or (), applicable=applicable)) == text


@pytest.mark.parametrize(
    ("tried", "why"),
    [((), "none was run here"), ("a", "longer than wrong optimizers are run")],
)
def test_a_row_that_was_not_tried_says_why(tried: Iterable[str], why: str) -> None:
    row = a_reproduced_row({})
    assert rejected(row, a_result(row, tried=tried)) == f"not tried: {why}"


def test_the_wrong_optimizers_that_apply_to_a_case_are_those_of_the_case() -> None:
    results = with_cases([], {"a": against_wrong(a_case([])), "b": a_case([])})
    assert [result["wrong_names"] for result in results] == [
        ["learning rate × 1.5", NEVER_TRAINED],
        [],
    ]
    assert NEVER_TRAINED in WRONG


def test_a_case_that_trains_nothing_or_gets_stuck_says_so() -> None:
    gradients, stuck = with_cases(
        [], {name: CASES[name] for name in ("nielsen_gradients", "glorot_bengio_stuck")}
    )
    assert {row["wrong"] is None for row in gradients["rows"]} == {True}
    assert "a net that is never trained has the same loss" in stuck["note"]


def test_cases_without_results_are_shown_as_not_run() -> None:
    cases = {"a": a_case([]), "b": replace(a_case([]), note="Odd.")}
    results = with_cases([a_result(*[a_row(Measured(0.5))] * 2)], cases)
    assert summary(results) == "2 of 4 figures reproduced, 0 differ, 2 not run"
    without, with_results = markdown_tables(results).split("**A case**")[1:]
    assert without.count("| not run: --budget ") == 2
    assert with_results.count("| reproduced |") == 2
    assert ("Odd." in with_results, "Odd." in without) == (True, False)
    assert ("Run with" in with_results, "Run with" in without) == (True, False)


def test_a_table_says_with_which_settings_it_was_run() -> None:
    assert how_it_was_run(a_result(a_row(None))) == ""
    result = a_result(a_row(None), a_row(Measured(0.5)))
    assert how_it_was_run(result) == "Run with budget quick."
    result["settings"] = {"budget": "full", "dataset": "MNIST", "seeds": [0, 1], "images_seen": 9}
    result["wrong"] = {name: {"budget": "standard", "dataset": "MNIST", "k": 1} for name in "ab"}
    assert how_it_was_run(result) == (
        "Run with budget full (seeds 0, 1; images seen 9); wrong optimizers with "
        "budget standard (k 1)."
    )


def test_a_summary_counts_every_verdict() -> None:
    rows = [a_row(Measured(value)) for value in (0.5, 0.6, 2.0)] + [a_row(None)]
    assert summary([{"rows": rows}]) == "2 of 4 figures reproduced, 1 differs, 1 not run"
    assert summary([{"rows": rows}] * 2) == "4 of 8 figures reproduced, 2 differ, 2 not run"


def test_a_summary_counts_what_the_reproduced_figures_reject() -> None:
    tried: list[dict[str, bool] | None] = [
        {"a": True, NEVER_TRAINED: True}, {"a": True}, {NEVER_TRAINED: True}, {"a": False}, {},
        {}, None, None, None,
    ]  # fmt: skip
    rows = [*map(a_reproduced_row, tried), a_row(Measured(2.0)), a_row(None)]
    assert summary_of_checks([{"rows": rows}]) == (
        "What the reproduced figures reject: a wrong optimizer that trains (2), only a net that is "
        "never trained (1), nothing (1); not tried (2), nothing is trained (3)"
    )
