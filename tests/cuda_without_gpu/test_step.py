"""Whole steps by CUDA kernels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_scratch_optim import ScratchAdam, ScratchSGD, _fused
from torch_scratch_optim._cuda import FEW_WORDS

from ..cases import CASES, FLOATS, RICHEST, Case, each_richest, leaves, parameters
from .common import PROVED, check_steps, dense, give_gradients, names
from .exact import assert_same_state, loop_exactly, step_exactly
from .on_cpu import Cuda, on_host

pytestmark = pytest.mark.slow

DTYPES_OF_CASES = [(c, torch.float32) for c in CASES] + [
    (c, dtype) for c in RICHEST for dtype in FLOATS[1:]
]


@pytest.mark.parametrize(("case", "dtype"), DTYPES_OF_CASES, ids=str)
def test_fused_step_counts_on_the_device_with_the_bits_of_cudas_formulas(
    cuda: Cuda, case: Case, dtype: torch.dtype
) -> None:
    ours, exact = case.ours(dense(dtype), fused=True), case.ours(dense(dtype))
    check_steps(ours, exact, rounded=False)
    assert names(cuda) == {"count", "move_few"}


@each_richest
def test_capturable_step_has_those_bits_too(cuda: Cuda, case: Case) -> None:
    ours, exact = case.ours(dense(), capturable=True), case.ours(dense())
    check_steps(ours, exact, rounded=False)
    assert names(cuda) == {"count", "move_few"}


# What a rule writes for its flags is compiled above.
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", PROVED, ids=str)
def test_default_step_has_the_bits_of_cudas_formulas_rounded_each_time(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, case: Case, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)  # what the kernel has to prove equal to
    ours, exact = case.ours(dense(dtype)), case.ours(dense(dtype))
    check_steps(ours, exact, rounded=True)
    assert names(cuda) <= {"move_few", "move_many"}
    # Three launches prove a kernel, and momentum has another for its first step.
    kernels = 2 if isinstance(ours, ScratchSGD) and ours.param_groups[0]["momentum"] else 1
    assert len(cuda.launches) == (3 + 2 // kernels) * kernels


@each_richest
def test_default_step_is_that_of_foreach_where_bits_cannot_be_proved(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    monkeypatch.setattr(_fused, "_has_the_bits_of_the_loop", lambda *_: False)
    ours, foreach = case.ours(dense()), case.ours(dense(), foreach=True)
    for step in range(2):
        give_gradients(ours, foreach, step=step)
        ours.step()
        foreach.step()
    assert_same_state(ours, foreach)
    assert not cuda.launches


def test_default_step_compiles_nothing_while_a_graph_is_captured(cuda: Cuda) -> None:
    cuda.capturing = True
    ours, foreach = ScratchSGD(dense()), ScratchSGD(dense(), foreach=True)
    give_gradients(ours, foreach, step=0)
    ours.step()
    foreach.step()
    assert_same_state(ours, foreach)
    assert not cuda.launches
    assert not cuda.programs


@pytest.mark.parametrize("foreach", [True, False])
def test_foreach_and_loop_use_no_kernel(cuda: Cuda, foreach: bool) -> None:
    optimizer = ScratchAdam(dense(), foreach=foreach)
    give_gradients(optimizer, step=0)
    optimizer.step()
    assert not cuda.launches


@pytest.mark.parametrize("case", [Case("Momentum"), Case("Adam", {"amsgrad": True})], ids=str)
def test_fused_step_takes_layouts_that_no_kernel_can(cuda: Cuda, case: Case) -> None:
    ours, exact = case.ours(parameters(), fused=True), case.ours(parameters())
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(leaves(ours), leaves(exact), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        ours.step()
        step_exactly(exact, rounded=False)
        assert_same_state(ours, exact)
    assert names(cuda) == {"move_few"}  # counted on the host


def test_fused_step_raises_versions_of_what_it_writes_alone(cuda: Cuda) -> None:
    optimizer = ScratchAdam(dense(), fused=True)
    for step in range(2):
        give_gradients(optimizer, step=step)
        before = [(p._version, p.grad._version) for p in leaves(optimizer) if p.grad is not None]
        optimizer.step()
        after = [(p._version, p.grad._version) for p in leaves(optimizer) if p.grad is not None]
        for p, (old, old_g), (new, new_g) in zip(leaves(optimizer), before, after, strict=True):
            assert new > old or not p.numel()
            assert new_g == old_g


@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("name", ["AdaGrad", "RMSProp", "Adam", "AdamW"])
def test_fused_step_gives_rows_at_different_steps_their_own_numbers(
    cuda: Cuda, name: str, options: dict[str, Any]
) -> None:
    own = {"lr_decay": 0.3} if name == "AdaGrad" else {}
    case = Case(name, own)
    ours, exact = case.ours(dense(), fused=True, **options), case.ours(dense())
    for step in range(4):
        give_gradients(ours, exact, step=step)
        for twin in (ours, exact):
            for i, p in enumerate(leaves(twin)):
                if i % 4 > step:
                    p.grad = None
        ours.step()
        step_exactly(exact, rounded=False)
        assert_same_state(ours, exact)
    counts = {ours.state[p]["step"].item() for p in leaves(ours)}
    assert counts == {1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize("rows", [FEW_WORDS + 1, 1100])
def test_fused_step_counts_more_rows_than_a_table_holds(cuda: Cuda, rows: int) -> None:
    def model() -> list[Tensor]:
        return [torch.full((1 + i % 3,), 1 + i / 7).requires_grad_() for i in range(rows)]

    ours, exact = ScratchAdam(model(), fused=True), ScratchAdam(model())
    give_gradients(ours, exact, step=0)
    for i, (p, q) in enumerate(zip(leaves(ours), leaves(exact), strict=True)):
        for optimizer, own in ((ours, p), (exact, q)):
            state = optimizer.new_state(own, optimizer.param_groups[0])
            state["step"] = torch.tensor(float(i))
            optimizer.state[own].update(state)
    ours.step()
    step_exactly(exact, rounded=False)
    assert_same_state(ours, exact)
    assert sum(launch.name == "count" for launch in cuda.launches) > 1


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fused_step_reads_options_on_the_device_by_pointer(
    cuda: Cuda, dtype: torch.dtype, option: str
) -> None:
    ours, exact = ScratchSGD(dense(), fused=True), ScratchSGD(dense())
    for twin in (ours, exact):
        twin.param_groups[0][option] = torch.tensor(0.1, dtype=dtype)
    for step in range(3):
        check_steps(ours, exact, rounded=False, steps=1)
        for twin in (ours, exact):  # changed in place, as a scheduler does: nothing is compiled
            twin.param_groups[0][option].fill_(0.1 + step / 7)
    assert len(ours._checked) == 1
    (checked,) = ours._checked.values()
    assert len(checked.kernels) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fused_step_works_out_numbers_from_a_tensor_as_the_host_would(
    cuda: Cuda, dtype: torch.dtype
) -> None:
    for name in ("AdaGrad", "Adam", "AdamW"):
        case = Case(name)
        both: list[dict[str, Any]] = [{"fused": True}, {}]
        made = [case.ours(dense(), lr=torch.tensor(0.1, dtype=dtype), **own) for own in both]
        ours, exact = made
        for step in range(3):
            check_steps(ours, exact, rounded=False, steps=1)
            for twin in made:
                twin.param_groups[0]["lr"].mul_(0.7 + step / 10)


def test_fused_step_takes_options_that_are_tensors_on_the_host_by_value(cuda: Cuda) -> None:
    lr = on_host(torch.tensor(0.125))
    ours, exact = ScratchSGD(dense(), lr=lr, fused=True), ScratchSGD(dense(), lr=0.125)
    check_steps(ours, exact, rounded=False, steps=2)
    lr.fill_(0.5)
    exact.param_groups[0]["lr"] = 0.5
    check_steps(ours, exact, rounded=False, steps=1)


def test_fused_step_follows_options_that_are_edited(cuda: Cuda) -> None:
    ours, exact = ScratchAdam(dense(), fused=True), ScratchAdam(dense())
    edits: list[dict[str, Any]] = [
        {},
        {"lr": 0.3},
        {"lr": 0.0},
        {"weight_decay": 0.1},
        {"betas": (0.5, 0.75)},
        {"maximize": True},
    ]
    for edit in edits:
        for twin in (ours, exact):
            twin.param_groups[0].update(edit)
        check_steps(ours, exact, rounded=False, steps=2)


@each_richest
def test_fused_step_moves_and_counts_nothing_where_a_gradient_is_infinite(
    cuda: Cuda, case: Case
) -> None:
    ours, exact = case.ours(dense(), fused=True), case.ours(dense())
    scale = 8.0
    for step, infinite in enumerate([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]):
        give_gradients(ours, exact, step=step)
        for p in leaves(ours):
            assert p.grad is not None
            p.grad.mul_(scale)
        for p in leaves(exact):
            assert p.grad is not None
            p.grad.mul_(scale)
        scaled: Any = ours
        scaled.found_inf, scaled.grad_scale = torch.tensor(infinite), torch.tensor(scale)
        ours.step()
        del scaled.found_inf, scaled.grad_scale
        if not infinite:
            step_exactly(exact, False, scale)
        assert_same_state(ours, exact)
    assert "count" in names(cuda)


def test_fused_step_divides_by_a_scale_that_is_no_power_of_two(cuda: Cuda) -> None:
    ours, exact = ScratchAdam(dense(), fused=True), ScratchAdam(dense())
    scaled: Any = ours
    scaled.grad_scale = torch.tensor(3.0)
    give_gradients(ours, exact, step=0)
    ours.step()
    step_exactly(exact, False, 3.0)
    assert_same_state(ours, exact)


def test_fused_step_works_with_a_grad_scaler(cuda: Cuda) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours, exact = (ScratchAdam([torch.linspace(1, 2, 5001).requires_grad_()]) for _ in range(2))
    ours.param_groups[0]["fused"] = True
    (p,), (q,) = leaves(ours), leaves(exact)
    for infinite in (True, False, False, True, False):
        slope = torch.linspace(-1, 1, 5001) * (math.inf if infinite else 1)
        p.grad = slope * scaler.get_scale()
        q.grad = p.grad.clone()
        scale = scaler.get_scale()
        scaler.scale(torch.zeros(()))  # a scaler insists on having scaled something
        scaler.step(ours)
        scaler.update()
        assert scaler.get_scale() == (scale / 2 if infinite else scale)
        if not infinite:
            step_exactly(exact, False, scale)
        assert_same_state(ours, exact)
    assert "count" in names(cuda)


def test_fused_step_counts_steps_that_parameters_share_for_each(cuda: Cuda) -> None:
    # As torch counts: the first parameter takes step 5, the second step 6.
    ours, exact = (
        ScratchAdam([torch.full((3,), 1.0 + i).requires_grad_() for i in range(20)])
        for _ in range(2)
    )
    ours.param_groups[0]["fused"] = True
    for twin in (ours, exact):
        shared = torch.tensor(4.0)
        for p in leaves(twin):
            twin.state[p].update(twin.new_state(p, twin.param_groups[0]))
            twin.state[p]["step"] = shared
    give_gradients(ours, exact, step=0)
    ours.step()
    step_exactly(exact, False)
    assert_same_state(ours, exact)


def overlapping() -> list[Tensor]:
    base = torch.linspace(1, 2, 200)
    apart = [torch.full((3,), 3.0 + i) for i in range(20)]
    return [t.requires_grad_() for t in (base[:100], base[50:150], *apart)]


def test_default_step_of_parameters_that_overlap_is_the_loops(cuda: Cuda) -> None:
    ours, loop = ScratchSGD(overlapping(), lr=0.1), ScratchSGD(overlapping(), lr=0.1, foreach=False)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(leaves(ours), leaves(loop), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        cuda.launches.clear()
        ours.step()
        loop.step()
        assert_same_state(ours, loop)
        if step:
            assert not cuda.launches  # the first step has proved its kernel


def test_fused_step_moves_parameters_that_overlap_as_the_loop_does(cuda: Cuda) -> None:
    ours, loop = ScratchAdam(overlapping(), fused=True), ScratchAdam(overlapping(), foreach=False)
    for step in range(2):
        give_gradients(ours, loop, step=step)
        ours.step()
        loop.step()
        assert all(map(torch.equal, leaves(ours), leaves(loop)))
        assert {s["step"].item() for s in ours.state.values() if s} == {step + 1.0}
    assert not cuda.launches


def test_default_step_sees_memory_that_comes_to_overlap(cuda: Cuda) -> None:
    def model() -> list[Tensor]:
        return [torch.full((40,), 1.0 + i).requires_grad_() for i in range(20)]

    ours, loop = ScratchSGD(model(), lr=0.1), ScratchSGD(model(), lr=0.1, foreach=False)
    for step in range(3):
        if step == 1:
            for twin in (ours, loop):
                base = torch.linspace(5, 6, 60)
                leaves(twin)[3].data = base[:40]
                leaves(twin)[4].data = base[20:]
        give_gradients(ours, loop, step=step)
        ours.step()
        loop.step()
        assert_same_state(ours, loop)
