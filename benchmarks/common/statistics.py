"""Intervals, paired tests and their power, all by Student's t distribution.

Interval and test are one pair: before correction, p < 5 % exactly where the 95 % interval of the
difference excludes zero. At ten seeds t intervals cover the mean in 95.6 % of cases and BCa
bootstrap intervals in 91 % (simulated). Where some runs fail, the values are far from normal; then
intervals are wide and tests say little, which is the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats  # type: ignore[import-untyped]

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE  # of a test
POWER = 0.8


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; no bounds for a single value or infinite ones."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Interval):
    """The mean of paired differences, and the p-value of the two-sided paired t-test."""

    p: float | None


def interval(values: Sequence[float]) -> Interval:
    """The mean of `values` with its t interval."""
    to_zero = difference(values, [0.0] * len(values))
    mean = math.inf if math.isnan(to_zero.mean) else to_zero.mean
    return Interval(mean, to_zero.low, to_zero.high)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The mean of `ours` - `theirs`, pair by pair, with its t interval and the paired t-test."""
    if not np.isfinite([*ours, *theirs]).all():
        return Difference(math.nan, None, None, None)
    differences = np.subtract(ours, theirs)
    mean = float(differences.mean())
    if len(differences) < 2:
        return Difference(mean, None, None, None)
    if np.ptp(differences) == 0:  # scipy would divide by a standard error of zero
        return Difference(mean, mean, mean, float(mean == 0))
    test = stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval(CONFIDENCE)
    return Difference(mean, float(low), float(high), float(test.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction: the probability of any false difference in a table stays below 5 %.

    What could not be tested (None) stays so and does not count as a comparison.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = adjusted[i] = min(1.0, max(largest, (len(known) - rank) * p))
    return adjusted


def detectable(differences: Sequence[float], comparisons: int = 1) -> float | None:
    """`detectable_difference` of as many pairs as these, which vary as these do."""
    if len(differences) < 2:
        return None
    deviation = float(np.std(differences, ddof=1))
    return detectable_difference(deviation, len(differences), comparisons)


def detectable_difference(deviation: float, pairs: int, comparisons: int = 1) -> float:
    """The true mean difference that a paired t-test sees with a probability of 80 %.

    Args:
        deviation: the true standard deviation of the differences.
        comparisons: for Holm's first and strictest step, the level is divided by their number.
    """
    critical = stats.t.isf(LEVEL / comparisons / 2, pairs - 1)
    # The noncentral t distribution: the mean, in standard errors, that exceeds `critical` in 80 %.
    errors = special.nctdtrinc(pairs - 1, 1 - POWER, critical)
    return float(errors * deviation / math.sqrt(pairs))


def sampling_error(accuracy: float, images: int) -> float:
    """The standard error of an accuracy that comes from the choice of the test images alone."""
    return math.sqrt(accuracy * (1 - accuracy) / images)
