"""Rules of users' own, on every engine: torch's bits by loop and foreach, IEEE's by the kernel."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_scratch_optim import ScratchOptimizer

from ..cases import FLOATS, assert_equal_state, leaves, parameters, same_bits, train
from .common import (
    DOUBLE_AND_SINGLE,
    FOREACH,
    KERNEL,
    LOOP,
    OPTIONS,
    Group,
    by_engine,
    dense,
    descend,
    has_torchs_arithmetic,
    in_words,
    make,
    make_twin,
    of_rule,
    rounded_sqrt,
)
from .other_rules import TWINS, Adamax, Lion, RAdam


@pytest.mark.parametrize(
    ("kind", "options", "dtype"),
    [(kind, options, torch.float32) for kind in TWINS for options in OPTIONS[kind]]
    + [(kind, o, d) for kind in TWINS for o in ({}, OPTIONS[kind][-1]) for d in FLOATS[1:]],
    ids=in_words,
)
def test_own_rule_has_the_bits_of_torchs_loop(
    kind: type[ScratchOptimizer], options: Group, dtype: torch.dtype
) -> None:
    theirs = make_twin(kind, parameters(dtype), **options)
    loop = make(kind, parameters(dtype), **options, **LOOP)
    foreach = make(kind, parameters(dtype), **options, **FOREACH)
    for step in train(theirs, loop, foreach, steps=range(20)):
        assert_equal_state(loop, theirs, f"step {step} by the loop")
        assert_equal_state(foreach, theirs, f"step {step} by foreach")


@pytest.mark.parametrize(
    ("kind", "options"), [(k, o) for k, table in OPTIONS.items() for o in table], ids=in_words
)
def test_own_rule_is_given_each_option(kind: type[ScratchOptimizer], options: Group) -> None:
    with_it, without = make(kind, parameters(), **options), make(kind, parameters())
    for _ in train(with_it, without, steps=range(8)):
        pass
    same = [same_bits(p, q) for p, q in zip(leaves(with_it), leaves(without), strict=True)]
    assert all(same) is not bool(options)


@pytest.mark.parametrize("kind", TWINS, ids=in_words)
def test_own_rule_has_torchs_groups_and_exchanges_checkpoints(
    kind: type[ScratchOptimizer],
) -> None:
    options = OPTIONS[kind][-1]
    ours, theirs = make(kind, parameters(), **options), make_twin(kind, parameters(), **options)
    assert ours.defaults.keys() == theirs.defaults.keys()
    for round in range(3):
        for _ in train(ours, theirs, steps=range(4 * round, 4 * round + 4)):
            pass
        a, b = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
        assert a["param_groups"][0].keys() == b["param_groups"][0].keys()
        ours.load_state_dict(b)
        theirs.load_state_dict(a)
        assert_equal_state(ours, theirs, f"round {round}")
        # Ours leaves open what torch does by foreach, with other bits on a GPU.
        theirs.param_groups[0]["foreach"] = False


@pytest.mark.cpu  # by kernels in C++ as well
@has_torchs_arithmetic
@pytest.mark.parametrize(
    ("kind", "options", "dtype"),
    [(kind, OPTIONS[kind][-1], dtype) for kind in OPTIONS for dtype in DOUBLE_AND_SINGLE]
    + [(kind, {}, torch.float32) for kind in OPTIONS],
    ids=in_words,
)
def test_fused_own_rule_is_the_rule_in_ieee_arithmetic(
    kind: type[ScratchOptimizer],
    options: Group,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Tensor, "sqrt", rounded_sqrt)
    monkeypatch.setattr(Tensor, "sqrt_", lambda x: x.copy_(rounded_sqrt(x)))
    kernel = make(kind, parameters(dtype), **options, **KERNEL)
    loop = make(kind, parameters(dtype), **options, **LOOP)
    for step in train(kernel, loop, steps=range(20)):
        assert_equal_state(kernel, loop, f"step {step}")


@pytest.mark.cpu  # by kernels in C++ as well
@has_torchs_arithmetic
@by_engine
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0, 0.3])
def test_weight_decay_and_maximize_come_for_nothing(
    engine: Group, weight_decay: float, maximize: bool
) -> None:
    ours = of_rule(
        descend, parameters(), lr=0.1, weight_decay=weight_decay, maximize=maximize, **engine
    )
    for _ in train(ours, steps=range(3)):
        expected = []
        for p in leaves(ours):
            assert p.grad is not None
            g = -p.grad if maximize else p.grad
            g = g.add(p, alpha=weight_decay) if weight_decay else g
            expected.append(p.detach().add(g, alpha=-0.1))
        ours.step()
        for p, value in zip(leaves(ours), expected, strict=True):
            assert same_bits(p, value)


@pytest.mark.cpu  # by kernels in C++ as well
@by_engine
@pytest.mark.parametrize("kind", [Lion, RAdam], ids=in_words)
def test_decoupled_weight_decay_is_not_added_to_the_gradient_as_well(
    engine: Group, kind: type[ScratchOptimizer]
) -> None:
    options = {"decoupled_weight_decay": True} if kind is RAdam else {}
    ours = make(kind, parameters(), lr=0.25, weight_decay=0.5, **options, **engine)
    starts = [p.detach().clone() for p in leaves(ours)]
    for p in leaves(ours):
        p.grad = torch.zeros_like(p)
    ours.step()
    for p, start in zip(leaves(ours), starts, strict=True):
        assert same_bits(p, start * 0.875)
        assert not ours.state[p]["exp_avg"].any()


@pytest.mark.cpu  # by kernels in C++ as well
@has_torchs_arithmetic
@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.3},
        {"betas": (0.4, 0.999)},
        {"betas": (0.9, 0.5)},
        {"eps": 0.7},
        {"weight_decay": 0.6},
        {"weight_decay": 0},
        {"maximize": True},
        {"lr": torch.tensor(0.3)},
        {"lr": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("params", [parameters, dense])
def test_fused_step_uses_the_numbers_of_that_step(
    change: Group, params: Callable[[], list[Tensor]]
) -> None:
    kernel = Adamax(params(), lr=0.01, weight_decay=0.2, **KERNEL)
    loop = Adamax(params(), lr=0.01, weight_decay=0.2, **LOOP)
    unchanged = Adamax(params(), lr=0.01, weight_decay=0.2, **LOOP)
    for step in train(kernel, loop, unchanged, steps=range(6)):
        assert_equal_state(kernel, loop, f"step {step}")
        if step in (1, 3):
            for optimizer in (kernel, loop):
                old = {name: optimizer.param_groups[0][name] for name in change}
                optimizer.param_groups[0].update(change)
            change = old
    assert not same_bits(leaves(kernel)[0], leaves(unchanged)[0])
