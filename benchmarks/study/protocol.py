"""What is run, in which order, and how a winner is chosen: a function of what is known so far.

Every cell (a track, a net, an optimizer) has the same budget. In the track "lr" its trials are the
learning rates of one grid. While the best is at an end of the grid, the grid grows there by a rate,
by `extra` rates at most in each cell. In the track "all" the trials are quasi-random points: the
learning rate within a decade to either side of the winner in "lr", and whatever else the optimizer
has within the ranges of `RANGES`. The winner has the highest validation accuracy at the end, of
equal ones the lowest validation loss; it is trained again on each of `seeds`. The test set has no
say. Searches have a seed that is not among those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch.quasirandom import SobolEngine

from benchmarks.common.command import CannotRun
from benchmarks.common.data import TEST_SIZE, TRAIN_SIZE
from benchmarks.study.trial import FINAL, SEARCH, Settings, Trial

SEARCH_SEED = 41
FIRST_SEED = 42
VALIDATION_SHARE = 6  # one in so many training images validates: 10,000 of MNIST's 60,000

Known = Mapping[str, Mapping[str, Any]]  # the contents of the files of trials, by key

# Exponents of ten of 1 − μ (or 1 − β₁), of 1 − β₂ (or 1 − α) and of ε.
RANGES = {"momentum": (-3.0, 0.0), "beta2": (-4.0, -1.0), "eps": (-10.0, -3.0)}
TUNED = {
    "sgd": (),
    "momentum": ("momentum",),
    "adagrad": ("eps",),
    "rmsprop": ("beta2", "eps"),
    "adam": ("momentum", "beta2", "eps"),
    "adamw": ("momentum", "beta2", "eps"),
}


@dataclass(frozen=True)
class Grid:
    """Learning rates from 10^`low` on, evenly on a logarithmic scale."""

    low: int
    per_decade: int
    count: int

    def rate(self, number: int) -> float:
        """Rate number 0 … count − 1; other numbers continue the grid."""
        return float(f"{10 ** (self.low + number / self.per_decade):.3g}")


@dataclass(frozen=True)
class Study:
    """All that decides what is run."""

    budget: str
    grid: Grid
    extra: int  # rates that a cell's grid may grow by
    samples: int  # points of a cell in the track "all"
    seeds: int
    epochs: int
    train_size: int = TRAIN_SIZE  # validation images included
    test_size: int = TEST_SIZE
    tracks: tuple[str, ...] = ("lr", "all")
    nets: tuple[str, ...] = ("sigmoid", "relu")
    optimizers: tuple[str, ...] = tuple(TUNED)
    schedule: str = "constant"
    batch_size: int = 128
    depth: int = 5
    width: int = 128
    dataset: str = "auto"

    @property
    def validation_size(self) -> int:
        return self.train_size // VALIDATION_SHARE

    def cells(self) -> list[Cell]:
        return [
            Cell(track, net, optimizer)
            for track in self.tracks
            for net in self.nets
            for optimizer in self.optimizers
        ]

    def check(self) -> None:
        """Refuse what cannot be compared or takes no data."""
        if "all" in self.tracks and "lr" not in self.tracks:
            raise CannotRun("the track all begins at the winners of the track lr: choose both")
        if "all" in self.tracks and not self.samples:
            raise CannotRun(
                f"the budget {self.budget} has no trials for the track all: add --samples"
            )
        if not self.validation_size:
            raise CannotRun(f"--train-size {self.train_size} leaves no image for validation")
        if self.batch_size > self.train_size - self.validation_size:
            left = self.train_size - self.validation_size
            raise CannotRun(f"--batch-size {self.batch_size} is more than the {left} images there")


@dataclass(frozen=True)
class Cell:
    track: str
    net: str
    optimizer: str


BUDGETS = {
    "quick": Study(
        "quick", Grid(-4, 1, 6), extra=1, samples=0, seeds=3, epochs=3,
        train_size=12_000, test_size=2_000, tracks=("lr",),
    ),
    "standard": Study("standard", Grid(-4, 2, 11), extra=3, samples=8, seeds=10, epochs=4),
    "full": Study("full", Grid(-5, 5, 36), extra=10, samples=64, seeds=10, epochs=20),
}  # fmt: skip


@dataclass(frozen=True)
class Winner:
    """The best trial of a cell's search, and whether its grid ended there in spite of all."""

    trial: Trial
    extra: int
    at_edge: bool


