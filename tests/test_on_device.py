"""capturable=True: steps that read nothing on the host, so that a CUDA graph can replay them."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .cases import CASES, PAIRS, Case, give_gradients, leaves, parameters, train

TORCH_HAS_IT = ("RMSProp", "Adam", "AdamW")
by_name = pytest.mark.parametrize("case", CASES, ids=str)
each_optimizer = pytest.mark.parametrize("case", [Case(n) for n in PAIRS], ids=str)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")


@pytest.fixture
def capturable_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU pass for a device that is captured, for torch's optimizers and for ours."""

    def devices(supports_xla: bool = True) -> list[str]:
        return ["cpu"]

    for module in ("optimizer", "adam", "rmsprop"):
        holder = importlib.import_module(f"torch.optim.{module}")
        monkeypatch.setattr(holder, "_get_capturable_supported_devices", devices)


class NothingIsRead(TorchDispatchMode):
    """Fails where a number is read on the host, and so waited for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number was read"
        return func(*args, **(kwargs or {}))


@each_optimizer
def test_the_guard_notices_a_step_that_reads_a_number(case: Case) -> None:
    ours = case.ours(parameters(), lr=torch.tensor(0.1))
    give_gradients(leaves(ours), step=0)
    with NothingIsRead(), pytest.raises(AssertionError, match="a number was read"):
        ours.step()


@pytest.mark.usefixtures("capturable_cpu")
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01), torch.tensor([0.01])], ids=str)
@by_name
def test_a_capturable_step_reads_no_number(case: Case, lr: Any) -> None:
    ours = case.ours(parameters(), **({"lr": lr} | {"capturable": True}))
    for step in range(3):
        give_gradients(leaves(ours), step=step)
        with NothingIsRead():
            ours.step()


def assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    for p, q in zip(leaves(ours), leaves(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance, equal_nan=True)
        for name, value in theirs.state.get(q, {}).items():
            mine = ours.state[p][name]
            torch.testing.assert_close(mine, value, rtol=tolerance, atol=tolerance, equal_nan=True)


# The same formulas, but each product and sum is rounded by itself, where torch's kernels fuse some.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.mark.usefixtures("capturable_cpu")
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@by_name
def test_capturable_steps_are_the_ordinary_ones_up_to_rounding(
    case: Case, dtype: torch.dtype
) -> None:
    ours, ordinary = case.ours(parameters(dtype), capturable=True), case.ours(parameters(dtype))
    for step in train(ours, ordinary, steps=range(12)):
        if step == 5:  # from here on the counts of parameters differ
            leaves(ours)[1].grad = leaves(ordinary)[1].grad = None
        assert_close(ours, ordinary, ROUNDING[dtype])


@pytest.mark.usefixtures("capturable_cpu")
@pytest.mark.parametrize("case", [c for c in CASES if c.optimizer in TORCH_HAS_IT], ids=str)
def test_capturable_steps_are_torchs_capturable_ones_up_to_rounding(case: Case) -> None:
    ours, theirs = (make(parameters(), capturable=True) for make in (case.ours, case.torchs))
    for _ in train(ours, theirs, steps=range(12)):
        # torch takes 1 − βᵗ in single precision, in which 1 − 0.999 has four digits.
        assert_close(ours, theirs, 1e-4)


@each_optimizer
def test_a_cpu_is_refused_in_torchs_words_and_nothing_has_moved(case: Case) -> None:
    devices = importlib.import_module("torch.optim.optimizer")._get_capturable_supported_devices()
    ours = case.ours(parameters(), capturable=True)
    give_gradients(leaves(ours), step=0)
    with pytest.raises(AssertionError) as refused:
        ours.step()
    assert str(refused.value) == (
        f"If capturable=True, params and state_steps must be on supported devices: {devices}."
    )
    assert all(torch.equal(p, q) for p, q in zip(leaves(ours), parameters(), strict=True))
    if case.optimizer in TORCH_HAS_IT:
        theirs = case.torchs(parameters(), capturable=True)
        give_gradients(leaves(theirs), step=0)
        with pytest.raises(AssertionError) as torchs:
            theirs.step()
        assert str(torchs.value) == str(refused.value)


@pytest.mark.usefixtures("capturable_cpu")
@each_optimizer
def test_sparse_gradients_cannot_be_captured(case: Case) -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="capturable=True does not support sparse gradients"):
        case.ours([p], capturable=True).step()


@pytest.mark.usefixtures("capturable_cpu")
@each_optimizer
def test_a_run_changes_hands_between_capturable_and_ordinary(case: Case) -> None:
    first, second = case.ours(parameters(), capturable=True), case.ours(parameters())
    ordinary = case.ours(parameters())
    for step in train(first, ordinary, steps=range(3)):
        assert step < 3
    with torch.no_grad():
        for p, q in zip(leaves(second), leaves(first), strict=True):
            p.copy_(q)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.param_groups[0]["capturable"] is True
    for _ in train(second, ordinary, steps=range(3, 6)):
        assert_close(second, ordinary, ROUNDING[torch.float32])


@needs_gpu
@pytest.mark.parametrize("lr", [0.01, "on the device"])
@by_name
def test_a_replayed_graph_equals_eager_steps(case: Case, lr: Any) -> None:
    def on_gpu() -> list[Tensor]:
        return [p.detach().cuda().requires_grad_() for p in parameters()]

    rate = torch.tensor(0.01, device="cuda") if lr == "on the device" else lr
    ours = case.ours(on_gpu(), **({"lr": rate} | {"capturable": True}))
    eager = case.ours(on_gpu(), **({"lr": rate} | {"capturable": True}))
    give_gradients(leaves(ours), leaves(eager), step=0)
    gradients = [p.grad for p in leaves(ours)]
    ours.step()
    eager.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    for step in range(1, 6):
        give_gradients(leaves(eager), step=step)
        for static, q in zip(gradients, leaves(eager), strict=True):
            assert static is not None
            assert q.grad is not None
            static.copy_(q.grad)
        graph.replay()
        eager.step()
        if isinstance(rate, Tensor):
            rate.mul_(0.9)  # a scheduler fills it in place
        assert_close(ours, eager, 0)


@needs_gpu
@each_optimizer
def test_a_first_step_is_not_captured(case: Case) -> None:
    p = nn.Parameter(torch.ones(3, device="cuda"))
    p.grad = torch.ones_like(p)
    ours = case.ours([p], capturable=True)
    if case.optimizer in ("SGD", "AdaGrad"):
        pytest.skip("has no state, or has it before the first step")
    with (
        pytest.raises(RuntimeError, match="run it once before"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        ours.step()
