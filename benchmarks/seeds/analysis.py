"""From runs to the answer: one plain dict, from which the tables and the figure are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.common.statistics import detectable_difference
from benchmarks.seeds.resampling import (
    INTERVALS,
    Array,
    coverage,
    order_probabilities,
    rank,
    select,
)

Answer = dict[str, Any]

SEEDS = (1, 2, 3, 5, 10, 20, 50)  # of a comparison
SELECTION_SEEDS = (1, 3, 5)
DRAWS, COVERAGE_DRAWS = 10_000, 400
FAILED_BELOW = 0.2  # a test accuracy no better than guessing among ten digits, or hardly
UNSAFE = 0.05  # so many more failed runs than at the best rate make a learning rate unsafe


def analyse(runs: Sequence[dict[str, Any]], seeds: Sequence[int] = SEEDS) -> list[Answer]:
    """An answer for each net."""
    return [_answer(net, runs, seeds) for net in dict.fromkeys(run["net"] for run in runs)]


def _answer(net: str, runs: Iterable[dict[str, Any]], counts: Sequence[int]) -> Answer:
    runs = [run for run in runs if run["net"] == net]
    optimizers = list(dict.fromkeys(run["optimizer"] for run in runs))
    rates = {o: sorted({run["lr"] for run in runs if run["optimizer"] == o}) for o in optimizers}

    def values(measure: str) -> Array:
        return np.array([[_all_seeds(runs, o, lr, measure) for lr in rates[o]] for o in optimizers])

    validation, test = values("validation_accuracy"), values("test_accuracy")
    true, rng = rank(validation, test), np.random.default_rng(0)
    probabilities = {
        selection: [order_probabilities(validation, test, k, selection, DRAWS, rng) for k in counts]
        for selection in (None, *SELECTION_SEEDS)
    }
    several = [k for k in counts if k > 1]
    at_best = np.take_along_axis(test, true.rates[:, None, None], 1)[:, 0]
    failed = (test < FAILED_BELOW).mean(-1)
    pairs = []
    for number, (a, b) in enumerate(true.pairs):
        differences = at_best[a] - at_best[b]
        deviation = float(np.std(differences, ddof=1))
        covered = [coverage(differences, k, COVERAGE_DRAWS, rng) for k in several]
        pairs.append(
            {
                "better": optimizers[a],
                "worse": optimizers[b],
                "difference": float(differences.mean()),
                "deviation": deviation,
                "right": [found.pairs[number] for found in probabilities[None]],
                "detectable": [detectable_difference(deviation, k) for k in several],
                "coverage": {kind: [found[kind] for found in covered] for kind in INTERVALS},
            }
        )
    return {
        "net": net,
        "seeds": test.shape[-1],
        "counts": list(counts),
        "optimizers": [
            {
                "optimizer": optimizer,
                "lr": rates[optimizer][true.rates[i]],
                "test_accuracy": float(true.means[i]),
                "deviation": float(np.std(at_best[i], ddof=1)),
                "failed": float(failed[i, true.rates[i]]),
                "rates": [
                    {"lr": lr, "test_accuracy": float(mean), "failed": float(share)}
                    for lr, mean, share in zip(
                        rates[optimizer], test[i].mean(-1), failed[i], strict=True
                    )
                ],
            }
            for i, optimizer in enumerate(optimizers)
        ],
        "pairs": pairs,
        "order": [
            {
                "selection_seeds": selection,
                "pair": [found.pair for found in series],
                "winner": [found.winner for found in series],
                "ranking": [found.ranking for found in series],
            }
            for selection, series in probabilities.items()
        ],
        "selection": [
            _selection(optimizers, validation, test, failed, count, rng)
            for count in SELECTION_SEEDS
        ],
    }


def _selection(
    optimizers: Sequence[str],
    validation: Array,
    test: Array,
    failed: Array,
    seeds: int,
    rng: np.random.Generator,
) -> Answer:
    """What choosing the learning rate by so many seeds costs each optimizer."""
    chosen, true = select(validation, seeds, DRAWS, rng), rank(validation, test)
    accuracies = np.take_along_axis(test.mean(-1), chosen, 1).mean(1)
    shares = np.take_along_axis(failed, chosen, 1)
    at_best = np.take_along_axis(failed, true.rates[:, None], 1)
    return {
        "seeds": seeds,
        "optimizers": [
            {
                "optimizer": optimizer,
                "other_rate": float((chosen[i] != true.rates[i]).mean()),
                "unsafe": float((shares[i] - at_best[i] >= UNSAFE).mean()),
                "failed": float(shares[i].mean()),
                "lost_accuracy": float(true.means[i] - accuracies[i]),
            }
            for i, optimizer in enumerate(optimizers)
        ],
    }


def _all_seeds(
    runs: Iterable[dict[str, Any]], optimizer: str, lr: float, measure: str
) -> list[float]:
    blocks = [run for run in runs if (run["optimizer"], run["lr"]) == (optimizer, lr)]
    blocks.sort(key=lambda block: int(block["first_seed"]))
    return [accuracy for block in blocks for accuracy in block[measure]]
