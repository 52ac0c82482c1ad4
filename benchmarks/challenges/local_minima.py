"""Local minima: who gets out of one, at which learning rates, and with which schedule."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from benchmarks.challenges.setup import Facts, Finding, OnProgress, Setup, log_spaced, titles
from benchmarks.challenges.walks import SCHEDULES, rounded, walk
from benchmarks.common.landscapes import LANDSCAPES, Landscape, turning_points
from benchmarks.common.optimizers import OPTIMIZERS

TRUE, EMPIRICAL = LANDSCAPES["wavy"], LANDSCAPES["wavy_sample"]
START = -0.9
OTHER_STARTS = tuple(-0.95 + 0.05 * k for k in range(13))  # to see whether the map is luck
LOCAL, GLOBAL, LEFT, CYCLES, ON_THE_WAY = "local", "global", "left", "cycles", "on the way"
NEAR = 0.02  # of a minimum: that is where a walk has ended
AT_THE_END = 50  # steps throughout which it must be there


def measure(setup: Setup, on_progress: OnProgress) -> Facts:
    rates = log_spaced(-3, 1, setup.sizes.rates)
    minima = minima_of(TRUE)
    outcomes: dict[str, dict[str, list[str]]] = {}
    crossings: dict[str, dict[str, int]] = {}
    escapes: dict[str, dict[str, list[int]]] = {}
    paths: Facts = {}
    pairs = [(schedule, name) for schedule in SCHEDULES for name in setup.optimizers]
    for number, (schedule, name) in enumerate(pairs):
        on_progress(f"{OPTIMIZERS[name].title}, {schedule} rate", number / len(pairs))
        starts = [(START,), *((x,) for x in OTHER_STARTS)]
        positions = walk(
            TRUE, OPTIMIZERS[name].make_scratch, rates, starts, setup.sizes.steps,
            schedule=SCHEDULES[schedule],
        )[..., 0]  # fmt: skip
        ends = outcomes_of(positions, minima)
        outcomes.setdefault(schedule, {})[name] = [row[0] for row in ends]
        escapes.setdefault(schedule, {})[name] = [row[1:].count(GLOBAL) for row in ends]
        beyond = positions[-1, :, 0] > minima["barrier"]
        crossings.setdefault(schedule, {})[name] = sum(
            bool(crossed) and row[0] != LEFT for crossed, row in zip(beyond, ends, strict=True)
        )
        if schedule == "constant":
            shown = _typical(outcomes[schedule][name])
            paths[name] = {
                "lr": rates[shown],
                "outcome": outcomes[schedule][name][shown],
                "x": rounded(positions[:, shown, 0]),
            }
    return {
        "minima": minima,
        "risks": {"true": minima, "empirical": minima_of(EMPIRICAL)},
        "start": START,
        "steps": setup.sizes.steps,
        "rates": rates,
        "outcomes": outcomes,
        "bands": {
            schedule: {name: band(ends, rates) for name, ends in by_name.items()}
            for schedule, by_name in outcomes.items()
        },
        "crossings": crossings,  # rates that end beyond the barrier, settled or not
        "other_starts": rounded(torch.tensor(OTHER_STARTS)),
        "other_starts_that_escape": escapes,
        "paths": paths,
    }


def minima_of(landscape: Landscape) -> Facts:
    """The lowest minimum, the next best one, and the barrier between the two."""
    minima, maxima = turning_points(landscape)
    heights = {x: landscape.at(torch.tensor([x], dtype=torch.float64)).item() for x in minima}
    lowest, second = sorted(minima, key=lambda x: heights[x])[:2]
    low, high = sorted((lowest, second))
    barrier = next(x for x in maxima if low < x < high)
    return {
        GLOBAL: {"x": lowest, "f": heights[lowest]},
        LOCAL: {"x": second, "f": heights[second]},
        "barrier": barrier,
    }


def outcomes_of(positions: Tensor, minima: Facts) -> list[list[str]]:
    """How each walk ended: learning rate × start. Leaving the domain, even once, is final."""
    inside = TRUE.holds(positions[..., None]).all(0)
    end = positions[-AT_THE_END:]
    settled = {name: ((end - minima[name]["x"]).abs() < NEAR).all(0) for name in (LOCAL, GLOBAL)}
    turns = end.diff(dim=0).sign().diff(dim=0).abs().amax(0) > 1  # it goes to and fro
    return [
        [
            LEFT if not inside[i, j]
            else LOCAL if settled[LOCAL][i, j]
            else GLOBAL if settled[GLOBAL][i, j]
            else CYCLES if turns[i, j]
            else ON_THE_WAY
            for j in range(positions.shape[2])
        ]
        for i in range(positions.shape[1])
    ]  # fmt: skip


def band(outcomes: list[str], rates: list[float]) -> Facts:
    """The learning rates that lead to the global minimum."""
    found = [lr for lr, outcome in zip(rates, outcomes, strict=True) if outcome == GLOBAL]
    return {
        "rates": len(found),
        "low": min(found, default=None),
        "high": max(found, default=None),
        "pieces": sum(key == GLOBAL for key, _ in groupby(outcomes)),
    }


def _typical(outcomes: list[str]) -> int:
    """A rate in the middle of the longest run of the best outcome that there is."""
    wanted = next(kind for kind in (GLOBAL, LOCAL, *outcomes) if kind in outcomes)
    runs, place = [], 0
    for outcome, members in groupby(outcomes):
        length = len(list(members))
        if outcome == wanted:
            runs.append((length, place + length // 2))
        place += length
    return max(runs, key=lambda run: run[0])[1]


def findings(facts: Facts) -> list[Finding]:
    minima, bands, outcomes = facts["minima"], facts["bands"], facts["outcomes"]
    constant = bands["constant"]
    count = len(facts["rates"])
    found = [
        Finding(
            "f' = 0 where πx·tan(πx) = 1",
            f"local {minima[LOCAL]['x']:.6f}, global {minima[GLOBAL]['x']:.6f}",
            all(_solves_the_equation(minima[kind]["x"]) for kind in (LOCAL, GLOBAL)),
            theory=True,
        ),
        Finding(
            "the minimizer of the empirical risk is not that of the true risk",
            f"{facts['risks']['empirical'][GLOBAL]['x']:.4f} against {minima[GLOBAL]['x']:.4f}",
            abs(facts["risks"]["empirical"][GLOBAL]["x"] - minima[GLOBAL]["x"]) > 1e-3,
            theory=True,
        ),
    ]
    for name, its in constant.items():
        ever = facts["other_starts_that_escape"]["constant"][name]
        span = f" between {its['low']:.2g} and {its['high']:.2g}" if its["rates"] > 1 else ""
        found.append(
            Finding(
                f"{OPTIMIZERS[name].title} escapes from the local minimum",
                f"at {its['rates']} of {count} learning rates{span}; "
                f"at one rate at most {max(ever)} of {len(facts['other_starts'])} other starts do",
                None if its["rates"] else False,
            )
        )
    for schedule in [name for name in bands if name != "constant"]:
        settled = {name: its["rates"] for name, its in bands[schedule].items()}
        crossed, before = facts["crossings"][schedule], facts["crossings"]["constant"]
        found.append(
            Finding(
                f"a learning rate that falls ({schedule}) carries more walks over the barrier",
                "learning rates that end beyond it: " + _changes(before, crossed),
                _verdict([crossed[name] - before[name] for name in crossed]),
            )
        )
        found.append(
            Finding(
                f"a learning rate that falls ({schedule}) lets more walks settle there",
                "learning rates that settle in the global minimum: "
                + _changes({name: its["rates"] for name, its in constant.items()}, settled),
                _verdict([settled[name] - constant[name]["rates"] for name in settled]),
            )
        )
        helped = [
            name for name, ends in outcomes[schedule].items()
            if ends.count(CYCLES) < outcomes["constant"][name].count(CYCLES)
        ]  # fmt: skip
        cycling = [name for name, ends in outcomes["constant"].items() if CYCLES in ends]
        found.append(
            Finding(
                f"a learning rate that falls ({schedule}) ends the cycling",
                f"less cycling: {titles(helped)}; cycling without it: {titles(cycling)}",
                _verdict([1 if name in helped else 0 for name in cycling]),
            )
        )
    return found


def _solves_the_equation(x: float) -> bool:
    place = torch.pi * torch.tensor(x, dtype=torch.float64)
    return abs((place * torch.tan(place)).item() - 1) < 1e-6


def _changes(before: dict[str, int], after: dict[str, int]) -> str:
    return ", ".join(
        f"{OPTIMIZERS[name].title} {before[name]} → {number}" for name, number in after.items()
    )


def _verdict(gains: list[int]) -> bool | None:
    if all(gain > 0 for gain in gains):
        return True
    return None if any(gain > 0 for gain in gains) else False
