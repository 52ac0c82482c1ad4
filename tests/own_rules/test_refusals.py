"""Rules that break the contract are refused at the step, and nothing moves or is counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from torch_scratch_optim import _kernels

from .common import KERNEL, NUMBER, Group, Rule, leaf, of_rule

pytestmark = pytest.mark.cpu  # by kernels in C++, the engine that refuses


def test_div_number_is_no_operation_of_a_rule() -> None:
    def rule(p: Any, g: Any) -> None:
        p.div_number_(2)

    with pytest.raises(AttributeError, match="rule uses 'div_number_'"):
        of_rule(rule, [leaf(1, 2)], **KERNEL).step()


def without_spelling(p: Any, g: Any, m: Any, *, lr: Any) -> None:
    p.add_(g.logaddexp(m), alpha=-lr)


def of_tensors_shape(p: Any, g: Any, m: Any, *, lr: Any) -> None:
    p.mul_(g.sum())


def with_operators(p: Any, g: Any, m: Any, *, lr: Any) -> None:
    p.add_(g * lr)


def writes_gradient(p: Any, g: Any, m: Any, *, lr: Any) -> None:
    p.add_(g.mul_(lr))


def branches(p: Any, g: Any, m: Any, *, lr: Any) -> None:
    if lr:
        p.add_(g)


BAD_RULES: list[tuple[Rule, type[Exception], str | None]] = [
    (
        without_spelling,
        AttributeError,
        r"mine uses 'logaddexp'.*the operations are abs, add, addcdiv",
    ),
    (of_tensors_shape, AttributeError, "mine uses 'sum'"),
    (with_operators, TypeError, None),
    (writes_gradient, TypeError, r"mine writes its gradient \(mul"),
    (branches, TypeError, f"bool.*{NUMBER} of mine"),
]
BAD_NUMBERS: dict[str, Callable[[Any], Any]] = {
    "==": lambda n: n == 1,
    "!=": lambda n: n != 1,
    "<": lambda n: n < 1,
    "<=": lambda n: n <= 1,
    ">": lambda n: n > 1,
    ">=": lambda n: n >= 1,
    "in": lambda n: n in (1, 2),
    "max()": lambda n: max(n, 0),
    "float()": float,
    "int()": int,
    "hash()": hash,
    "as a key": lambda n: {n: 1},
    "abs()": abs,
    "round()": round,
    "//": lambda n: n // 2,
    "%": lambda n: n % 2,
    "divmod()": lambda n: divmod(n, 2),
    "index": lambda n: [1, 2][n],
    "iteration": list,
    "sqrt()": math.sqrt,
    "floor()": math.floor,
    "isnan()": math.isnan,
    "not": lambda n: not n,
}


def assert_refused_whole(
    rule: Rule, error: type[Exception], words: str | None, options: Group | None = None
) -> None:
    """The second group cannot be moved, so neither is; mended, it takes its first step."""

    def either(p: Any, g: Any, m: Any, *, lr: Any, bad: bool, **others: Any) -> None:
        if bad:
            rule(p, g, m, lr=lr, **others)
        else:
            m.add_(g)
            p.add_(m, alpha=-lr)

    either.__name__ = "mine"
    p, q = leaf(1, 2, 3), leaf(4, 5, 6, 7)
    starts = [p.detach().clone(), q.detach().clone()]
    gradients = [t.grad.clone() for t in (p, q) if t.grad is not None]
    ours = of_rule(
        either,
        [p],
        columns="m",
        scalars=lambda t, group: {k: group[k] for k in ("lr", "bad", *(options or {}))},
        lr=0.5,
        bad=False,
        **(KERNEL | dict.fromkeys(options or {})),
    )
    ours.add_param_group({"params": [q], "bad": True} | (options or {}))
    for _ in range(2):  # the first failure leaves nothing behind
        with pytest.raises(error, match=words):
            ours.step()
        assert torch.equal(p, starts[0])
        assert torch.equal(q, starts[1])
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, gradients[0])
        assert torch.equal(q.grad, gradients[1])
        assert not ours.state
    ours.param_groups[1].update({"bad": False} | dict.fromkeys(options or {}))
    ours.step()
    for t, start in zip((p, q), starts, strict=True):
        assert t.grad is not None
        assert torch.equal(t, start.add(t.grad, alpha=-0.5))
        assert ours.state[t]["step"] == 1


@pytest.mark.parametrize(
    ("rule", "error", "words"), BAD_RULES, ids=lambda v: getattr(v, "__name__", "")
)
def test_rule_that_breaks_the_contract_is_refused_by_name(
    rule: Rule, error: type[Exception], words: str | None
) -> None:
    assert_refused_whole(rule, error, words)


@pytest.mark.parametrize("name", BAD_NUMBERS)
def test_number_in_a_rule_is_not_asked_for_its_value(name: str) -> None:
    def asking(p: Any, g: Any, m: Any, *, lr: Any) -> None:
        BAD_NUMBERS[name](lr)
        p.add_(g)

    assert_refused_whole(asking, TypeError, f"{NUMBER} of mine")


@pytest.mark.parametrize("name", BAD_NUMBERS)
@pytest.mark.parametrize("which", ["t", "lr", "beta"])
def test_number_in_traced_scalars_is_not_asked_for_its_value(which: str, name: str) -> None:
    def scalars(t: Any, group: Group) -> Group:
        BAD_NUMBERS[name]({"t": t, "lr": group["lr"], "beta": group["betas"][1]}[which])
        return {"lr": group["lr"]}

    form, _ = _kernels.options_of({"lr": 0.1, "betas": (0.9, 0.99)})
    if name == "not":  # what is off is no symbol, so these can say that they are on
        results, _ = _kernels.trace_scalars(scalars, form, True, "mine")
        assert results.keys() == {"lr"}
        return
    with pytest.raises(TypeError, match=f"{NUMBER} of mine"):
        _kernels.trace_scalars(scalars, form, True, "mine")


BAD_CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "add()": lambda p, g: p.add_(),
    "add(g, 2)": lambda p, g: p.add_(g, 2),
    "add(g, beta=2)": lambda p, g: p.add_(g, beta=2),
    "add(g, other=g)": lambda p, g: p.add_(g, other=g),
    "div()": lambda p, g: p.div_(),
    "mul(g, g)": lambda p, g: p.mul_(g, g),
    "mul(g, alpha=2)": lambda p, g: p.mul_(g, alpha=2),
    "neg(g)": lambda p, g: p.neg_(g),
    "sqrt(out=g)": lambda p, g: p.sqrt(out=g),
    "lerp(g)": lambda p, g: p.lerp_(g),
    "addcmul(g)": lambda p, g: p.addcmul_(g),
    "addcmul(g, g, 2)": lambda p, g: p.addcmul_(g, g, 2),
    "addcdiv(g, g, 2)": lambda p, g: p.addcdiv_(g, g, 2),
    "addcdiv(g, g, alpha=2)": lambda p, g: p.addcdiv_(g, g, alpha=2),
    "clamp_min()": lambda p, g: p.clamp_min_(),
    "mul(None)": lambda p, g: p.mul_(None),
    "mul('2')": lambda p, g: p.mul_("2"),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_operation_with_wrong_arguments_is_refused_as_tensors_refuse_it(call: str) -> None:
    p, g = leaf(1, 2).detach(), leaf(3, 4).detach()
    with pytest.raises((TypeError, RuntimeError)):
        BAD_CALLS[call](p, g)

    def calling(p: Any, g: Any, m: Any, *, lr: Any) -> None:
        BAD_CALLS[call](p, g)

    assert_refused_whole(calling, TypeError, "mine.*" + call.partition("(")[0])


def takes_string(p: Any, g: Any, m: Any, *, lr: Any, mode: Any) -> None:
    p.add_(g, alpha=-lr)


def compares_string(p: Any, g: Any, m: Any, *, lr: Any, mode: Any) -> None:
    p.add_(g, alpha=-lr if mode == "down" else lr)


@pytest.mark.parametrize("rule", [takes_string, compares_string])
def test_scalar_that_is_a_string_is_refused(rule: Rule) -> None:
    assert_refused_whole(rule, TypeError, None, {"mode": "down"})
