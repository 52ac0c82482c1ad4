"""All optimizers on all test functions, each at the best of the same learning rates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.challenges.experiment import (
    Finding,
    OnProgress,
    Results,
    Setup,
    is_finite,
    log_spaced,
    rounded,
)
from benchmarks.challenges.optimizers import OPTIMIZERS, titles
from benchmarks.challenges.trajectories import first_step, minimize, perturbed
from benchmarks.common.test_functions import TEST_FUNCTIONS, Objective

STEPS = 200
NEAR = 0.05  # distance from a minimum that counts as found


def measure(setup: Setup, on_progress: OnProgress) -> Results:
    rates = log_spaced(-4, 1, setup.sizes.rates)
    results: Results = {"rates": rates, "steps": STEPS, "functions": {}}
    for number, (key, objective) in enumerate(TEST_FUNCTIONS.items()):
        on_progress(objective.title, number / len(TEST_FUNCTIONS))
        results["functions"][key] = {
            name: _best(objective, name, rates) for name in setup.optimizers
        }
    return results


def _best(objective: Objective, name: str, rates: list[float]) -> Results | None:
    """The path at the best learning rate, or None where no rate reaches what is asked.

    With a minimum: the lowest end, of the worst of the perturbed starts. Without one: the fewest
    steps to the objective's target value. A trajectory that leaves the domain before is out.
    """
    make = OPTIMIZERS[name].make_scratch
    positions = minimize(objective, make, rates, perturbed(objective.start), STEPS)
    values, inside = objective.value(positions), objective.contains(positions)
    if objective.target is None:
        scores = torch.where(inside.all(0), values[-1], math.inf).amax(1)
        ends = torch.full((len(rates),), STEPS)
    else:
        reached, left = first_step(values <= objective.target), first_step(~inside)
        scores = torch.where(left < reached, math.inf, reached.nan_to_num(math.inf))[:, 0]
        ends = scores.clamp(max=STEPS).long()
    best = int(scores.argmin())
    if not scores[best].isfinite():
        return None
    path = positions[: int(ends[best]) + 1, best, 0]
    return {
        "lr": rates[best],
        "path": [rounded(point) for point in path],
        "value": rounded(objective.value(path)),
        "lowest_end": values[-1, best].amin().item(),
        "highest_end": values[-1, best].amax().item(),
        "steps_to_target": None if objective.target is None else int(ends[best]),
        "distance": _distance(path[-1], objective.minima),
    }


def _distance(end: Tensor, minima: tuple[tuple[float, ...], ...]) -> float:
    """To the nearest of the global minima; NaN where there is none."""
    return min((math.dist(end.tolist(), minimum) for minimum in minima), default=math.nan)


def is_chaotic(best: Results) -> bool:
    """Whether rounding errors of the start move the end by more than a tenth."""
    low, high = best["lowest_end"], best["highest_end"]
    return bool(is_finite(low) and is_finite(high) and high - low > 0.1 * max(abs(high), 1e-6))


def findings(results: Results) -> list[Finding]:
    return [
        _finding(TEST_FUNCTIONS[key], by_name, results["steps"])
        for key, by_name in results["functions"].items()
    ]


def _finding(objective: Objective, by_name: Results, steps: int) -> Finding:
    successful = {name: best for name, best in by_name.items() if best is not None}
    if objective.target is not None:
        counts = ", ".join(
            f"{OPTIMIZERS[name].title} {best['steps_to_target']}"
            for name, best in sorted(successful.items(), key=lambda x: x[1]["steps_to_target"])
        )
        claim = f"{objective.title}: some learning rate leads below {objective.target:g}"
        return Finding(claim, f"fewest steps: {counts or 'none'}", successful == by_name)
    near = [name for name, best in successful.items() if best["distance"] < NEAR]
    chaotic = [name for name, best in successful.items() if is_chaotic(best)]
    measured = f"distance after {steps} steps: {_distances(successful)}"
    if chaotic:
        measured += f"; ends that depend on rounding errors: {titles(chaotic)}"
    holds = len(near) == len(by_name) or (None if near else False)
    claim = f"{objective.title}: some learning rate leads within {NEAR:g} of the minimum"
    return Finding(claim, measured, holds)


def _distances(successful: Results) -> str:
    ordered = sorted(successful.items(), key=lambda item: item[1]["distance"])
    distances = (f"{OPTIMIZERS[name].title} {best['distance']:.2g}" for name, best in ordered)
    return ", ".join(distances) or "no rate stays in the domain"
