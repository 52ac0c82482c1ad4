"""The numbers of a study's report, of results that one can work out in one's head."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.study.analysis import analyse
from benchmarks.study.report.texts import verdict
from benchmarks.study.statistics import corrected, difference, interval, least_p
from tests.benchmarks.made_up_study import SEEDS, SMALL, TURN, made_up_trials, trial

Facts = dict[str, Any]


@pytest.fixture(scope="module")
def facts() -> Facts:
    return analyse(made_up_trials())


@pytest.fixture(scope="module")
def relu(facts: Facts) -> Facts:
    (arena,) = [arena for arena in facts["arenas"] if arena["net"] == "relu"]
    return dict(arena)


def of(arena: Facts, optimizer: str, part: str = "ranking") -> Facts:
    (entry,) = [entry for entry in arena[part] if entry["optimizer"] == optimizer]
    return dict(entry)


def test_an_arena_holds_what_may_be_compared(facts: Facts) -> None:
    assert [arena["net"] for arena in facts["arenas"]] == ["sigmoid", "relu"]
    longer = [trial("relu", "adam", "final", 1e-3, seed, 0.99, epochs=9) for seed in SEEDS]
    searched = [trial("relu", "adam", "search", 1e-3, 0, 0.99, track="all")]
    arenas = analyse([*longer, *searched, *made_up_trials()])["arenas"]
    keys = [(arena["track"], arena["net"], arena["epochs"]) for arena in arenas]
    assert keys == [("lr", "sigmoid", 2), ("lr", "relu", 2), ("lr", "relu", 9), ("all", "relu", 2)]


def test_the_best_mean_comes_first(relu: Facts) -> None:
    order = [entry["optimizer"] for entry in relu["ranking"]]
    assert order == ["adam", "adamw", "momentum", "sgd", "rmsprop"]
    assert of(relu, "adam")["test_accuracy"]["mean"] == pytest.approx(0.98)
    assert of(relu, "sgd")["validation_accuracy"]["mean"] == pytest.approx(0.97)
    assert of(relu, "adam")["accuracy_gap"]["mean"] == pytest.approx(0.005)
    assert of(relu, "adam")["loss_gap"]["mean"] == pytest.approx(0.02)
    assert of(relu, "adam")["train_loss"]["mean"] == pytest.approx(0.05 + 2.25 * 0.02 / 0.9 - 0.02)


def test_who_is_as_good_as_the_best_is_not_told_from_it(relu: Facts) -> None:
    best, twin = of(relu, "adam"), of(relu, "adamw")
    assert best["difference"] is None
    assert best["like_the_best"]
    assert twin["difference"]["mean"] == pytest.approx(SMALL * sum(TURN) / len(TURN))
    assert twin["difference"]["low"] < 0 < twin["difference"]["high"]
    assert twin["difference"]["p"] == 1
    assert twin["like_the_best"]


def test_who_is_behind_at_every_seed_is_told_from_the_best(relu: Facts) -> None:
    found = of(relu, "momentum")["difference"]
    assert found["mean"] == pytest.approx(-0.005 - 1e-4 * 4.5)
    assert -0.0059 < found["low"] < found["mean"] < found["high"] < -0.005
    assert found["p"] == least_p(10) == 2 / 2**10
    # Five comparisons, of which four have the smallest p-value: 5/4 of it.
    assert found["p_corrected"] == pytest.approx(5 / 4 * 2 / 2**10)
    assert of(relu, "momentum")["like_the_best"] is False


def test_three_seeds_are_too_few_to_tell_anything() -> None:
    trials = [one for one in made_up_trials() if one["settings"]["seed"] < SEEDS[3]]
    (_, arena) = analyse(trials)["arenas"]
    assert {entry["like_the_best"] for entry in arena["ranking"][1:]} == {None}
    assert "too few seeds" in verdict(arena)


def test_the_verdict_names_who_cannot_be_told_from_the_best(facts: Facts, relu: Facts) -> None:
    assert verdict(relu) == (
        "Adam comes first with 98.00 % on the test set; AdamW cannot be told from it."
    )
    assert verdict(facts["arenas"][0]).endswith("96.00 % on the test set, ahead of every other.")


def test_pairs_are_of_the_same_seed() -> None:
    ours = [trial("relu", "adam", "final", 1e-3, seed, 0.9 + seed / 1000) for seed in SEEDS]
    theirs = [  # two seeds later, and in another order
        trial("relu", "sgd", "final", 0.1, seed, 0.88 + seed / 1000)
        for seed in reversed(range(SEEDS[2], SEEDS[-1] + 3))
    ]
    (arena,) = analyse([*theirs, *ours])["arenas"]
    assert of(arena, "sgd")["difference"]["values"] == [pytest.approx(-0.02)] * 8


def test_a_run_that_diverges_counts_as_guessing(relu: Facts) -> None:
    entry = of(relu, "rmsprop")
    alive = [0.978, 0.979, 0.977, 0.9785, 0.9775, 0.979, 0.977, 0.9785]
    assert entry["diverged"] == pytest.approx(0.2)
    assert entry["test_accuracy"]["values"] == [*map(pytest.approx, alive), 0.1, 0.1]
    assert entry["test_accuracy"]["mean"] == pytest.approx((sum(alive) + 0.2) / 10)
    assert entry["train_loss"]["mean"] == math.inf
    assert entry["train_loss"]["low"] is None


def test_a_run_that_misses_a_target_stays_in(relu: Facts) -> None:
    target = of(relu, "sgd")["targets"]["0.97"]
    assert (target["reached"], target["of"]) == (5, 10)
    assert sorted(target["step"]["values"])[5:] == [math.inf] * 5
    assert target["step"]["median"] == target["seconds"]["median"] == math.inf


def test_the_median_time_is_of_all_runs(relu: Facts) -> None:
    # 0.88 of the way from 0.1 is gone after 500 steps, more than 0.97/0.98 of it.
    target = of(relu, "adam")["targets"]["0.97"]
    assert (target["reached"], target["step"]["median"]) == (10, 500)
    assert (target["epoch"]["median"], target["seconds"]["median"]) == (1.0, 5.0)
    late = of(relu, "adam")["targets"]["0.98"]  # four seeds end below it
    assert (late["reached"], late["step"]["median"]) == (6, 1000)


def test_seconds_that_nobody_measured_are_no_miss() -> None:
    one = trial("relu", "adam", "final", 1e-3, 42, 0.98)
    one["result"]["targets"]["0.97"]["seconds"] = None
    (arena,) = analyse([one])["arenas"]
    target = of(arena, "adam")["targets"]["0.97"]
    assert target["step"]["median"] == 500
    assert target["seconds"]["median"] is None
    assert target["reached"] == 1


def test_sensitivity_is_the_share_of_learning_rates_near_the_best(relu: Facts) -> None:
    # Adam: 1e-4 loses 0.008, 1e-3 is best, and every decade above it loses a tenth.
    adam, sgd = of(relu, "adam", "sensitivity"), of(relu, "sgd", "sensitivity")
    assert adam["best"]["lr"] == 1e-3
    assert adam["close"] == pytest.approx(2 / 6)
    assert adam["diverged"] == pytest.approx(1 / 6)
    assert not adam["at_edge"]
    # SGD's best, 0.1, is exactly 0.01 below Adam's; 0.01 is within 0.01 of its own best alone.
    assert sgd["close"] == pytest.approx(2 / 6)
    assert sgd["close_to_record"] == pytest.approx(1 / 6)


def test_a_hundredth_is_a_hundredth_in_floats_too() -> None:
    assert 0.5097 - 0.01 > 0.4997
    searched = [
        trial("relu", "sgd", "search", lr, 0, found) for lr, found in ((0.1, 0.5097), (1, 0.4997))
    ]
    (arena,) = analyse(searched)["arenas"]
    assert of(arena, "sgd", "sensitivity")["close"] == 1


def test_a_winner_at_the_edge_is_named() -> None:
    rates = {1e-3: 0.9, 1e-2: 0.95, 1e-1: 0.96}
    searched = [trial("relu", "sgd", "search", lr, 0, found) for lr, found in rates.items()]
    (arena,) = analyse(searched)["arenas"]
    assert of(arena, "sgd", "sensitivity")["at_edge"]
    assert arena["ranking"] == []


def test_curves_go_on_after_divergence_with_the_worst(relu: Facts) -> None:
    curves = of(relu, "rmsprop")["curves"]
    after = curves["step"].index(400)
    assert curves["validation_accuracy"]["low"][after] == 0.1
    assert curves["train_loss"]["high"][after] == math.inf
    assert math.isfinite(curves["train_loss"]["median"][after])
    assert curves["train_loss"]["median"][0] is None  # no step had been taken


def test_the_gradient_flow_is_of_the_start_and_of_the_end(facts: Facts) -> None:
    flow = of(facts["arenas"][0], "adam")["gradient_flow"]
    assert flow["layers"] == ["layer_1", "layer_2", "output"]
    assert flow["start"] == pytest.approx([0.01, 0.1, 1.0])
    assert flow["end"] == pytest.approx([0.018, 0.18, 1.8])  # the middle of steps 600 … 1000


def test_one_seed_has_no_interval() -> None:
    assert interval([0.5]).low is None
    assert difference([0.5], [0.4]).p is None


def test_values_that_agree_have_an_interval_without_width() -> None:
    found = difference([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
    assert (found.mean, found.low, found.high, found.p) == (0.25, 0.25, 0.25, 0.25)


def test_pairing_takes_the_seeds_own_spread_away() -> None:
    spread = [0.1 * number for number in range(10)]
    ahead = [value + 0.01 + 0.001 * (number % 2) for number, value in enumerate(spread)]
    paired, alone = difference(ahead, spread), interval(ahead)
    assert alone.low is not None
    assert alone.high is not None
    assert paired.low is not None
    assert paired.high is not None
    assert 0.01 <= paired.low < paired.high <= 0.011
    assert alone.high - alone.low > 0.3
    assert paired.p == least_p(10)


def test_correction_counts_what_was_compared() -> None:
    # Benjamini and Hochberg: p × comparisons / rank, made to rise with the rank.
    assert corrected([0.01, None, 0.04, 0.03]) == [
        pytest.approx(0.03), None, pytest.approx(0.04), pytest.approx(0.04)
    ]  # fmt: skip
    assert corrected([None]) == [None]
