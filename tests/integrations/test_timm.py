"""timm's training utilities take our optimizers for torch's, and so do its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from torch_scratch_optim import decay_groups

from ..cases import PAIRS
from .task import LRS, assert_learned, assert_same_parameters, each_change_of_hands, each_optimizer

pytestmark = pytest.mark.slow

REASON = "timm: install .[integrations]"
timm: Any = pytest.importorskip("timm", reason=REASON)
optim: Any = pytest.importorskip("timm.optim", reason=REASON)
scheduler: Any = pytest.importorskip("timm.scheduler", reason=REASON)
utils: Any = pytest.importorskip("timm.utils", reason=REASON)

EPOCHS, BATCHES = 4, 2


def vision_model() -> nn.Module:
    made: nn.Module = timm.create_model(
        "test_vit", pretrained=False, num_classes=3, img_size=32, embed_dim=16
    )
    return made


def registry(name: str) -> Any:
    """What timm looks an optimizer up in by name: ours beside torch's."""
    made = optim.OptimizerRegistry()
    ours, theirs, twin = PAIRS[name]
    for whose, cls, defaults in (("ours", ours, {}), ("torch", theirs, twin)):
        made.register(optim.OptimInfo(whose, cls, "", has_eps=False, defaults=defaults))
    return made


class Run:
    """A training as timm's script has it: groups, schedule, loss scaling, clipping, averages."""

    def __init__(self, name: str, whose: str, **grouping: Any) -> None:
        torch.manual_seed(0)
        self.model = vision_model()
        self.optimizer: Optimizer = registry(name).create_optimizer(
            self.model, whose, lr=LRS[name] / 4, weight_decay=0.05, **grouping
        )
        self.schedule, _ = scheduler.create_scheduler_v2(
            self.optimizer, num_epochs=EPOCHS, warmup_epochs=1, min_lr=1e-4
        )
        self.scaler = utils.NativeScaler(device="cpu")
        self.average = utils.ModelEmaV3(self.model, decay=0.9)
        self.losses: list[float] = []

    def train(self, epochs: range) -> None:
        random = torch.Generator().manual_seed(1)
        x = torch.randn(BATCHES, 8, 3, 32, 32, generator=random)
        y = x.mean((3, 4)).argmax(2)
        for epoch in epochs:
            self.schedule.step(epoch)
            for images, labels in zip(x, y, strict=True):
                self.optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.model(images), labels)
                self.losses.append(loss.item())
                parameters = self.model.parameters()
                self.scaler(loss, self.optimizer, clip_grad=1.0, parameters=parameters)
                self.average.update(self.model)


@pytest.mark.parametrize("layer_decay", [None, 0.7], ids=["decay groups", "rates by layer"])
@each_optimizer
def test_it_trains_to_torchs_losses(name: str, layer_decay: float | None) -> None:
    ours, theirs = (Run(name, whose, layer_decay=layer_decay) for whose in ("ours", "torch"))
    for run in (ours, theirs):
        assert len(run.optimizer.param_groups) > 1
        run.train(range(EPOCHS))
    assert ours.losses == theirs.losses
    assert_same_parameters(ours.model, theirs.model)
    assert_same_parameters(ours.average.module, theirs.average.module)
    assert_learned(ours.losses)


@each_change_of_hands
@each_optimizer
def test_it_resumes_from_its_checkpoint(name: str, first: str, second: str, tmp_path: Path) -> None:
    undisturbed, resumed = Run(name, first), Run(name, second)
    undisturbed.train(range(EPOCHS // 2))
    saver = utils.CheckpointSaver(
        undisturbed.model,
        undisturbed.optimizer,
        amp_scaler=undisturbed.scaler,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(EPOCHS // 2 - 1)
    begun = len(undisturbed.losses)
    undisturbed.train(range(EPOCHS // 2, EPOCHS))
    resumed.model.apply(spoil)
    following = timm.models.resume_checkpoint(
        resumed.model, str(tmp_path / "last.pth.tar"), resumed.optimizer, resumed.scaler
    )
    resumed.train(range(following, EPOCHS))
    assert resumed.losses == undisturbed.losses[begun:]
    assert_same_parameters(resumed.model, undisturbed.model)


def spoil(module: nn.Module) -> None:
    """So that only the checkpoint can bring the right parameters."""
    with torch.no_grad():
        for p in module.parameters(recurse=False):
            p.fill_(torch.nan)


def test_decay_groups_are_timms() -> None:
    model = vision_model()
    ours = decay_groups(model, 0.05)
    theirs = sorted(optim.param_groups_weight_decay(model, 0.05), key=lambda g: -g["weight_decay"])
    assert [g["weight_decay"] for g in ours] == [g["weight_decay"] for g in theirs]
    for mine, their in zip(ours, theirs, strict=True):
        assert list(map(id, mine["params"])) == list(map(id, their["params"]))
