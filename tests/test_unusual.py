"""What is rare in a model or in an optimizer's state goes as in torch, too."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_scratch_optim import ScratchAdam, ScratchSGD, engines, optimizer
from torch_scratch_optim.carriers import TensorList

from .cases import PAIRS, Case, assert_equal_state, leaves, parameters, train

each_optimizer = pytest.mark.parametrize("case", [Case(n) for n in PAIRS], ids=str)
counting = pytest.mark.parametrize("case", [Case(n) for n in PAIRS if n not in ("SGD", "Momentum")])
both_engines = pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])


@each_optimizer
@both_engines
def test_dtypes_may_be_mixed_in_a_group(case: Case, foreach: bool) -> None:
    def mixed() -> list[Tensor]:
        dtypes = (torch.float32, torch.float64, torch.bfloat16)
        return [p for dtype in dtypes for p in parameters(dtype)]

    ours, theirs = case.ours(mixed(), foreach=foreach), case.torchs(mixed())
    for step in train(ours, theirs, steps=range(20)):
        assert_equal_state(ours, theirs, f"step {step}")


def test_on_other_devices_everything_is_gathered_and_big_tensors_in_blocks() -> None:
    sizes: list[list[int]] = []

    def rule(p: TensorList, g: TensorList) -> None:
        sizes.append([t.numel() for t in p.tensors])

    p = [torch.empty(n, device="meta") for n in (3, 0, 5, engines.DEVICE_BLOCK + 128)]
    engines.foreach(rule, engines.Table({"p": p, "g": p}), {})
    half = engines.DEVICE_BLOCK // 2 + 64
    assert sizes == [[3, 0, 5, half], [half]]


@each_optimizer
def test_a_parameter_may_be_listed_twice(case: Case) -> None:
    def twice() -> list[Tensor]:
        p = torch.ones(3, requires_grad=True)
        return [p, p]

    with pytest.warns(UserWarning, match="duplicate"):
        ours, theirs = case.ours(twice(), foreach=False), case.torchs(twice())
    for step in train(ours, theirs, steps=range(5)):
        assert_equal_state(ours, theirs, f"step {step}")


def test_the_first_velocity_has_the_dtype_of_what_it_copies() -> None:
    for decay in (0.0, 0.1):
        twins: list[torch.optim.Optimizer] = []
        for make in (ScratchSGD, torch.optim.SGD):
            p = nn.Parameter(torch.ones(3))
            p.grad_dtype = torch.bfloat16
            optimizer = make([p], lr=0.1, momentum=0.9, weight_decay=decay)
            for _ in range(3):
                p.grad = torch.tensor([0.1, 0.2, 0.3]).bfloat16()
                optimizer.step()
            twins.append(optimizer)
        assert_equal_state(twins[0], twins[1], f"weight decay {decay}")


@each_optimizer
def test_a_conjugated_gradient_is_read_as_it_is(case: Case) -> None:
    def complexes() -> list[Tensor]:
        return [torch.ones(4, dtype=torch.complex64, requires_grad=True)]

    ours, theirs = case.ours(complexes()), case.torchs(complexes())
    for step in range(5):
        gradient = torch.tensor([1 + 2j, -1j, 3, 0.5 - 1j]) / (step + 1)
        leaves(ours)[0].grad = gradient.conj()
        # All but torch's SGD refuse it as it is.
        leaves(theirs)[0].grad = gradient.conj().resolve_conj()
        ours.step()
        theirs.step()
        assert_equal_state(ours, theirs, f"step {step}")


@counting
def test_a_conjugated_parameter_is_refused_as_by_torch(case: Case) -> None:
    # Its real and imaginary parts are no view of it, so there is nothing to update in place.
    for make in (case.ours, case.torchs):
        p = torch.ones(2, dtype=torch.complex64).conj().requires_grad_()
        twin = make([p])
        p.grad = torch.ones(2, dtype=torch.complex64)
        with pytest.raises(RuntimeError, match="view_as_real"):
            twin.step()


@counting
@pytest.mark.parametrize("every", [1, 2])
def test_whole_numbers_count_steps_as_well(case: Case, every: int) -> None:
    ours, theirs = case.ours(parameters()), case.torchs(parameters())
    for twin in (ours, theirs):
        for _ in train(twin, steps=range(3)):
            pass
        for state in list(twin.state.values())[::-every]:
            state["step"] = state["step"].to(torch.int64)
    for step in train(ours, theirs, steps=range(3, 8)):
        assert_equal_state(ours, theirs, f"step {step}")


@counting
def test_a_step_count_that_is_no_tensor_is_refused_in_torchs_words(case: Case) -> None:
    for make in (case.ours, case.torchs):
        twin = make(parameters())
        for _ in train(twin, steps=range(2)):
            pass
        before = [p.detach().clone() for p in leaves(twin)]
        for state in twin.state.values():
            state["step"] = 3
        with pytest.raises(RuntimeError, match="`state_steps` argument must contain a list of"):
            twin.step()
        assert all(torch.equal(p, q) for p, q in zip(leaves(twin), before, strict=True))


@each_optimizer
@both_engines
def test_a_step_can_be_simulated_without_data(case: Case, foreach: bool) -> None:
    # As tools do that foretell how much memory a training needs.
    with FakeTensorMode():
        model = nn.Linear(3, 2)
        ours = case.ours(model.parameters(), foreach=foreach)
        for _ in range(2):
            model(torch.ones(1, 3)).sum().backward()
            ours.step()
    columns = ours.columns(ours.param_groups[0]).values()
    assert all(name in ours.state[p] for p in model.parameters() for name in columns)


def test_negative_momentum_set_later_is_ignored_as_by_torch() -> None:
    # RMSprop asks whether momentum is positive, SGD whether it is zero.
    for case in (Case("RMSProp"), Case("SGD")):
        ours, theirs = case.ours(parameters()), case.torchs(parameters())
        for twin in (ours, theirs):
            twin.param_groups[0]["momentum"] = -0.5
        for step in train(ours, theirs, steps=range(5)):
            assert_equal_state(ours, theirs, f"{case}, step {step}")


def test_by_default_tensors_of_other_classes_go_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # They may not know torch's operations on lists.
    class Subclass(Tensor):
        pass

    def refuse(*_: Any) -> None:
        raise AssertionError("foreach was used")

    monkeypatch.setattr(engines, "foreach", refuse)
    p = torch.ones(3).as_subclass(Subclass).requires_grad_()
    p.grad = torch.ones(3)
    ScratchAdam([p], lr=0.1).step()
    torch.testing.assert_close(p.detach().as_subclass(Tensor), torch.full((3,), 0.9))
    with pytest.raises(AssertionError, match="foreach was used"):
        ScratchAdam([p], foreach=True).step()


@counting
def test_a_graph_capture_is_refused_in_torchs_words(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "is_capturing", lambda: True)
    ours = case.ours(parameters())
    with pytest.raises(RuntimeError, match="Attempting CUDA graph capture of step"):
        next(train(ours, steps=range(1)))


def test_a_default_device_does_not_matter() -> None:
    program = """
import torch
torch.set_default_device("meta")
from torch_scratch_optim import ScratchAdam
p = torch.ones(3, device="cpu", requires_grad=True)
p.grad = torch.ones(3, device="cpu")
optimizer = ScratchAdam([p], lr=0.5)
optimizer.step()
assert (p - 0.5).abs().max() < 1e-6 and optimizer.state[p]["step"].item() == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True)
