"""Hugging Face's Trainer takes our optimizers for torch's, and so do its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..cases import PAIRS
from .task import (
    LRS,
    assert_learned,
    assert_same_parameters,
    each_change_of_hands,
    each_optimizer,
    maker,
)

pytestmark = pytest.mark.slow

transformers: Any = pytest.importorskip(
    "transformers", reason="Hugging Face's Transformers: install .[integrations]"
)
pytest.importorskip("accelerate", reason="their Trainer needs it: install .[integrations]")

STEPS = 8


def language_model() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    made: nn.Module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    return made


def sentences() -> list[dict[str, Tensor]]:
    starts = torch.randint(11, (32,), generator=torch.Generator().manual_seed(1))
    counted = [(start + torch.arange(8)) % 11 for start in starts]
    return [{"input_ids": ids, "labels": ids} for ids in counted]


class Losses(list[float]):
    """Remembers every loss in full; the Trainer's own log rounds them."""

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = outputs["logits"][:, :-1].flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
        self.append(loss.item())
        return loss


def trainer(directory: Path, **more: Any) -> tuple[Any, Losses]:
    arguments = transformers.TrainingArguments(
        output_dir=str(directory),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        weight_decay=0.1,
        warmup_steps=2,
        save_steps=STEPS // 2,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        logging_strategy="no",
    )
    losses = Losses()
    made = transformers.Trainer(
        language_model(), arguments, train_dataset=sentences(), compute_loss_func=losses, **more
    )
    return made, losses


def choice(name: str, whose: str) -> tuple[Any, dict[str, Any]]:
    """An optimizer as the Trainer wants it; it makes the groups, with and without decay."""
    ours, theirs, twin = PAIRS[name]
    return (ours, {"lr": LRS[name]}) if whose == "ours" else (theirs, {"lr": LRS[name]} | twin)


@each_change_of_hands
@each_optimizer
def test_it_trains_to_torchs_losses_and_resumes_from_its_checkpoint(
    name: str, first: str, second: str, tmp_path: Path
) -> None:
    undisturbed, all_losses = trainer(tmp_path, optimizer_cls_and_kwargs=choice(name, first))
    undisturbed.train()
    resumed, losses = trainer(tmp_path, optimizer_cls_and_kwargs=choice(name, second))
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert losses == all_losses[STEPS // 2 :]
    assert_same_parameters(resumed.model, undisturbed.model)
    assert_learned(all_losses)


@pytest.mark.parametrize("name", ["Momentum", "AdamW"])  # it is theirs to hand on, for any
def test_an_optimizer_that_is_handed_over_trains_to_torchs_losses(
    name: str, tmp_path: Path
) -> None:
    runs = []
    for whose in ("ours", "torch"):
        made, losses = trainer(tmp_path)
        made.optimizer = maker(name, whose)(made.model.parameters())
        made.train()
        runs.append((made.model, losses))
    (ours, our_losses), (theirs, their_losses) = runs
    assert our_losses == their_losses
    assert_same_parameters(ours, theirs)
