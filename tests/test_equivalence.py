"""The same training run as torch.optim's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from .cases import (
    BLOCK,
    CASES,
    DEVICE,
    FLOATS,
    RICHEST,
    Case,
    assert_equal_state,
    each_optimizer,
    leaves,
    loop_and_foreach,
    parameters,
    small_blocks,
    train,
)

STEPS = range(20)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for dtype in FLOATS for case in (CASES if dtype.itemsize > 2 else RICHEST)],
    ids=str,
)
@loop_and_foreach
def test_every_step_has_the_bits_of_torchs(case: Case, foreach: bool, dtype: torch.dtype) -> None:
    ours = case.ours(parameters(dtype), foreach=foreach)
    theirs = case.torchs(parameters(dtype))
    for step in train(ours, theirs, steps=STEPS):
        assert_equal_state(ours, theirs, f"step {step}")


@loop_and_foreach
@pytest.mark.parametrize("case", [c for c in CASES if "weight_decay" not in c.options], ids=str)
def test_complex_parameters_have_the_bits_of_torchs(case: Case, foreach: bool) -> None:
    ours = case.ours(parameters(torch.complex64), foreach=foreach)
    theirs = case.torchs(parameters(torch.complex64))
    for step in train(ours, theirs, steps=STEPS):
        assert_equal_state(ours, theirs, f"step {step}")


@pytest.mark.cpu  # torch's foreach on a GPU is not its loop
@loop_and_foreach
@pytest.mark.parametrize("case", [c for c in CASES if "weight_decay" in c.options], ids=str)
def test_complex_weight_decay_has_the_bits_of_one_of_torchs(case: Case, foreach: bool) -> None:
    # torch itself has two answers for g + λθ. Its loop multiplies complex numbers, which rounds
    # twice; its foreach, like ours, adds real pairs, rounding once. SGD is complex in both.
    ours = case.ours(parameters(torch.complex64), foreach=foreach)
    theirs = case.torchs(
        parameters(torch.complex64), foreach=case.optimizer not in ("SGD", "Momentum")
    )
    for step in train(ours, theirs, steps=STEPS):
        assert_equal_state(ours, theirs, f"step {step}")


@small_blocks()
@pytest.mark.cpu  # blocks and threads
@loop_and_foreach
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        Case("AdaGrad", {"weight_decay": 0.1}),
        Case("RMSProp", {"momentum": 0.9, "centered": True}),
        Case("AdamW", {"amsgrad": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_cutting_big_tensors_does_not_change_a_bit(
    case: Case, dtype: torch.dtype, foreach: bool, threads: int
) -> None:
    def big() -> list[Tensor]:
        random = torch.Generator().manual_seed(0)
        flat = torch.randn(2 * BLOCK + 12_345, generator=random).to(dtype)
        picture = torch.randn(7, 9, 13, 101, generator=random).to(dtype)
        picture = picture.contiguous(memory_format=torch.channels_last)
        return [flat.requires_grad_(), picture.requires_grad_()]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, theirs = case.ours(big(), foreach=foreach), case.torchs(big())
        for step in train(ours, theirs, steps=range(3)):
            assert_equal_state(ours, theirs, f"step {step}")
    finally:
        torch.set_num_threads(before)


@each_optimizer
def test_gradients_laid_out_otherwise_than_their_parameter_change_nothing(case: Case) -> None:
    ours, theirs = (
        case.ours([torch.ones(600, 700, device=DEVICE).requires_grad_()]),
        case.torchs([torch.ones(600, 700, device=DEVICE).requires_grad_()]),
    )
    for _ in range(5):
        gradient = torch.randn(700, 600).to(DEVICE).t()
        for p in leaves(ours) + leaves(theirs):
            p.grad = gradient.clone(memory_format=torch.preserve_format)
        ours.step()
        theirs.step()
        assert_equal_state(ours, theirs)


@loop_and_foreach
@each_optimizer
def test_a_network_trains_to_the_same_losses(case: Case, foreach: bool) -> None:
    def losses(make: Callable[..., Optimizer]) -> list[float]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(DEVICE)
        optimizer = make(net.parameters(), lr=0.01)
        history = []
        for _ in range(60):
            x = torch.randn(32, 8).to(DEVICE)
            loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        return history

    def ours(params: object, lr: float) -> Optimizer:
        return case.ours(params, lr=lr, foreach=foreach)

    assert losses(ours) == losses(case.torchs)


@pytest.mark.parametrize(
    "case", [c for c in CASES if "lr" not in c.options and c.optimizer != "Momentum"], ids=str
)
def test_tensor_learning_rates_have_the_bits_of_torchs(case: Case) -> None:
    rates = [torch.tensor(0.01), torch.tensor([0.01])]
    ours, theirs = (
        make(parameters(), lr=lr) for make, lr in zip((case.ours, case.torchs), rates, strict=True)
    )
    for step in train(ours, theirs, steps=range(20)):
        assert_equal_state(ours, theirs, f"step {step}")
        for lr in rates:
            lr.mul_(0.9)  # as a scheduler does, in place


def test_tensor_betas_have_the_bits_of_torchs() -> None:
    case = Case("Adam", {"betas": (torch.tensor(0.8), torch.tensor([0.9]))})
    ours, theirs = case.ours(parameters()), case.torchs(parameters())
    for step in train(ours, theirs, steps=range(20)):
        assert_equal_state(ours, theirs, f"step {step}")


SCHEDULERS: dict[str, Callable[[Optimizer], lr_scheduler.LRScheduler]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=30),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("case", [Case("Momentum"), Case("Adam"), Case("AdamW")], ids=str)
def test_schedulers_are_followed(case: Case, scheduler: str) -> None:
    ours, theirs = case.ours(parameters()), case.torchs(parameters())
    schedules = [SCHEDULERS[scheduler](optimizer) for optimizer in (ours, theirs)]
    for step in train(ours, theirs, steps=range(30)):
        assert_equal_state(ours, theirs, f"step {step}")
        if step < 29:
            for schedule in schedules:
                schedule.step()


@pytest.mark.parametrize("engine", [{"foreach": False}, {"foreach": True}, {}], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_tensor_weight_decay_of_sgd_has_the_bits_of_torchs(
    requires_grad: bool, engine: dict[str, Any]
) -> None:
    decay = torch.tensor(0.25, requires_grad=requires_grad)
    ours = Case("Momentum").ours(parameters(), weight_decay=decay, **engine)
    theirs = Case("Momentum").torchs(parameters(), weight_decay=decay)
    for step in train(ours, theirs, steps=range(3)):
        assert_equal_state(ours, theirs, f"step {step}")
