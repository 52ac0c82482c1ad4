"""The statistics of a study's report, on results that can be checked by mental arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from benchmarks.common.statistics import (
    detectable,
    difference,
    holm,
    interval,
    sampling_error,
)
from benchmarks.study.analysis import analyse
from benchmarks.study.report.limits import limits
from benchmarks.study.report.tables import targets_table
from benchmarks.study.report.texts import conditions, sections, verdict
from tests.benchmarks.made_up_study import (
    SEEDS,
    SMALL,
    TURN,
    final_accuracy,
    made_up_trials,
    trial,
)

Facts = dict[str, Any]


@pytest.fixture(scope="module")
def facts() -> Facts:
    return analyse(made_up_trials())


@pytest.fixture(scope="module")
def relu(facts: Facts) -> Facts:
    (comparison,) = [one for one in facts["comparisons"] if one["net"] == "relu"]
    return dict(comparison)


def of(comparison: Facts, optimizer: str, part: str = "ranking") -> Facts:
    (entry,) = [entry for entry in comparison[part] if entry["optimizer"] == optimizer]
    return dict(entry)


def test_a_comparison_holds_what_may_be_compared(facts: Facts) -> None:
    assert [one["net"] for one in facts["comparisons"]] == ["sigmoid", "relu"]
    longer = [trial("relu", "adam", "final", 1e-3, seed, 0.99, epochs=9) for seed in SEEDS]
    searched = [trial("relu", "adam", "search", 1e-3, 0, 0.99, search_space="all")]
    comparisons = analyse([*longer, *searched, *made_up_trials()])["comparisons"]
    keys = [(one["search_space"], one["net"], one["epochs"]) for one in comparisons]
    assert keys == [("lr", "sigmoid", 2), ("lr", "relu", 2), ("lr", "relu", 9), ("all", "relu", 2)]


def test_the_best_mean_comes_first(relu: Facts) -> None:
    order = [entry["optimizer"] for entry in relu["ranking"]]
    assert order == ["adam", "adamw", "momentum", "sgd", "rmsprop"]
    assert of(relu, "adam")["test_accuracy"]["mean"] == pytest.approx(0.98)
    assert of(relu, "sgd")["validation_accuracy"]["mean"] == pytest.approx(0.97)
    assert of(relu, "adam")["accuracy_gap"]["mean"] == pytest.approx(0.005)
    assert of(relu, "adam")["loss_gap"]["mean"] == pytest.approx(0.02)
    assert of(relu, "adam")["train_loss"]["mean"] == pytest.approx(0.05 + 2.25 * 0.02 / 0.9 - 0.02)


def test_an_optimizer_that_is_as_good_as_the_best_is_not_told_apart(relu: Facts) -> None:
    assert of(relu, "adam")["difference"] is None
    behind = of(relu, "adamw")["difference"]
    assert behind["mean"] == pytest.approx(SMALL * sum(TURN) / len(TURN))
    assert behind["low"] < 0 < behind["high"]
    assert behind["p_corrected"] > 0.5
    assert behind["told_apart"] is False
    # What ten pairs with this spread can see, at a quarter of 5 %.
    spread = float(np.std(behind["values"], ddof=1))
    assert behind["detectable"] == pytest.approx(detectable(behind["values"], 4))
    assert spread < behind["detectable"] < 2 * spread


def test_an_optimizer_that_is_behind_at_every_seed_is_told_apart(relu: Facts) -> None:
    behind = of(relu, "momentum")["difference"]
    assert behind["mean"] == pytest.approx(-0.005 - 1e-4 * 4.5)
    assert -0.0059 < behind["low"] < behind["mean"] < behind["high"] < -0.005
    assert behind["p"] < behind["p_corrected"] < 0.001
    assert behind["told_apart"] is True


def test_p_values_are_corrected_for_the_comparisons_of_their_table(facts: Facts) -> None:
    (only,) = [entry["difference"] for entry in facts["comparisons"][0]["ranking"][1:]]
    assert only["p_corrected"] == only["p"]


def test_one_seed_tells_nothing_apart() -> None:
    trials = [one for one in made_up_trials() if one["settings"]["seed"] <= SEEDS[0]]
    (_, comparison) = analyse(trials)["comparisons"]
    differences = [entry["difference"] for entry in comparison["ranking"][1:]]
    assert {(one["told_apart"], one["detectable"]) for one in differences} == {(None, None)}
    assert "one seed cannot tell" in verdict(comparison)


def test_the_verdict_says_what_the_tests_could_have_seen(facts: Facts, relu: Facts) -> None:
    rmsprop, adamw = (
        f"{100 * of(relu, name)['difference']['detectable']:.2f}" for name in ("rmsprop", "adamw")
    )
    assert verdict(relu) == (
        "Adam has the best mean test accuracy, 98.00 %. The tests do not separate it from AdamW "
        "and RMSProp: with these 10 seeds they detect, with a probability of 80 %, true "
        f"differences from {adamw} points (AdamW) and {rmsprop} points (RMSProp) on."
    )
    assert verdict(facts["comparisons"][0]).endswith("and every other is significantly behind.")


def test_the_conditions_are_those_of_the_trials(relu: Facts) -> None:
    assert conditions(relu) == (
        "50,000 images for training, 10,000 for validation, 10,000 for the test; batch size 100; "
        "search: 6 trials for each optimizer, learning rates 0.0001 … 10, seed 0; selection: "
        "seeds 21 … 23; comparison: seeds 42 … 51."
    )


def test_failed_runs_are_counted_diverged_or_not(facts: Facts, relu: Facts) -> None:
    assert (of(relu, "rmsprop")["failed"], of(relu, "rmsprop")["diverged"]) == (2, 2)
    stuck = of(facts["comparisons"][0], "sgd")
    assert (stuck["failed"], stuck["diverged"]) == (10, 0)
    assert of(relu, "sgd")["median"] == pytest.approx(0.97)
    assert of(relu, "sgd")["failed"] == 0


def test_the_selection_shows_every_candidate_on_every_seed(relu: Facts) -> None:
    best, other = relu["selection"]
    assert (best["lr"], best["chosen"], best["failed"]) == (1e-3, True, 0)
    assert (best["mean"], best["median"]) == (pytest.approx(0.975), 0.975)
    assert (other["lr"], other["chosen"], other["failed"]) == (1e-4, False, 1)
    assert (other["mean"], other["median"]) == (pytest.approx(2.065 / 3), 0.98)
    assert other["searched"] == pytest.approx(0.972)


def test_the_space_all_shows_its_gain_over_the_learning_rate_alone() -> None:
    options = {"eps": 1e-4}
    better = [
        trial("relu", "adam", "final", 1e-3, seed, (final_accuracy("relu", "adam", seed) or 0)
              + 0.001 + 1e-4 * (seed % 2), search_space="all", options=options)
        for seed in SEEDS
    ]  # fmt: skip
    same = [
        trial("relu", "sgd", "final", 0.1, seed, final_accuracy("relu", "sgd", seed),
              search_space="all")
        for seed in SEEDS
    ]  # fmt: skip
    *_, comparison = analyse([*made_up_trials(), *better, *same])["comparisons"]
    gain, none = of(comparison, "adam")["gain"], of(comparison, "sgd")["gain"]
    assert gain["mean"] == pytest.approx(0.00105)
    assert gain["told_apart"] is True
    assert (none["mean"], none["p_corrected"]) == (0, 1)


def test_pairs_are_of_the_same_seed() -> None:
    ours = [trial("relu", "adam", "final", 1e-3, seed, 0.9 + seed / 1000) for seed in SEEDS]
    theirs = [  # two seeds later, and in another order
        trial("relu", "sgd", "final", 0.1, seed, 0.88 + seed / 1000)
        for seed in reversed(range(SEEDS[2], SEEDS[-1] + 3))
    ]
    (comparison,) = analyse([*theirs, *ours])["comparisons"]
    assert of(comparison, "sgd")["difference"]["values"] == [pytest.approx(-0.02)] * 8


def test_a_run_that_diverges_counts_as_guessing(relu: Facts) -> None:
    entry = of(relu, "rmsprop")
    alive = [0.978, 0.979, 0.977, 0.9785, 0.9775, 0.979, 0.977, 0.9785]
    assert entry["test_accuracy"]["values"] == [*map(pytest.approx, alive), 0.1, 0.1]
    assert entry["test_accuracy"]["mean"] == pytest.approx((sum(alive) + 0.2) / 10)
    assert entry["test_accuracy"]["high"] == 1  # Student's t alone would give 106.7 %
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
    (comparison,) = analyse([one])["comparisons"]
    target = of(comparison, "adam")["targets"]["0.97"]
    assert target["step"]["median"] == 500
    assert target["seconds"]["median"] is None
    assert target["reached"] == 1


def stacked_finals(*timed: tuple[int, float]) -> Facts:
    """The comparison of Adam's finals, which were stacked, and of timing trials: (seed, lr)."""
    finals = [trial("relu", "adam", "final", 1e-3, seed, 0.98, stacked=True) for seed in SEEDS]
    timing = [trial("relu", "adam", "timing", lr, seed, 0.99) for seed, lr in timed]
    (comparison,) = analyse([*timing, *finals])["comparisons"]
    return dict(comparison)


