"""Whatever befalls a run, ours goes on as torch's loop, or refuses the step with nothing moved."""

from __future__ import annotations

import copy
import platform
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from . import ieee
from .cases import give_gradients, leaves
from .situations import ENGINES, LINEAR, SITUATIONS, Groups, Situation

STEPS, STEPS_OF_BIG = 5, 3
TORCHS_ARITHMETIC = platform.machine().lower() in ("x86_64", "amd64") and (
    torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
)


def correct_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own square root on a CPU is not rounded correctly; the fused engine's is."""
    monkeypatch.setattr(Tensor, "sqrt", ieee.sqrt)
    monkeypatch.setattr(Tensor, "sqrt_", lambda t: t.copy_(ieee.sqrt(t)))


def assert_same(ours: Optimizer, theirs: Optimizer, context: object) -> None:
    """All parameters and all state have the same bits, one NaN as good as another."""
    assert len(leaves(ours)) == len(leaves(theirs))
    for i, (p, q) in enumerate(zip(leaves(ours), leaves(theirs), strict=True)):
        mine = {"p": p, **ours.state.get(p, {})}
        their = {"p": q, **theirs.state.get(q, {})}
        assert mine.keys() == their.keys(), f"state of parameter {i}, {context}"
        for name, value in their.items():
            if isinstance(value, Tensor):
                wrong = ieee.differing(mine[name], value)
                assert not wrong, f"{wrong} numbers of {name} of parameter {i} differ, {context}"
            else:
                assert mine[name] == value


def kept(optimizer: Optimizer) -> list[tuple[Any, Any, Any]]:
    """All parameters and all state: what they are, their bits and their places."""
    things = [("p", p) for p in leaves(optimizer)] + [
        (name, value) for p in leaves(optimizer) for name, value in optimizer.state.get(p, {}).items()
    ]
    return [(n, t, t.detach().clone() if isinstance(t, Tensor) else t) for n, t in things]


def assert_unmoved(optimizer: Optimizer, before: list[tuple[Any, Any, Any]]) -> None:
    now = kept(optimizer)
    assert [name for name, _, _ in now] == [name for name, _, _ in before]
    for (name, thing, _), (_, old, copied) in zip(now, before, strict=True):
        assert thing is old, f"{name} was replaced"
        if isinstance(thing, Tensor):
            assert not thing.device.type == "meta" and not ieee.differing(thing, copied), f"{name} moved"
        else:
            assert thing == copied


def changed(s: Situation, optimizer: Optimizer, step: int) -> Optimizer:
    result = s.change(optimizer)
    if isinstance(result, Optimizer):
        give_gradients(leaves(result), step=step)
        return result
    return optimizer


def assert_refused(s: Situation, optimizer: Optimizer, theirs: Optimizer) -> None:
    assert s.error is not None
    error, pattern = s.error
    if s.torch_agrees:
        twin = copy.deepcopy(theirs)
        s.change(twin)
        with pytest.raises(error, match=pattern):
            twin.step()
    mend = s.change(optimizer)
    before = kept(optimizer)
    with s.within(), pytest.raises(error, match=pattern):
        optimizer.step()
    assert_unmoved(optimizer, before)
    assert callable(mend)
    mend()


PARAMS = [
    pytest.param(s, name, engine, id=f"{title}-{name}-{engine}")
    for title, s in SITUATIONS.items()
    for name in s.of
    for engine in s.engines
]


@pytest.mark.parametrize(("s", "name", "engine"), PARAMS)
def test_situation(
    s: Situation, name: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "fused" and name not in LINEAR:
        correct_roots(monkeypatch)
    for make in s.models:
        case = s.case(name)
        ours: Optimizer = case.ours(make(), **ENGINES[engine])
        theirs = case.torchs(make(), foreach=False)
        big = make.__name__ == "big"
        for step in range(STEPS_OF_BIG if big else STEPS):
            give_gradients(leaves(ours), leaves(theirs), step=step)
            if step not in s.at:
                s.step(ours)
                s.step(theirs)
            elif s.error is not None:
                assert_refused(s, ours, theirs)
                s.step(ours)
                s.step(theirs)
            else:
                ours, theirs = changed(s, ours, step), changed(s, theirs, step)
                with s.within():
                    s.step(ours)
                with s.within():
                    s.step(theirs)
            assert_same(ours, theirs, f"{make.__name__}, step {step}")
