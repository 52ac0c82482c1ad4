"""Local minima: which optimizers leave one, at which learning rates and schedules."""

from __future__ import annotations

import math
from itertools import groupby

import torch
from torch import Tensor

from benchmarks.challenges.experiment import (
    Finding,
    OnProgress,
    Results,
    Setup,
    log_spaced,
    rounded,
)
from benchmarks.challenges.optimizers import CORRECTED, OPTIMIZERS, titles, with_corrected
from benchmarks.challenges.trajectories import SCHEDULES, minimize
from benchmarks.common.test_functions import TEST_FUNCTIONS, Objective, stationary_points

TRUE, EMPIRICAL = TEST_FUNCTIONS["wavy"], TEST_FUNCTIONS["wavy_sample"]
START = -0.9
OTHER_STARTS = tuple(-0.95 + 0.05 * k for k in range(13))  # does the outcome hang on the start?
LOCAL, GLOBAL, LEFT, CYCLES, MOVING = "local", "global", "left", "cycles", "moving"
NEAR = 0.02  # distance from a minimum at which a trajectory has settled there
FINAL_STEPS = 50  # throughout which it must be there


def measure(setup: Setup, on_progress: OnProgress) -> Results:
    rates = log_spaced(-3, 1, setup.sizes.rates)
    minima = minima_of(TRUE)
    outcomes: dict[str, dict[str, list[str]]] = {}
    crossings: dict[str, dict[str, int]] = {}
    escapes: dict[str, dict[str, list[int]]] = {}
    paths: Results = {}
    names = with_corrected(setup.optimizers)
    pairs = [(schedule, name) for schedule in SCHEDULES for name in names]
    for number, (schedule, name) in enumerate(pairs):
        on_progress(f"{OPTIMIZERS[name].title}, {schedule} rate", number / len(pairs))
        starts = [(START,), *((x,) for x in OTHER_STARTS)]
        positions = minimize(
            TRUE, OPTIMIZERS[name].make_scratch, rates, starts, setup.sizes.steps,
            schedule=SCHEDULES[schedule],
        )[..., 0]  # fmt: skip
        by_rate = outcomes_of(positions, minima)
        outcomes.setdefault(schedule, {})[name] = [row[0] for row in by_rate]
        escapes.setdefault(schedule, {})[name] = [row[1:].count(GLOBAL) for row in by_rate]
        beyond = positions[-1, :, 0] > minima["barrier"]
        crossings.setdefault(schedule, {})[name] = sum(
            bool(crossed) and row[0] != LEFT for crossed, row in zip(beyond, by_rate, strict=True)
        )
        if schedule == "constant":
            typical = _typical(outcomes[schedule][name])
            paths[name] = {
                "lr": rates[typical],
                "outcome": outcomes[schedule][name][typical],
                "x": rounded(positions[:, typical, 0]),
                "first_step": _first_step(positions[:2, typical, 0], rates[typical]),
            }
    return {
        "minima": minima,
        "risks": {"true": minima, "empirical": minima_of(EMPIRICAL)},
        "start": START,
        "steps": setup.sizes.steps,
        "rates": rates,
        "outcomes": outcomes,
        "bands": {
            schedule: {name: band(row, rates) for name, row in by_name.items()}
            for schedule, by_name in outcomes.items()
        },
        "crossings": crossings,  # rates that end beyond the barrier, settled or not
        "other_starts": rounded(torch.tensor(OTHER_STARTS)),
        "other_starts_that_escape": escapes,
        "paths": paths,
    }


def _first_step(positions: Tensor, lr: float) -> float:
    """Its length in units of the learning rate."""
    (length,) = rounded(positions.diff().abs() / lr)
    return length


def minima_of(objective: Objective) -> Results:
    """The lowest minimum, the next lowest, and the maximum between the two."""
    minima, maxima = stationary_points(objective)
    values = {x: objective.value(torch.tensor([x], dtype=torch.float64)).item() for x in minima}
    lowest, second = sorted(minima, key=lambda x: values[x])[:2]
    low, high = sorted((lowest, second))
    barrier = next(x for x in maxima if low < x < high)
    return {
        GLOBAL: {"x": lowest, "f": values[lowest]},
        LOCAL: {"x": second, "f": values[second]},
        "barrier": barrier,
    }


def outcomes_of(positions: Tensor, minima: Results) -> list[list[str]]:
    """How each trajectory ends: learning rate × start. Leaving the domain, even once, is final."""
    inside = TRUE.contains(positions[..., None]).all(0)
    end = positions[-FINAL_STEPS:]
    settled = {name: ((end - minima[name]["x"]).abs() < NEAR).all(0) for name in (LOCAL, GLOBAL)}
    turns = end.diff(dim=0).sign().diff(dim=0).abs().amax(0) > 1  # it moves to and fro
    return [
        [
            LEFT if not inside[i, j]
            else LOCAL if settled[LOCAL][i, j]
            else GLOBAL if settled[GLOBAL][i, j]
            else CYCLES if turns[i, j]
            else MOVING
            for j in range(positions.shape[2])
        ]
        for i in range(positions.shape[1])
    ]  # fmt: skip


