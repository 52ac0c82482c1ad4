"""torch.compile of code that contains a step: no graph break, and nothing is compiled again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector
from torch.optim.lr_scheduler import StepLR

from torch_scratch_optim import ScratchAdaGrad, ScratchAdam, ScratchOptimizer, engines

from .cases import DEVICE, IMAGES, LABELS, PAIRS, Case, each_of_two, small_net

pytestmark = pytest.mark.slow


def backward(model: nn.Module) -> None:
    model.zero_grad()
    cross_entropy(model(IMAGES), LABELS).backward()


def compiled_step(optimizer: ScratchOptimizer, backend: str) -> Callable[[], Any]:
    def step() -> None:
        # A scheduler wraps the optimizer's own `step`, and torch does not trace that wrapper.
        type(optimizer).step(optimizer)

    return torch.compile(step, fullgraph=True, backend=backend)


# Graphs are counted in front of the backend, so one test with the slow one will do; and a trace
# knows one engine, so the others are asked for once.
@pytest.mark.parametrize(
    ("case", "foreach", "backend"),
    [(Case(name), None, "aot_eager") for name in PAIRS]
    + [(Case("Adam"), foreach, "aot_eager") for foreach in (False, True)]
    + [(Case("Adam"), None, "inductor")],
    ids=str,
)
def test_compile_does_not_compile_again_under_a_schedule(
    case: Case, foreach: bool | None, backend: str
) -> None:
    torch._dynamo.reset()
    twins = []
    for _ in range(2):
        model = small_net()
        # torch takes no tensor rate together with foreach=True, so it comes as a group's option.
        optimizer = case.ours(model.parameters(), foreach=foreach)
        optimizer.param_groups[0]["lr"] = torch.tensor(0.01, device=DEVICE)
        twins.append((model, optimizer, StepLR(optimizer, 2, 0.5)))
    step = compiled_step(twins[0][1], backend)
    counters.clear()
    for number in range(7):
        for model, optimizer, schedule in twins:
            backward(model)
            if optimizer is twins[0][1]:
                step()
            else:
                optimizer.step()
            optimizer._opt_called = True  # type: ignore[attr-defined]  # set by the wrapper
            schedule.step()
        if number == 1:  # the first step makes the state, and is another graph
            compiled = counters["stats"]["unique_graphs"]
            assert 1 <= compiled <= 2
    assert counters["stats"]["unique_graphs"] == compiled
    assert not counters["graph_break"]
    for p, q in zip(twins[0][0].parameters(), twins[1][0].parameters(), strict=True):
        torch.testing.assert_close(p, q)  # compiled code keeps more digits between operations


def test_compile_of_a_step_is_one_graph_although_cuda_is_initialised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch._dynamo.reset()
    model, plain = small_net(), small_net()
    ours, twin = (
        Case("Adam").ours([{"params": [p]} for p in net.parameters()]) for net in (model, plain)
    )
    step = compiled_step(ours, "eager")
    for _ in range(3):  # the first makes the state
        for net in (model, plain):
            backward(net)
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            step()
        twin.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)  # scalars are tensors in one of them


def test_compile_of_a_step_leaves_an_engine_of_ones_own_to_eager_steps() -> None:
    class ByLoop(ScratchAdam):
        def engine(self, group: Any) -> Any:
            return engines.loop  # which takes no number for each parameter

    torch._dynamo.reset()
    model, plain = small_net(), small_net()
    ours, twin = ByLoop(model.parameters()), ByLoop(plain.parameters())
    step = compiled_step(ours, "eager")
    for _ in range(2):
        backward(model)
        backward(plain)
        step()
        twin.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)  # scalars are tensors in one of them


def test_step_counts_on_the_cpu_meet_options_on_a_gpu() -> None:
    # Torch's compiler calls every optimizer capturable, also one that keeps its counts on the CPU.
    with FakeTensorMode():  # it needs no GPU, and refuses tensors of two devices
        leaves = [torch.ones(3, device="cuda", requires_grad=True) for _ in range(2)]
        ours = ScratchAdaGrad(leaves)
        ours.param_groups[0].update(capturable=True, lr=torch.tensor(0.1, device="cuda"))
        for p in leaves:
            p.grad = torch.ones_like(p)
        ours.step()
        assert all(ours.state[p]["step"].is_cpu for p in leaves)


@each_of_two
def test_compile_of_a_whole_training_step_is_one_graph(case: Case) -> None:
    torch._dynamo.reset()
    model, plain = small_net(), small_net()
    ours, twin = case.ours(model.parameters()), case.ours(plain.parameters())
    for m, optimizer in ((model, ours), (plain, twin)):  # the state is made before
        backward(m)
        optimizer.step()
        optimizer.zero_grad()

    def training_step() -> torch.Tensor:
        loss = cross_entropy(model(IMAGES), LABELS)
        for p, gradient in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            p.grad = gradient
        ours.step()
        return loss.detach()

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(training_step, fullgraph=True, backend="aot_eager")
        for _ in range(4):
            loss = compiled()
            ours.zero_grad()
            expected = cross_entropy(plain(IMAGES), LABELS)
            expected.backward()
            twin.step()
            twin.zero_grad()
            torch.testing.assert_close(loss, expected.detach())
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@each_of_two
def test_compile_of_a_training_step_changes_nothing(case: Case) -> None:
    # It clears gradients, too, which torch's compiler leaves to Python.
    torch._dynamo.reset()
    weights = []
    for compiled in (False, True):
        model = small_net()
        optimizer = case.ours(model.parameters())

        def training_step(model: nn.Module = model, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            cross_entropy(model(IMAGES), LABELS).backward()
            optimizer.step()

        step = torch.compile(training_step, backend="eager") if compiled else training_step
        for _ in range(4):
            step()
        weights.append(parameters_to_vector(model.parameters()))
    # What follows from a step count is a number in one and a tensor in the other, as in torch.
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)
    assert not torch.equal(weights[0], parameters_to_vector(small_net().parameters()))
