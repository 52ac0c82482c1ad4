"""What a handful of paired seeds can tell: intervals, differences, and whether chance made them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

CONFIDENCE = 0.95
RESAMPLES = 9999  # of the bootstrap; sign flips are all tried as long as they are not more


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval; no bounds where one seed or an infinity leaves none."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Interval):
    """The mean of paired differences, and the probability of one as large if signs were chance."""

    p: float | None


def interval(values: Sequence[float]) -> Interval:
    """The mean of `values` with its bias-corrected and accelerated (BCa) bootstrap interval."""
    return _interval(values, None)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The mean of `ours` - `theirs`, pair by pair, with the interval of a paired bootstrap.

    Its p-value is that of a two-sided sign-flip permutation test, exact up to 13 pairs. It cannot
    get below `least_p(pairs)`.
    """
    found = _interval(ours, theirs)
    if found.low is None:
        return Difference(found.mean, None, None, None)
    differences = np.subtract(ours, theirs)
    test = stats.permutation_test(
        (differences,), _mean, permutation_type="samples", n_resamples=RESAMPLES, rng=_rng()
    )
    return Difference(found.mean, found.low, found.high, float(test.pvalue))


def least_p(pairs: int) -> float:
    """The smallest p-value that sign flips of that many pairs can give."""
    return 2.0 ** (1 - pairs)


def corrected(p_values: Sequence[float | None]) -> list[float | None]:
    """Benjamini and Hochberg's correction: of what is below 5 %, at most 5 % is false on average.

    What could not be tested (None) stays so and does not count as a comparison.
    """
    known = [p for p in p_values if p is not None]
    adjusted = iter(stats.false_discovery_control(known) if known else ())
    return [None if p is None else float(next(adjusted)) for p in p_values]


def _interval(ours: Sequence[float], theirs: Sequence[float] | None) -> Interval:
    """The interval of the mean of `ours`, or of its paired differences to `theirs`."""
    sample = (ours,) if theirs is None else (ours, theirs)
    if not all(math.isfinite(value) for values in sample for value in values):
        return Interval(math.inf if theirs is None else math.nan, None, None)
    differences = np.asarray(ours) if theirs is None else np.subtract(ours, theirs)
    mean = float(differences.mean())
    if len(differences) < 2:
        return Interval(mean, None, None)
    if np.ptp(differences) == 0:  # nothing to resample; scipy would warn and give NaN
        return Interval(mean, mean, mean)
    found = stats.bootstrap(
        sample,
        _mean if theirs is None else _mean_difference,
        paired=theirs is not None,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        rng=_rng(),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(values.mean(axis=axis))


def _mean_difference(ours: np.ndarray, theirs: np.ndarray, axis: int = -1) -> np.ndarray:
    return _mean(ours - theirs, axis)


def _rng() -> np.random.Generator:
    """The same resamples each time: a report that is made again says the same."""
    return np.random.default_rng(0)
