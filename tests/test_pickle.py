"""Copies through pickle and deepcopy go on as the original does, and share nothing with it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_scratch_optim import ScratchOptimizer

from .cases import (
    Case,
    assert_equal_state,
    each_case,
    each_optimizer,
    each_richest,
    leaves,
    parameters,
    same_bits,
    train,
)
from .fused.common import steps


@each_case
def test_pickle_and_deepcopy_keep_the_run(case: Case) -> None:
    ours = case.ours(parameters())
    for _ in train(ours, steps=range(5)):
        pass
    for twin in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        original = copy.deepcopy(ours)
        for step in train(twin, original, steps=range(5, 10)):
            assert_equal_state(twin, original, f"step {step}")


@pytest.mark.cpu  # whose bits are those of IEEE arithmetic
@each_richest
@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
def test_pickle_and_deepcopy_keep_a_fused_run(case: Case, twin_of: Callable[[Any], Any]) -> None:
    ours = case.ours(parameters(), fused=True)
    steps(ours, 2)
    twin = twin_of(ours)
    assert isinstance(twin, ScratchOptimizer)
    for step in train(twin, ours, steps=range(2, 4)):
        assert_equal_state(twin, ours, step)
    steps(twin, 1, start=4)


@each_optimizer
def test_deepcopy_shares_nothing_with_the_original(case: Case) -> None:
    ours = case.ours(parameters())
    for _ in train(ours, steps=range(2)):
        pass
    kept = [t.detach().clone() for t in tensors_of(ours)]
    for _ in train(copy.deepcopy(ours), steps=range(2, 4)):
        pass
    assert all(same_bits(p, q) for p, q in zip(tensors_of(ours), kept, strict=True))


def tensors_of(optimizer: Optimizer) -> list[Tensor]:
    states = [value for state in optimizer.state.values() for value in state.values()]
    return leaves(optimizer) + states


@each_optimizer
@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
def test_pickle_and_deepcopy_keep_the_attributes_that_torchs_keep(
    case: Case, twin_of: Callable[[torch.optim.Optimizer], torch.optim.Optimizer]
) -> None:
    kept = []
    for make in (case.ours, case.torchs):
        original: Any = make(parameters())
        original.own, original._step_supports_amp_scaling = "tag", True
        twin: Any = twin_of(original)
        kept.append([hasattr(twin, "own"), getattr(twin, "_step_supports_amp_scaling", False)])
    assert kept[0] == kept[1]
