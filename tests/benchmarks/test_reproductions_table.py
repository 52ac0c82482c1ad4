"""The tables of reproductions: what a reader is told of a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.reproductions.case import Figure, Measured, within
from benchmarks.reproductions.table import (
    HEADINGS,
    cells,
    markdown_tables,
    rejected,
    summary,
    with_missing,
)
from tests.benchmarks.test_reproductions import a_case


def a_row(ours: Measured | None, **more: Any) -> dict[str, Any]:
    figure = Figure("accuracy", (0.5, 0.625), within(0.25, "so"), seeds=2)
    return figure.row(ours, "--budget full runs it") | {"wrong": {}} | more


def told(row: dict[str, Any]) -> dict[str, str]:
    return dict(zip(HEADINGS, cells(row), strict=True))


def test_a_row_tells_all_that_it_was_judged_by() -> None:
    assert told(a_row(Measured(0.75, (0.5, 0.875), seeds=3))) == {
        "quantity": "accuracy",
        "published": "0.5 … 0.625",
        "ours": "0.75 (0.5 … 0.875)",
        "tolerance": "± 0.25: so",
        "seeds": "2 / 3",
        "verdict": "reproduced",
        "rejects": "not tried",
    }


def test_a_row_that_differs_says_what_is_known_of_it() -> None:
    row = told(a_row(Measured(2.0, note="Odd.")))
    assert row["verdict"] == "differs: Odd."
    assert row["rejects"] == "the right optimizer, too"


def test_a_row_that_was_not_run_names_the_budget() -> None:
    row = told(a_row(None))
    assert (row["ours"], row["seeds"]) == ("–", "2 / 0")
    assert row["verdict"] == "not run: --budget full runs it"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({}, "not tried"),
        ({"a": False, "b": False}, "no check of an optimizer (0 of 2)"),
        ({"a": True, "b": False, "c": True}, "a, c (2 of 3)"),
    ],
)
def test_a_row_lists_the_wrong_optimizers_that_it_rejects(
    wrong: dict[str, bool], text: str
) -> None:
    tried = {name: {"value": 1.0, "rejected": bad} for name, bad in wrong.items()}
    assert rejected(tried) == text


def test_a_row_of_a_case_that_trains_nothing_says_so() -> None:
    assert rejected(None) == "no optimizer runs"


def test_cases_without_results_are_shown_as_not_run() -> None:
    cases = {"a": a_case([]), "b": replace(a_case([]), note="Odd.")}
    result = {"case": "b", "title": "A case", "source": "?", "rows": [a_row(Measured(0.5))] * 2}
    results = with_missing([result], cases)
    assert summary(results) == "2 of 4 figures reproduced, 0 differ, 2 not run"
    without, with_results = markdown_tables(results).split("**A case**")[1:]
    assert without.count("| not run: --budget ") == 2
    assert with_results.count("| reproduced |") == 2
    assert ("Odd." in with_results, "Odd." in without) == (True, False)


def test_a_summary_counts_every_verdict() -> None:
    rows = [a_row(Measured(value)) for value in (0.5, 0.6, 2.0)] + [a_row(None)]
    assert summary([{"rows": rows}]) == "2 of 4 figures reproduced, 1 differs, 1 not run"
    assert summary([{"rows": rows}] * 2) == "4 of 8 figures reproduced, 2 differ, 2 not run"
