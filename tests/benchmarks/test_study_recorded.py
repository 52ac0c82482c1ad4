"""The recorded study: what its protocol promises holds in its results."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.common.record import read_json
from benchmarks.facts import RESULTS
from benchmarks.study.trial import PROTOCOL


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    summary = read_json(RESULTS / "study" / "summary.json")
    assert summary["protocol"] == PROTOCOL, "record the study anew"
    return summary


def test_tuning_everything_is_not_worse_than_tuning_the_learning_rate(
    recorded: dict[str, Any],
) -> None:
    gains = {
        (comparison["net"], entry["optimizer"]): entry["gain"]
        for comparison in recorded["comparisons"]
        if comparison["search_space"] == "all"
        for entry in comparison["ranking"]
    }
    assert len(gains) == 12
    losses = {
        key: gain["mean"] for key, gain in gains.items() if gain["told_apart"] and gain["mean"] < 0
    }
    assert losses == {}


def test_every_chosen_rate_is_inside_its_grid_or_the_optimizer_fails_everywhere(
    recorded: dict[str, Any],
) -> None:
    at_edge = [
        searched
        for comparison in recorded["comparisons"]
        for searched in comparison["sensitivity"]
        if searched["at_edge"]
    ]
    assert all(searched["failed"] == searched["tried"] for searched in at_edge)


def test_no_chosen_setting_failed_in_the_selection_where_another_did_not(
    recorded: dict[str, Any],
) -> None:
    for comparison in recorded["comparisons"]:
        failed = {
            candidate["optimizer"]: candidate["failed"]
            for candidate in comparison["selection"]
            if candidate["chosen"]
        }
        for candidate in comparison["selection"]:
            assert failed[candidate["optimizer"]] <= candidate["failed"]
