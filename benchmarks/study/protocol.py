"""What is run, in which order, and how settings are chosen: a function of the results so far.

A sweep is the search for the best setting of one optimizer on one net in one search space. All
optimizers have the same protocol:

1. Search, on one seed. In the search space "lr" the trials are the learning rates of one grid, and
   all other options keep their defaults. While one of the candidates (see 2) is at an end of the
   grid, the grid is extended there, by at most `extra` rates. In the search space "all" the first
   trial is the winner of "lr", so that only chance can make the wider space worse. The others are
   `samples` quasi-random points for each dimension: the learning rate within a factor of 10 of the
   winner of "lr" (if that has failed, anywhere in the grid), the options in the ranges of `TUNED`.
2. Selection, on `selection_seeds` other seeds. The best `candidates` settings of the search are
   trained again, except those that failed (at chance). `selection_score` decides.
3. Comparison. The winner is trained on `seeds` further seeds, the same for all optimizers. Only
   these trials evaluate the test set.
4. Timing. Trials in a stack have no seconds of their own. If any trial of the comparison has none,
   the winner is trained again on the first `TIMING_SEEDS` of its seeds, while nothing else is
   trained. Only the seconds to the targets come from these trials.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch.quasirandom import SobolEngine

from benchmarks.common.command import CannotRun
from benchmarks.common.data import TEST_SIZE, TRAIN_SIZE
from benchmarks.study.trial import (
    FINAL,
    SEARCH,
    SELECTION,
    TIMING,
    Settings,
    Trial,
    accuracy_of,
    has_failed,
)

SEARCH_SEED = 41
FIRST_SELECTION_SEED = 21
FIRST_SEED = 42
TIMING_SEEDS = 3
VALIDATION_SHARE = 6  # one in so many training images validates: 10,000 of MNIST's 60,000

Known = Mapping[str, Mapping[str, Any]]  # the contents of the files of trials, by key
Range = tuple[float, float]

# Exponents of ten of 1 − μ (or 1 − β₁), of 1 − β₂ (or 1 − α), of ε, and of λ: that of a penalty,
# and that of AdamW, whose decay is multiplied by the learning rate.
MOMENTUM, BETA2, EPS = (-3.0, 0.0), (-4.0, -1.0), (-10.0, -3.0)
PENALTY, DECAY = (-6.0, -2.0), (-4.0, 0.0)
TUNED: dict[str, dict[str, Range]] = {
    "sgd": {"weight_decay": PENALTY},
    "momentum": {"momentum": MOMENTUM, "weight_decay": PENALTY},
    "adagrad": {"eps": EPS, "weight_decay": PENALTY},
    "rmsprop": {"beta2": BETA2, "eps": EPS, "weight_decay": PENALTY},
    "adam": {"momentum": MOMENTUM, "beta2": BETA2, "eps": EPS, "weight_decay": PENALTY},
    "adamw": {"momentum": MOMENTUM, "beta2": BETA2, "eps": EPS, "weight_decay": DECAY},
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
    extra: int  # rates by which the grid of a sweep may be extended
    samples: int  # points for each dimension of the search space "all"
    candidates: int  # settings of a sweep that go on to the selection
    selection_seeds: int
    seeds: int
    epochs: int
    train_size: int = TRAIN_SIZE  # validation images included
    test_size: int = TEST_SIZE
    search_spaces: tuple[str, ...] = ("lr", "all")
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

    def sweeps(self) -> list[Sweep]:
        return [
            Sweep(search_space, net, optimizer)
            for search_space in self.search_spaces
            for net in self.nets
            for optimizer in self.optimizers
        ]

    def check(self) -> None:
        """Refuse what cannot be compared or has no data."""
        if "all" in self.search_spaces and "lr" not in self.search_spaces:
            raise CannotRun("the search space all starts at the winners of lr: choose both")
        if "all" in self.search_spaces and not self.samples:
            raise CannotRun(
                f"the budget {self.budget} has no trials for the search space all: add --samples"
            )
        if not self.validation_size:
            raise CannotRun(f"--train-size {self.train_size} leaves no image for validation")
        if self.batch_size > self.train_size - self.validation_size:
            left = self.train_size - self.validation_size
            raise CannotRun(f"--batch-size {self.batch_size} is more than the {left} images there")


@dataclass(frozen=True)
class Sweep:
    search_space: str
    net: str
    optimizer: str


BUDGETS = {
    "quick": Study(
        "quick", Grid(-4, 1, 6), extra=1, samples=0, candidates=2, selection_seeds=3, seeds=3,
        epochs=3, train_size=12_000, test_size=2_000, search_spaces=("lr",),
    ),
    "standard": Study(
        "standard", Grid(-4, 2, 11), extra=3, samples=2, candidates=3, selection_seeds=3, seeds=10,
        epochs=4,
    ),
    "full": Study(
        "full", Grid(-5, 5, 36), extra=10, samples=16, candidates=4, selection_seeds=5, seeds=10,
        epochs=20,
    ),
}  # fmt: skip
BUDGETS["gpu"] = replace(BUDGETS["full"], budget="gpu", seeds=100)


@dataclass(frozen=True)
class Winner:
    """The setting that a sweep has chosen.

    Attributes:
        trial: its trial in the search.
        extra: by how many rates the grid was extended.
        at_edge: whether it is at an end of the grid all the same.
    """

    trial: Trial
    extra: int = 0
    at_edge: bool = False


def missing(study: Study, known: Known) -> list[Trial]:
    """The trials that can be run now and have not been, in a good order: timing comes last."""
    trials = [
        trial for sweep in study.sweeps() for trial in wanted(study, sweep, known)
        if trial.key not in known
    ]  # fmt: skip
    return sorted(trials, key=lambda trial: trial.phase == TIMING)


def wanted(study: Study, sweep: Sweep, known: Known) -> Iterator[Trial]:
    """The trials of a sweep as far as they are determined by what is known."""
    trials, winner = _search(study, sweep, known)
    yield from trials
    if winner is not None:
        yield from _comparison(study, winner.trial, known)


def winner_of(study: Study, sweep: Sweep, known: Known) -> Winner | None:
    """The winner of a sweep; None before its selection is complete."""
    return _search(study, sweep, known)[1]


def expected(study: Study, known: Known) -> int:
    """How many trials there will be at most, if nothing else asks for more.

    More are an extended grid's and, as soon as a final of a stack is known, the timing trials.
    """
    total = 0
    for sweep in study.sweeps():
        trials, winner = _search(study, sweep, known)
        searched = sum(trial.phase == SEARCH for trial in trials)
        if not searched:  # it waits for the winner of "lr"
            searched = 1 + study.samples * (1 + len(TUNED[sweep.optimizer]))
        selected, compared = study.candidates * study.selection_seeds, study.seeds
        if winner is not None:
            selected = len(trials) - searched
            compared = len(_comparison(study, winner.trial, known))
        total += searched + selected + compared
    return total


def selection_score(results: Iterable[Mapping[str, Any]]) -> float:
    """What decides among candidates: their mean validation accuracy over the selection seeds.

    A run that diverged counts as guessing, so every failed seed counts in full. With few seeds the
    median would not: on a deep sigmoid net AdaGrad trains to 94 % at a rate that fails on four of
    ten seeds, and two good runs of three hide that. The mean is also what the comparison ranks by.
    """
    return statistics.fmean(accuracy_of(result, "validation") for result in results)


def _search(study: Study, sweep: Sweep, known: Known) -> tuple[list[Trial], Winner | None]:
    """The trials of search and selection, and the winner once they have been run."""
    search = _search_lr if sweep.search_space == "lr" else _search_all
    return search(study, sweep, known)


def _search_lr(study: Study, sweep: Sweep, known: Known) -> tuple[list[Trial], Winner | None]:
    first, last = 0, study.grid.count - 1
    while True:
        trials = [_trial(study, sweep, study.grid.rate(n)) for n in range(first, last + 1)]
        if any(trial.key not in known for trial in trials):
            return trials, None
        candidates = _candidates(trials, study.candidates, known)
        extra = len(trials) - study.grid.count
        at_end = [trial for trial in candidates if trial in (trials[0], trials[-1])]
        if not at_end or extra == study.extra:
            break
        first, last = (first - 1, last) if at_end[0] == trials[0] else (first, last + 1)
    repeated, chosen = _select(study, candidates, known)
    winner = None if chosen is None else Winner(chosen, extra, chosen in at_end)
    return trials + repeated, winner


def _search_all(study: Study, sweep: Sweep, known: Known) -> tuple[list[Trial], Winner | None]:
    of_lr = winner_of(study, replace(sweep, search_space="lr"), known)
    if of_lr is None:
        return [], None
    first = replace(of_lr.trial, search_space="all")
    centre, reach = math.log10(first.settings.lr), 1.0
    if _failed(of_lr.trial, known):
        ends = [math.log10(study.grid.rate(n)) for n in (0, study.grid.count - 1)]
        centre, reach = statistics.fmean(ends), (ends[1] - ends[0]) / 2
    ranges = TUNED[sweep.optimizer]
    dimensions = 1 + len(ranges)
    sampled = []
    for u, *others in _points(dimensions, study.samples * dimensions):
        rate = float(f"{10 ** (centre + reach * (2 * u - 1)):.3g}")
        options = {
            name: _option(name, ranges[name], v) for name, v in zip(ranges, others, strict=True)
        }
        sampled.append(_trial(study, sweep, rate, options))
    trials = [first, *sampled]
    if any(trial.key not in known for trial in trials):
        return trials, None
    rivals = [
        trial
        for trial in _candidates(sampled, study.candidates - 1, known)
        if not _failed(trial, known)
    ]
    repeated, chosen = _select(study, [first, *rivals], known)
    return trials + repeated, None if chosen is None else Winner(chosen)


def _candidates(trials: list[Trial], count: int, known: Known) -> list[Trial]:
    """The best trials of a search, best first: those that did not fail, or else only the best."""
    ranked = sorted(trials, key=lambda trial: _rank(known[trial.key]["result"]))
    return [trial for trial in ranked[:count] if not _failed(trial, known)] or ranked[:1]


def _rank(result: Mapping[str, Any]) -> tuple[bool, float, float]:
    """The highest accuracy comes first, of equal ones the lowest loss."""
    if result["diverged"]:
        return True, 0.0, math.inf
    return False, -result["validation_accuracy"], result["validation_loss"]


def _failed(trial: Trial, known: Known) -> bool:
    return has_failed(accuracy_of(known[trial.key]["result"], "validation"))


def _select(
    study: Study, candidates: list[Trial], known: Known
) -> tuple[list[Trial], Trial | None]:
    """The candidates' trials on the selection seeds and, once they are known, the best candidate.

    Of equal ones the first is chosen. A single candidate needs no selection.
    """
    if len(candidates) == 1:
        return [], candidates[0]
    repeated = [
        _repeated(trial, SELECTION, FIRST_SELECTION_SEED, study.selection_seeds)
        for trial in candidates
    ]
    trials = [
        trial for of_seed in zip(*repeated, strict=True) for trial in of_seed
    ]  # to be stacked
    if any(trial.key not in known for trial in trials):
        return trials, None
    scores = [selection_score(known[trial.key]["result"] for trial in runs) for runs in repeated]
    return trials, candidates[scores.index(max(scores))]


def _comparison(study: Study, winner: Trial, known: Known) -> list[Trial]:
    """The winner's finals and, if some of them were trained in a stack, its timing trials."""
    finals = _repeated(winner, FINAL, FIRST_SEED, study.seeds)
    finished = [known[trial.key]["result"] for trial in finals if trial.key in known]
    if all(result["seconds"] is not None for result in finished):
        return finals
    return finals + _repeated(winner, TIMING, FIRST_SEED, min(TIMING_SEEDS, study.seeds))


def _repeated(trial: Trial, phase: str, first_seed: int, seeds: int) -> list[Trial]:
    return [
        Trial(phase, trial.search_space, replace(trial.settings, seed=seed))
        for seed in range(first_seed, first_seed + seeds)
    ]


@cache
def _points(dimensions: int, count: int) -> list[list[float]]:
    """Points of a scrambled Sobol sequence in (0, 1): for all sweeps of as many dimensions."""
    engine = SobolEngine(dimensions, scramble=True, seed=SEARCH_SEED)
    points: list[list[float]] = engine.draw(count, dtype=torch.float64).tolist()
    return points


def _option(name: str, exponents: Range, u: float) -> float:
    low, high = exponents
    value = 10 ** (low + u * (high - low))
    return round(1 - value, 5) if name in ("momentum", "beta2") else float(f"{value:.3g}")


def _trial(
    study: Study, sweep: Sweep, lr: float, options: Mapping[str, float] | None = None
) -> Trial:
    settings = Settings(
        net=sweep.net,
        optimizer=sweep.optimizer,
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
        test_size=study.test_size,
    )
    return Trial(SEARCH, sweep.search_space, settings)
