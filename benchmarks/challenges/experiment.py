"""What every experiment is given, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.data import Digits
from benchmarks.common.nets import build_net

CPU = torch.device("cpu")

Results = dict[str, Any]  # what facts.json holds
OnProgress = Callable[[str, float], None]  # the current stage, and the share that is done
MORE_DATA = (2, 5)  # times as many images as the small training set


@dataclass(frozen=True)
class Sizes:
    """How much is computed; the defaults take a few minutes on two cores."""

    rates: int = 41  # learning rates on a grid
    conditions: tuple[int, ...] = (3, 10, 30, 100, 300, 1000, 3000)  # condition numbers
    beta_conditions: tuple[int, ...] = (10, 100, 1000)  # for each of which β is varied
    halvings: int = 32  # of the interval that holds the largest stable learning rate
    steps: int = 300  # towards a minimum
    escape_steps: int = 2000  # to leave a saddle, at most
    repeats: int = 100  # trajectories with independent noise
    seeds: int = 5
    depths: tuple[int, ...] = (5, 10, 20, 30)
    width: int = 128
    images: int = 6000  # that deep nets are trained on
    epochs: int = 8  # over those images
    few_images: int = 1000  # that a net overfits
    few_epochs: int = 60  # over those images
    batches: tuple[int, ...] = (16, 64, 256, 1024)
    plateau_steps: int = 400  # to leave the plateau of a deep net, at most
    test_images: int = 5000

    def train_images(self) -> int:
        """Enough for the deep nets, and for MORE_DATA and the validation images behind it."""
        return max(self.images, self.few_images * (max(MORE_DATA) + 1))


QUICK = Sizes(
    rates=13, conditions=(3, 10, 30), beta_conditions=(10,), halvings=12, steps=150,
    escape_steps=400, repeats=20, seeds=2, depths=(5, 10), width=32, images=600, epochs=3,
    few_images=200, few_epochs=12, batches=(16, 64), plateau_steps=150, test_images=300,
)  # fmt: skip


@dataclass(frozen=True)
class Setup:
    optimizers: tuple[str, ...]
    seed: int = 0
    digits: Digits | None = None
    sizes: Sizes = field(default_factory=Sizes)
    device: torch.device = CPU  # of digits and nets; test functions are too small for a GPU

    def require_digits(self) -> Digits:
        assert self.digits is not None, "the command loads digits for experiments that need them"
        return self.digits

    def build_net(self, *args: Any, **options: Any) -> nn.Module:
        """A net with the same initial weights on every device."""
        return build_net(*args, **options).to(self.device)


@dataclass(frozen=True)
class Finding:
    """A claim beside what was measured for it."""

    claim: str
    measured: str
    holds: bool | None  # None: it depends on what `measured` says
    theory: bool = False  # mathematics, which must hold; other claims are rules of thumb

    @property
    def verdict(self) -> str:
        if self.holds is None:
            return "depends"
        if self.theory:
            return "as computed" if self.holds else "WRONG"
        return "holds" if self.holds else "does not hold"


@dataclass(frozen=True)
class Curve:
    """A scalar of TensorBoard: one value for each step."""

    tag: str
    steps: list[int]
    values: list[float]


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """Rounded to four digits; `low` and `high` are exponents of ten."""
    return [float(f"{x:.4g}") for x in torch.logspace(low, high, count, dtype=torch.float64)]


def rounded(values: Tensor, digits: int = 5) -> list[float]:
    return [float(f"{x:.{digits}g}") for x in values.tolist()]


def is_finite(value: float | None) -> bool:
    """JSON has no NaN and no infinity: a file has null in their place."""
    return value is not None and math.isfinite(value)
