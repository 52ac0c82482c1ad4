"""Gradients and step counts that are NaN, infinite, zero or denormal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from .cases import (
    DEVICE,
    Case,
    assert_close_state,
    assert_equal_state,
    each_case,
    each_richest,
    leaves,
    loop_and_foreach,
    parameters,
    train,
)
from .fused.common import each_counted, give, tensors, values
from .ieee import assert_step


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, 1e-42])
@loop_and_foreach
@each_case
def test_gradients_nan_infinite_and_denormal_give_what_torch_gives(
    case: Case, foreach: bool, value: float
) -> None:
    ours = case.ours([torch.ones(5, device=DEVICE).requires_grad_()], foreach=foreach)
    theirs = case.torchs([torch.ones(5, device=DEVICE).requires_grad_()])
    for _ in range(4):
        for p in leaves(ours) + leaves(theirs):
            p.grad = torch.tensor([value, 1.0, value, -2.0, value], device=DEVICE)
        ours.step()
        theirs.step()
        assert_equal_state(ours, theirs)


def step_on(values: list[float], *twins: Optimizer) -> None:
    for twin in twins:
        for p in leaves(twin):
            p.grad = (
                torch.tensor(values, dtype=p.dtype, device=p.device)
                .repeat(p.numel())[: p.numel()]
                .view(p.shape)
            )
        twin.step()


@loop_and_foreach
@each_case
def test_state_keeps_denormal_numbers_as_torch_does(case: Case, foreach: bool) -> None:
    tiny = torch.finfo(torch.float32).tiny

    def denormal() -> list[Tensor]:
        return [(p.detach() * tiny * 0.1).requires_grad_() for p in parameters()]

    ours, theirs = case.ours(denormal(), foreach=foreach), case.torchs(denormal())
    seen = False
    for step in range(5):
        step_on([tiny / 3, -tiny / 7, tiny, 1e-20], ours, theirs)
        assert_equal_state(ours, theirs, f"step {step}")
        states = [t.detach() for p in leaves(ours) for t in (p, *ours.state[p].values())]
        seen |= any(((t != 0) & (t.abs() < tiny)).any().item() for t in states)
    assert seen, "nothing is denormal"


def _gradient_of(kind: str, p: Tensor, seed: int) -> Tensor:
    g = values(*p.shape, seed=seed)
    if kind == "inf":
        g[1::3] = torch.inf
        g[2::3] = -torch.inf
    elif kind == "nan":
        g[1::3] = torch.nan
    elif kind == "zero":
        g = torch.zeros_like(g)
    elif kind == "negative zero":
        g = -torch.zeros_like(g)
    elif kind == "denormal":
        g *= 1e-40
    elif kind == "huge":
        g *= 1e34
    return g


@pytest.mark.cpu  # IEEE arithmetic
@each_richest
@pytest.mark.parametrize(
    "kind", ["inf", "nan", "zero", "negative zero", "denormal", "huge"], ids=str
)
@pytest.mark.parametrize("at", [0, 2])
def test_gradients_nan_infinite_and_denormal_have_ieee_bits_when_fused(
    case: Case, kind: str, at: int
) -> None:
    params = tensors(5, 70)
    if kind == "denormal":
        params = [(p.detach() * 1e-40).requires_grad_() for p in params]
    ours = case.ours(params, fused=True)
    for step in range(4):
        give(ours, step)
        if step == at:
            for i, p in enumerate(params):
                p.grad = _gradient_of(kind, p, seed=i)
        assert_step(ours)


@pytest.mark.cpu  # counts on the host
@each_counted
@pytest.mark.parametrize("count", [torch.nan, torch.inf, 2.0**24, 2.0**24 + 2, -1.0, 0.5], ids=str)
@pytest.mark.parametrize("one", [False, True], ids=["all", "one of three"])
def test_step_counts_nan_and_infinite_give_what_torch_gives_when_fused(
    case: Case, count: float, one: bool
) -> None:
    if count == -1 and case.optimizer in ("Adam", "AdamW"):
        pytest.skip("step 0 of Adam divides Python's numbers by zero, in torch as well")
    ours, torchs = case.ours(tensors(5, 70, 3), fused=True), case.torchs(tensors(5, 70, 3))
    for step in train(ours, torchs, steps=range(3)):
        if step == 0:
            for twin in (ours, torchs):
                for p in leaves(twin)[: 1 if one else None]:
                    twin.state[p]["step"].fill_(count)
        assert_close_state(ours, torchs)  # torch's square root is off in a last bit
