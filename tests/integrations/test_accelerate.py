"""Accelerate wraps our optimizers as torch's, and its checkpoints fit either."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from .task import (
    EPOCHS,
    Make,
    assert_learned,
    assert_same_parameters,
    batches,
    each_change_of_hands,
    each_optimizer,
    maker,
    net,
)

pytestmark = pytest.mark.slow

accelerate: Any = pytest.importorskip("accelerate", reason="Accelerate: install .[integrations]")


@pytest.fixture(autouse=True)
def _its_state_ends_with_the_test() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def train(
    make: Make,
    precision: str = "no",
    epochs: range = range(EPOCHS),
    load: Path | None = None,
    save: Path | None = None,
) -> tuple[nn.Module, list[float]]:
    """Two batches for each step, gradients clipped, the rate falling."""
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=2, mixed_precision=precision
    )
    plain = net()
    optimizer = make(plain.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    model, optimizer, schedule, data = accelerator.prepare(plain, optimizer, schedule, batches())
    if load:
        accelerator.load_state(load)
    else:
        torch.manual_seed(5)
    losses = []
    for _ in epochs:
        for x, y in data:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                losses.append(loss.item())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    if save:
        accelerator.save_state(save)
    return accelerator.unwrap_model(model), losses


@pytest.mark.parametrize("precision", ["no", "bf16"])
@each_optimizer
def test_it_trains_to_torchs_losses(name: str, precision: str) -> None:
    ours, our_losses = train(maker(name, "ours"), precision)
    theirs, their_losses = train(maker(name, "torch"), precision)
    assert our_losses == their_losses
    assert_same_parameters(ours, theirs)
    assert_learned(our_losses)


@each_change_of_hands
@each_optimizer
def test_it_resumes_from_its_checkpoint(name: str, first: str, second: str, tmp_path: Path) -> None:
    half = EPOCHS // 2
    undisturbed, all_losses = train(maker(name, first))
    _, begun = train(maker(name, first), epochs=range(half), save=tmp_path)
    resumed, losses = train(maker(name, second), epochs=range(half, EPOCHS), load=tmp_path)
    assert begun + losses == all_losses
    assert_same_parameters(resumed, undisturbed)
