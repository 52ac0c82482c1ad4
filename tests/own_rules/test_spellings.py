"""However a rule is spelt, whatever state and scalars it has: it runs on every engine."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import torch_scratch_optim as scratch
from torch_scratch_optim import ScratchOptimizer

from ..cases import assert_equal_state, leaves, parameters, same_bits, train
from .common import (
    FOREACH,
    KERNEL,
    L2,
    LOOP,
    UP,
    Group,
    Rule,
    by_engine,
    by_precision,
    dense,
    has_torchs_arithmetic,
    leaf,
    of_rule,
)

pytestmark = pytest.mark.cpu  # by kernels in C++ as well


def up(p: Any, g: Any) -> None:
    p.add_(g)


def down(p: Any, g: Any) -> None:
    p.sub_(g)


@by_engine
@pytest.mark.parametrize("on", ["class", "instance"])
def test_rule_may_be_replaced_between_steps(engine: Group, on: str) -> None:
    ours = of_rule(up, [p := leaf(1, 2, 4)], **engine)
    start = p.detach().clone()
    assert p.grad is not None
    for rule, sign in ((up, 1), (down, -1), (down, -1), (up, 1)):
        setattr(
            *((type(ours), "rule", staticmethod(rule)) if on == "class" else (ours, "rule", rule))
        )
        start = start.add(p.grad, alpha=sign)
        ours.step()
        assert torch.equal(p, start)


@by_engine
def test_rules_of_one_name_and_the_same_columns_are_told_apart(engine: Group) -> None:
    def made(factor: float) -> Rule:
        def rule(p: Any, g: Any, m: Any, *, lr: Any) -> None:
            m.add_(g, alpha=factor)
            p.sub_(m)

        return rule

    both = [of_rule(made(f), [leaf(1, 2, 4)], columns="m", lr=1.0, **engine) for f in (2.0, 3.0)]
    for step in (1, 2):
        for optimizer, factor in zip(both, (2.0, 3.0), strict=True):
            (p,) = leaves(optimizer)
            assert p.grad is not None
            m = optimizer.state[p].get("state_m", torch.zeros(3)) + factor * p.grad
            expected = p.detach() - m
            optimizer.step()
            torch.testing.assert_close(p.detach(), expected)
            torch.testing.assert_close(optimizer.state[p]["state_m"], m)
            assert optimizer.state[p]["step"] == step


class RuleObject:
    """A rule may be any callable."""

    def __call__(self, p: Any, g: Any, m: Any, *, lr: Any) -> None:
        plain(p, g, m, lr=lr)


def plain(p: Any, g: Any, m: Any, *, lr: Any) -> None:
    m.mul_(0.5).add_(g)
    p.add_(m, alpha=-lr)


def with_factor(factor: Any, p: Any, g: Any, m: Any, *, lr: Any) -> None:
    plain(p, g, m, lr=lr.__mul__(factor))


def with_flag(p: Any, g: Any, m: Any, *, lr: Any, ascend: bool) -> None:
    plain(p, g.neg() if ascend else g, m, lr=lr)


def by_keyword(p: Any, g: Any, *, m: Any, lr: Any) -> None:
    plain(p, g, m, lr=lr)


def in_another_order(p: Any, g: Any, absent: Any = None, m: Any = None, *, lr: Any) -> None:
    assert absent is None
    plain(p, g, m, lr=lr)


def of_anything(p: Any, g: Any, **others: Any) -> None:
    plain(p, g, others["m"], lr=others["lr"])


def scalars_by_position(p: Any, g: Any, lr: Any, m: Any) -> None:
    plain(p, g, m, lr=lr)


SPELLINGS: dict[str, Rule] = {
    "lambda": lambda p, g, m, *, lr: plain(p, g, m, lr=lr),
    "partial": partial(plain),
    "partial of a position": partial(with_factor, 1.0),
    "partial of a flag": partial(with_flag, ascend=False),
    "object": RuleObject(),
    "by keyword": by_keyword,
    "default": in_another_order,
    "anything": of_anything,
    "scalars by position": scalars_by_position,
}


@has_torchs_arithmetic
@by_engine
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_rule_may_be_spelt_in_many_ways(spelling: str, engine: Group) -> None:
    def made(rule: Rule, engine: Group) -> ScratchOptimizer:
        return of_rule(
            rule,
            parameters(),
            columns="m",
            scalars=lambda t, group: {"lr": group["lr"]},
            lr=0.1,
            **L2,
            **UP,
            **engine,
        )

    ours, expected = made(SPELLINGS[spelling], engine), made(plain, LOOP)
    for step in train(ours, expected, steps=range(3)):
        assert_equal_state(ours, expected, f"step {step}")


def stateless(p: Any, g: Any, *, lr: Any, first: bool | None = None) -> None:
    p.add_(g.sign(), alpha=lr if first else -lr)


def five_columns(
    p: Any, g: Any, a: Any, b: Any, c: Any, d: Any, e: Any, *, lr: Any, first: bool | None = None
) -> None:
    e.copy_(d)
    d.copy_(c)
    c.copy_(b)
    b.copy_(a)
    a.copy_(g)  # the last five gradients
    p.add_(a, alpha=-lr).sub_(c.mul(d)).add_(e, alpha=lr)


def returns_early(
    p: Any, g: Any, m: Any, *, lr: Any, frozen: bool, first: bool | None = None
) -> None:
    m.add_(g)
    if frozen:
        return
    p.add_(m, alpha=-lr)


def uses_twice(p: Any, g: Any, m: Any, n: Any, *, lr: Any, first: bool | None = None) -> None:
    d = m.add(g)
    same = d.mul_(lr)  # the same tensor under two names
    before = m
    m.copy_(d)  # a copy: what d becomes later is not m's
    d.add_(n)
    n.add_(before, alpha=0.5)
    p.sub_(same).sub_(d)


OWN: dict[str, tuple[Rule, str, Group]] = {
    "stateless": (stateless, "", {}),
    "five columns": (five_columns, "abcde", {}),
    "returns": (returns_early, "m", {"frozen": True}),
    "goes on": (returns_early, "m", {"frozen": False}),
    "uses twice": (uses_twice, "mn", {}),
}


@has_torchs_arithmetic
@by_precision
@pytest.mark.parametrize("counts", [True, False], ids=["counts", "first"])
@pytest.mark.parametrize("name", OWN)
def test_rule_of_any_shape_is_the_same_by_every_engine(
    name: str, counts: bool, dtype: torch.dtype
) -> None:
    rule, columns, options = OWN[name]
    engines: list[Group] = [LOOP, FOREACH, KERNEL]
    engines = engines if dtype == torch.float32 or name == "uses twice" else engines[:2]
    twins = [
        of_rule(
            rule,
            parameters(dtype),
            columns=columns,
            counts=counts,
            scalars=lambda t, group: {k: group[k] for k in ("lr", *options)},
            lr=0.1,
            **options,
            **engine,
        )
        for engine in engines
    ]
    start = [p.detach().clone() for p in leaves(twins[0])]
    for step in train(*twins, steps=range(7)):
        for twin in twins[1:]:
            assert_equal_state(twin, twins[0], f"step {step}")
    p = leaves(twins[0])[0]
    assert torch.equal(p, start[0]) is (name == "returns")
    expected = ["step"] * counts + [f"state_{symbol}" for symbol in columns]
    assert list(twins[0].state.get(p, {})) == expected


def test_rule_remembers_the_last_gradients_in_their_order() -> None:
    ours = of_rule(five_columns, [p := leaf(1, 2)], columns="abcde", lr=0.1, **KERNEL)
    gradients = [torch.tensor([float(i), -0.5 * i]) for i in range(1, 8)]
    for p.grad in gradients:
        ours.step()
    for symbol, g in zip("abcde", reversed(gradients), strict=False):
        assert torch.equal(ours.state[p][f"state_{symbol}"], g)


COLUMN_NAMES = {
    "words of C": ["int", "double", "new", "this", "std", "sqrt", "fma", "load", "update"],
    "words of the kernel": ["numbers", "rows", "i", "v0", "c0", "column0", "T", "X", "NUMBERS"],
    "Greek": ["μ", "ν", "x2", "x3", "x4", "ψ"],
    "alike": ["m", "m_", "_m", "__m", "M"],
}
NUMBER_NAMES = {
    "words of C": ["float", "char", "delete", "pow", "NAN"],
    "words of the kernel": ["v1", "c1", "begin", "end", "COLUMNS", "x_"],
    "Greek": ["α", "β", "γ", "δ", "ε", "x0", "x1", "λ"],
    "alike": ["lr", "lr_", "gradient_l2", "gradient_maximize", "gradient_inverse_scale"],
}


@has_torchs_arithmetic
@pytest.mark.parametrize("kind", COLUMN_NAMES)
def test_state_and_scalars_may_have_any_name(kind: str) -> None:
    numbers = {name: 0.3 + 0.1 * i for i, name in enumerate(NUMBER_NAMES[kind])}

    def rule(p: Any, g: Any, **others: Any) -> None:
        for i, column in enumerate(COLUMN_NAMES[kind]):
            others[column].add_(p, alpha=i + 1)
            for number in numbers:
                others[column].mul_(others[number]).add_(g)
            p.sub_(others[column])

    kernel, loop = (
        of_rule(
            rule,
            dense()[:1],
            columns=COLUMN_NAMES[kind],
            scalars=lambda t, group: numbers,
            **L2,
            **engine,
        )
        for engine in (KERNEL, LOOP)
    )
    for step in train(kernel, loop, steps=range(3)):
        assert_equal_state(kernel, loop, f"step {step}")


def mixed(p: Any, g: Any, m: Any, *, lr: Any, beta: Any) -> None:
    m.mul_(beta).add_(g)
    p.add_(m, alpha=-lr)


@has_torchs_arithmetic
@pytest.mark.parametrize("engine", [LOOP, KERNEL], ids=["loop", "kernel"])
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_state_may_have_a_dtype_of_its_own(kind: torch.dtype, engine: Group) -> None:
    ours = of_rule(mixed, parameters(), columns="m", lr=0.1, beta=0.7, **engine)
    for p in leaves(ours):
        m = torch.linspace(-1, 2, p.numel()).view(p.shape).to(kind)
        ours.state[p] = {"step": torch.tensor(0.0), "state_m": m}
    expected = [(p.detach().clone(), ours.state[p]["state_m"].clone()) for p in leaves(ours)]
    rounds = engine == LOOP and kind.itemsize == 2
    for step in train(ours, steps=range(4)):
        for p, (q, m) in zip(leaves(ours), expected, strict=True):
            assert p.grad is not None
            # In a kernel half precision is float32 until it is stored.
            work = torch.float64 if kind == torch.float64 else torch.float32
            wide = m.to(work).mul(0.7)
            wide = (wide.to(kind).to(work) if rounds else wide) + p.grad.to(work)
            wide = wide.to(kind).to(work) if rounds else wide
            m.copy_(wide)
            q.copy_(q.to(work).add(wide, alpha=-0.1))
            assert ours.state[p]["state_m"].dtype == kind
            assert same_bits(ours.state[p]["state_m"], m), f"step {step}"
            assert same_bits(p, q), f"step {step}"


@pytest.mark.parametrize("engine", [{"foreach": False}, {"foreach": True}, KERNEL], ids=str)
def test_rule_may_be_a_method(engine: dict[str, Any]) -> None:
    def rule(self: ScratchOptimizer, p: Any, g: Any, *, lr: float, **_: Any) -> None:
        p.add_(g, alpha=-lr)

    kind: Any = type("Own", (scratch.ScratchSGD,), {"rule": rule})
    for sizes in ([3, 70_000], [3] * 20):
        params = [torch.linspace(1, 2, size).requires_grad_() for size in sizes]
        for i, p in enumerate(params):
            p.grad = torch.full_like(p, i + 1.0)
        before = [p.detach().clone() for p in params]
        kind(params, lr=0.5, **engine).step()
        for i, (p, q) in enumerate(zip(params, before, strict=True)):
            assert torch.equal(p, q.add(torch.full_like(q, i + 1.0), alpha=-0.5))
