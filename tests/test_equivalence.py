"""The same training run as torch.optim's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from torch_scratch_optim import engines

from .cases import (
    CASES,
    FLOATS,
    PAIRS,
    Case,
    assert_equal_state,
    give_gradients,
    leaves,
    parameters,
    torchs_adagrad_makes_state_late,
    train,
)

STEPS = range(50)
DEFAULTS = [Case(name) for name in PAIRS]
by_name = pytest.mark.parametrize("case", CASES, ids=str)
each_optimizer = pytest.mark.parametrize("case", DEFAULTS, ids=str)
both_engines = pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@both_engines
@by_name
def test_every_step_has_the_bits_of_torchs(case: Case, foreach: bool, dtype: torch.dtype) -> None:
    ours = case.ours(parameters(dtype), foreach=foreach)
    theirs = case.torchs(parameters(dtype))
    for step in train(ours, theirs, steps=STEPS):
        assert_equal_state(ours, theirs, f"step {step}")


@both_engines
@pytest.mark.parametrize("case", [c for c in CASES if "weight_decay" not in c.options], ids=str)
def test_complex_parameters_have_the_bits_of_torchs(case: Case, foreach: bool) -> None:
    ours = case.ours(parameters(torch.complex64), foreach=foreach)
    theirs = case.torchs(parameters(torch.complex64))
    for step in train(ours, theirs, steps=STEPS):
        assert_equal_state(ours, theirs, f"step {step}")


@both_engines
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


@both_engines
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
        flat = torch.randn(2 * engines.CPU_BLOCK + 12_345, generator=random).to(dtype)
        picture = torch.randn(7, 9, 73, 101, generator=random).to(dtype)
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
        case.ours([torch.ones(600, 700).requires_grad_()]),
        case.torchs([torch.ones(600, 700).requires_grad_()]),
    )
    for _ in range(5):
        gradient = torch.randn(700, 600).t()
        for p in leaves(ours) + leaves(theirs):
            p.grad = gradient.clone(memory_format=torch.preserve_format)
        ours.step()
        theirs.step()
        assert_equal_state(ours, theirs)


@both_engines
@each_optimizer
def test_a_network_trains_to_the_same_losses(case: Case, foreach: bool) -> None:
    def losses(make: Callable[..., Optimizer]) -> list[float]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = make(net.parameters(), lr=0.01)
        history = []
        for _ in range(60):
            x = torch.randn(32, 8)
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


@both_engines
@each_optimizer
def test_parameter_groups_keep_their_own_options(case: Case, foreach: bool) -> None:
    def groups() -> list[dict[str, object]]:
        first, *rest = parameters()
        return [{"params": [first], "lr": 0.5, "weight_decay": 0.2}, {"params": rest}]

    ours, theirs = case.ours(groups(), foreach=foreach), case.torchs(groups())
    for step in train(ours, theirs, steps=range(10)):
        assert_equal_state(ours, theirs, f"step {step}")
    if case.optimizer == "AdaGrad" and not torchs_adagrad_makes_state_late():
        return  # torch 2.11 fails at the next step
    for optimizer in (ours, theirs):
        late = parameters(seed=1)
        optimizer.add_param_group({"params": late, "lr": 0.03})
    for step in train(ours, theirs, steps=range(10, 20)):
        assert_equal_state(ours, theirs, f"step {step}")


@both_engines
@by_name
def test_parameters_without_gradients_wait(case: Case, foreach: bool) -> None:
    ours, theirs = case.ours(parameters(), foreach=foreach), case.torchs(parameters())
    for step in range(12):
        give_gradients(leaves(ours), leaves(theirs), step=step)
        for i in range(len(leaves(ours))):
            if (step + i) % 3 == 0:
                leaves(ours)[i].grad = leaves(theirs)[i].grad = None
        ours.step()
        theirs.step()
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, 1e-42])
@both_engines
@by_name
def test_extreme_gradients_give_what_torch_gives(case: Case, foreach: bool, value: float) -> None:
    ours = case.ours([torch.ones(5).requires_grad_()], foreach=foreach)
    theirs = case.torchs([torch.ones(5).requires_grad_()])
    for _ in range(4):
        for p in leaves(ours) + leaves(theirs):
            p.grad = torch.tensor([value, 1.0, value, -2.0, value])
        ours.step()
        theirs.step()
        assert_equal_state(ours, theirs)
