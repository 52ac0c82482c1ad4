"""What every experiment is given, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.common.data import Digits
from benchmarks.common.optimizers import OPTIMIZERS

Facts = dict[str, Any]
MORE_DATA = (2, 5)  # times as many images as the few
OnProgress = Callable[[str, float], None]  # what is being done, and the share that is behind us


@dataclass(frozen=True)
class Sizes:
    """How much is computed; the defaults take less than three minutes on two cores."""

    rates: int = 41  # learning rates on a map
    steps: int = 300  # of a walk that is to end in a minimum
    escape_steps: int = 2000  # of a walk that is to leave a saddle, at most
    repeats: int = 100  # walks with noise of their own
    seeds: int = 5
    depths: tuple[int, ...] = (5, 10, 20, 30)
    width: int = 128
    images: int = 6000  # for deep nets to learn from
    epochs: int = 8  # over those images
    few_images: int = 1000  # for nets to learn by heart
    few_epochs: int = 60  # over those images
    batches: tuple[int, ...] = (16, 64, 256, 1024)
    plateau_steps: int = 400  # within which a deep net is to leave its plateau
    test_images: int = 5000

    def train_images(self) -> int:
        """Enough for the deep nets, and for MORE_DATA and the validation behind it."""
        return max(self.images, self.few_images * (max(MORE_DATA) + 1))


QUICK = Sizes(
    rates=13, steps=150, escape_steps=400, repeats=20, seeds=2, depths=(5, 10), width=32,
    images=600, epochs=3, few_images=200, few_epochs=12, batches=(16, 64), plateau_steps=150,
    test_images=300,
)  # fmt: skip


@dataclass(frozen=True)
class Setup:
    optimizers: tuple[str, ...]
    seed: int = 0
    digits: Digits | None = None
    sizes: Sizes = field(default_factory=Sizes)

    def the_digits(self) -> Digits:
        assert self.digits is not None, "the command loads them for every experiment that asks"
        return self.digits

    def titles(self) -> list[str]:
        return [OPTIMIZERS[name].title for name in self.optimizers]


@dataclass(frozen=True)
class Finding:
    """One sentence of the lecture beside the figures that were measured for it."""

    claim: str
    figures: str
    holds: bool | None  # None: it depends, and the figures say on what
    theory: bool = False  # mathematics, which must hold; the others are advice, which may not

    @property
    def verdict(self) -> str:
        if self.holds is None:
            return "depends"
        if self.theory:
            return "as computed" if self.holds else "WRONG"
        return "holds" if self.holds else "does not hold"


def log_spaced(low: float, high: float, count: int) -> list[float]:
    return [float(f"{x:.4g}") for x in torch.logspace(low, high, count, dtype=torch.float64)]


def known(value: float | None) -> bool:
    """Whether there is a number; in a file, where JSON has no NaN, None says that there is none."""
    return value is not None and math.isfinite(value)


def titles(names: Iterable[str]) -> str:
    return ", ".join(OPTIMIZERS[name].title for name in names) or "nobody"
