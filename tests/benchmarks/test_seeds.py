"""How many seeds a ranking needs: resampling against known probabilities, stacks against loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch.nn.functional import cross_entropy

from benchmarks.common.data import Digits
from benchmarks.common.nets import build_net
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.record import read_json
from benchmarks.common.training import shuffled
from benchmarks.facts import RESULTS
from benchmarks.seeds import __main__ as command
from benchmarks.seeds.__main__ import Sizes, main
from benchmarks.seeds.analysis import analyse
from benchmarks.seeds.report import seeds_needed
from benchmarks.seeds.resampling import (
    INTERVALS,
    Array,
    coverage,
    order_probabilities,
    rank,
    select,
)
from benchmarks.seeds.training import BATCH_SIZE, DEPTHS, INPUTS, WIDTH, split, train
from tests.benchmarks.files import TWO, refused

DRAWS = 10_000
MONTE_CARLO = 4 * 0.5 / math.sqrt(DRAWS)  # four standard errors of a share of so many draws
TINY = {"quick": Sizes(seeds=2, epochs=1, train_size=40, validation_size=20, test_size=20)}
ARGUMENTS = (*TWO, "--budget", "quick", "--dataset", "synthetic", "--workers", "0")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def normal(count: int) -> Array:
    """Values with mean 0 and standard deviation 1, at even steps of the normal distribution."""
    values = stats.norm.ppf((np.arange(count) + 0.5) / count)
    return np.random.default_rng(0).permutation(values / values.std())


def one_rate(*optimizers: Array) -> Array:
    return np.stack(optimizers)[:, None]


# Order


@pytest.mark.parametrize("seeds", [1, 4, 16])
def test_order_probabilities_of_a_pair_follow_the_normal_distribution(
    seeds: int, rng: np.random.Generator
) -> None:
    test = one_rate(0.3 + normal(2_000), np.zeros(2_000))
    probabilities = order_probabilities(test, test, seeds, None, DRAWS, rng)
    expected = stats.norm.cdf(0.3 * math.sqrt(seeds))
    assert probabilities.pairs == [pytest.approx(expected, abs=MONTE_CARLO)]
    assert probabilities.winner == probabilities.ranking == probabilities.pairs[0]


def test_order_probabilities_draw_the_same_seeds_for_all_optimizers(
    rng: np.random.Generator,
) -> None:
    test = one_rate(normal(100), normal(100) - 1e-3)
    assert order_probabilities(test, test, 1, None, 100, rng).ranking == 1


def test_order_probabilities_of_equal_means_count_half(rng: np.random.Generator) -> None:
    test = one_rate(np.array([0.0, 1.0]), np.array([0.0, 0.0]))
    probabilities = order_probabilities(test, test, 1, None, DRAWS, rng)
    assert probabilities.pairs == [pytest.approx(0.75, abs=MONTE_CARLO)]
    assert probabilities.winner == pytest.approx(0.5, abs=MONTE_CARLO)


def test_order_probabilities_of_the_winner_ask_nothing_of_the_others(
    rng: np.random.Generator,
) -> None:
    test = one_rate(normal(2_000), np.full(2_000, 9.0), np.full(2_000, 0.1))
    probabilities = order_probabilities(test, test, 1, None, DRAWS, rng)
    assert probabilities.winner == 1
    assert probabilities.ranking == pytest.approx(stats.norm.cdf(0.1), abs=MONTE_CARLO)


def test_rank_takes_the_rate_of_the_best_validation_and_makes_no_pair_of_equals() -> None:
    validation = np.array([[[0.1, 0.2], [0.3, 0.3]], [[0.5, 0.6], [0.4, 0.4]], [[1, 0], [0, 0]]])
    test = np.array([[[0.9, 0.9], [0.6, 0.8]], [[0.4, 0.6], [0.9, 0.9]], [[0.7, 0.7], [1, 1]]])
    ranking = rank(validation, test)
    assert ranking.rates.tolist() == [1, 0, 0]
    assert ranking.means == pytest.approx([0.7, 0.5, 0.7])
    assert ranking.pairs == [(0, 1), (2, 1)]


# Choosing learning rates

SAFE, RISKY = np.full(100, 0.90), np.where(np.arange(100) < 20, 0.1, 0.95)


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_select_takes_a_risky_rate_while_no_seed_fails(
    seeds: int, rng: np.random.Generator
) -> None:
    chosen = select(np.stack([SAFE, RISKY])[None], seeds, DRAWS, rng)
    assert (chosen == 1).mean() == pytest.approx(0.8**seeds, abs=MONTE_CARLO)


def test_order_probabilities_include_what_the_choice_of_the_rate_costs(
    rng: np.random.Generator,
) -> None:
    validation = np.stack([np.stack([SAFE, RISKY])] * 2)
    test = np.stack([np.stack([SAFE, np.zeros(100)]), np.full((2, 100), 0.5)])
    known = order_probabilities(validation, test, 1, None, DRAWS, rng)
    by_one = order_probabilities(validation, test, 1, 1, DRAWS, rng)
    assert known.winner == 1
    assert by_one.winner == pytest.approx(0.2, abs=MONTE_CARLO)


def test_analyse_counts_unsafe_rates_failed_runs_and_lost_points() -> None:
    runs = [
        {
            "net": "relu", "optimizer": optimizer, "lr": lr, "first_seed": first,
            "validation_accuracy": (values - less)[first : first + 50].tolist(),
            "test_accuracy": (values - less)[first : first + 50].tolist(),
        }
        for optimizer, less, firsts in (("sgd", 0, (0, 50)), ("adam", 0.01, (50, 0)))
        for lr, values in ((0.1, SAFE + 0.001 * normal(100)), (0.01, RISKY))
        for first in firsts
    ]  # fmt: skip
    (answer,) = analyse(runs, (1, 3))
    assert answer["seeds"] == 100
    (pair,) = answer["pairs"]
    assert (pair["better"], pair["worse"]) == ("sgd", "adam")
    assert pair["deviation"] == pytest.approx(0, abs=1e-9), "a seed is paired with itself"
    assert [one["lr"] for one in answer["optimizers"]] == [0.1, 0.1]
    assert [rate["failed"] for rate in answer["optimizers"][0]["rates"]] == [0.2, 0]
    by_one = answer["selection"][0]["optimizers"][0]
    assert by_one["unsafe"] == by_one["other_rate"] == pytest.approx(0.8, abs=MONTE_CARLO)
    assert by_one["failed"] == pytest.approx(0.2 * by_one["unsafe"])
    assert by_one["lost_accuracy"] == pytest.approx(by_one["unsafe"] * (0.9 - RISKY.mean()))


# Intervals and power


def test_coverage_of_normal_values(rng: np.random.Generator) -> None:
    shares: Any = coverage(normal(5_000), 5, 4_000, rng)
    four_errors = 4 * math.sqrt(0.05 * 0.95 / 4_000)
    assert shares["t"] == pytest.approx(0.95, abs=four_errors)
    # A percentile interval of 5 values is one of z 1.96 with the deviation's n in place of n - 1.
    narrow = 2 * stats.t.cdf(1.96 * math.sqrt(4 / 5), 4) - 1
    assert shares["percentile"] == pytest.approx(narrow, abs=0.02)  # it is not quite normal
    assert shares["bca"] == pytest.approx(shares["percentile"], abs=0.03)  # no skew to correct


def test_coverage_of_a_rare_failure_is_the_chance_to_draw_it(rng: np.random.Generator) -> None:
    values = np.array([1.0] + [0.0] * 99)
    shares = coverage(values, 3, 4_000, rng)
    for kind in INTERVALS:
        assert shares[kind] == pytest.approx(1 - 0.99**3, abs=0.011)  # four standard errors
    assert coverage(np.zeros(9), 3, 10, rng) == dict.fromkeys(INTERVALS)


def test_coverage_of_equal_values_is_that_of_their_mean(rng: np.random.Generator) -> None:
    shares: Any = coverage(np.array([0.0, 1.0] + [0.5] * 98), 3, 400, rng)
    assert min(shares.values()) > 0.9


def test_coverage_of_skewed_values_is_better_with_bca(rng: np.random.Generator) -> None:
    shares: Any = coverage(rng.exponential(size=5_000), 20, 4_000, rng)
    assert shares["bca"] > shares["percentile"]


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1e-3, None)])
def test_seeds_needed_is_the_sample_size_of_the_tables(effect: float, seeds: int | None) -> None:
    assert seeds_needed(effect, 1) == seeds


# Training


@pytest.mark.parametrize(
    ("net", "name", "lr"), [("relu", "momentum", 0.05), ("sigmoid", "adam", 0.01)]
)
def test_a_stack_trains_as_each_seed_by_itself(
    net: str, name: str, lr: float, digits: Digits
) -> None:
    data, entry = split(digits, 250), OPTIMIZERS[name]
    stacked = train(net, name, lr, range(3, 6), 3, data)
    for place, seed in enumerate(range(3, 6)):
        alone = build_net(net, DEPTHS[net], WIDTH, seed, inputs=INPUTS)
        optimizer = entry.reference(alone.parameters(), lr=lr, **entry.options)
        for epoch in range(1, 4):
            for batch in shuffled(data.labels, BATCH_SIZE, seed, epoch):
                optimizer.zero_grad()
                cross_entropy(alone(data.images[batch]), data.labels[batch]).backward()
                optimizer.step()
        for part in ("validation", "test"):
            right = alone(getattr(data, f"{part}_images")).argmax(1)
            expected = (right == getattr(data, f"{part}_labels")).double().mean().item()
            found = stacked[f"{part}_accuracy"][place]
            assert found == pytest.approx(expected, abs=0.021)  # rounding may turn one image of 50


def test_a_run_that_diverged_counts_as_chance(digits: Digits) -> None:
    finished = train("relu", "sgd", 1e10, range(2), 1, split(digits, 250))
    assert finished["test_accuracy"] == finished["validation_accuracy"] == [0.1, 0.1]


def test_split_halves_the_images_and_keeps_the_parts_apart(digits: Digits) -> None:
    data = split(digits, 250)
    assert [len(data.images), len(data.validation_images), len(data.test_images)] == [250, 50, 100]
    squares = digits.train_images[251].view(14, 2, 14, 2).mean((1, 3))
    torch.testing.assert_close(data.validation_images[1], squares.flatten())


# The command


def run_tiny(out: Path, *more: str) -> int:
    return main([*ARGUMENTS, "--out", str(out), *more], TINY)


def test_the_command_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tiny(tmp_path / "whole") == 0
    assert "deep ReLU net 196-32×5-10" in capsys.readouterr().out
    whole, done = read_json(tmp_path / "whole" / "seeds.json"), 0

    def interrupted(*block: Any) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == 4:
            raise KeyboardInterrupt
        return train(*block)

    monkeypatch.setattr(command, "train", interrupted)
    assert run_tiny(tmp_path / "part") == 130
    assert "finished runs are kept" in capsys.readouterr().out
    assert len(read_json(tmp_path / "part" / "seeds.json")["runs"]) == 3
    assert run_tiny(tmp_path / "part", "--resume") == 0
    assert done == 4 + len(whole["runs"]) - 3
    part = read_json(tmp_path / "part" / "seeds.json")
    assert {name: part[name] for name in ("runs", "answers")} == {
        name: whole[name] for name in ("runs", "answers")
    }
    files = {path.name for path in (tmp_path / "part").iterdir()}
    assert files == {"seeds.json", "seeds.png"}


@pytest.mark.slow
def test_workers_train_what_this_process_trains(tmp_path: Path) -> None:
    assert run_tiny(tmp_path / "here") == 0
    assert run_tiny(tmp_path / "workers", "--workers", "2", "--stack", "1") == 0

    def accuracies(name: str) -> dict[Any, list[float]]:
        found: dict[Any, list[float]] = {}
        for run in read_json(tmp_path / name / "seeds.json")["runs"]:
            found.setdefault((run["optimizer"], run["lr"]), []).extend(run["test_accuracy"])
        return found

    here, there = accuracies("here"), accuracies("workers")
    assert here.keys() == there.keys()
    for key, values in here.items():
        assert there[key] == pytest.approx(values, abs=0.051)  # rounding may turn one image of 20


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--optimizers", "sgd"], "needs two --optimizers"),
        (["--seeds", "1"], "two --seeds or more"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert complaint in refused(lambda: main([*arguments, "--out", str(out)]), capsys)
    assert not out.exists()


# The recorded results


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return read_json(RESULTS / "seeds" / "seeds.json")


def test_the_recorded_answer_follows_from_the_recorded_runs(recorded: dict[str, Any]) -> None:
    for known, answer in zip(recorded["answers"], analyse(recorded["runs"], (1, 3)), strict=True):
        assert answer["seeds"] >= 100
        assert len(answer["optimizers"]) == 6
        for one, other in zip(known["optimizers"], answer["optimizers"], strict=True):
            assert one["lr"] == other["lr"]
            assert one["test_accuracy"] == pytest.approx(other["test_accuracy"])  # rounding of sums
        for one, other in zip(known["order"], answer["order"], strict=True):
            for name in ("pair", "winner", "ranking"):
                assert one[name][0] == pytest.approx(other[name][0], abs=MONTE_CARLO)


def test_no_recorded_best_rate_is_at_the_end_of_its_grid(recorded: dict[str, Any]) -> None:
    for answer in recorded["answers"]:
        for one in answer["optimizers"]:
            rates = [rate["lr"] for rate in one["rates"]]
            assert min(rates) < one["lr"] < max(rates), (answer["net"], one["optimizer"])


def test_more_seeds_make_the_recorded_order_surer(recorded: dict[str, Any]) -> None:
    for answer in recorded["answers"]:
        for series in answer["order"]:
            for name in ("pair", "winner", "ranking"):
                assert series[name][-1] > series[name][0]
