"""The fused engine takes tensors wherever and however they lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..cases import (
    BLOCK,
    Case,
    assert_close_state,
    each_of_two,
    each_optimizer,
    each_richest,
    leaves,
    small_blocks,
    train,
)
from ..ieee import assert_step
from .common import LAYOUTS, Layout, give, state_of, steps, tensors, values

SHAPE = (8, 6, 10, 4)


@each_of_two
@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("of_parameter", LAYOUTS)
def test_fused_takes_any_layout(case: Case, of_parameter: str, of_gradient: str) -> None:
    dense = values(*SHAPE, seed=2).requires_grad_()
    other = LAYOUTS[of_parameter](values(*SHAPE, seed=1)).detach().requires_grad_()
    ours = case.ours([other, dense], fused=True)
    for step in range(3):
        give(ours, step)
        for p in leaves(ours):
            assert p.grad is not None
            p.grad = LAYOUTS[of_gradient](p.grad)
        assert_step(ours)


@each_of_two
@pytest.mark.parametrize("of_state", LAYOUTS)
def test_fused_takes_state_of_any_layout(case: Case, of_state: str) -> None:
    ours = case.ours([values(*SHAPE, seed=i).requires_grad_() for i in range(2)], fused=True)
    steps(ours, 2)
    p, _ = leaves(ours)
    for name, value in state_of(ours, p).items():
        ours.state[p][name] = LAYOUTS[of_state](value)
    steps(ours, 2, start=2)


@small_blocks()
@each_of_two
@pytest.mark.parametrize("of_what", ["parameter", "gradient", "state"])
def test_fused_reads_the_negative_bit_of_big_tensors(case: Case, of_what: str) -> None:
    negated: Layout = LAYOUTS["negative bit"]
    start = values(BLOCK + 77, seed=0)
    p = (negated(start) if of_what == "parameter" else start).requires_grad_()
    ours = case.ours([p], fused=True)
    for step in range(2):
        give(ours, step)
        if of_what == "gradient":
            assert p.grad is not None
            p.grad = negated(p.grad)
        if of_what == "state" and step:
            for name, value in state_of(ours, p).items():
                ours.state[p][name] = negated(value)
        assert_step(ours)


@each_richest
def test_fused_takes_expanded_gradients(case: Case) -> None:
    ours = case.ours([values(80, 90, seed=i).requires_grad_() for i in range(2)], fused=True)
    for step in range(3):
        p, q = leaves(ours)
        p.grad = values(80, 1, seed=step).expand(80, 90)
        q.grad = torch.tensor(step + 1.0).expand(80, 90)  # as of a sum
        assert_step(ours)


@each_richest
def test_fused_takes_conjugated_gradients_of_complex_parameters(case: Case) -> None:
    params = [values(*s, seed=1, dtype=torch.complex64) for s in ((5, 6), (300,), (), (0, 3))]
    ours = case.ours([p.requires_grad_() for p in params], fused=True)
    for step in range(3):
        give(ours, step)
        for p in leaves(ours):
            assert p.grad is not None
            p.grad = p.grad.conj()
        assert_step(ours)


@each_richest
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fused_takes_tensors_without_dimensions_and_without_elements(
    case: Case, dtype: torch.dtype
) -> None:
    params = [values(*s, seed=1, dtype=dtype) for s in ((), (0,), (3, 0, 2), (1,), ())]
    steps(case.ours([p.requires_grad_() for p in params], fused=True), 3)
    only_empty = torch.empty(0, 4, dtype=dtype, requires_grad=True)
    steps(case.ours([only_empty], fused=True), 3)


Params = list[Tensor]


def _two() -> Params:
    return tensors(60, 60)


def _overlapping() -> Params:
    base = values(100, seed=1)
    return [base[:60].requires_grad_(), base[40:].requires_grad_()]


def _one_strided() -> Params:
    base = values(200, seed=1)
    return [base[:60].requires_grad_(), base[:180:3].requires_grad_()]


def _with_an_offset() -> Params:
    return [p.detach()[40:].requires_grad_() for p in tensors(100, 100)]


def _interleaved() -> Params:
    base = values(6, 20, seed=1)
    return [base[:, ::2].requires_grad_(), base[:, 1::2].requires_grad_()]


def _one_gradient(p: Tensor, q: Tensor) -> None:
    q.grad = p.grad


def _overlapping_gradients(p: Tensor, q: Tensor) -> None:
    both = values(100, seed=11)
    p.grad, q.grad = both[:60], both[40:]


def _own_memory(p: Tensor, q: Tensor) -> None:
    p.grad = p.detach()


def _behind_its_parameter(p: Tensor, q: Tensor) -> None:
    # Whoever moves one element after the other reads gradients that are parameters already moved.
    p.grad, q.grad = (torch.as_strided(t.detach(), (60,), (1,), storage_offset=0) for t in (p, q))


def _among_gradients(p: Tensor, q: Tensor) -> None:
    # The first parameter and its gradient lie within the strided gradient of the second.
    base = values(200, seed=12)
    p.data = base[120:180]
    p.grad, q.grad = base[20:80], base[:180:3]


def _each_others_memory(p: Tensor, q: Tensor) -> None:
    p.grad, q.grad = q.detach(), p.detach()


SHARED: dict[str, tuple[Callable[[], Params], Callable[[Tensor, Tensor], None]]] = {
    "overlapping parameters": (_overlapping, lambda p, q: None),
    "overlapping parameters, one strided": (_one_strided, lambda p, q: None),
    "interleaved parameters": (_interleaved, lambda p, q: None),
    "one gradient": (_two, _one_gradient),
    "overlapping gradients": (_two, _overlapping_gradients),
    "a gradient in its parameter's memory": (_two, _own_memory),
    "a gradient that overlaps its parameter": (_with_an_offset, _behind_its_parameter),
    "a parameter within another's gradient": (_two, _among_gradients),
    "gradients in each other's parameters": (_two, _each_others_memory),
}


@each_of_two
@pytest.mark.parametrize("how", SHARED)
def test_fused_makes_of_shared_memory_what_the_loop_makes(case: Case, how: str) -> None:
    make, share = SHARED[how]
    ours, loop = case.ours(make(), fused=True), case.ours(make(), foreach=False)
    for step in range(3):
        for twin in (ours, loop):
            give(twin, step)
            share(*leaves(twin))
            twin.step()
        assert_close_state(ours, loop)  # torch's roots, by which they differ, are off in a last bit


@each_of_two
@pytest.mark.parametrize("how", ["one gradient", "overlapping gradients", "interleaved parameters"])
def test_fused_has_exact_bits_where_no_element_is_written_twice(case: Case, how: str) -> None:
    if how == "interleaved parameters" and case.optimizer == "Adam":
        pytest.skip("rows in one another's memory are left to the loop, with torch's square root")
    make, share = SHARED[how]
    ours = case.ours(make(), fused=True)
    for step in range(3):
        give(ours, step)
        share(*leaves(ours))
        assert_step(ours)


@each_optimizer
@pytest.mark.parametrize("others", [0, 3])
def test_fused_moves_a_parameter_that_is_listed_twice_twice(case: Case, others: int) -> None:
    def twice(make: Callable[..., Optimizer], **engine: Any) -> Optimizer:
        p, *rest = tensors(9, *[5] * others)
        with pytest.warns(UserWarning, match="duplicate parameters"):
            return make([p, *rest, p], lr=0.1, **engine)

    ours, loop = twice(case.ours, fused=True), twice(case.ours, foreach=False)
    torchs = twice(case.torchs)
    for _ in train(ours, loop, torchs, steps=range(3)):
        assert_close_state(ours, loop)  # by torch's square root, off in a last bit
        assert_close_state(ours, torchs)


@each_of_two
def test_fused_makes_of_shared_state_what_the_loop_makes(case: Case) -> None:
    ours, loop = case.ours(_two(), fused=True), case.ours(_two(), foreach=False)
    for step in train(ours, loop, steps=range(4)):
        if step == 1:
            for twin in (ours, loop):
                p, q = leaves(twin)
                name = next(iter(state_of(twin, p)))
                twin.state[q][name] = twin.state[p][name]
        assert_close_state(ours, loop)  # by torch's square root, off in a last bit