def times_text(comparison: Facts) -> str:
    (text,) = [one.text for one in sections(comparison) if one.title == "Time to a target"]
    return text


def test_only_seconds_are_those_of_timing_trials() -> None:
    comparison = stacked_finals((42, 1e-3), (43, 1e-3), (44, 1e-3), (45, 1e-2))
    (adam,) = comparison["ranking"]
    assert (adam["seeds"], adam["timing_seeds"]) == ([*SEEDS], [42, 43, 44])
    assert adam["test_accuracy"]["values"] == [0.98] * len(SEEDS)
    target = adam["targets"]["0.97"]
    assert (target["of"], target["step"]["median"], target["epoch"]["median"]) == (10, 500, 1)
    assert target["seconds"] == {"median": 4, "values": [4, 4, 4]}  # their nets end with 99 %
    assert targets_table(comparison).rows[0][:5] == ["Adam", "10 of 10", "500", "1.00", "4.0"]


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        (
            stacked_finals((42, 1e-3), (43, 1e-3), (44, 1e-3)),
            "Seconds are medians over 3 solo runs of each setting; accuracies, steps and epochs "
            "come from stacked runs, which have no seconds of their own.",
        ),
        (stacked_finals((42, 1e-3)), "Seconds are medians over 1 solo run of each setting;"),
        (
            stacked_finals(),
            "Stacked runs have no seconds of their own, and their solo runs are not finished.",
        ),
    ],
    ids=["timed", "timed in part", "not timed"],
)
def test_the_report_says_where_the_seconds_come_from(comparison: Facts, words: str) -> None:
    assert words in times_text(comparison)


