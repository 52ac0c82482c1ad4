"""What every trainer is given to do: a tiny net, a few batches, an optimizer of ours or torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from ..cases import Case, same_bits

Make = Callable[[Any], Optimizer]

EPOCHS, BATCHES, BATCH = 4, 4, 8
LRS = {"SGD": 0.1, "Momentum": 0.05, "AdaGrad": 0.05, "RMSProp": 0.005, "Adam": 0.01, "AdamW": 0.01}

# One of each rule: what is tried here are the trainers.
each_optimizer = pytest.mark.parametrize("name", ["Momentum", "AdaGrad", "RMSProp", "AdamW"])
# Who makes the checkpoint, and who goes on with it.
each_change_of_hands = pytest.mark.parametrize(
    ("first", "second"),
    [("ours", "ours"), ("torch", "ours"), ("ours", "torch")],
    ids=["ours", "torch to ours", "ours to torch"],
)


def maker(name: str, whose: str) -> Make:
    case = Case(name, {"lr": LRS[name]})
    return case.ours if whose == "ours" else case.torchs


def net(dropout: float = 0.1) -> nn.Module:
    """The same at every call; with dropout, random numbers must go on rightly, too."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)]
    return nn.Sequential(*layers)


def batches() -> DataLoader[tuple[Tensor, ...]]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(BATCHES * BATCH, 6, generator=random)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=BATCH)


def assert_same_parameters(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert same_bits(p, q), f"{name} differs"


def assert_learned(losses: list[float]) -> None:
    """Otherwise equal losses would mean little."""
    quarter = len(losses) // 4
    assert sum(losses[-quarter:]) < sum(losses[:quarter])
