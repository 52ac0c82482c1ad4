"""What is rare in a model or in an optimizer's state goes as in torch, too."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_scratch_optim import ScratchAdam, ScratchOptimizer, ScratchSGD, engines, optimizer
from torch_scratch_optim.tensor_likes import TensorList

from .cases import PAIRS, Case, assert_equal_state, leaves, parameters, train

each_optimizer = pytest.mark.parametrize("case", [Case(n) for n in PAIRS], ids=str)
counting = pytest.mark.parametrize("case", [Case(n) for n in PAIRS if n not in ("SGD", "Momentum")])
both_engines = pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])


def test_on_other_devices_everything_is_gathered_and_big_tensors_in_blocks() -> None:
    sizes: list[list[int]] = []

    def rule(p: TensorList, g: TensorList) -> None:
        sizes.append([t.numel() for t in p.tensors])

    p = [torch.empty(n, device="meta") for n in (3, 0, 5, engines.DEVICE_BLOCK + 128)]
    engines.foreach(rule, engines.Table({"p": p, "g": p}), {})
    half = engines.DEVICE_BLOCK // 2 + 64
    assert sizes == [[3, 0, 5, half], [half]]


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


engines_of_all = pytest.mark.parametrize(
    "engine", [{"foreach": False}, {"foreach": True}, {}, {"fused": True}], ids=str
)


@engines_of_all
def test_rows_and_columns_may_change_so_that_their_product_stays(engine: dict[str, Any]) -> None:
    # Two parameters with momentum are as many tensors as three without.
    ps, qs = ([torch.full((5,), i + 1.0) for i in range(3)] for _ in range(2))
    ours = ScratchSGD(ps, lr=0.1, momentum=0.9, **engine)
    theirs = torch.optim.SGD(qs, lr=0.1, momentum=0.9)
    for step, momentum in enumerate([0.9, 0.0, 0.9, 0.0]):
        for twin in (ours, theirs):
            twin.param_groups[0]["momentum"] = momentum
            for i, p in enumerate(leaves(twin)):
                p.grad = torch.full((5,), step + i + 2.0) if i < 2 or not momentum else None
            twin.step()
        assert all(map(torch.equal, ps, qs)), f"step {step}"


@engines_of_all
def test_state_columns_of_one_number_are_told_apart(engine: dict[str, Any]) -> None:
    ours = Case("RMSProp").ours([p := torch.ones(5, requires_grad=True)], **engine)
    theirs = Case("RMSProp").torchs([q := torch.ones(5, requires_grad=True)])
    for step, (momentum, centered) in enumerate([(0.9, True), (0.9, False), (0.0, True)]):
        for twin in (ours, theirs):
            twin.param_groups[0] |= {"momentum": momentum, "centered": centered}
            (leaf,) = leaves(twin)
            leaf.grad = torch.linspace(1, 2, 5) * (step + 1)
            twin.step()
        torch.testing.assert_close(p, q)  # a kernel rounds the root correctly, torch may not


@engines_of_all
def test_a_first_step_that_fails_remains_a_first_step(engine: dict[str, Any]) -> None:
    def made() -> torch.optim.Optimizer:
        p = torch.linspace(1, 2, 7, requires_grad=True)
        p.grad = torch.linspace(-1, 3, 7)
        return ScratchSGD([p], lr=0.1, momentum=0.9, dampening=0.5, **engine)

    ours, fresh = made(), made()
    ours.param_groups[0]["lr"] = 1e300  # beyond float32
    with pytest.raises(RuntimeError, match="overflow"):
        ours.step()
    with torch.no_grad():  # a loop stops in its midst
        leaves(ours)[0].copy_(leaves(fresh)[0])
    ours.param_groups[0]["lr"] = 0.1
    for _ in range(2):
        ours.step()
        fresh.step()
        assert_equal_state(ours, fresh)


@engines_of_all
def test_a_step_may_be_taken_within_a_transform(engine: dict[str, Any]) -> None:
    def stepped(x: Tensor) -> Tensor:
        w = torch.ones(3)
        w.grad = torch.ones(3)
        ScratchSGD([w], lr=0.5, **engine).step()
        return (w * x).sum()

    assert torch.equal(torch.func.grad(stepped)(torch.ones(3)), torch.full((3,), 0.5))


def test_groups_that_are_gone_are_forgotten() -> None:
    ours = ScratchAdam([torch.ones(2, requires_grad=True)])
    for _ in range(20):
        ours.param_groups.clear()
        p = torch.ones(3, requires_grad=True)
        p.grad = torch.ones(3)
        ours.add_param_group({"params": [p]})
        ours.step()
    assert len(ours._checked) == 1


@engines_of_all
def test_a_rule_is_forgotten_with_its_optimizer(engine: dict[str, Any]) -> None:
    def optimizer() -> tuple[ScratchOptimizer, weakref.ref[nn.Module]]:
        model = nn.Linear(2, 2)

        def rule(p: Tensor, g: Tensor, *, lr: float, of: Any = model, **_: Any) -> None:
            p.add_(g, alpha=-lr)

        kind: Any = type("Own", (ScratchSGD,), {"rule": staticmethod(rule)})
        p = torch.ones(3, requires_grad=True)
        p.grad = torch.ones(3)
        own = kind([p], lr=0.5, **engine)
        own.step()
        assert torch.equal(p, torch.full((3,), 0.5))
        return own, weakref.ref(model)

    own, model = optimizer()
    assert model() is not None
    del own
    gc.collect()
    assert model() is None


@each_optimizer
def test_profilers_see_a_step_by_name(case: Case) -> None:
    ours = case.ours(parameters())
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        next(train(ours, steps=range(1)))
    assert f"Optimizer.step#{type(ours).__name__}.step" in {e.name for e in profile.function_events}


@each_optimizer
@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
def test_a_copy_keeps_what_torchs_keeps(
    case: Case, twin_of: Callable[[torch.optim.Optimizer], torch.optim.Optimizer]
) -> None:
    kept = []
    for make in (case.ours, case.torchs):
        original: Any = make(parameters())
        original.own, original._step_supports_amp_scaling = "tag", True
        twin: Any = twin_of(original)
        kept.append([hasattr(twin, "own"), getattr(twin, "_step_supports_amp_scaling", False)])
    assert kept[0] == kept[1]
