"""A gallery: all optimizers on all functions, each at the best of equally many learning rates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.challenges.setup import Facts, Finding, OnProgress, Setup, log_spaced
from benchmarks.challenges.walks import first_step, rounded, walk
from benchmarks.common.landscapes import LANDSCAPES
from benchmarks.common.optimizers import OPTIMIZERS

STEPS = 200


def measure(setup: Setup, on_progress: OnProgress) -> Facts:
    rates = log_spaced(-4, 1, setup.sizes.rates)
    facts: Facts = {"rates": rates, "steps": STEPS, "landscapes": {}}
    for number, (key, landscape) in enumerate(LANDSCAPES.items()):
        found: Facts = {}
        for name in setup.optimizers:
            on_progress(f"{landscape.title}, {OPTIMIZERS[name].title}", number / len(LANDSCAPES))
            positions = walk(
                landscape, OPTIMIZERS[name].make_scratch, rates, [landscape.start], STEPS
            )[:, :, 0]
            # A walk ends where it leaves the domain: what comes after is not shown, nor counted.
            lengths = _steps_inside(landscape.holds(positions))
            ends = positions[lengths, torch.arange(len(rates))]
            best = int(landscape.at(ends).argmin())
            path = positions[: int(lengths[best]) + 1, best]
            found[name] = {
                "lr": rates[best],
                "path": [rounded(point) for point in path],
                "height": rounded(landscape.at(path)),
                "distance": _distance(path[-1], landscape.minima),
            }
        facts["landscapes"][key] = found
    return facts


def _steps_inside(inside: Tensor) -> Tensor:
    """The number of the last step before the domain is left, for each learning rate."""
    left = first_step(~inside)
    return torch.where(left.isnan(), len(inside) - 1, left - 1).long()


def _distance(end: Tensor, minima: tuple[tuple[float, ...], ...]) -> float:
    """To the nearest of the lowest points; not a number where there is none."""
    return min((math.dist(end.tolist(), minimum) for minimum in minima), default=math.nan)


def findings(facts: Facts) -> list[Finding]:
    found = []
    for key, by_name in facts["landscapes"].items():
        if LANDSCAPES[key].minima:
            there = [name for name, its in by_name.items() if its["distance"] < 0.05]
            best = min(by_name, key=lambda name: by_name[name]["height"][-1])
            found.append(
                Finding(
                    f"with a good learning rate everybody finds the minimum: "
                    f"{LANDSCAPES[key].title}",
                    f"{len(there)} of {len(by_name)} within {facts['steps']} steps; lowest: "
                    f"{OPTIMIZERS[best].title}",
                    len(there) == len(by_name) or (None if there else False),
                )
            )
    return found
