"""What the fused engine asks of the compiler: few traces, no noise and no setting of the user's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR

from torch_scratch_optim import ScratchAdam, ScratchOptimizer

from .cases import PAIRS, Case, assert_close_state, leaves, models, train

pytestmark = pytest.mark.usefixtures("few_lanes")
each_optimizer = pytest.mark.parametrize("case", [Case(n) for n in PAIRS], ids=str)


def traces() -> int:
    return int(counters["stats"]["unique_graphs"])


# OneCycleLR cycles momentum or betas, where there are any.
SCHEDULED: list[tuple[Case, type[LRScheduler]]] = [(Case(n), StepLR) for n in PAIRS]
SCHEDULED += [(Case(n), OneCycleLR) for n in PAIRS if n not in ("SGD", "AdaGrad")]


@pytest.mark.parametrize(("case", "scheduler"), SCHEDULED, ids=str)
def test_nothing_is_traced_again(case: Case, scheduler: type[LRScheduler]) -> None:
    ours, loop = case.ours(models(torch.float32), fused=True), case.ours(models(torch.float32))
    options: dict[str, Any] = (
        {"step_size": 2, "gamma": 0.5} if scheduler is StepLR else {"max_lr": 0.1, "total_steps": 9}
    )
    if case.optimizer == "RMSProp" and scheduler is OneCycleLR:
        for twin in (ours, loop):
            twin.param_groups[0]["momentum"] = 0.9
    schedules = [scheduler(twin, **options) for twin in (ours, loop)]
    compiled = 0
    for step in train(ours, loop, steps=range(7)):
        for schedule in schedules:
            schedule.step()
        if step == 1:  # SGD's first step is another trace than those that follow
            compiled = traces()
        if step == 2 and scheduler is StepLR:
            for twin in (ours, loop):  # sizes and a rate that no trace has seen
                twin.add_param_group({"params": more_parameters(), "lr": 0.03})
    # What joined late has a first step of its own; the trace of one is there already.
    assert traces() == compiled
    assert_close_state(ours, loop)


def more_parameters() -> list[Tensor]:
    return [torch.linspace(-1, 1, size, requires_grad=True) for size in (1, 2, 4097, 70_001)]


@each_optimizer
def test_rates_and_sizes_of_a_second_model_are_traced_by_the_first(case: Case) -> None:
    for _ in train(case.ours(models(torch.float32), fused=True), steps=range(2)):
        pass
    compiled = traces()
    ours = case.ours(more_parameters(), fused=True, lr=0.02)
    loop = case.ours(more_parameters(), lr=0.02)
    for _ in train(ours, loop, steps=range(3)):
        pass
    assert traces() == compiled
    assert_close_state(ours, loop)


def test_no_setting_of_the_compiler_is_changed() -> None:
    def settings() -> Iterator[dict[str, Any]]:
        import torch._dynamo.config
        import torch._inductor.config

        yield torch._dynamo.config.get_config_copy()
        yield torch._inductor.config.get_config_copy()

    before = list(settings())
    for _ in train(ScratchAdam(models(torch.float32), fused=True), steps=range(2)):
        pass
    assert list(settings()) == before


PROGRAM = """
import torch
from torch_scratch_optim import ScratchAdam
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
ScratchAdam([p], fused=True).step()
"""


def test_it_works_in_silence() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert result.stdout + result.stderr == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="parameters on a GPU need no C++ compiler")
def test_without_a_compiler_it_says_what_to_install() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CXX": "no-such-compiler"},
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: fused=True compiles")
    assert "apt install g++" in last


def small_and_large(*sizes: int, **options: Any) -> ScratchOptimizer:
    ours = ScratchAdam([nn.Parameter(torch.ones(size)) for size in sizes], fused=True, **options)
    for p in leaves(ours):
        p.grad = torch.ones_like(p)
    return ours


def test_who_resets_the_compiler_does_not_touch_it() -> None:
    small_and_large(5000, 6000).step()
    torch.compiler.reset()
    before = traces()
    for sizes in ((7000, 6000, 5500), (5000, 5000), (3, 8000)):
        ours = small_and_large(*sizes)
        ours.step()
        assert all((p < 1).all() for p in leaves(ours))
    assert traces() == before


def test_a_step_in_inference_mode_leaves_nothing_behind() -> None:
    with torch.inference_mode():
        small_and_large(11, 5000, eps=1e-7).step()
    small_and_large(11, 5000, eps=1e-7).step()
