"""What an optimizer keeps: counts, accumulators, and state of another dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import torch_scratch_optim as scratch
from torch_scratch_optim import ScratchAdam, ScratchSGD

from .cases import (
    CASES,
    DEVICE,
    Case,
    assert_equal_state,
    each_case,
    each_engine,
    each_loop,
    each_optimizer,
    leaves,
    loop_and_foreach,
    models,
    parameters,
    torchs_adagrad_makes_state_late,
    train,
)


@each_optimizer
def test_state_step_follows_a_default_dtype_of_float64(case: Case) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        ours, theirs = case.ours(parameters()), case.torchs(parameters())
        for step in train(ours, theirs, steps=range(3)):
            assert_equal_state(ours, theirs, f"step {step}")
    finally:
        torch.set_default_dtype(torch.float32)


def test_state_initial_accumulator_comes_from_the_constructor_not_from_a_group() -> None:
    case = Case("AdaGrad", {"initial_accumulator_value": 0.3})
    for make in (case.ours, case.torchs):
        group = {"params": parameters(), "initial_accumulator_value": 0.7}
        optimizer = make([group])
        if make == case.ours or torchs_adagrad_makes_state_late():
            optimizer.add_param_group({"params": parameters(seed=1)})
        for _ in train(optimizer, steps=range(1)):
            pass
        p = leaves(optimizer)[1]
        assert p.grad is not None
        # s + g² is rounded once in the optimizer and twice here.
        assert torch.allclose(optimizer.state[p]["sum"], 0.3 + p.grad.square(), rtol=1e-6)


def test_share_memory_shares_adagrads_accumulators() -> None:
    ours = scratch.ScratchAdaGrad(parameters())
    ours.share_memory()
    assert all(ours.state[p]["sum"].is_shared() for p in leaves(ours))


@loop_and_foreach
@each_case
def test_state_is_as_large_as_torchs(case: Case, foreach: bool) -> None:
    ours, theirs = case.ours(parameters(), foreach=foreach), case.torchs(parameters())
    for _ in train(ours, theirs, steps=range(2)):
        pass
    assert bytes_of_state(ours) == bytes_of_state(theirs)


def bytes_of_state(optimizer: Optimizer) -> int:
    """With what the storages hold besides: a view into something larger keeps it all alive."""
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def test_state_momentum_buffer_has_the_dtype_of_what_it_copies() -> None:
    for decay in (0.0, 0.1):
        twins: list[torch.optim.Optimizer] = []
        # On a GPU torch 2.11 takes foreach by default, which refuses this.
        for make, engine in ((ScratchSGD, {}), (torch.optim.SGD, {"foreach": False})):
            p = nn.Parameter(torch.ones(3, device=DEVICE))
            p.grad_dtype = torch.bfloat16
            optimizer = make([p], lr=0.1, momentum=0.9, weight_decay=decay, **engine)
            for _ in range(3):
                p.grad = torch.tensor([0.1, 0.2, 0.3], device=DEVICE).bfloat16()
                optimizer.step()
            twins.append(optimizer)
        assert_equal_state(twins[0], twins[1], f"weight decay {decay}")


KINDS = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float64, torch.float32),
]


def convert_state(optimizer: Optimizer, dtype: torch.dtype) -> None:
    for state in optimizer.state.values():
        state |= {name: t if name == "step" else t.to(dtype) for name, t in state.items()}


@each_loop
@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_state_may_have_another_dtype_than_its_parameter(
    case: Case, kinds: tuple[torch.dtype, torch.dtype], engine: dict[str, Any]
) -> None:
    dtype, of_state = kinds
    ours, theirs = case.ours(models(dtype), **engine), case.torchs(models(dtype))
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


@each_engine
def test_state_in_float16_of_float32_parameters_is_computed_with_in_float32(
    engine: dict[str, Any],
) -> None:
    # In float16 the root of such a square and eps would be 0.
    p = torch.ones(3, requires_grad=True, device=DEVICE)
    ours = ScratchAdam([p], lr=0.1, **engine)
    for _ in range(3):
        p.grad = torch.tensor([1e-3, 2e-3, -1e-3], device=DEVICE)
        ours.step()
        state = ours.state[p]
        state |= {name: state[name].half() for name in ("exp_avg", "exp_avg_sq")}
    assert p.isfinite().all()
    assert ((p - 1).sign() == p.new_tensor([-1.0, -1.0, 1.0])).all()
