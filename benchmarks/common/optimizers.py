"""The one table of the optimizers that are compared: ours and torch's, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import torch_scratch_optim as ours

MakeOptimizer = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class OptimizerEntry:
    """One algorithm, as ours and as torch's, with the learning rate that tells the story."""

    title: str
    scratch: MakeOptimizer
    reference: MakeOptimizer
    lr: float
    colour: str  # Okabe and Ito's palette: told apart by colour-blind readers, too
    marker: str
    options: Mapping[str, float] = field(default_factory=dict)

    def make_scratch(
        self, parameters: Iterable[nn.Parameter], lr: float, **more: Any
    ) -> torch.optim.Optimizer:
        return self.scratch(parameters, lr=lr, **self.options, **more)


OPTIMIZERS: dict[str, OptimizerEntry] = {
    "sgd": OptimizerEntry("SGD", ours.ScratchSGD, torch.optim.SGD, 0.1, "#E69F00", "o"),
    "momentum": OptimizerEntry(
        "Momentum", ours.ScratchMomentum, torch.optim.SGD, 0.05, "#56B4E9", "s", {"momentum": 0.9}
    ),
    "adagrad": OptimizerEntry(
        "AdaGrad", ours.ScratchAdaGrad, torch.optim.Adagrad, 0.01, "#009E73", "^"
    ),
    "rmsprop": OptimizerEntry(
        "RMSProp", ours.ScratchRMSProp, torch.optim.RMSprop, 0.001, "#D55E00", "D"
    ),
    "adam": OptimizerEntry("Adam", ours.ScratchAdam, torch.optim.Adam, 0.001, "#0072B2", "v"),
    "adamw": OptimizerEntry("AdamW", ours.ScratchAdamW, torch.optim.AdamW, 0.001, "#CC79A7", "P"),
}
DEFAULT_NAMES = ("sgd", "momentum", "adagrad", "rmsprop", "adam")
