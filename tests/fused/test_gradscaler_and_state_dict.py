"""The fused engine under a GradScaler, and its checkpoints and copies."""

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

from ..cases import Case, assert_close_state, assert_equal_state, leaves, parameters, train
from ..ieee import assert_step, differing
from .common import each_optimizer, each_richest, give, steps, tensors, values


def start() -> Tensor:
    return values(5000, seed=5).requires_grad_()


@each_optimizer
def test_gradscaler_a_fused_scaled_step_is_the_unscaled_one_and_an_infinite_one_is_none(
    case: Case,
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours, plain = case.ours([p := start()], fused=True), case.ours([q := start()], fused=True)
    for step in range(5):
        slope = values(5000, seed=step) * (torch.inf if step in (0, 3) else 1)
        scale = scaler.get_scale()
        p.grad = q.grad = None
        (
            scaler.scale((p * slope).sum()) if step in (0, 3) else (p * slope).sum() * scale
        ).backward()
        assert p.grad is not None
        before, state = p.detach().clone(), copy.deepcopy(ours.state_dict()["state"])
        gradient = p.grad.clone()
        scaler.scale(torch.zeros(()))  # a scaler insists on having scaled something
        scaler.step(ours)
        scaler.update()
        assert not differing(p.grad, gradient)
        if step in (0, 3):
            assert scaler.get_scale() == scale / 2
            assert torch.equal(p, before)
            assert same_state(ours.state_dict()["state"], state)
        else:
            (q * slope).sum().backward()
            assert_step(plain)
            assert_equal_state(ours, plain, step)  # scales are powers of two, so nothing is rounded


def same_state(a: dict[int, dict[str, Tensor]], b: dict[int, dict[str, Tensor]]) -> bool:
    return a.keys() == b.keys() and all(
        own.keys() == a[i].keys() and torch.equal(a[i][name], value)
        for i, own in b.items()
        for name, value in own.items()
    )


@each_richest
def test_gradscaler_scales_that_round_have_the_bits_of_ieee_arithmetic(case: Case) -> None:
    ours = case.ours(tensors(5, 70), fused=True)
    for step, scale in enumerate([3.0, 1e-3, 65537.0, 1.0]):
        give(ours, step)
        ours.grad_scale = torch.tensor(scale)  # type: ignore[attr-defined]  # as GradScaler sets it
        assert_step(ours, inverse_scale=1 / torch.tensor(scale).item())
    del ours.grad_scale  # type: ignore[attr-defined]  # as GradScaler does afterwards
    steps(ours, 1, start=4)


@each_optimizer
def test_gradscaler_gradients_that_were_unscaled_are_not_unscaled_again(case: Case) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours, plain = case.ours([p := start()], fused=True), case.ours([q := start()], fused=True)
    for step in range(3):
        slope = values(5000, seed=step)
        p.grad = q.grad = None
        scaler.scale((p * slope).sum()).backward()
        (q * slope).sum().backward()
        scaler.unscale_(ours)
        scaler.step(ours)
        scaler.update()
        plain.step()
        assert_equal_state(ours, plain, step)


@each_optimizer
def test_state_dict_a_fused_run_changes_engines_and_libraries(case: Case) -> None:
    def torchs(p: list[Tensor]) -> Optimizer:
        fast = case.optimizer != "RMSProp"
        return case.torchs(p, foreach=None, fused=True) if fast else case.torchs(p)

    makers: list[Callable[[list[Tensor]], Optimizer]] = [
        lambda p: case.ours(p, fused=True),
        torchs,
        lambda p: case.ours(p, fused=True),
        lambda p: case.ours(p, foreach=True),
        lambda p: case.ours(p, fused=True),
        lambda p: case.ours(p, foreach=False),
        torchs,
    ]
    undisturbed = case.ours(dense())
    running: Optimizer = case.ours(dense())
    for i, make in enumerate(makers):
        following = make([p.detach().clone().requires_grad_() for p in leaves(running)])
        options = [{k: g.get(k) for k in ("fused", "foreach")} for g in following.param_groups]
        following.load_state_dict(copy.deepcopy(running.state_dict()))
        for group, own in zip(following.param_groups, options, strict=True):
            group.update(own)
        running = following
        for _ in train(running, undisturbed, steps=range(3 * i, 3 * i + 3)):
            pass
    assert_close_state(running, undisturbed)  # other engines and libraries round otherwise


def dense() -> list[Tensor]:
    """Torch's fused kernels get other layouts wrong."""
    return [torch.linspace(-1, 1, n).requires_grad_() for n in (3, 100, 5000)]


@each_richest
@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
def test_fused_run_goes_on_from_a_copy(case: Case, twin_of: Callable[[Any], Any]) -> None:
    ours = case.ours(parameters(), fused=True)
    steps(ours, 2)
    twin = twin_of(ours)
    assert isinstance(twin, ScratchOptimizer)
    for step in train(twin, ours, steps=range(2, 4)):
        assert_equal_state(twin, ours, step)
    steps(twin, 1, start=4)