def band(outcomes: list[str], rates: list[float]) -> Results:
    """The learning rates that lead to the global minimum."""
    escaping = [lr for lr, outcome in zip(rates, outcomes, strict=True) if outcome == GLOBAL]
    return {
        "rates": len(escaping),
        "low": min(escaping, default=None),
        "high": max(escaping, default=None),
        "pieces": sum(key == GLOBAL for key, _ in groupby(outcomes)),
    }


def _typical(outcomes: list[str]) -> int:
    """The index in the middle of the longest run of the best outcome that there is."""
    best = next(kind for kind in (GLOBAL, LOCAL, *outcomes) if kind in outcomes)
    runs, start = [], 0
    for outcome, members in groupby(outcomes):
        length = len(list(members))
        if outcome == best:
            runs.append((length, start + length // 2))
        start += length
    return max(runs, key=lambda run: run[0])[1]


def findings(results: Results) -> list[Finding]:
    minima, outcomes = results["minima"], results["outcomes"]
    risks = results["risks"]
    claims = [
        Finding(
            "the stationary points of x·cos πx solve πx·tan πx = 1",
            f"local minimum {minima[LOCAL]['x']:.6f}, global {minima[GLOBAL]['x']:.6f}",
            all(_solves_the_equation(minima[kind]["x"]) for kind in (LOCAL, GLOBAL)),
            theory=True,
        ),
        Finding(
            "the minimizer of the empirical risk is not that of the true risk",
            f"{risks['empirical'][GLOBAL]['x']:.4f} against {minima[GLOBAL]['x']:.4f}",
            abs(risks["empirical"][GLOBAL]["x"] - minima[GLOBAL]["x"]) > 1e-3,
            theory=True,
        ),
    ]
    for name, escaping in results["bands"]["constant"].items():
        others = results["other_starts_that_escape"]["constant"][name]
        low, high = escaping["low"], escaping["high"]
        span = f" between {low:.2g} and {high:.2g}" if escaping["rates"] > 1 else ""
        claims.append(
            Finding(
                f"{OPTIMIZERS[name].title} leaves the local minimum",
                f"at {escaping['rates']} of {len(results['rates'])} learning rates{span}; at the "
                f"best rate {max(others)} of {len(results['other_starts'])} other starts do",
                None if escaping["rates"] else False,
            )
        )
    for schedule in outcomes:
        if schedule != "constant":
            claims += _findings_of_schedule(results, schedule)
    if CORRECTED in results["paths"]:
        claims.append(_finding_of_correction(results))
    return claims


def _finding_of_correction(results: Results) -> Finding:
    """Without bias correction the first step is so long that it alone can cross the barrier."""
    rates, pair = results["rates"], ("rmsprop", CORRECTED)
    constant = [results["outcomes"]["constant"][name] for name in pair]
    differ = sum(a != b for a, b in zip(*constant, strict=True))
    steps = [results["paths"][name]["first_step"] for name in pair]
    leaving = [rates[row.index(LEFT)] if LEFT in row else math.inf for row in constant]
    settled = [sum(band[name]["rates"] for band in results["bands"].values()) for name in pair]
    return Finding(
        "RMSProp ends where it ends with bias correction",
        f"differs at {differ} of {len(rates)} constant rates: without correction the first step "
        f"is {steps[0]:.1f} γ and runs leave the domain from γ = {leaving[0]:.2g}, with it "
        f"{steps[1]:.1f} γ and {leaving[1]:.2g}; runs of all schedules that reach the global "
        f"minimum: {settled[0]} without, {settled[1]} with",
        differ == 0,
    )


def _findings_of_schedule(results: Results, schedule: str) -> list[Finding]:
    a_schedule = f"{'an' if schedule[0] in 'aeiou' else 'a'} {schedule} schedule"
    bands, crossings, outcomes = results["bands"], results["crossings"], results["outcomes"]
    settled = {s: {name: row["rates"] for name, row in bands[s].items()} for s in bands}
    cycling = {
        s: {name: row.count(CYCLES) for name, row in by_name.items()}
        for s, by_name in outcomes.items()
    }
    cyclers = [name for name, count in cycling["constant"].items() if count]
    calmed = [name for name in cyclers if cycling[schedule][name] < cycling["constant"][name]]
    return [
        Finding(
            f"{a_schedule} carries more trajectories over the barrier",
            "learning rates that end beyond it: "
            + _changes(crossings["constant"], crossings[schedule]),
            _all_gain(crossings["constant"], crossings[schedule]),
        ),
        Finding(
            f"{a_schedule} lets more trajectories settle in the global minimum",
            "learning rates that do: " + _changes(settled["constant"], settled[schedule]),
            _all_gain(settled["constant"], settled[schedule]),
        ),
        Finding(
            f"{a_schedule} ends cycling",
            f"less cycling: {titles(calmed)}; cycling at a constant rate: {titles(cyclers)}",
            len(calmed) == len(cyclers) or (None if calmed else False),
        ),
    ]


def _solves_the_equation(x: float) -> bool:
    angle = torch.pi * torch.tensor(x, dtype=torch.float64)
    return abs((angle * torch.tan(angle)).item() - 1) < 1e-6


def _changes(before: dict[str, int], after: dict[str, int]) -> str:
    return ", ".join(
        f"{OPTIMIZERS[name].title} {before[name]} → {count}" for name, count in after.items()
    )


def _all_gain(before: dict[str, int], after: dict[str, int]) -> bool | None:
    gains = [after[name] > before[name] for name in after]
    return all(gains) or (None if any(gains) else False)
