"""torch.amp around our optimizers: a scaler and autocast do what they do around torch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .cases import IMAGES, LABELS, PAIRS, Case, assert_equal_state, leaves, small_net

each_optimizer = pytest.mark.parametrize("case", [Case(n) for n in PAIRS], ids=str)
by_engine = pytest.mark.parametrize(
    "options", [{"foreach": False}, {"foreach": True}, {}], ids=["loop", "foreach", "default"]
)


@by_engine
@each_optimizer
def test_a_scaler_and_autocast_give_torchs_bits(case: Case, options: dict[str, Any]) -> None:
    models = small_net(), small_net()
    ours, theirs = case.ours(models[0].parameters(), **options), case.torchs(models[1].parameters())
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3) for _ in models]
    for step in range(8):
        before = copy.deepcopy(ours.state_dict()["state"])
        for model, optimizer, scaler in zip(models, (ours, theirs), scalers, strict=True):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(model(IMAGES), LABELS)
            scaler.scale(loss * (torch.inf if step in (0, 4) else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert_equal_state(ours, theirs, f"step {step}")
        assert scalers[0].get_scale() == scalers[1].get_scale()
        if step in (0, 4):  # a step with infinite gradients is none
            after = ours.state_dict()["state"]
            assert before.keys() == after.keys()
            assert all(
                torch.equal(after[i][name], value)
                for i, own in before.items()
                for name, value in own.items()
            )
    assert not all(
        torch.equal(p, q) for p, q in zip(leaves(ours), small_net().parameters(), strict=True)
    )


@each_optimizer
def test_gradients_may_be_unscaled_and_clipped_before_the_step(case: Case) -> None:
    models = small_net(), small_net()
    ours, theirs = case.ours(models[0].parameters()), case.torchs(models[1].parameters())
    for _ in range(4):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
            optimizer.zero_grad()
            scaler.scale(cross_entropy(model(IMAGES), LABELS)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
        assert_equal_state(ours, theirs)