def test_the_report_of_runs_with_seconds_does_not_speak_of_stacks(relu: Facts) -> None:
    assert "olo run" not in times_text(relu)
    assert "tacked" not in times_text(relu)


@pytest.mark.parametrize(
    ("trials", "stacked"),
    [
        ([trial("relu", "sgd", "final", 0.1, 42, 0.98)], False),
        ([trial("relu", "sgd", "final", 0.1, 42, 0.98, stacked=True)], True),
        ([trial("relu", "sgd", "final", 0.1, 42, 0.5, stacked=True)], True),
        ([trial("relu", "sgd", "search", 0.1, 41, 0.98)], True),
        ([trial("relu", "sgd", "search", 0.1, 41, 0.98),
          trial("relu", "sgd", "final", 0.1, 42, 0.98)], True),
    ],
    ids=["solo", "stacked", "stacked, every target missed", "search", "stacked search, solo final"],
)  # fmt: skip
def test_the_limits_say_that_trials_have_no_seconds(trials: list[Any], stacked: bool) -> None:
    (speed,) = [limit for limit in limits(analyse(trials)) if limit.startswith("The speed")]
    assert speed.endswith("Trials in a stack have no seconds of their own.") == stacked


def test_sensitivity_is_the_number_of_learning_rates_near_the_best(relu: Facts) -> None:
    # Adam: 1e-4 loses 0.008, 1e-3 is best, and every decade above it loses a tenth.
    adam, sgd = of(relu, "adam", "sensitivity"), of(relu, "sgd", "sensitivity")
    assert adam["best"]["lr"] == 1e-3
    assert (adam["close"], adam["tried"], adam["diverged"]) == (2, 6, 1)
    assert not adam["at_edge"]
    # SGD's best, 0.1, is exactly 0.01 below Adam's; 0.01 is within 0.01 of its own best alone.
    assert (sgd["close"], sgd["close_to_record"]) == (2, 1)


def test_a_rate_is_at_chance_diverged_or_not(facts: Facts) -> None:
    stuck = of(facts["comparisons"][0], "sgd", "sensitivity")
    assert (stuck["failed"], stuck["diverged"], stuck["tried"]) == (6, 1, 6)


def test_a_hundredth_is_a_hundredth_in_floats_too() -> None:
    assert 0.5097 - 0.01 > 0.4997
    searched = [
        trial("relu", "sgd", "search", lr, 0, found) for lr, found in ((0.1, 0.5097), (1, 0.4997))
    ]
    (comparison,) = analyse(searched)["comparisons"]
    assert of(comparison, "sgd", "sensitivity")["close"] == 2


def test_a_winner_at_the_edge_is_named() -> None:
    rates = {1e-3: 0.9, 1e-2: 0.95, 1e-1: 0.96}
    searched = [trial("relu", "sgd", "search", lr, 0, found) for lr, found in rates.items()]
    (comparison,) = analyse(searched)["comparisons"]
    assert of(comparison, "sgd", "sensitivity")["at_edge"]
    assert comparison["ranking"] == []


