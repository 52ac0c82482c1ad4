"""Lightning's Trainer takes our optimizers for torch's, and so do its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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

L: Any = pytest.importorskip("lightning.pytorch", reason="Lightning: install .[integrations]")


class Task(L.LightningModule):  # type: ignore[misc]  # it may be absent
    def __init__(self, make: Make) -> None:
        super().__init__()
        self.net = net(dropout=0.0)  # Lightning's checkpoints hold no state of random numbers
        self.make = make
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make(self.parameters())
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(make: Make, directory: Path, epochs: int = EPOCHS, **more: Any) -> tuple[Task, Any]:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        gradient_clip_val=1.0,
        default_root_dir=directory,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(5)
    task = Task(make)
    trainer.fit(task, batches(), **more)
    return task, trainer


@each_optimizer
def test_it_trains_to_torchs_losses(name: str, tmp_path: Path) -> None:
    (ours, _), (theirs, _) = (train(maker(name, whose), tmp_path) for whose in ("ours", "torch"))
    assert ours.losses == theirs.losses
    assert_same_parameters(ours, theirs)
    assert_learned(ours.losses)


@each_change_of_hands
@each_optimizer
def test_it_resumes_from_its_checkpoint(name: str, first: str, second: str, tmp_path: Path) -> None:
    undisturbed, _ = train(maker(name, first), tmp_path)
    begun, trainer = train(maker(name, first), tmp_path, EPOCHS // 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = train(maker(name, second), tmp_path, ckpt_path=tmp_path / "half.ckpt")
    assert begun.losses + resumed.losses == undisturbed.losses
    assert_same_parameters(resumed, undisturbed)
