"""capturable=True: a step that reads no number on the host, so that a CUDA graph can hold it.

No GPU is needed: a CPU is declared to be a device that can be captured.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .cases import CASES, Case, each_case, each_optimizer, give_gradients, leaves, parameters, train

pytestmark = pytest.mark.cpu  # declared to be what can be captured

IN_TORCH = ("RMSProp", "Adam", "AdamW")


@pytest.fixture
def cpu_can_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ours asks where torch keeps the list.
    for file in ("optimizer", "adam", "rmsprop"):
        module = importlib.import_module(f"torch.optim.{file}")
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda: ["cpu"])


class NothingIsRead(TorchDispatchMode):
    """Fails when the value of a tensor is asked for: on a GPU the host would have to wait."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number was read"
        return func(*args, **(kwargs or {}))


def close(ours: Any, theirs: Any, rtol: float = 1e-10) -> None:
    """Equal up to rounding: numbers that are tensors enter by operations of their own."""
    for p, q in zip(leaves(ours), leaves(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)
        for name, value in theirs.state.get(q, {}).items():
            torch.testing.assert_close(ours.state[p][name], value, rtol=rtol, atol=rtol)


def start() -> list[Tensor]:
    return parameters(torch.float64)


@each_case
@pytest.mark.usefixtures("cpu_can_capture")
def test_capturable_step_is_the_ordinary_one_and_reads_no_number(case: Case) -> None:
    captured = case.ours(start(), capturable=True)
    plain = case.ours(start())
    for step in train(plain, captured, steps=range(10)):
        if step == 4:  # a rate that changes in place, as a scheduler changes it
            for twin in (captured, plain):
                twin.param_groups[0]["lr"] = torch.tensor(0.02, dtype=torch.float64)
        if step == 6:  # one parameter falls behind: its count is another from now on
            leaves(captured)[0].grad = leaves(plain)[0].grad = None
            with NothingIsRead():
                captured.step()
            plain.step()
    close(captured, plain)


@each_optimizer
def test_capturable_guard_notices_a_step_that_reads_a_number(case: Case) -> None:
    plain = case.ours(start(), lr=torch.tensor(0.01))
    with NothingIsRead(), pytest.raises(AssertionError, match="a number was read"):
        next(train(plain, steps=range(1)))


@each_optimizer
@pytest.mark.usefixtures("cpu_can_capture")
def test_capturable_float32_and_a_rate_of_one_element(case: Case) -> None:
    captured = case.ours(parameters(), capturable=True, lr=torch.tensor([0.01]))
    plain = case.ours(parameters(), lr=0.01)
    for _ in train(captured, plain, steps=range(10)):
        pass
    with NothingIsRead():
        captured.step()
    plain.step()
    close(captured, plain, rtol=1e-5)  # of float32, and a rate of float32


@each_optimizer
@pytest.mark.usefixtures("cpu_can_capture")
def test_capturable_refuses_sparse_gradients(case: Case) -> None:
    sparse = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for p in sparse:
        p.grad = torch.ones(3).to_sparse()
    ours = case.ours(sparse, capturable=True)
    with pytest.raises(RuntimeError, match="capturable=True does not support sparse gradients"):
        ours.step()
    assert all(torch.equal(p, torch.ones(3)) for p in sparse)


@pytest.mark.parametrize("case", [Case("Adam"), Case("AdamW")], ids=str)
def test_capturable_and_fused_run_together_as_with_torch(case: Case) -> None:
    ours = case.ours(start(), capturable=True, fused=True)
    theirs = case.torchs(start(), capturable=True, fused=True, foreach=None)
    for step in range(5):
        give_gradients(leaves(ours), leaves(theirs), step=step)
        for p in leaves(ours) + leaves(theirs):  # torch's fused kernel ignores strides
            p.grad = None if not p.is_contiguous() else p.grad
        with NothingIsRead():
            ours.step()
        theirs.step()
    close(ours, theirs)


@pytest.mark.parametrize("case", [c for c in CASES if c.optimizer in IN_TORCH], ids=str)
@pytest.mark.usefixtures("cpu_can_capture")
def test_capturable_is_torchs_up_to_rounding(case: Case) -> None:
    ours = case.ours(start(), capturable=True)
    theirs = case.torchs(start(), capturable=True)
    for _ in train(ours, theirs, steps=range(10)):
        close(ours, theirs, rtol=2e-4)  # torch corrects the bias of Adam in float32


@each_optimizer
def test_capturable_is_refused_on_a_cpu_as_by_torch(case: Case) -> None:
    ours = case.ours(start(), capturable=True)
    complaint = "If capturable=True, params and state_steps must be on supported devices"
    for _ in range(2):
        with pytest.raises(AssertionError, match=complaint):
            next(train(ours, steps=range(1)))
    assert all(torch.equal(p, q) for p, q in zip(leaves(ours), start(), strict=True))
    if case.optimizer in IN_TORCH:
        theirs = case.torchs(start(), capturable=True)
        with pytest.raises(AssertionError, match=complaint):
            next(train(theirs, steps=range(1)))


@each_optimizer
@pytest.mark.usefixtures("cpu_can_capture")
def test_capturable_run_may_begin_with_a_checkpoint(case: Case) -> None:
    plain, captured = case.ours(start()), case.ours(start(), capturable=True)
    for _ in train(plain, captured, steps=range(3)):
        pass
    following = case.ours([p.detach().clone().requires_grad_() for p in leaves(plain)])
    following.load_state_dict(copy.deepcopy(plain.state_dict()))
    following.param_groups[0]["capturable"] = True
    for _ in train(captured, following, steps=range(3, 6)):
        pass
    close(following, captured)


@each_optimizer
def test_capturable_false_is_refused_during_capture(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = case.ours(start())
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)

    def step() -> None:
        next(train(ours, steps=range(1)))

    if ours.counts_steps:
        with pytest.raises(RuntimeError, match=r"Attempting CUDA graph capture of step.* is False"):
            step()
    elif ours.columns(ours.param_groups[0]):
        with pytest.raises(RuntimeError, match="cannot be captured before it has run once"):
            step()
    else:
        step()  # plain SGD counts nothing and keeps nothing
