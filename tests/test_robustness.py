"""What goes wrong in long and strange runs goes no wronger than with torch."""

from __future__ import annotations

import copy
import functools
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_scratch_optim import ScratchAdam

from .cases import (
    CASES,
    PAIRS,
    Case,
    assert_equal_state,
    give_gradients,
    leaves,
    parameters,
    same_bits,
    train,
)

by_name = pytest.mark.parametrize("case", CASES, ids=str)
each_optimizer = pytest.mark.parametrize("case", [Case(n) for n in PAIRS], ids=str)
ENGINES: list[dict[str, Any]] = [{"foreach": False}, {"foreach": True}, {}, {"fused": True}]
each_engine = pytest.mark.parametrize("engine", ENGINES, ids=str)
both_engines = pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])


def step_on(values: list[float], *twins: Optimizer) -> None:
    for twin in twins:
        for p in leaves(twin):
            p.grad = (
                torch.tensor(values, dtype=p.dtype).repeat(p.numel())[: p.numel()].view(p.shape)
            )
        twin.step()


@both_engines
@by_name
def test_denormal_numbers_are_kept_as_with_torch(case: Case, foreach: bool) -> None:
    tiny = torch.finfo(torch.float32).tiny

    def denormal() -> list[Tensor]:
        return [(p.detach() * tiny * 0.1).requires_grad_() for p in parameters()]

    ours, theirs = case.ours(denormal(), foreach=foreach), case.torchs(denormal())
    seen = False
    for step in range(5):
        step_on([tiny / 3, -tiny / 7, tiny, 1e-20], ours, theirs)
        assert_equal_state(ours, theirs, f"step {step}")
        states = [t.detach() for p in leaves(ours) for t in (p, *ours.state[p].values())]
        seen |= any(((t != 0) & (t.abs() < tiny)).any().item() for t in states)
    assert seen, "nothing is denormal"


@both_engines
@each_optimizer
def test_two_optimizers_may_share_a_model(case: Case, foreach: bool) -> None:
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
def test_optimizers_may_step_in_threads_of_their_own(case: Case, options: dict[str, Any]) -> None:
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


@each_optimizer
def test_nothing_is_left_behind_by_ten_thousand_steps(case: Case) -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    ours = case.ours([{"params": [p], "foreach": bool(i)} for i, p in enumerate(params)])
    for p in params:
        p.grad = torch.ones(2)
    ours.step()
    tensors, attributes = tensors_alive(), sorted(vars(ours))
    containers = len(gc.get_objects())
    for _ in range(10_000):
        ours.step()
    assert tensors_alive() == tensors
    assert sorted(vars(ours)) == attributes
    # Of other things, fewer than one for a hundred steps.
    assert len(gc.get_objects()) < containers + 100


@both_engines
@by_name
def test_the_state_is_as_large_as_torchs(case: Case, foreach: bool) -> None:
    ours, theirs = case.ours(parameters(), foreach=foreach), case.torchs(parameters())
    for _ in train(ours, theirs, steps=range(2)):
        pass
    assert bytes_of_state(ours) == bytes_of_state(theirs)


def bytes_of_state(optimizer: Optimizer) -> int:
    """With what the storages hold besides: a view into something larger keeps it all alive."""
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


@each_optimizer
def test_a_deep_copy_shares_nothing_with_the_original(case: Case) -> None:
    ours = case.ours(parameters())
    for _ in train(ours, steps=range(2)):
        pass
    kept = [t.detach().clone() for t in tensors_of(ours)]
    for _ in train(copy.deepcopy(ours), steps=range(2, 4)):
        pass
    assert all(same_bits(p, q) for p, q in zip(tensors_of(ours), kept, strict=True))


def tensors_of(optimizer: Optimizer) -> list[Tensor]:
    states = [value for state in optimizer.state.values() for value in state.values()]
    return leaves(optimizer) + states


@each_optimizer
def test_weight_decay_that_is_none_or_missing_is_not_zero(case: Case) -> None:
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
def test_state_that_is_a_plain_dict_fails_before_anything_moves(engine: dict[str, Any]) -> None:
    ours = ScratchAdam(parameters(), **engine)
    before = [p.detach().clone() for p in leaves(ours)]
    ours.state = {}  # type: ignore[assignment]  # as some wrappers do
    give_gradients(leaves(ours), step=0)
    with pytest.raises(KeyError):
        ours.step()
    assert all(map(torch.equal, leaves(ours), before))


@each_engine
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_state_of_a_dtype_that_cannot_hold_it_is_refused_by_name(
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
def test_moments_in_float16_of_float32_parameters_are_computed_with_in_float32(
    engine: dict[str, Any],
) -> None:
    # In float16 the root of such a square and eps would be 0.
    p = torch.ones(3, requires_grad=True)
    ours = ScratchAdam([p], lr=0.1, **engine)
    for _ in range(3):
        p.grad = torch.tensor([1e-3, 2e-3, -1e-3])
        ours.step()
        state = ours.state[p]
        state |= {name: state[name].half() for name in ("exp_avg", "exp_avg_sq")}
    assert p.isfinite().all()
    assert ((p - 1).sign() == torch.tensor([-1.0, -1.0, 1.0])).all()


def test_methods_of_torchs_that_are_patched_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_mixin_between_ours_and_torchs_class_is_called() -> None:
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
