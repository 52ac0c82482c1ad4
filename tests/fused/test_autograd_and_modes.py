"""The fused engine and the rest of torch: autograd, modes, subclasses, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common.memory import peak_extra_bytes
from torch_scratch_optim import ScratchAdam, ScratchSGD

from ..cases import (
    LINEAR,
    Case,
    assert_equal_state,
    each_optimizer,
    each_richest,
    leaves,
    models,
    train,
)
from ..ieee import assert_step, differing
from .common import KINDS, give, state_of, steps, tensors, values

pytestmark = pytest.mark.slow


@each_richest
def test_fused_raises_versions_of_what_it_writes(case: Case) -> None:
    sizes = (5, 70, 4097)
    ours = case.ours([*tensors(*sizes), values(6, 8, seed=1).t().requires_grad_()], fused=True)
    give(ours, 0)
    ours.step()
    for step in (1, 2):
        give(ours, step)
        leaves(ours)[3].grad = values(8, 6, seed=step)  # laid out otherwise, so that it is copied
        watched = [t for p in leaves(ours) for t in (p, *state_of(ours, p).values())]
        before = [t._version for t in watched]
        assert_step(ours)  # which watches the versions of gradients
        assert all(t._version > v for t, v in zip(watched, before, strict=True))


@each_optimizer
def test_fused_step_between_forward_and_backward_is_noticed(case: Case) -> None:
    (p,) = params = tensors(5)
    ours = case.ours(params, fused=True)
    loss = (p * p).sum()
    give(ours, 0)
    ours.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each_richest
def test_fused_works_in_inference_mode(case: Case) -> None:
    ours = case.ours(tensors(5, 70), fused=True)
    steps(ours, 1)
    with torch.inference_mode():
        steps(ours, 2, start=1)
        new = case.ours([values(5, seed=1)], fused=True)
        steps(new, 2)
    steps(ours, 1, start=3)


@each_richest
def test_fused_works_where_gradients_are_recorded_and_where_not(case: Case) -> None:
    ours = case.ours(tensors(5, 70), fused=True)
    with torch.no_grad():
        steps(ours, 2)
    with torch.enable_grad():
        steps(ours, 2, start=2)
    leaves(ours)[0].requires_grad_(False)
    steps(ours, 2, start=4)
    assert all(p.grad_fn is None and p.is_leaf for p in leaves(ours))


class Seen(TorchDispatchMode):
    """Notes the operations that torch dispatches."""

    names: ClassVar[set[str]] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.add(str(function.overloadpacket))
        return function(*args, **(kwargs or {}))


@each_optimizer
@pytest.mark.parametrize("dtypes", [KINDS[:1], KINDS[:4]], ids=["one dtype", "a mixture"])
def test_fused_operations_are_seen_by_a_dispatch_mode(
    case: Case, dtypes: tuple[torch.dtype, ...]
) -> None:
    def made() -> list[Tensor]:
        return [values(5, seed=i, dtype=k).requires_grad_() for i, k in enumerate(dtypes)]

    ours, loop = case.ours(made(), fused=True), case.ours(made(), fused=True)
    for step in train(ours, loop, steps=range(2)):
        assert_equal_state(ours, loop, step)
    loop.param_groups[0]["fused"] = None
    loop.param_groups[0]["foreach"] = False
    for twin in (ours, loop):
        give(twin, 2)
    Seen.names.clear()
    with Seen():
        ours.step()
    adding = "aten.add_" if case.optimizer in LINEAR else "aten.addcdiv_"
    assert adding in Seen.names
    loop.step()
    assert_equal_state(ours, loop)
    steps(ours, 1, start=3)  # by the kernel again


def test_fused_fake_tensors_take_steps_that_compute_nothing() -> None:
    with FakeTensorMode():
        ours = ScratchAdam(models(torch.float32), fused=True)
        shapes = [p.shape for p in leaves(ours)]
        for _ in range(2):
            for p in leaves(ours):
                p.grad = torch.ones_like(p)
            ours.step()
        assert [p.shape for p in leaves(ours)] == shapes
        assert [ours.state[p]["step"].shape for p in leaves(ours)] == [torch.Size([])] * len(shapes)


@each_richest
def test_fused_does_not_ask_for_the_default_device(case: Case) -> None:
    ours, usual = (case.ours(tensors(5, 70), fused=True) for _ in range(2))
    for step in range(3):
        give(usual, step)
        usual.step()
        give(ours, step)
        torch.set_default_device("meta")
        try:
            ours.step()
        finally:
            torch.set_default_device(None)
        assert_equal_state(ours, usual, step)


class Sub(Tensor):
    """A tensor of a subclass."""


def test_fused_leaves_a_subclass_of_tensors_to_the_loop_and_unscales_there() -> None:
    ours, loop = (
        ScratchSGD([torch.linspace(-2, 3, 9).as_subclass(Sub).requires_grad_()], fused=on)
        for on in (True, False)
    )
    ours.grad_scale = torch.tensor(8.0)  # type: ignore[attr-defined]  # as GradScaler sets it
    for optimizer, scale in ((ours, 8), (loop, 1)):
        (p,) = leaves(optimizer)
        p.grad = torch.linspace(-1, 1, 9) * scale
        optimizer.step()
    assert torch.equal(leaves(ours)[0], leaves(loop)[0])


INTEGERS = [torch.int64, torch.int32, torch.bool]
refused = pytest.raises(RuntimeError, match="requires all the params to be floating point")


@each_optimizer
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside float32"])
def test_fused_refuses_integers(case: Case, dtype: torch.dtype, beside: bool) -> None:
    params = [*(tensors(5) if beside else []), torch.ones(5, dtype=dtype)]
    with refused:
        case.ours(params, fused=True)
    ours = case.ours(tensors(7), fused=True)
    with refused:
        ours.add_param_group({"params": params})
    steps(ours, 2)


@each_optimizer
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_fused_refuses_integers_of_a_group_that_became_fused(
    case: Case, dtype: torch.dtype
) -> None:
    p, q = tensors(5, 7)
    i = torch.ones(5, dtype=dtype)
    ours = case.ours([p, i, q])
    give(ours, 0)
    i.grad = torch.ones_like(i)
    ours.param_groups[0]["fused"] = True
    before = [t.detach().clone() for t in (p, i, q)]
    with refused:
        ours.step()
    assert not any(map(differing, (p, i, q), before))
    assert all(ours.state.get(t, {}).get("step", 0) == 0 for t in (p, i, q))


@each_optimizer
@pytest.mark.parametrize("dtypes", [KINDS[:1], KINDS[:2]], ids=["one dtype", "a mixture"])
def test_fused_meta_tensors_take_steps_that_compute_nothing(
    case: Case, dtypes: tuple[torch.dtype, ...]
) -> None:
    params = [torch.ones(5, dtype=k, device="meta", requires_grad=True) for k in dtypes]
    ours = case.ours(params, fused=True)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        ours.step()
    for p in params:
        assert {(v.device, v.dtype) for v in state_of(ours, p).values()} <= {(p.device, p.dtype)}
        assert ours.state[p].get("step", 2) == 2


RESIZED = """
import torch
from torch_scratch_optim import ScratchAdam
ours = ScratchAdam([torch.linspace(-1, 1, n).requires_grad_() for n in (9, 5)], fused=True)
for p in ours.param_groups[0]["params"]:
    p.grad = torch.ones_like(p)
