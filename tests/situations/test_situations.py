"""Whatever befalls a run, ours goes on as torch's loop, or refuses the step with nothing moved."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import ieee
from ..cases import (
    ENGINES,
    give_gradients,
    leaves,
    small_blocks,
    torchs_adagrad_makes_state_late,
    with_torchs_arithmetic,
)
from .changes import assert_same, big, one_thread, roots_of
from .table import INEXACT, SITUATIONS, UP_TO_ROUNDING, Situation


def kept(optimizer: Optimizer) -> list[tuple[Any, Any, Any]]:
    """All parameters and all state: what they are, their bits and their places."""
    things = [("p", p) for p in leaves(optimizer)] + [
        (name, value)
        for p in leaves(optimizer)
        for name, value in optimizer.state.get(p, {}).items()
    ]
    return [(n, t, t.detach().clone() if isinstance(t, Tensor) else t) for n, t in things]


def assert_unmoved(optimizer: Optimizer, before: list[tuple[Any, Any, Any]]) -> None:
    now = kept(optimizer)
    assert [name for name, _, _ in now] == [name for name, _, _ in before]
    for (name, thing, _), (_, old, copied) in zip(now, before, strict=True):
        assert thing is old, f"{name} was replaced"
        if isinstance(thing, Tensor):
            assert thing.is_meta or not ieee.differing(thing, copied), f"{name} moved"
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


def side_by_side(
    s: Situation, ours: Optimizer, theirs: Optimizer
) -> Iterator[tuple[int, Optimizer, Optimizer]]:
    """Let the same happen to both, yielding after each step from the first change on."""
    for step in range(max(s.at) + 2):
        give_gradients(leaves(ours), leaves(theirs), step=step)
        within: Any = nullcontext
        if step in s.at and s.error is not None:
            assert_refused(s, ours, theirs)
        elif step in s.at:
            ours, theirs = changed(s, ours, step), changed(s, theirs, step)
            within = s.within
        for twin in (ours, theirs):
            with within():
                s.step(twin)
        if step >= min(s.at):
            yield step, ours, theirs


def assert_close(ours: Optimizer, theirs: Optimizer) -> None:
    for i, (p, q) in enumerate(zip(leaves(ours), leaves(theirs), strict=True)):
        mine, their = {"p": p, **ours.state.get(p, {})}, {"p": q, **theirs.state.get(q, {})}
        assert mine.keys() == their.keys()
        for name, value in their.items():
            assert mine[name].shape == value.shape
            assert mine[name].dtype == value.dtype
            own = mine[name].to(value.device)  # a captured step counts on the device
            close = torch.allclose(own, value, rtol=1e-3, atol=1e-5, equal_nan=True)
            assert close, f"{name} of parameter {i}"


# Of parameters that torch's Adagrad, before torch 2.13, keeps no state for.
STATE_MADE_LATE = (
    "parameter replaced",
    "parameter more",
    "group more",
    "state deleted",
    "state emptied",
    "state of all deleted",
    "state reset through __setstate__",
)
with_late_state = pytest.mark.skipif(
    not torchs_adagrad_makes_state_late(), reason="this torch's Adagrad makes state only at first"
)


def marks(title: str, name: str, engine: str) -> list[pytest.MarkDecorator]:
    late = name == "AdaGrad" and title in STATE_MADE_LATE
    fused = [with_torchs_arithmetic, pytest.mark.cpu, pytest.mark.slow]
    slow = [pytest.mark.slow] * (name not in ("SGD", "Adam"))
    return fused * (engine == "fused") + [with_late_state] * late + slow


PARAMS = [
    pytest.param(s, name, engine, id=f"{title}-{name}-{engine}", marks=marks(title, name, engine))
    for title, s in SITUATIONS.items()
    for name in s.of
    for engine in s.engines
]


@pytest.mark.parametrize(("s", "name", "engine"), PARAMS)
def test_situation(s: Situation, name: str, engine: str) -> None:
    # By default many are gathered, and a few are not, as by foreach.
    for make in s.models[: 1 if engine == "default" else None]:
        case = s.case(name)
        ours = case.ours(make(), **ENGINES[engine])
        with roots_of(engine, name), small_blocks() if make is big else one_thread():
            for step, mine, theirs in side_by_side(s, ours, case.torchs(make())):
                assert_same(mine, theirs, f"{make.__name__}, step {step}")


@pytest.mark.parametrize(
    ("s", "name", "engine"),
    [
        pytest.param(
            SITUATIONS[title],
            name,
            engine,
            id=f"{title}-{name}-{engine}",
            marks=marks(title, name, engine),
        )
        for title in UP_TO_ROUNDING
        for name in SITUATIONS[title].of
        for engine in INEXACT
    ],
)
def test_situation_of_tensors_as_numbers(s: Situation, name: str, engine: str) -> None:
    for make in s.models:
        case = s.case(name)
        ours, theirs = case.ours(make(), **INEXACT[engine]), case.torchs(make())
        for p in leaves(ours):
            p.requires_grad_(False)  # a differentiable step moves no leaf that does
        for _, mine, their in side_by_side(s, ours, theirs):
            # Numbers that are tensors enter by operations of their own, which round; and what
            # centered RMSProp subtracts from one another is nearly equal.
            assert_close(mine, their)