def missing(study: Study, known: Known) -> list[Trial]:
    """The trials that can be run now and have not been, in a good order."""
    return [
        trial for cell in study.cells() for trial in wanted(study, cell, known)
        if trial.key not in known
    ]  # fmt: skip


def wanted(study: Study, cell: Cell, known: Known) -> Iterator[Trial]:
    """The trials of a cell as far as they can be told from what is known."""
    if cell.track == "lr":
        searched, winner = _search_grid(study, cell, known)
    else:
        searched, winner = _search_all(study, cell, known)
    yield from searched
    if winner is not None:
        for seed in range(FIRST_SEED, FIRST_SEED + study.seeds):
            yield Trial(FINAL, cell.track, replace(winner.trial.settings, seed=seed))


def winner_of(study: Study, cell: Cell, known: Known) -> Winner | None:
    """The winner of a cell; None while its search goes on."""
    search = _search_grid if cell.track == "lr" else _search_all
    return search(study, cell, known)[1]


def expected(study: Study, known: Known) -> int:
    """How many trials there will be, if no more grids grow."""
    return sum(
        max(
            sum(1 for _ in wanted(study, cell, known)),
            study.seeds + (study.grid.count if cell.track == "lr" else study.samples),
        )
        for cell in study.cells()
    )


def _search_grid(study: Study, cell: Cell, known: Known) -> tuple[list[Trial], Winner | None]:
    first, last = 0, study.grid.count - 1
    while True:
        numbers = range(first, last + 1)
        trials = [_trial(study, cell, study.grid.rate(number)) for number in numbers]
        best = _best(trials, known)
        if best is None:
            return trials, None
        number = numbers[trials.index(best)]
        extra = len(trials) - study.grid.count
        at_edge = number in (first, last)
        if not at_edge or extra == study.extra:
            return trials, Winner(best, extra, at_edge)
        first, last = (first - 1, last) if number == first else (first, last + 1)


def _search_all(study: Study, cell: Cell, known: Known) -> tuple[list[Trial], Winner | None]:
    centre = winner_of(study, replace(cell, track="lr"), known)
    if centre is None:
        return [], None
    names = TUNED[cell.optimizer]
    trials = []
    for place, *others in _points(1 + len(names), study.samples):
        rate = float(f"{centre.trial.settings.lr * 10 ** (2 * place - 1):.3g}")
        options = {name: _option(name, u) for name, u in zip(names, others, strict=True)}
        trials.append(_trial(study, cell, rate, options))
    best = _best(trials, known)
    return trials, None if best is None else Winner(best, 0, False)


@cache
def _points(dimensions: int, count: int) -> list[list[float]]:
    """Points of a scrambled Sobol sequence, 0 … 1: the same for all cells of as many dimensions."""
    engine = SobolEngine(dimensions, scramble=True, seed=SEARCH_SEED)
    points: list[list[float]] = engine.draw(count, dtype=torch.float64).tolist()
    return points


def _option(name: str, place: float) -> float:
    low, high = RANGES[name]
    value = 10 ** (low + place * (high - low))
    return float(f"{value:.3g}") if name == "eps" else round(1 - value, 5)


def _trial(
    study: Study, cell: Cell, lr: float, options: Mapping[str, float] | None = None
) -> Trial:
    settings = Settings(
        net=cell.net,
        optimizer=cell.optimizer,
        lr=lr,
        options=options or {},
        schedule=study.schedule,
        seed=SEARCH_SEED,
        epochs=study.epochs,
        batch_size=study.batch_size,
        depth=study.depth,
        width=study.width,
        dataset=study.dataset,
        train_size=study.train_size - study.validation_size,
        validation_size=study.validation_size,
    )
    return Trial(SEARCH, cell.track, settings)


def _best(trials: list[Trial], known: Known) -> Trial | None:
    if any(trial.key not in known for trial in trials):
        return None
    return min(trials, key=lambda trial: _badness(known[trial.key]["result"]))


def _badness(result: Mapping[str, Any]) -> tuple[bool, float, float]:
    if result["diverged"]:
        return True, 0.0, math.inf
    return False, -result["validation_accuracy"], result["validation_loss"]
