"""What a case is: published figures, how ours are measured, and when the two agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.data import DEVIATION, MEAN, Digits
from benchmarks.reproductions.parts import Part, Parts
from benchmarks.reproductions.wrong import WRONG, Optimizer, Replacement, wrong_for
from torch_scratch_optim import ScratchOptimizer

BUDGETS = ("quick", "standard", "full")
REPRODUCED, DIFFERS, NOT_RUN = "reproduced", "differs", "not run"
REPORTED_EVERY = 50  # steps between two reports of progress

Settings = Mapping[str, Any]  # numbers, texts and tuples of these: what JSON can hold
Interval = tuple[float, float]
Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """Our figure (NaN: it was measured and there is none), with what is known about it.

    Attributes:
        spread: the smallest and the largest figure of our seeds, or what a tolerance needs.
    """

    value: float
    spread: Interval | None = None
    note: str = ""
    seeds: int = 1


@dataclass(frozen=True)
class Tolerance:
    """When our figure counts as the published one; `text` says it to a reader."""

    text: str
    holds: Callable[[Measured, Interval], bool]


def within(margin: float, why: str) -> Tolerance:
    """Our figure is no farther from the published one (a number or a range) than `margin`."""

    def holds(ours: Measured, published: Interval) -> bool:
        return published[0] - margin <= ours.value <= published[1] + margin  # NaN is nowhere

    return Tolerance(f"± {margin:g}: {why}" if margin else f"no margin: {why}", holds)


def among_our_seeds(text: str, share: float = 0.0) -> Tolerance:
    """The published figure could be one of ours: it lies within our spread.

    Args:
        share: of the published figure; the spread is widened by it.
    """

    def holds(ours: Measured, published: Interval) -> bool:
        if ours.spread is None:
            return False
        low, high = ours.spread
        return low <= (1 + share) * published[0] and (1 - share) * published[1] <= high

    return Tolerance(text, holds)


def below(limit: float, why: str) -> Tolerance:
    return Tolerance(why, lambda ours, _: ours.value < limit)


def at_least(limit: float, why: str) -> Tolerance:
    return Tolerance(why, lambda ours, _: ours.value >= limit)


@dataclass(frozen=True)
class Figure:
    """One published number, the range of several, or in words an order or a target.

    Attributes:
        seeds: that the published figure was made of.
        budget: the smallest that measures it.
    """

    quantity: str
    published: float | Interval | str
    tolerance: Tolerance
    note: str = ""
    seeds: int = 1
    budget: str = "quick"

    def holds(self, ours: Measured) -> bool:
        published = self.published
        if isinstance(published, str):
            published = (0.0, 0.0)  # the tolerance alone knows
        elif not isinstance(published, tuple):
            published = (published, published)
        return self.tolerance.holds(ours, published)

    def row(self, ours: Measured | None, reason: str = "") -> Row:
        """A row of the table; without a figure of ours, `reason` says why there is none."""
        verdict = NOT_RUN if ours is None else REPRODUCED if self.holds(ours) else DIFFERS
        notes = [self.note, reason if ours is None else ours.note]
        return {
            "quantity": self.quantity,
            "published": self.published,
            "ours": None if ours is None else ours.value,
            "our_spread": None if ours is None else ours.spread,
            "seeds": [self.seeds, 0 if ours is None else ours.seeds],
            "tolerance": self.tolerance.text,
            "verdict": verdict,
            "note": " ".join(filter(None, notes)),
        }


@dataclass
class Lab:
    """What a case works with.

    Attributes:
        data: MNIST; None for a case that does not need it.
        on_share: is told the share of the steps that are done.
        parts: what was finished before an interruption.
        wrong: the name of the wrong optimizer that takes the place of the right one.
    """

    data: Digits | None
    on_share: Callable[[float], None] = lambda share: None
    parts: Parts | None = None
    wrong: str | None = None
    _total: int = field(default=1, init=False)
    _done: int = field(default=0, init=False)

    @property
    def digits(self) -> Digits:
        assert self.data is not None, "a case that needs MNIST says so"
        return self.data

    def make(self, optimizer: Optimizer, params: Any, **options: Any) -> ScratchOptimizer:
        """The optimizer, or the wrong one that is tried in its place."""
        replaced: Replacement = WRONG[self.wrong] if self.wrong else {}
        return replaced.get(optimizer, optimizer)(params, **options)

    def expect(self, steps: int) -> None:
        self._total, self._done = max(1, steps), 0

    def step(self) -> None:
        self._done += 1
        if self._done % REPORTED_EVERY == 0 and self._done < self._total:
            self.on_share(self._done / self._total)

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
        optimizers: those that the experiment trains with; none: it trains nothing.
        decays: it uses weight decay.
        wrong: what is run with each wrong optimizer, by budget; a part of the experiment may do.
        one_thread: the nets are so small that a second thread only waits.
        needs_mnist: the data are MNIST.
        note: what a reader must know of all figures.
    """

    title: str
    source: str
    budgets: Mapping[str, Settings]
    figures: Mapping[str, Figure]
    measure: Callable[[Lab, Settings], Mapping[str, Measured]]
    optimizers: Sequence[Optimizer] = ()
    decays: bool = False
    wrong: Mapping[str, Settings] = field(default_factory=dict)
    one_thread: bool = True
    needs_mnist: bool = True
    note: str = ""

    def rows(self, measured: Mapping[str, Measured], reason: str = "") -> list[Row]:
        """The rows of the table; `reason` says why nothing was run, if that is why."""
        if unknown := measured.keys() - self.figures.keys():
            raise ValueError(f"{self.title}: nothing is published for {', '.join(unknown)}")
        return [
            figure.row(measured.get(key), reason or f"--budget {figure.budget} runs it")
            | {"wrong": {} if self.optimizers else None}
            for key, figure in self.figures.items()
        ]

    def wrong_names(self) -> list[str]:
        return wrong_for(self.optimizers, self.decays)
