"""Several precisions: torch.amp around our optimizers, and state of another dtype."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from .cases import (
    CASES,
    IMAGES,
    LABELS,
    PAIRS,
    Case,
    assert_equal_state,
    leaves,
    models,
    small_net,
    train,
)

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


KINDS = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float64, torch.float32),
]


def convert_state(optimizer: Optimizer, dtype: torch.dtype) -> None:
    for state in optimizer.state.values():
        state |= {name: t if name == "step" else t.to(dtype) for name, t in state.items()}


@by_engine
@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_state_may_have_another_dtype_than_its_parameter(
    case: Case, kinds: tuple[torch.dtype, torch.dtype], options: dict[str, Any]
) -> None:
    dtype, of_state = kinds
    ours, theirs = case.ours(models(dtype), **options), case.torchs(models(dtype))
    start = [p.detach().to(torch.float64, copy=True).requires_grad_() for p in leaves(ours)]
    exact = case.ours(start, foreach=False)
    for _ in train(ours, theirs, exact, steps=range(1)):
        convert_state(ours, of_state)
        convert_state(theirs, of_state)
    interpolates = case.optimizer in ("Adam", "AdamW") or case.options.get("centered")
    if not interpolates:
        theirs.step()  # the same gradients once more
        ours.step()
        return assert_equal_state(ours, theirs)
    with pytest.raises(RuntimeError, match="expected dtype"):  # by lerp_
        theirs.step()
    ours.step()
    exact.step()
    for state in ours.state.values():
        assert {t.dtype for name, t in state.items() if name != "step"} == {of_state}
    if of_state == torch.float16:  # which is too narrow for squares of small gradients
        return None
    # A moment is rounded, which moves a step by as much, and so is the parameter. Where the
    # variance v - g_avg² cancels, in a few elements of thousands, a step may move by more.
    coarsest = max(torch.finfo(kind).eps for kind in kinds)
    p, q = (torch.cat([p.detach().double().flatten() for p in leaves(o)]) for o in (ours, exact))
    close = torch.isclose(p, q, rtol=2 * coarsest, atol=0.5 * coarsest)
    assert close.double().mean() > (0.999 if case.options.get("centered") else 1 - 1e-9)
    return None
