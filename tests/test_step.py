"""A step: closures and hooks, what it touches, and what it refuses with nothing moved."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import torch_scratch_optim as scratch
from torch_scratch_optim import ScratchAdam, ScratchOptimizer, ScratchSGD, engines
from torch_scratch_optim.tensor_likes import TensorList

from .cases import (
    PAIRS,
    Case,
    assert_equal_state,
    each_case,
    each_engine,
    each_of_two,
    each_optimizer,
    give_gradients,
    leaves,
    loop_and_foreach,
    parameters,
    train,
)


@each_optimizer
def test_step_runs_a_closure_with_gradients_and_returns_its_loss(case: Case) -> None:
    p = nn.Parameter(torch.tensor([3.0]))
    ours = case.ours([p])

    def closure() -> float:
        ours.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    assert ours.step(closure) == 9.0
    assert p.item() < 3.0
    assert ours.step() is None


@each_optimizer
def test_step_runs_hooks_around_itself(case: Case) -> None:
    ours = case.ours(parameters())
    seen: list[tuple[str, float]] = []

    def before(*_: object) -> None:
        seen.append(("before", leaves(ours)[1][0].item()))

    def after(*_: object) -> None:
        seen.append(("after", leaves(ours)[1][0].item()))

    ours.register_step_pre_hook(before)
    ours.register_step_post_hook(after)
    for _ in train(ours, steps=range(1)):
        pass
    assert [name for name, _ in seen] == ["before", "after"]
    assert seen[0][1] != seen[1][1]


REGISTER: dict[str, Callable[[ScratchSGD, Callable[..., Any]], Any]] = {
    "before": lambda own, hook: own.register_step_pre_hook(hook),
    "after": lambda own, hook: own.register_step_post_hook(hook),
    "before all": lambda own, hook: register_optimizer_step_pre_hook(hook),
    "after all": lambda own, hook: register_optimizer_step_post_hook(hook),
}


@pytest.mark.parametrize("kind", REGISTER)
def test_step_hook_runs_from_its_registration_to_its_removal(kind: str) -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    ours, calls = ScratchSGD([p]), []
    ours.step()
    handle = REGISTER[kind](ours, lambda *given: calls.append(given))
    ours.step()
    handle.remove()
    ours.step()
    assert calls == [(ours, (ours,), {})]


def test_step_pre_hook_may_give_a_closure() -> None:
    ours = ScratchSGD([nn.Parameter(torch.ones(3))])
    ours.register_step_pre_hook(lambda own, args, kwargs: ((own, lambda: 7.0), {}))
    assert ours.step() == 7.0


@pytest.mark.parametrize("kineto", [False, True])
@each_optimizer
def test_step_is_seen_by_profilers_by_name(case: Case, kineto: bool) -> None:
    ours = case.ours(parameters())
    with torch.autograd.profiler.profile(use_kineto=kineto) as profile:
        next(train(ours, steps=range(1)))
    assert f"Optimizer.step#{type(ours).__name__}.step" in {e.name for e in profile.function_events}


@each_engine
def test_step_within_a_functorch_transform(engine: dict[str, Any]) -> None:
    def stepped(x: Tensor) -> Tensor:
        w = torch.ones(3)
        w.grad = torch.ones(3)
        ScratchSGD([w], lr=0.5, **engine).step()
        return (w * x).sum()

    assert torch.equal(torch.func.grad(stepped)(torch.ones(3)), torch.full((3,), 0.5))


@each_optimizer
@loop_and_foreach
def test_step_on_fake_tensors_makes_state_without_data(case: Case, foreach: bool) -> None:
    # As tools do that foretell how much memory a training needs.
    with FakeTensorMode():
        model = nn.Linear(3, 2)
        ours = case.ours(model.parameters(), foreach=foreach)
        for _ in range(2):
            model(torch.ones(1, 3)).sum().backward()
            ours.step()
    columns = ours.columns(ours.param_groups[0]).values()
    assert all(name in ours.state[p] for p in model.parameters() for name in columns)


def test_step_does_not_depend_on_the_default_device() -> None:
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


def test_step_moves_tensors_of_other_classes_one_by_one(
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


def test_foreach_gathers_everything_and_cuts_big_tensors_on_other_devices() -> None:
    sizes: list[list[int]] = []

    def rule(p: TensorList, g: TensorList) -> None:
        sizes.append([t.numel() for t in p.tensors])

    p = [torch.empty(n, device="meta") for n in (3, 0, 5, engines.DEVICE_BLOCK + 128)]
    engines.foreach(rule, engines.Table({"p": p, "g": p}), {})
    half = engines.DEVICE_BLOCK // 2 + 64
    assert sizes == [[3, 0, 5, half], [half]]


def test_step_gathers_rows_of_equal_counts_with_a_tensor_lr(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gathered: list[int] = []

    class Spy(TensorList):
        def __init__(self, tensors: list[torch.Tensor]) -> None:
            gathered.append(len(tensors))
            super().__init__(tensors)

    monkeypatch.setattr(engines, "TensorList", Spy)
    ps = [torch.full((3,), float(i), requires_grad=True) for i in range(40)]
    ours = scratch.ScratchAdam(ps, lr=torch.tensor(0.1), foreach=None)
    for step in range(2):
        for i, p in enumerate(ps):  # half of them begin a step later
            p.grad = torch.full((3,), 1.0 + i) if step or i < 20 else None
        gathered.clear()
        ours.step()
    assert set(gathered) == {20}  # each half at once


@loop_and_foreach
@each_case
def test_step_leaves_parameters_without_gradients_alone(case: Case, foreach: bool) -> None:
    ours, theirs = case.ours(parameters(), foreach=foreach), case.torchs(parameters())
    for step in range(12):
        give_gradients(leaves(ours), leaves(theirs), step=step)
        for i in range(len(leaves(ours))):
            if (step + i) % 3 == 0:
                leaves(ours)[i].grad = leaves(theirs)[i].grad = None
        ours.step()
        theirs.step()
        assert_equal_state(ours, theirs, f"step {step}")


SPARSE_WORDS = {
    "SGD": "weight_decay option is not compatible with sparse gradients",
    "Momentum": "weight_decay option is not compatible with sparse gradients",
    "AdaGrad": "weight_decay option is not compatible with sparse gradients",
    "RMSProp": "RMSprop does not support sparse gradients",
    "Adam": "Adam does not support sparse gradients, please consider SparseAdam instead",
    "AdamW": "Adam does not support sparse gradients, please consider SparseAdam instead",
}


@pytest.mark.parametrize("case", [Case(n, {"weight_decay": 0.1}) for n in SPARSE_WORDS], ids=str)
def test_step_refuses_a_sparse_gradient_before_anything_moves(case: Case) -> None:
    dense, embedding = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 2))
    ours = case.ours([{"params": [dense]}, {"params": [embedding]}])
    dense.grad = torch.ones(3)
    embedding.grad = torch.sparse_coo_tensor(
        torch.tensor([[1]]), torch.ones(1, 2), (4, 2), check_invariants=True
    )
    with pytest.raises(RuntimeError, match=SPARSE_WORDS[case.optimizer]):
        ours.step()
    assert torch.equal(dense, torch.ones(3))
    # AdaGrad alone has state before its first step.
    assert all(state["step"] == 0 for state in ours.state.values())
    assert not ours.state or case.optimizer == "AdaGrad"


@each_optimizer
def test_step_refuses_weight_decay_that_is_none_or_missing(case: Case) -> None:
    ours = case.ours(parameters())
    for _ in train(ours, steps=range(1)):
        pass
    before = [p.detach().clone() for p in leaves(ours)]
    ours.param_groups[0]["weight_decay"] = None
    with pytest.raises(TypeError, match="weight_decay must be a number"):
        ours.step()
    del ours.param_groups[0]["weight_decay"]
    with pytest.raises(KeyError, match="weight_decay"):
        ours.step()
    assert all(map(torch.equal, leaves(ours), before))


@each_engine
def test_step_refuses_state_that_is_a_plain_dict_before_anything_moves(
    engine: dict[str, Any],
) -> None:
    ours = ScratchAdam(parameters(), **engine)
    before = [p.detach().clone() for p in leaves(ours)]
    ours.state = {}  # type: ignore[assignment]  # as some wrappers do
    give_gradients(leaves(ours), step=0)
    with pytest.raises(KeyError):
        ours.step()
    assert all(map(torch.equal, leaves(ours), before))


@each_engine
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_step_refuses_state_of_a_dtype_that_cannot_hold_it_by_name(
    dtype: torch.dtype, engine: dict[str, Any]
) -> None:
    # Of the last parameter: those before it must not have moved.
    ours = ScratchAdam(parameters(), **engine)
    for _ in train(ours, steps=range(1)):
        pass
    last = leaves(ours)[-1]
    before = [p.detach().clone() for p in leaves(ours)]
    ours.state[last]["exp_avg"] = ours.state[last]["exp_avg"].to(dtype)
    with pytest.raises(RuntimeError, match=f"can't be cast .*: parameter {len(before) - 1} "):
        ours.step()
    assert all(map(torch.equal, leaves(ours), before))
    assert all(state["step"] == 1 for state in ours.state.values())


@each_engine
def test_step_that_fails_first_remains_a_first_step(engine: dict[str, Any]) -> None:
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


counting = pytest.mark.parametrize("case", [Case(n) for n in PAIRS if n not in ("SGD", "Momentum")])


@counting
def test_step_refuses_a_conjugated_parameter_as_torch_does(case: Case) -> None:
    # Its real and imaginary parts are no view of it, so there is nothing to update in place.
    for make in (case.ours, case.torchs):
        p = torch.ones(2, dtype=torch.complex64).conj().requires_grad_()
        twin = make([p])
        p.grad = torch.ones(2, dtype=torch.complex64)
        with pytest.raises(RuntimeError, match="view_as_real"):
            twin.step()


@each_optimizer
def test_step_reads_a_conjugated_gradient_as_it_is(case: Case) -> None:
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


@loop_and_foreach
@each_optimizer
def test_step_of_two_optimizers_of_one_model(case: Case, foreach: bool) -> None:
    # Such as one for each loss; here even of the same parameters.
    mine, their = parameters(), parameters()
    ours = [case.ours(mine, foreach=foreach), case.ours(mine[::2], foreach=foreach, lr=0.05)]
    theirs = [case.torchs(their), case.torchs(their[::2], lr=0.05)]
    for step in range(6):
        for first, second in zip(ours, theirs, strict=True):
            for _ in train(first, second, steps=range(step, step + 1)):
                assert_equal_state(first, second, f"step {step}")


def in_threads(works: list[Callable[[], None]]) -> None:
    failed: list[BaseException] = []
    start = threading.Barrier(len(works))

    def guarded(work: Callable[[], None]) -> None:
        try:
            start.wait()
            work()
        except BaseException as problem:
            failed.append(problem)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


@pytest.mark.parametrize(
    "options",
    [{"foreach": False}, {"foreach": True}, {"fused": True}],
    ids=["loop", "foreach", "fused"],
)
@each_optimizer
def test_step_in_threads_of_their_own(case: Case, options: dict[str, Any]) -> None:
    # Eager steps hold the interpreter's lock between operations alone, so the threads mix well.
    steps = range(10 if "fused" in options else 60)
    alone = [case.ours(parameters(seed=seed), **options) for seed in range(3)]
    threaded = [case.ours(parameters(seed=seed), **options) for seed in range(3)]

    def run(optimizer: Optimizer) -> Callable[[], None]:
        def work() -> None:
            for _ in train(optimizer, steps=steps):
                pass

        return work

    for optimizer in alone:
        run(optimizer)()
    in_threads([run(optimizer) for optimizer in threaded])
    for mine, undisturbed in zip(threaded, alone, strict=True):
        assert_equal_state(mine, undisturbed)


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@each_of_two
def test_step_leaves_nothing_behind_two_thousand_times(case: Case) -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    ours = case.ours([{"params": [p], "foreach": bool(i)} for i, p in enumerate(params)])
    for p in params:
        p.grad = torch.ones(2)
    ours.step()
    tensors, attributes = tensors_alive(), sorted(vars(ours))
    containers = len(gc.get_objects())
    for _ in range(2_000):
        ours.step()
    assert tensors_alive() == tensors
    assert sorted(vars(ours)) == attributes
    # Of other things, fewer than one for twenty steps.
    assert len(gc.get_objects()) < containers + 100


def test_optimizer_calls_methods_of_torchs_that_are_patched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []
    for name in ("zero_grad", "add_param_group", "load_state_dict"):
        original = getattr(torch.optim.Optimizer, name)

        @functools.wraps(original)
        def patched(
            *arguments: Any, original: Any = original, name: str = name, **options: Any
        ) -> None:
            called.append(name)
            original(*arguments, **options)

        monkeypatch.setattr(torch.optim.Optimizer, name, patched)
    ours = ScratchAdam(parameters())
    ours.zero_grad()
    ours.load_state_dict(ours.state_dict())
    assert called == ["add_param_group", "zero_grad", "load_state_dict"]


def test_optimizer_calls_a_mixin_between_ours_and_torchs_class() -> None:
    class Mixin(torch.optim.Optimizer):
        cleared = 0

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.cleared += 1
            super().zero_grad(set_to_none)

    class Mixed(ScratchAdam, Mixin):
        pass

    mixed = Mixed(parameters())
    give_gradients(leaves(mixed), step=0)
    mixed.zero_grad()
    assert mixed.cleared == 1
    assert all(p.grad is None for p in leaves(mixed))


@each_engine
def test_optimizer_takes_its_rule_with_it_when_it_goes(engine: dict[str, Any]) -> None:
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
