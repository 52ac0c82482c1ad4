"""What a published case is: its figures, what is measured for them, and when the two agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.data import DEVIATION, MEAN, Digits
from benchmarks.reproductions.parts import Part, Parts

BUDGETS = ("quick", "standard", "full")
REPRODUCED, DIFFERS, NOT_RUN = "reproduced", "differs", "not run"
REPORTED_EVERY = 50  # steps between two reports of progress

Settings = Mapping[str, Any]  # numbers, texts and tuples of these: what JSON can hold
Interval = tuple[float, float]
Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """Our figure (NaN: it was measured and there is none), how our seeds spread, what to know."""

    value: float
    spread: Interval | None = None
    note: str = ""


@dataclass(frozen=True)
class Tolerance:
    """When our figure counts as theirs; `words` says it to a reader."""

    words: str
    holds: Callable[[Measured, Interval], bool]


def within(margin: float, why: str) -> Tolerance:
    """Our figure is no farther from theirs (a number or a range) than `margin`."""

    def holds(ours: Measured, theirs: Interval) -> bool:
        return theirs[0] - margin <= ours.value <= theirs[1] + margin  # NaN is nowhere

    return Tolerance(f"± {margin:g}: {why}" if margin else f"no margin: {why}", holds)


def among_our_seeds(why: str) -> Tolerance:
    """Theirs, which is a single draw, could be one of ours: it lies within our spread."""

    def holds(ours: Measured, theirs: Interval) -> bool:
        spread = ours.spread
        return spread is not None and spread[0] <= theirs[0] and theirs[1] <= spread[1]

    return Tolerance(f"theirs lies within the middle 95 % of our seeds: {why}", holds)


@dataclass(frozen=True)
class Figure:
    """One published number, or the range of several."""

    quantity: str
    theirs: float | Interval
    tolerance: Tolerance
    note: str = ""

    def row(self, ours: Measured | None, reason: str = "") -> Row:
        """A line of the table; without a figure of ours, `reason` says why there is none."""
        notes = [self.note, reason if ours is None else ours.note]
        interval = self.theirs if isinstance(self.theirs, tuple) else (self.theirs, self.theirs)
        if ours is None:
            verdict = NOT_RUN
        else:
            verdict = REPRODUCED if self.tolerance.holds(ours, interval) else DIFFERS
        return {
            "quantity": self.quantity,
            "theirs": self.theirs,
            "ours": None if ours is None else ours.value,
            "our_spread": None if ours is None else ours.spread,
            "tolerance": self.tolerance.words,
            "verdict": verdict,
            "note": " ".join(filter(None, notes)),
        }


@dataclass
class Lab:
    """What a case works with: MNIST, a counter of steps that reports how far it has come, and
    what was finished before an interruption."""

    digits: Digits
    on_share: Callable[[float], None] = lambda share: None
    parts: Parts | None = None
    _total: int = field(default=1, init=False)
    _done: int = field(default=0, init=False)

    def expect(self, steps: int) -> None:
        self._total, self._done = max(1, steps), 0

    def step(self) -> None:
        self._done += 1
        if self._done % REPORTED_EVERY == 0:
            self.on_share(min(1.0, self._done / self._total))

    def once(self, key: str, steps: int, compute: Callable[[], Part]) -> Part:
        """A part of the case, of at most so many steps; it survives an interruption."""
        before = self._done
        part = compute() if self.parts is None else self.parts.once(key, compute)
        self._done = before + steps
        return part

    @property
    def device(self) -> torch.device:
        return self.digits.train_images.device


def unit_pixels(images: Tensor) -> Tensor:
    """Pixels from 0 to 1, exactly as in the files, where `Digits` holds standardised ones."""
    return ((images * DEVIATION + MEAN) * 255).round_().clamp_(0, 255).div_(255)


@dataclass(frozen=True)
class Case:
    """Published figures that come from one experiment.

    Attributes:
        budgets: what is run, by budget. A budget that is left out runs nothing.
        figures: the published figures, by the key under which `measure` returns ours.
        measure: runs the experiment. A figure that it leaves out needs a larger budget.
        one_thread: the nets are so small that a second thread only waits.
    """

    title: str
    source: str
    budgets: Mapping[str, Settings]
    figures: Mapping[str, Figure]
    measure: Callable[[Lab, Settings], Mapping[str, Measured]]
    one_thread: bool = True

    def rows(self, measured: Mapping[str, Measured], reason: str) -> list[Row]:
        if strangers := measured.keys() - self.figures.keys():
            raise ValueError(f"{self.title}: nothing is published for {', '.join(strangers)}")
        return [figure.row(measured.get(key), reason) for key, figure in self.figures.items()]
