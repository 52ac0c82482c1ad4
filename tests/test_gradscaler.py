"""torch.amp.GradScaler: scaled steps, infinite gradients, gradients that were unscaled before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .cases import (
    DEVICE,
    IMAGES,
    LABELS,
    Case,
    assert_equal_state,
    each_loop,
    each_optimizer,
    each_richest,
    leaves,
    same_bits,
    small_net,
)
from .fused.common import give, steps, tensors, values
from .ieee import assert_step, differing
from .own_rules.common import KERNEL, L2, UP, Group, descend, leaf, of_rule


@each_loop
@each_optimizer
def test_gradscaler_and_autocast_give_torchs_bits(case: Case, engine: dict[str, Any]) -> None:
    models = small_net(), small_net()
    ours, theirs = case.ours(models[0].parameters(), **engine), case.torchs(models[1].parameters())
    scalers = [
        torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10, growth_interval=3) for _ in models
    ]
    for step in range(8):
        before = copy.deepcopy(ours.state_dict()["state"])
        for model, optimizer, scaler in zip(models, (ours, theirs), scalers, strict=True):
            optimizer.zero_grad()
            with torch.autocast(DEVICE.type, torch.bfloat16):
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
def test_gradscaler_gradients_may_be_unscaled_and_clipped_before_the_step(case: Case) -> None:
    models = small_net(), small_net()
    ours, theirs = case.ours(models[0].parameters()), case.torchs(models[1].parameters())
    for _ in range(4):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10)
            optimizer.zero_grad()
            scaler.scale(cross_entropy(model(IMAGES), LABELS)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
        assert_equal_state(ours, theirs)


@pytest.mark.cpu  # a CPU that captures
@each_optimizer
def test_gradscaler_leaves_its_work_to_fused_and_capturable_steps_as_with_torch(case: Case) -> None:
    def leaf() -> Tensor:
        return torch.linspace(1, 2, 5).requires_grad_()

    scaled = case.ours([p := leaf()], capturable=True, fused=True)
    plain = case.ours([q := leaf()])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scale = scaler.scale(torch.ones(()))
    for step in range(4):
        slope = torch.linspace(-1, 3, 5) * (torch.inf if step == 1 else step + 1.0)
        p.grad, q.grad = slope * scale, slope
        assert scaled._step_supports_amp_scaling
        scaler.step(scaled)
        scaler.update(1024.0)
        if step != 1:
            assert torch.equal(p.grad, slope * scale)  # the scaler has left it
            plain.step()
        torch.testing.assert_close(p, q)  # numbers that are tensors round by themselves


def start() -> Tensor:
    return values(5000, seed=5).requires_grad_()


@pytest.mark.cpu  # IEEE arithmetic
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


@pytest.mark.cpu  # IEEE arithmetic
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
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=1024.0)
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


@pytest.mark.cpu  # by kernels in C++
@pytest.mark.parametrize("options", [{}, L2 | UP], ids=str)
def test_gradscaler_works_for_rules_of_ones_own(options: Group) -> None:
    scaled = of_rule(descend, [p := leaf(1, 2, 3, 4)], lr=0.1, **options, **KERNEL)
    plain = of_rule(descend, [q := leaf(1, 2, 3, 4)], lr=0.1, **options, **KERNEL)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        slope, infinite = torch.tensor([0.3, -1.7, 0.9, 5.0 - step]), step == 2
        p.grad = q.grad = None
        scaler.scale((p * slope).sum() * (torch.inf if infinite else 1)).backward()
        before, steps = p.detach().clone(), copy.deepcopy(scaled.state_dict()["state"])
        scaler.step(scaled)
        scaler.update()
        if infinite:
            assert same_bits(p, before)
            assert scaled.state_dict()["state"] == steps
        else:
            (q * slope).sum().backward()
            plain.step()
            assert not torch.equal(p, before)
        assert_equal_state(scaled, plain, f"step {step}")  # the scale is a power of two
    assert scaler.get_scale() == 512
