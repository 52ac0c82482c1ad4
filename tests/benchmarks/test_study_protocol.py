"""The protocol: what is run next, who wins, and that everyone has the same budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.common.command import CannotRun
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.study.protocol import (
    BUDGETS,
    RANGES,
    SEARCH_SEED,
    TUNED,
    Cell,
    Grid,
    Study,
    expected,
    missing,
    wanted,
    winner_of,
)  # fmt: skip
from benchmarks.study.trial import FINAL, SEARCH, Trial

STUDY = Study(
    "tiny", Grid(-3, 1, 3), extra=2, samples=4, seeds=3, epochs=1, optimizers=("sgd", "adam"),
    nets=("relu",),
)  # fmt: skip
Judge = Callable[[Trial], float]
Known = dict[str, dict[str, Any]]


def outcome(accuracy: float, loss: float = 1.0, diverged: bool = False) -> dict[str, Any]:
    result = {"diverged": diverged, "validation_accuracy": accuracy, "validation_loss": loss}
    return {"result": result}


def play(study: Study, accuracy: Judge) -> Known:
    """Run a study to its end, with made-up accuracies."""
    known: Known = {}
    while trials := missing(study, known):
        known |= {trial.key: outcome(accuracy(trial)) for trial in trials}
    return known


def best_at(rate: float) -> Judge:
    return lambda trial: -abs(trial.settings.lr - rate)


def searched(study: Study, cell: Cell, known: Known) -> list[Trial]:
    return [trial for trial in wanted(study, cell, known) if trial.phase == SEARCH]


def test_all_cells_have_the_same_budget_and_the_same_grid() -> None:
    known = play(STUDY, best_at(0.01))
    for track, count in (("lr", 3), ("all", 4)):
        for optimizer in STUDY.optimizers:
            trials = list(wanted(STUDY, Cell(track, "relu", optimizer), known))
            assert len(trials) == count + STUDY.seeds
            rates = [trial.settings.lr for trial in trials[:3]]
            assert track == "all" or rates == [0.001, 0.01, 0.1]
    assert expected(STUDY, {}) == expected(STUDY, known) == len(known)


@pytest.mark.parametrize("track", ["lr", "all"])
def test_winners_are_run_again_with_their_settings_on_paired_seeds(track: str) -> None:
    known = play(STUDY, best_at(0.01))
    seeds = {}
    for optimizer in STUDY.optimizers:
        cell = Cell(track, "relu", optimizer)
        winner = winner_of(STUDY, cell, known)
        assert winner is not None
        finals = [trial for trial in wanted(STUDY, cell, known) if trial.phase == FINAL]
        for trial in finals:
            assert replace(trial.settings, seed=SEARCH_SEED) == winner.trial.settings
        seeds[optimizer] = [trial.settings.seed for trial in finals]
    assert seeds == {"sgd": [42, 43, 44], "adam": [42, 43, 44]}


def test_nothing_is_selected_on_a_seed_of_the_finals() -> None:
    assert all(one.settings.seed == SEARCH_SEED < 42 for one in missing(STUDY, {}))


@pytest.mark.parametrize(
    ("best", "rates", "at_edge"),
    [
        (0.1, [0.001, 0.01, 0.1, 1.0], False),
        (0.001, [0.0001, 0.001, 0.01, 0.1], False),
        (1.0, [0.001, 0.01, 0.1, 1.0, 10.0], False),
        (1e5, [0.001, 0.01, 0.1, 1.0, 10.0], True),
        (0.0, [1e-5, 1e-4, 0.001, 0.01, 0.1], True),
    ],
)
def test_a_grid_grows_where_its_winner_is_at_its_end(
    best: float, rates: list[float], at_edge: bool
) -> None:
    known = play(STUDY, best_at(best))
    for optimizer in STUDY.optimizers:
        cell = Cell("lr", "relu", optimizer)
        assert [trial.settings.lr for trial in searched(STUDY, cell, known)] == rates
        winner = winner_of(STUDY, cell, known)
        assert winner is not None
        assert (winner.extra, winner.at_edge) == (len(rates) - 3, at_edge)


def test_finals_wait_for_the_whole_search() -> None:
    cell = Cell("lr", "relu", "sgd")
    trials = searched(STUDY, cell, {})
    known = {trial.key: outcome(0.5) for trial in trials[:-1]}
    assert winner_of(STUDY, cell, known) is None
    assert [one.key for one in wanted(STUDY, cell, known)] == [one.key for one in trials]
    assert list(wanted(STUDY, replace(cell, track="all"), known)) == []


def test_accuracy_decides_then_loss_and_who_diverged_never_wins() -> None:
    cell = Cell("lr", "relu", "sgd")
    first, second, third = searched(STUDY, cell, {})

    def winner(*outcomes: dict[str, Any]) -> Trial:
        known = dict(zip((first.key, second.key, third.key), outcomes, strict=True))
        found = winner_of(replace(STUDY, extra=0), cell, known)
        assert found is not None
        return found.trial

    assert winner(outcome(0.5, 0.1), outcome(0.6, 0.9), outcome(0.4, 0.1)) == second
    assert winner(outcome(0.5, 0.2), outcome(0.5, 0.3), outcome(0.5, 0.1)) == third
    broken = outcome(0.9, 0.0, diverged=True)
    assert winner(broken, outcome(0.1, 9.0), broken) == second


def test_the_track_all_searches_around_the_winner_in_everything_an_optimizer_has() -> None:
    study = replace(STUDY, optimizers=tuple(TUNED), samples=32)
    known = play(study, best_at(0.01))
    for optimizer in TUNED:
        for trial in searched(study, Cell("all", "relu", optimizer), known):
            assert 0.001 <= trial.settings.lr <= 0.1
            assert set(trial.settings.options) == set(TUNED[optimizer])
            for name, value in trial.settings.options.items():
                low, high = (10**exponent for exponent in RANGES[name])
                inside = value if name == "eps" else 1 - value
                assert low * 0.99 <= inside <= high * 1.01


def test_no_two_trials_have_one_key() -> None:
    study = replace(STUDY, optimizers=tuple(TUNED), nets=("sigmoid", "relu"))
    known = play(study, best_at(0.01))
    trials = [one for cell in study.cells() for one in wanted(study, cell, known)]
    assert len({trial.key for trial in trials}) == len(trials)


def test_every_contender_is_in_the_study_and_every_budget_is_possible() -> None:
    assert set(TUNED) == set(OPTIMIZERS)
    for budget in BUDGETS.values():
        budget.check()
    deepobs = [BUDGETS["full"].grid.rate(number) for number in range(36)]
    assert (deepobs[0], deepobs[35]) == (1e-5, 100.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tracks": ("all",)}, "choose both"),
        ({"batch_size": 60_000}, "--batch-size 60000 is more than the 50000"),
        ({"train_size": 5}, "--train-size 5"),
        ({"samples": 0}, "--samples"),
    ],
)
def test_impossible_studies_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotRun, match=words):
        replace(STUDY, **change).check()
