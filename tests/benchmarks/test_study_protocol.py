"""The protocol: what is run next, how settings are chosen, and that all have the same budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.common.command import CannotRun
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.study.protocol import (
    BUDGETS,
    SEARCH_SEED,
    TUNED,
    Grid,
    Study,
    Sweep,
    expected,
    missing,
    selection_score,
    wanted,
    winner_of,
)
from benchmarks.study.trial import FINAL, SEARCH, SELECTION, TIMING, Trial

STUDY = Study(
    "tiny", Grid(-3, 1, 3), extra=2, samples=2, candidates=1, selection_seeds=3, seeds=3, epochs=1,
    optimizers=("sgd", "adam"), nets=("relu",),
)  # fmt: skip
SELECTING = replace(STUDY, grid=Grid(-4, 1, 5), extra=0, candidates=3)
Judge = Callable[[Trial], float]
Known = dict[str, dict[str, Any]]


def outcome(
    accuracy: float, loss: float = 1.0, diverged: bool = False, seconds: float | None = 1.0
) -> dict[str, Any]:
    result = {"diverged": diverged, "validation_accuracy": accuracy, "validation_loss": loss}
    return {"result": result | {"seconds": seconds}}


def play(study: Study, accuracy: Judge, stacked: Callable[[Trial], bool] | None = None) -> Known:
    """Run a study to its end, with made-up accuracies."""
    known: Known = {}
    while trials := missing(study, known):
        for trial in trials:
            seconds = None if stacked is not None and stacked(trial) else 1.0
            known[trial.key] = outcome(accuracy(trial), seconds=seconds)
    return known


def best_at(rate: float) -> Judge:
    return lambda trial: 0.9 - 0.1 * min(1, abs(trial.settings.lr - rate))


def at_chance(trial: Trial) -> float:
    return 0.1


def of_phase(study: Study, sweep: Sweep, known: Known, phase: str = SEARCH) -> list[Trial]:
    return [trial for trial in wanted(study, sweep, known) if trial.phase == phase]


def chosen(study: Study, sweep: Sweep, known: Known) -> Trial:
    winner = winner_of(study, sweep, known)
    assert winner is not None
    return winner.trial


def test_all_optimizers_have_the_same_grid_and_as_many_samples_a_dimension() -> None:
    study = replace(STUDY, optimizers=tuple(TUNED))
    known = play(study, best_at(0.01))
    for optimizer in study.optimizers:
        rates = [one.settings.lr for one in of_phase(study, Sweep("lr", "relu", optimizer), known)]
        assert rates == [0.001, 0.01, 0.1]
        searched = of_phase(study, Sweep("all", "relu", optimizer), known)
        assert len(searched) == 1 + study.samples * (1 + len(TUNED[optimizer]))
    assert expected(study, known) == len(known)


def test_expected_is_right_before_anything_is_known() -> None:
    known = play(SELECTING, best_at(0.01))
    assert expected(SELECTING, {}) == expected(SELECTING, known) == len(known)


@pytest.mark.parametrize("search_space", ["lr", "all"])
def test_winners_are_run_again_with_their_settings_on_paired_seeds(search_space: str) -> None:
    known = play(STUDY, best_at(0.01))
    seeds = {}
    for optimizer in STUDY.optimizers:
        sweep = Sweep(search_space, "relu", optimizer)
        settings = chosen(STUDY, sweep, known).settings
        finals = of_phase(STUDY, sweep, known, FINAL)
        for trial in finals:
            assert replace(trial.settings, seed=SEARCH_SEED) == settings
        seeds[optimizer] = [trial.settings.seed for trial in finals]
    assert seeds == {"sgd": [42, 43, 44], "adam": [42, 43, 44]}


def test_nothing_is_chosen_on_a_seed_of_the_finals() -> None:
    known = play(SELECTING, best_at(0.01))
    trials = [one for sweep in SELECTING.sweeps() for one in wanted(SELECTING, sweep, known)]
    seeds = {
        phase: {one.settings.seed for one in trials if one.phase == phase}
        for phase in (SEARCH, SELECTION, FINAL)
    }
    assert seeds == {SEARCH: {41}, SELECTION: {21, 22, 23}, FINAL: {42, 43, 44}}


def test_selection_runs_the_best_of_the_search_on_new_seeds() -> None:
    known = play(SELECTING, best_at(0.01))
    selected = of_phase(SELECTING, Sweep("lr", "relu", "sgd"), known, SELECTION)
    assert [(one.settings.lr, one.settings.seed) for one in selected] == [
        (rate, seed) for seed in (21, 22, 23) for rate in (0.01, 0.001, 0.0001)
    ]


def test_selection_does_not_choose_a_rate_that_fails_on_a_seed() -> None:
    def judge(trial: Trial) -> float:
        if trial.settings.lr == 0.1:  # the best but for one seed, which a median would not see
            return 0.1 if trial.settings.seed == 22 else 0.94
        return best_at(0.01)(trial)

    known = play(SELECTING, judge)
    sweep = Sweep("lr", "relu", "sgd")
    searched = of_phase(SELECTING, sweep, known)
    assert max(searched, key=judge).settings.lr == 0.1
    assert chosen(SELECTING, sweep, known).settings.lr == 0.01


def test_settings_at_chance_are_no_candidates() -> None:
    known = play(SELECTING, lambda trial: 0.9 if trial.settings.lr == 0.01 else 0.1)
    sweep = Sweep("lr", "relu", "sgd")
    assert of_phase(SELECTING, sweep, known, SELECTION) == []  # one candidate needs no selection
    assert chosen(SELECTING, sweep, known).settings.lr == 0.01


def test_where_every_setting_is_at_chance_the_best_one_stands_for_them() -> None:
    known = play(SELECTING, lambda trial: 0.11 if trial.settings.lr == 0.01 else 0.1)
    sweep = Sweep("lr", "relu", "sgd")
    assert of_phase(SELECTING, sweep, known, SELECTION) == []
    assert chosen(SELECTING, sweep, known).settings.lr == 0.01


@pytest.mark.parametrize(
    ("results", "score"),
    [
        ([outcome(0.9), outcome(0.8)], 0.85),
        ([outcome(0.9), outcome(0.9), outcome(0.0, diverged=True)], 1.9 / 3),
    ],
)
def test_selection_score_is_the_mean_with_diverged_runs_at_chance(
    results: list[dict[str, Any]], score: float
) -> None:
    assert selection_score(one["result"] for one in results) == pytest.approx(score)


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
def test_a_grid_is_extended_where_its_winner_is_at_its_end(
    best: float, rates: list[float], at_edge: bool
) -> None:
    known = play(STUDY, lambda trial: 0.9 - abs(trial.settings.lr - best) / 1e6)
    for optimizer in STUDY.optimizers:
        sweep = Sweep("lr", "relu", optimizer)
        assert [trial.settings.lr for trial in of_phase(STUDY, sweep, known)] == rates
        winner = winner_of(STUDY, sweep, known)
        assert winner is not None
        assert (winner.extra, winner.at_edge) == (len(rates) - 3, at_edge)


def test_a_grid_is_extended_where_any_candidate_is_at_its_end() -> None:
    study = replace(STUDY, candidates=2)
    known = play(study, lambda trial: 0.9 - abs(trial.settings.lr - 0.04))
    rates = [trial.settings.lr for trial in of_phase(study, Sweep("lr", "relu", "sgd"), known)]
    assert rates == [0.0001, 0.001, 0.01, 0.1]  # 0.01 and 0.001 were the best two


def test_finals_wait_for_the_whole_search_and_selection() -> None:
    sweep = Sweep("lr", "relu", "sgd")
    trials = of_phase(SELECTING, sweep, {})
    known = {trial.key: outcome(0.5) for trial in trials[:-1]}
    assert winner_of(SELECTING, sweep, known) is None
    assert [one.key for one in wanted(SELECTING, sweep, known)] == [one.key for one in trials]
    known[trials[-1].key] = outcome(0.5)
    selected = of_phase(SELECTING, sweep, known, SELECTION)
    known |= {trial.key: outcome(0.5) for trial in selected[:-1]}
    assert winner_of(SELECTING, sweep, known) is None
    assert of_phase(SELECTING, sweep, known, FINAL) == []
    assert list(wanted(SELECTING, replace(sweep, search_space="all"), known)) == []


@pytest.mark.parametrize(
    ("stacked", "timed"),
    [
        (lambda trial: False, []),
        (lambda trial: trial.phase == SEARCH, []),
        (lambda trial: trial.phase != TIMING, [42, 43, 44]),
        (lambda trial: trial.phase == FINAL and trial.settings.seed == 46, [42, 43, 44]),
    ],
    ids=["no trial in a stack", "the search", "all", "the last final"],
)
@pytest.mark.parametrize("search_space", ["lr", "all"])
def test_winners_are_timed_if_a_final_has_no_seconds(
    search_space: str, stacked: Callable[[Trial], bool], timed: list[int]
) -> None:
    study = replace(STUDY, seeds=5)
    known = play(study, best_at(0.01), stacked)
    for optimizer in study.optimizers:
        sweep = Sweep(search_space, "relu", optimizer)
        winner = chosen(study, sweep, known)
        assert of_phase(study, sweep, known, TIMING) == [
            replace(winner, phase=TIMING, settings=replace(winner.settings, seed=seed))
            for seed in timed
        ]
    assert expected(study, known) == len(known)


def test_no_more_seeds_are_timed_than_compared() -> None:
    study = replace(STUDY, seeds=2)
    known = play(study, best_at(0.01), lambda trial: trial.phase != TIMING)
    timed = of_phase(study, Sweep("lr", "relu", "sgd"), known, TIMING)
    assert [trial.settings.seed for trial in timed] == [42, 43]


def test_timing_comes_after_all_other_trials() -> None:
    known: Known = {}
    phases = []
    while trials := missing(STUDY, known):  # one by one
        phases.append(trials[0].phase)
        seconds = 1.0 if trials[0].phase == TIMING else None
        known[trials[0].key] = outcome(0.5, seconds=seconds)
    first = phases.index(TIMING)
    assert set(phases[first:]) == {TIMING}
    assert len(phases[first:]) == 3 * len(STUDY.sweeps())


def test_accuracy_decides_then_loss_and_who_diverged_never_wins() -> None:
    sweep = Sweep("lr", "relu", "sgd")
    first, second, third = of_phase(STUDY, sweep, {})

    def winner(*outcomes: dict[str, Any]) -> Trial:
        known = dict(zip((first.key, second.key, third.key), outcomes, strict=True))
        return chosen(replace(STUDY, extra=0), sweep, known)

    assert winner(outcome(0.5, 0.1), outcome(0.6, 0.9), outcome(0.4, 0.1)) == second
    assert winner(outcome(0.5, 0.2), outcome(0.5, 0.3), outcome(0.5, 0.1)) == third
    broken = outcome(0.9, 0.0, diverged=True)
    assert winner(broken, outcome(0.1, 9.0), broken) == second


def test_the_space_all_contains_the_winner_of_lr() -> None:
    known = play(STUDY, lambda trial: 0.9 if not trial.settings.options else 0.8)
    for optimizer in STUDY.optimizers:
        of_lr, of_all = (Sweep(search_space, "relu", optimizer) for search_space in ("lr", "all"))
        first = of_phase(STUDY, of_all, known)[0]
        assert first.run_key == chosen(STUDY, of_lr, known).run_key
        assert first.key != chosen(STUDY, of_lr, known).key
        # It won again, so its finals are those of "lr".
        assert [one.run_key for one in of_phase(STUDY, of_all, known, FINAL)] == [
            one.run_key for one in of_phase(STUDY, of_lr, known, FINAL)
        ]


def test_the_space_all_searches_around_the_winner_in_everything_an_optimizer_has() -> None:
    study = replace(STUDY, optimizers=tuple(TUNED), samples=16)
    known = play(study, best_at(0.01))
    for optimizer in TUNED:
        sampled = of_phase(study, Sweep("all", "relu", optimizer), known)[1:]
        for trial in sampled:
            assert 0.001 <= trial.settings.lr <= 0.1
            assert set(trial.settings.options) == set(TUNED[optimizer])
            for name, value in trial.settings.options.items():
                low, high = (10**exponent for exponent in TUNED[optimizer][name])
                inside = 1 - value if name in ("momentum", "beta2") else value
                assert low * 0.99 <= inside <= high * 1.01


def test_the_space_all_searches_the_whole_grid_where_the_winner_of_lr_has_failed() -> None:
    study = replace(STUDY, samples=16)
    known = play(study, at_chance)
    rates = [one.settings.lr for one in of_phase(study, Sweep("all", "relu", "sgd"), known)[1:]]
    assert min(rates) < 0.002
    assert max(rates) > 0.05
    assert all(0.001 <= rate <= 0.1 for rate in rates)


def test_weight_decay_is_tuned_for_every_optimizer() -> None:
    assert all("weight_decay" in ranges for ranges in TUNED.values())


def test_no_two_trials_have_one_key() -> None:
    study = replace(STUDY, optimizers=tuple(TUNED), nets=("sigmoid", "relu"))
    known = play(study, best_at(0.01))
    trials = [one for sweep in study.sweeps() for one in wanted(study, sweep, known)]
    assert len({trial.key for trial in trials}) == len(trials)


def test_every_optimizer_is_in_the_study_and_every_budget_is_possible() -> None:
    assert set(TUNED) == set(OPTIMIZERS)
    for budget in BUDGETS.values():
        budget.check()
        assert budget.selection_seeds >= 3
    deepobs = [BUDGETS["full"].grid.rate(number) for number in range(36)]
    assert (deepobs[0], deepobs[35]) == (1e-5, 100.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"search_spaces": ("all",)}, "choose both"),
        ({"batch_size": 60_000}, "--batch-size 60000 is more than the 50000"),
        ({"train_size": 5}, "--train-size 5"),
        ({"samples": 0}, "--samples"),
    ],
)
def test_impossible_studies_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotRun, match=words):
        replace(STUDY, **change).check()
