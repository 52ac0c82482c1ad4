"""`differentiable=True`: gradients flow through steps, also where torch's do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.optim import Optimizer

from .cases import CASES, DEVICE, Case, each_case, each_optimizer


def torch_is_right(case: Case) -> bool:
    """torch fails for AMSGrad and centered RMSprop, and cuts SGD's first buffer off the graph."""
    errs = {"amsgrad", "centered", "momentum"} & case.options.keys()
    return not errs and case.optimizer != "Momentum"


def trained(case: Case, start: Tensor, slope: Tensor, ours: bool, **options: Any) -> Tensor:
    """Parameters after three steps on a loss whose gradient depends on what is differentiated."""
    p = start.clone()
    make = case.ours if ours else case.torchs
    optimizer: Optimizer = make([p], differentiable=True, **options)
    for step in range(3):
        p.grad = slope * (step + 1.0) + start.square()
        optimizer.step()
    return p


def inputs() -> tuple[Tensor, Tensor]:
    start = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True, device=DEVICE)
    slope = torch.tensor([0.3, 0.7, -1.1], dtype=torch.float64, requires_grad=True, device=DEVICE)
    return start, slope


@each_case
def test_differentiable_derivatives_are_right(case: Case) -> None:
    start, slope = inputs()
    assert gradcheck(lambda a, b: trained(case, a, b, ours=True), (start, slope))
    assert gradgradcheck(lambda a, b: trained(case, a, b, ours=True), (start, slope))


@pytest.mark.parametrize("case", [c for c in CASES if torch_is_right(c)], ids=str)
def test_differentiable_derivatives_are_torchs(case: Case) -> None:
    start, slope = inputs()
    mine, theirs = (trained(case, start, slope, ours) for ours in (True, False))
    # torch corrects Adam's bias in float32 here, where 1 - 0.999 has few digits.
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
    for a, b in zip(
        torch.autograd.grad(mine.sum(), [start, slope]),
        torch.autograd.grad(theirs.sum(), [start, slope]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@each_optimizer
def test_differentiable_by_the_learning_rate(case: Case) -> None:
    start, slope = (tensor.detach() for tensor in inputs())

    def by_rate(lr: Tensor) -> Tensor:
        return trained(case, start, slope, ours=True, lr=lr)

    assert gradcheck(
        by_rate, torch.tensor(0.1, dtype=torch.float64, requires_grad=True, device=DEVICE)
    )


@each_optimizer
def test_differentiable_values_are_those_of_an_ordinary_step(case: Case) -> None:
    start, slope = (tensor.detach() for tensor in inputs())
    ordinary = start.clone().requires_grad_()
    optimizer = case.ours([ordinary])
    for step in range(3):
        ordinary.grad = slope * (step + 1.0) + start.square()
        optimizer.step()
    mine = trained(case, start, slope, ours=True)
    # Numbers are multiplied in another order.
    torch.testing.assert_close(mine, ordinary.detach())


def test_differentiable_with_a_learning_rate_of_zero_moves_nothing() -> None:
    # torch's Adam divides by the learning rate, and gives NaN where a gradient is zero.
    start = torch.ones(3, dtype=torch.float64, device=DEVICE)
    after = trained(Case("Adam"), start, start.new_tensor([0.0, 1.0, -1.0]), True, lr=0.0)
    assert torch.equal(after, start)


def test_differentiable_refuses_a_leaf_in_torchs_words() -> None:
    for make in (Case("Adam").ours, Case("Adam").torchs):
        p = torch.ones(3, requires_grad=True, device=DEVICE)
        optimizer = make([p], differentiable=True)
        p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
            optimizer.step()