def test_the_best_rate_is_the_chosen_one_not_that_of_the_search() -> None:
    rates = {1e-2: 0.95, 1e-1: 0.96, 1.0: 0.9}
    trials = [trial("relu", "sgd", "search", lr, 0, found) for lr, found in rates.items()]
    trials.append(trial("relu", "sgd", "final", 1e-2, 42, 0.94))
    (comparison,) = analyse(trials)["comparisons"]
    searched = of(comparison, "sgd", "sensitivity")
    assert (searched["best"]["lr"], searched["at_edge"], searched["close"]) == (1e-2, True, 2)


def test_curves_go_on_after_divergence_with_the_worst(relu: Facts) -> None:
    curves = of(relu, "rmsprop")["curves"]
    after = curves["step"].index(400)
    assert curves["validation_accuracy"]["low"][after] == 0.1
    assert curves["train_loss"]["high"][after] == math.inf
    assert math.isfinite(curves["train_loss"]["median"][after])
    assert curves["train_loss"]["median"][0] is None  # no step had been taken


def test_the_gradient_flow_is_of_the_start_and_of_the_end(facts: Facts) -> None:
    flow = of(facts["comparisons"][0], "adam")["gradient_flow"]
    assert flow["layers"] == ["layer_1", "layer_2", "output"]
    assert flow["start"] == pytest.approx([0.01, 0.1, 1.0])
    assert flow["end"] == pytest.approx([0.018, 0.18, 1.8])  # the middle of steps 600 … 1000


def test_one_seed_has_no_interval() -> None:
    assert interval([0.5]).low is None
    assert difference([0.5], [0.4]).p is None


def test_values_that_agree_have_an_interval_without_width() -> None:
    ahead = difference([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
    assert (ahead.mean, ahead.low, ahead.high, ahead.p) == (0.25, 0.25, 0.25, 0)
    assert difference([0.5, 0.5], [0.5, 0.5]).p == 1
    assert detectable([0.1, 0.1]) == 0


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05, 0.1])
def test_p_is_below_5_percent_where_the_interval_excludes_zero(shift: float) -> None:
    generator = np.random.default_rng(0)
    verdicts = set()
    for _ in range(50):
        paired = difference(list(generator.normal(shift, 0.1, 10)), [0.0] * 10)
        assert paired.p is not None
        assert paired.low is not None
        assert paired.high is not None
        assert (paired.p < 0.05) == (not paired.low < 0 < paired.high)
        verdicts.add(paired.p < 0.05)
    assert verdicts == {True, False}


def test_pairing_takes_the_seeds_own_spread_away() -> None:
    spread = [0.1 * number for number in range(10)]
    ahead = [value + 0.01 + 0.001 * (number % 2) for number, value in enumerate(spread)]
    paired, single = difference(ahead, spread), interval(ahead)
    reference = stats.ttest_rel(ahead, spread)
    assert (paired.low, paired.high) == pytest.approx(tuple(reference.confidence_interval()))
    assert paired.p == pytest.approx(reference.pvalue)
    assert paired.high is not None
    assert paired.low is not None
    assert single.high is not None
    assert single.low is not None
    assert single.high - single.low > 100 * (paired.high - paired.low)


def test_holms_correction_counts_what_was_compared() -> None:
    # p × the number of comparisons that are left, made to rise with p.
    assert holm([0.01, None, 0.04, 0.03]) == [
        pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)
    ]  # fmt: skip
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([None]) == [None]


@pytest.mark.parametrize("comparisons", [1, 5])
def test_a_detectable_difference_is_seen_in_80_percent_of_studies(comparisons: int) -> None:
    unit = stats.norm.ppf(np.linspace(0.05, 0.95, 10))
    unit /= unit.std(ddof=1)
    effect = detectable(list(unit), comparisons)
    assert effect is not None
    samples = np.random.default_rng(0).normal(effect, 1, (20_000, 10))
    p = stats.ttest_1samp(samples, 0, axis=1).pvalue
    # The share of 20,000 simulations has a standard error of 0.3 %.
    assert np.mean(p < 0.05 / comparisons) == pytest.approx(0.8, abs=0.01)


def test_the_design_of_the_study_sees_a_third_of_a_point() -> None:
    # Ten pairs whose differences spread by .36 points, as on the ReLU net.
    unit = np.asarray([-1.0, 1.0] * 5)
    assert detectable(list(0.36 * unit / unit.std(ddof=1))) == pytest.approx(0.359, abs=0.001)


def test_sampling_error_is_that_of_a_share() -> None:
    assert sampling_error(0.97, 10_000) == pytest.approx(0.0017, abs=1e-5)
