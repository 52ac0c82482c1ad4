"""The recipe of gradient release, and the memory that a training step takes with and without it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.memory import peak_extra_bytes
from benchmarks.common.optimizers import OPTIMIZERS

BATCH, STEPS = 4, 3


def release_gradients(
    model: nn.Module, make: Callable[[list[Tensor]], torch.optim.Optimizer]
) -> None:
    """Let every parameter step as soon as its gradient is complete, and drop the gradient.

    Then a training step is forward and backward alone. What needs all gradients at once, such as
    clipping by their norm or GradScaler, no longer works; nor does accumulating over batches.
    """
    optimizers = {p: make([p]) for p in model.parameters() if p.requires_grad}

    def step(p: Any) -> None:
        optimizers[p].step()
        p.grad = None

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)


def measure(
    optimizer: str, released: bool, width: int, layers: int, seed: int, device: str = "cpu"
) -> dict[str, Any]:
    """Train in this process, and say by how much memory rose in the last step."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).to(device)
    entry = OPTIMIZERS[optimizer]

    def make(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return entry.scratch(parameters, lr=entry.lr, **entry.options)

    x = torch.randn(BATCH, width).to(device)
    if released:
        release_gradients(model, make)

        def train() -> None:
            model(x).square().mean().backward()

    else:
        whole = make(list(model.parameters()))

        def train() -> None:
            model(x).square().mean().backward()
            whole.step()
            whole.zero_grad()

    for _ in range(STEPS - 1):
        train()
    peak = peak_extra_bytes(train, torch.device(device))
    digest = hashlib.sha256()
    for p in model.parameters():
        digest.update(p.detach().cpu().numpy().tobytes())
    return {
        "optimizer": optimizer,
        "released": released,
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameter_bytes": sum(p.nbytes for p in model.parameters()),
        "peak_extra_bytes": peak,
        "digest": digest.hexdigest(),
    }
