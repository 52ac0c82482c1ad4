"""What comparisons of fewer seeds would have said, by drawing seeds from those that were run.

The seeds that were run stand for all seeds: a comparison of k seeds draws k of them independently,
with replacement, the same for every optimizer. Accuracies are arrays of optimizers x learning rates
x seeds.
"""

from __future__ import annotations

import statistics
import warnings
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from benchmarks.common.statistics import CONFIDENCE, LEVEL

Array = NDArray[np.float64]
Rates = NDArray[np.intp]

BOOTSTRAP_SAMPLES = 999
INTERVALS = ("t", "percentile", "bca")


@dataclass(frozen=True)
class Ranking:
    """The order of all seeds, each optimizer at the rate that is best on all of them.

    Attributes:
        rates: the index of each optimizer's learning rate.
        means: the mean test accuracy of each optimizer.
        pairs: the better and the worse of each two; equal means make no pair.
    """

    rates: Rates
    means: Array
    pairs: list[tuple[int, int]]


def rank(validation: Array, test: Array) -> Ranking:
    rates = validation.mean(-1).argmax(-1)
    means = np.take_along_axis(test.mean(-1), rates[:, None], 1)[:, 0]
    ordered = [
        (a, b) if means[a] > means[b] else (b, a) for a, b in combinations(range(len(means)), 2)
    ]
    return Ranking(rates, means, [(a, b) for a, b in ordered if means[a] > means[b]])


@dataclass(frozen=True)
class Probabilities:
    """How probable it is that a comparison has the order of all seeds.

    Attributes:
        pairs: of each pair by itself; equal means of the seeds drawn count half.
        winner: the best optimizer is ahead of all others.
        ranking: all pairs are right.
    """

    pairs: list[float]
    winner: float
    ranking: float

    @property
    def pair(self) -> float:
        """The mean of all pairs; without a pair nothing can be wrong."""
        return statistics.fmean(self.pairs) if self.pairs else 1.0


def order_probabilities(
    validation: Array,
    test: Array,
    seeds: int,
    selection_seeds: int | None,
    draws: int,
    rng: np.random.Generator,
) -> Probabilities:
    """Of comparing by `seeds` seeds.

    Args:
        selection_seeds: how many other seeds choose each learning rate; None: the rates that are
            best on all seeds are known.
    """
    true = rank(validation, test)
    means = test @ _draw(test.shape[-1], seeds, draws, rng).T
    if selection_seeds is None:
        rates = np.repeat(true.rates[:, None], draws, 1)
    else:
        rates = select(validation, selection_seeds, draws, rng)
    chosen = np.take_along_axis(means, rates[:, None], 1)[:, 0]
    better, worse = np.array(true.pairs, dtype=int).reshape(-1, 2).T
    ahead = np.sign(np.round(chosen[better] - chosen[worse], 12))  # equal up to rounding is equal
    winner = better == true.means.argmax()
    return Probabilities(
        pairs=((ahead + 1) / 2).mean(1).tolist(),
        winner=float((ahead[winner] > 0).all(0).mean()),
        ranking=float((ahead > 0).all(0).mean()),
    )


def select(validation: Array, seeds: int, draws: int, rng: np.random.Generator) -> Rates:
    """The learning rates, optimizers x draws, that look best on so many seeds."""
    weights = _draw(validation.shape[-1], seeds, draws, rng)
    best: Rates = (validation @ weights.T).argmax(1)
    return best


def _draw(population: int, seeds: int, draws: int, rng: np.random.Generator) -> Array:
    """The weight of each seed in a mean over `seeds` seeds, draws x population."""
    return rng.multinomial(seeds, np.full(population, 1 / population), draws) / seeds


def coverage(
    values: Array, seeds: int, draws: int, rng: np.random.Generator
) -> dict[str, float | None]:
    """How often the 95 % interval of a mean of `seeds` values has the mean of all of them.

    Returns None for each kind of interval if all `values` are equal: there is nothing to cover.
    """
    if np.ptp(values) == 0:
        return dict.fromkeys(INTERVALS)
    drawn = rng.choice(values, (draws, seeds))
    margin = stats.t.isf(LEVEL / 2, seeds - 1) * stats.sem(drawn, axis=1)
    means = drawn.mean(1)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # equal values: see below
        percentile = stats.bootstrap(
            (drawn,),
            np.mean,
            axis=-1,
            n_resamples=BOOTSTRAP_SAMPLES,
            batch=100,  # for memory
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=rng,
        )
        bca = stats.bootstrap(
            (drawn,), np.mean, axis=-1, n_resamples=0, bootstrap_result=percentile,
            confidence_level=CONFIDENCE, method="BCa", rng=rng,
        )  # fmt: skip
    bounds = {
        "t": (means - margin, means + margin),
        "percentile": percentile.confidence_interval,
        "bca": bca.confidence_interval,
    }
    true, rounding = values.mean(), 1e-12

    def share(low: Array, high: Array) -> float:
        low, high = (np.where(np.isnan(bound), means, bound) for bound in (low, high))
        return float(((low <= true + rounding) & (true - rounding <= high)).mean())

    return {name: share(*bounds[name]) for name in INTERVALS}
