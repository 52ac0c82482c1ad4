"""The fused engine takes any step count and any option."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torch_scratch_optim import ScratchAdaGrad, ScratchAdam, ScratchRMSProp, ScratchSGD

from ..cases import Case, assert_close_state, each_optimizer, each_richest, leaves, train
from ..ieee import assert_step, differing
from .common import each_counted, give, steps, tensors


@each_richest
def test_fused_counts_the_steps_of_each_parameter(case: Case) -> None:
    ours = case.ours(tensors(5, 70, 3, 4097, 1), fused=True)
    first_at = [0, 2, 1, 2, 3]
    for step in range(5):
        give(ours, step)
        for p, first in zip(leaves(ours), first_at, strict=True):
            if step < first or (first == 0 and step == 3):
                p.grad = None
        assert_step(ours)
    if ours.counts_steps:
        counts = [ours.state[p]["step"] for p in leaves(ours)]
        assert [n.item() for n in counts] == [4, 3, 4, 3, 2]
        assert {(n.dtype, n.shape, n.device.type) for n in counts} == {(torch.float32, (), "cpu")}


@each_counted
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float16], ids=str)
@pytest.mark.parametrize("all_of_them", [False, True])
def test_fused_counts_in_the_dtype_that_there_is(
    case: Case, dtype: torch.dtype, all_of_them: bool
) -> None:
    ours = case.ours(tensors(5, 70, 3), fused=True)
    steps(ours, 1)
    for p in leaves(ours)[: None if all_of_them else 1]:
        ours.state[p]["step"] = ours.state[p]["step"].to(dtype)
    steps(ours, 2, start=1)
    assert ours.state[leaves(ours)[0]]["step"].dtype == dtype
    assert [ours.state[p]["step"].item() for p in leaves(ours)] == [3, 3, 3]


@each_counted
def test_fused_reads_step_counts_that_were_edited(case: Case) -> None:
    ours = case.ours(tensors(5, 70, 3), fused=True)
    steps(ours, 2)
    p, q, r = leaves(ours)
    ours.state[p]["step"].fill_(40)
    steps(ours, 1, start=2)
    ours.state[q]["step"] = torch.tensor(7.0)
    steps(ours, 1, start=3)
    for other in (p, q, r):
        ours.state[other]["step"].fill_(99)
    steps(ours, 1, start=4)
    assert [ours.state[other]["step"].item() for other in (p, q, r)] == [100, 100, 100]
    for other, count in zip((p, q, r), torch.tensor([3.0, 8.0, 3.0]), strict=True):
        ours.state[other]["step"] = count  # a view
    steps(ours, 2, start=5)
    assert [ours.state[other]["step"].item() for other in (p, q, r)] == [5, 10, 5]


@each_counted
def test_fused_raises_a_shared_step_count_once_for_each_parameter(case: Case) -> None:
    ours, torchs = case.ours(tensors(5, 70, 3), fused=True), case.torchs(tensors(5, 70, 3))
    for step in train(ours, torchs, steps=range(3)):
        if step == 0:
            for twin in (ours, torchs):
                p, q, _ = leaves(twin)
                twin.state[q]["step"] = twin.state[p]["step"]
        assert_close_state(ours, torchs)  # torch's square root is off in a last bit
    assert [ours.state[p]["step"].item() for p in leaves(ours)] == [5, 5, 3]


@each_richest
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fused_takes_a_learning_rate_that_is_a_tensor(case: Case, dtype: torch.dtype) -> None:
    lr = torch.tensor(0.1, dtype=dtype)
    ours = case.ours(tensors(5, 70), lr=lr, fused=True)
    for step in range(4):
        steps(ours, 1, start=step)
        lr.mul_(0.7)  # as schedulers do


NUMBERS: dict[str, dict[str, Any]] = {
    "lr=0": {"lr": 0.0},
    "lr=inf": {"lr": torch.inf},
    "lr beyond half precision": {"lr": 1e6},
    "denormal lr": {"lr": 1e-42},
    "large lr": {"lr": 1e37},
}


@each_optimizer
@pytest.mark.parametrize("options", NUMBERS.values(), ids=NUMBERS)
def test_fused_takes_any_number(case: Case, options: dict[str, Any]) -> None:
    params = [*tensors(5, 70), *tensors(9, dtype=torch.float64), *tensors(8, dtype=torch.float16)]
    before = [p.detach().clone() for p in params]
    ours = case.ours(params, **options, fused=True)
    steps(ours, 3)
    moved = [differing(p, q) > 0 for p, q in zip(params, before, strict=True)]
    if options["lr"] == 0:
        assert not any(moved)
    elif options["lr"] > 1:
        assert all(moved)


@each_optimizer
def test_fused_refuses_a_number_beyond_float32_as_the_loop_does(case: Case) -> None:
    raised = []
    for engine in ({"fused": True}, {"foreach": False}):
        optimizer = case.ours(tensors(5, 70), **engine)
        give(optimizer, 0)
        optimizer.step()
        before = [p.detach().clone() for p in leaves(optimizer)]
        optimizer.param_groups[0]["lr"] = 1e39
        with pytest.raises(RuntimeError, match="overflow") as error:
            optimizer.step()
        raised.append((error.type, str(error.value)))
        counts = [optimizer.state.get(p, {}).get("step", 1) for p in leaves(optimizer)]
        assert counts == [1, 1], engine
        if case.optimizer != "AdamW":  # which decays first
            assert not any(map(differing, leaves(optimizer), before))
    assert raised[0] == raised[1]


@each_optimizer
def test_fused_takes_numbers_beyond_float32_in_float64(case: Case) -> None:
    ours, loop = (
        case.ours(tensors(5, 70, dtype=torch.float64), lr=1e39, **engine)
        for engine in ({"fused": True}, {"foreach": False})
    )
    for _ in train(ours, loop, steps=range(2)):
        assert_close_state(ours, loop)  # torch's square root is off in a last bit


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (ScratchAdam, {"maximize": 1, "amsgrad": 1}),
        (ScratchSGD, {"momentum": 0.9, "nesterov": 1, "maximize": 1}),
        (ScratchRMSProp, {"centered": 1, "momentum": 1}),
        (ScratchAdaGrad, {"lr": 1, "weight_decay": 1}),
        (ScratchSGD, {"lr": 1, "momentum": True}),
    ],
)
def test_fused_flags_may_be_numbers_and_numbers_integers(make: Any, options: Any) -> None:
    steps(make(tensors(5, 70), **options, fused=True), 3)