ours.step()
p.untyped_storage().resize_(0)
try:
    ours.step()
except RuntimeError as error:
    print("refused:", error)
"""


def test_fused_refuses_memory_that_was_given_back() -> None:
    # In a process of its own: torch's loop writes to address 0.
    done = subprocess.run([sys.executable, "-c", RESIZED], capture_output=True, text=True)
    assert done.stdout.startswith("refused:"), (done.returncode, done.stderr)


@pytest.mark.parametrize("shape", [(60, 100), (6000,), (7,)])
def test_fused_refuses_state_of_another_shape_in_the_loops_words(shape: tuple[int, ...]) -> None:
    start = torch.ones(100, 60)
    ours, loop = (ScratchAdam([nn.Parameter(start.clone())], fused=on) for on in (True, False))
    messages = []
    for optimizer in (ours, loop):
        (p,) = leaves(optimizer)
        p.grad = torch.ones_like(p)
        optimizer.step()
        before = p.detach().clone()
        optimizer.state[p]["exp_avg"] = torch.ones(shape)
        with pytest.raises(RuntimeError, match="size") as raised:
            optimizer.step()
        messages.append(str(raised.value))
        assert torch.equal(p, before)
        assert optimizer.state[p]["step"] == 1
    assert messages[0] == messages[1]


@each_optimizer
def test_fused_has_no_temporaries(case: Case) -> None:
    p = nn.Parameter(torch.ones(8_000_000))
    p.grad = torch.ones_like(p)
    ours = case.ours([p], fused=True)
    for _ in range(3):
        ours.step()
    peak = peak_extra_bytes(ours.step, p.device)
    if peak is None:
        pytest.skip("this system does not count a process' peak memory")
    assert peak < 2**20
