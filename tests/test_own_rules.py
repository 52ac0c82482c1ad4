"""Rules of users' own, on every engine: torch's bits by loop and foreach, IEEE's by the kernel."""

from __future__ import annotations

import copy
import ctypes
import inspect
import itertools
import math
import platform
import subprocess
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import torch_scratch_optim as scratch
from torch_scratch_optim import ScratchOptimizer, _kernels
from torch_scratch_optim._cpp import require_compiler
from torch_scratch_optim._symbols import OPERATIONS

from . import cases
from .cases import FLOATS, assert_equal_state, leaves, parameters, same_bits, train
from .other_rules import TWINS, Adadelta, Adamax, Lion, RAdam, Rprop

Group = dict[str, Any]
Rule = Callable[..., Any]
Make = Callable[..., ScratchOptimizer]

LOOP: Group = {"foreach": False}
FOREACH: Group = {"foreach": True}
KERNEL: Group = {"fused": True}
by_engine = pytest.mark.parametrize(
    "engine", [LOOP, FOREACH, KERNEL], ids=["loop", "foreach", "kernel"]
)
DOUBLE_AND_SINGLE = [torch.float32, torch.float64]
by_precision = pytest.mark.parametrize("dtype", DOUBLE_AND_SINGLE, ids=str)
has_torchs_arithmetic = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64")
    or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="the arithmetic of a CPU kernel is that of torch's loop on x86-64 with AVX2 or AVX512",
)

L2: Group = {"weight_decay": 0.1}
UP: Group = {"maximize": True}
DECOUPLED: Group = {"decoupled_weight_decay": True} | L2
OPTIONS: dict[type[ScratchOptimizer], list[Group]] = {
    Adadelta: [{}, {"lr": 0.1}, {"rho": 0.5}, {"eps": 0.1}, L2, UP, L2 | UP],
    Adamax: [{}, {"lr": 0.1}, {"betas": (0.5, 0.7)}, {"eps": 0.1}, L2, UP, L2 | UP],
    RAdam: [
        {},
        {"lr": 0.1},
        {"betas": (0.5, 0.9)},
        {"betas": (0.5, 0.5)},  # never rectified
        {"eps": 0.1},
        L2,
        UP,
        DECOUPLED,
        L2 | UP,
        DECOUPLED | UP,
    ],
    Rprop: [
        {},
        {"lr": 0.1},
        {"etas": (0.7, 1.5)},
        {"step_sizes": (0.009, 0.013)},
        UP,
        {"etas": (0.7, 1.5), "step_sizes": (0.009, 0.013)} | UP,
    ],
    Lion: [{}, {"lr": 0.1}, {"betas": (0.5, 0.7)}, L2, UP, L2 | UP],
}


def in_words(value: object) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


def make(kind: type[ScratchOptimizer], params: Any, **options: Any) -> ScratchOptimizer:
    made: Any = kind
    optimizer: ScratchOptimizer = made(params, **options)
    return optimizer


def make_twin(kind: type[ScratchOptimizer], params: Any, **options: Any) -> Optimizer:
    twin: Any = TWINS[kind]
    optimizer: Optimizer = twin(params, **({"foreach": False} | options))
    return optimizer


def of_rule(
    rule: Rule,
    params: list[Tensor],
    *,
    columns: Sequence[str] = (),
    scalars: Callable[[Any, Group], Group] | None = None,
    counts: bool = True,
    **options: Any,
) -> ScratchOptimizer:
    """An optimizer of a rule; its scalars are those options that the rule has as keywords."""
    keywords = [
        p.name for p in inspect.signature(rule).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]

    class Own(ScratchOptimizer):
        counts_steps = counts

        def columns(self, group: Group) -> dict[str, str]:
            return {symbol: f"state_{symbol}" for symbol in columns}

        def scalars(self, t: float, group: Group) -> Group:
            if scalars is not None:
                return scalars(t, group)
            return {name: group[name] for name in keywords if name in group}

    Own.rule = staticmethod(rule)
    return Own(params, options)


def leaf(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    p = torch.tensor(values, dtype=dtype, requires_grad=True)
    p.grad = torch.linspace(-1, 0.7, p.numel(), dtype=dtype)
    return p


def dense() -> list[Tensor]:
    """Of one kind and laid out alike, so that the engine has less to do for them."""
    return [torch.linspace(-1, 2, n).requires_grad_() for n in (64, 3, 1, 200)]


def same_values(a: Tensor, b: Tensor) -> bool:
    """The same bits, but NaN is NaN: no operation fixes the bits of one that it makes."""
    return torch.equal(a.isnan(), b.isnan()) and same_bits(
        a.masked_fill(a.isnan(), 0.5), b.masked_fill(b.isnan(), 0.5)
    )


# By the loop and by foreach


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


# By the kernel


def rounded_sqrt(x: Tensor) -> Tensor:
    """The root to the last bit, which torch's own on a CPU is not.

    The C library rounds a root of a double correctly, and that of a float through double, too.
    """
    roots = [math.sqrt(v) if v >= 0 else math.nan for v in x.double().flatten().tolist()]
    return torch.tensor(roots, dtype=torch.float64).view(x.shape).to(x.dtype)


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


def descend(p: Tensor, g: Tensor, *, lr: float) -> None:
    p.add_(g, alpha=-lr)


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


@pytest.mark.parametrize("options", [{}, L2 | UP], ids=str)
def test_gradscaler_comes_for_nothing(options: Group) -> None:
    scaled = of_rule(descend, [p := leaf(1, 2, 3, 4)], lr=0.1, **options, **KERNEL)
    plain = of_rule(descend, [q := leaf(1, 2, 3, 4)], lr=0.1, **options, **KERNEL)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        slope, infinite = torch.tensor([0.3, -1.7, 0.9, 5.0 - step]), step == 2
        p.grad = q.grad = None
        scaler.scale((p * slope).sum() * (torch.inf if infinite else 1)).backward()
        before, steps = p.detach().clone(), copy.deepcopy(scaled.state_dict()["state"])
        scaler.step(scaled)
        scaler.update()
        if infinite:
            assert same_bits(p, before)
            assert scaled.state_dict()["state"] == steps
        else:
            (q * slope).sum().backward()
            plain.step()
            assert not torch.equal(p, before)
        assert_equal_state(scaled, plain, f"step {step}")  # the scale is a power of two
    assert scaler.get_scale() == 512


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


# The operations


class Form(NamedTuple):
    """An operation on x, with columns "y" and "z" or with numbers."""

    operation: str
    arguments: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()
    ulp: int = 0

    def __str__(self) -> str:
        words = [*map(str, self.arguments), *(f"{k}={v}" for k, v in self.named)]
        return f"{self.operation}({', '.join(words)})"

    def numbers(self) -> list[float]:
        given = [*self.arguments, *dict(self.named).values()]
        return [v for v in given if not isinstance(v, str)]

    def apply(self, x: Any, values: Callable[[Any], Any], in_place: bool = False) -> Any:
        method = getattr(x, self.operation + "_" * in_place)
        return method(*map(values, self.arguments), **{k: values(v) for k, v in self.named})


# torch computes these with SLEEF or MKL, whose error is up to 1 ulp, and a kernel with the C
# library, whose error is below 1 ulp.
TRANSCENDENTAL = [
    Form("exp", ulp=2),
    Form("log", ulp=2),
    Form("pow", (2.5,), ulp=2),
    Form("pow", (-1.5,), ulp=2),
    Form("pow", (), (("exponent", 0.3),), ulp=2),
    Form("pow", ("y",), ulp=2),
]
FORMS = [
    *map(Form, ["neg", "abs", "sign", "sqrt", "rsqrt", "reciprocal"]),
    *[Form("pow", (n,)) for n in (2, 3, 0.5, -0.5, -1, -2, 0, 1, 2.0, 3.0)],
    *TRANSCENDENTAL,
    Form("copy", ("y",)),
    *[Form(o, ("y",)) for o in ("add", "sub", "mul", "div")],
    *[Form(o, (n,)) for o in ("add", "sub", "mul", "div") for n in (0.7, -3, 0.0, -0.0, math.inf)],
    *[Form(o, ("y",), (("alpha", n),)) for o in ("add", "sub") for n in (0.7, -1, 2, 0.0)],
    *[Form(o, (0.3,), (("alpha", -0.7),)) for o in ("add", "sub")],
    *[Form(o, ("y",)) for o in ("maximum", "minimum", "clamp_min", "clamp_max")],
    *[Form(o, (n,)) for o in ("clamp_min", "clamp_max") for n in (0.7, 0, -2.5, math.nan)],
    Form("clamp_min", (), (("min", 0.3),)),
    Form("clamp_max", (), (("max", -0.3),)),
    *[Form("lerp", ("y", n)) for n in (0.3, 0.5, 0.8, -0.4, 1, 0)],
    Form("lerp", ("y", "z")),
    Form("lerp", (), (("end", "y"), ("weight", 0.1))),
    *[Form(o, ("y", "z")) for o in ("addcmul", "addcdiv")],
    *[Form(o, ("y", "z"), (("value", n),)) for o in ("addcmul", "addcdiv") for n in (1, -1, 0.7)],
    Form("addcmul", (), (("tensor1", "y"), ("tensor2", "z"), ("value", 0.3))),
    Form("addcdiv", (), (("tensor1", "y"), ("tensor2", "z"), ("value", 0.3))),
    *[Form(o, (), (("other", "y"),)) for o in ("add", "mul", "div")],
    *[Form(o, (), (("other", 0.6),)) for o in ("add", "mul", "div")],
]
CHUNKS = 3
BY_VALUE = ("maximum", "minimum", "clamp_min", "clamp_max")
assert len(set(map(str, FORMS))) == len(FORMS)


def test_every_operation_has_a_form_here() -> None:
    spelt = {name for name in OPERATIONS["cpu"] if not name.endswith("_number")}
    assert {form.operation for form in FORMS} == spelt


@lru_cache
def operands(dtype: torch.dtype) -> dict[str, Tensor]:
    """Distinct triples of every pair of special values, and of numbers of many sizes."""
    info = torch.finfo(dtype)
    denormal = info.smallest_normal / 1024
    special = [0.0, 1.0, 0.5, 2.5, 3.0, denormal, info.smallest_normal, info.max, math.inf]
    special += [-v for v in special] + [math.nan]
    random = torch.Generator().manual_seed(4)
    x, y = torch.tensor(list(itertools.product(special, special)), dtype=dtype).unbind(1)
    z = y[torch.randperm(len(y), generator=random)]
    columns = {}
    # 768 in all: torch's code for the end of a tensor, which fills no vector, rounds differently.
    drawn_too = 768 - len(x)
    for name, values in {"x": x, "y": y, "z": z}.items():
        sizes = 10 ** (torch.rand(drawn_too, generator=random, dtype=torch.float64) * 6 - 4)
        drawn = torch.randn(drawn_too, generator=random, dtype=torch.float64) * sizes
        columns[name] = torch.cat([values, drawn.to(dtype)])
    return columns


def ways(form: Form) -> list[tuple[str, bool, bool]]:
    """How a form is asked of a kernel: its name, whether in place, and whether its numbers are
    the rule's scalars instead of literals."""
    return [
        (f"{'in place' if in_place else 'new'}, {'scalars' if given else 'literals'}", *way)
        for way in itertools.product((False, True), (False, True) if form.numbers() else (False,))
        for in_place, given in [way]
    ]


@lru_cache
def by_kernel(chunk: int, dtype: torch.dtype) -> dict[tuple[str, str], Tensor]:
    """The results of some forms, from one kernel that has a column for each."""
    asked = [(f, *way) for f in FORMS[chunk::CHUNKS] for way in ways(f)]
    numbers = {repr(n): n for form, *_ in asked for n in form.numbers()}
    names = {text: f"n{i}" for i, text in enumerate(numbers)}

    def rule(p: Any, g: Any, x: Any, y: Any, z: Any, **others: Any) -> None:
        columns = {"y": y, "z": z}
        for i, (form, _, in_place, given) in enumerate(asked):

            def value(argument: Any, given: bool = given) -> Any:
                if isinstance(argument, str):
                    return columns[argument]
                return others[names[repr(argument)]] if given else argument

            if in_place:
                form.apply(others[f"r{i}"].copy_(x), value, True)
            else:
                result = x if form.operation == "copy" else form.apply(x, value)
                others[f"r{i}"].copy_(result)

    p = torch.zeros_like(operands(dtype)["x"]).requires_grad_()
    p.grad = torch.zeros_like(p)
    results = [f"r{i}" for i in range(len(asked))]
    optimizer = of_rule(
        rule,
        [p],
        columns=["x", "y", "z", *results],
        scalars=lambda t, group: {names[text]: n for text, n in numbers.items()},
        **KERNEL,
    )
    optimizer.state[p] = {"step": torch.tensor(0.0)} | {
        f"state_{symbol}": torch.full_like(p, 77.0).detach() for symbol in results
    }
    for symbol, column in operands(dtype).items():
        optimizer.state[p][f"state_{symbol}"] = column.clone()
    optimizer.step()
    return {
        (str(form), way): optimizer.state[p][f"state_{symbol}"]
        for symbol, (form, way, *_) in zip(results, asked, strict=True)
    }


def by_torch(form: Form, dtype: torch.dtype) -> Tensor:
    x, y, z = operands(dtype).values()
    root = {("pow", (0.5,)): "sqrt", ("pow", (-0.5,)): "rsqrt"}.get(form[:2], form.operation)
    if root == "sqrt":
        return rounded_sqrt(x)
    if root == "rsqrt":
        return 1 / rounded_sqrt(x)
    if form.operation == "copy":
        return y
    result: Tensor = form.apply(x, lambda v: {"y": y, "z": z}.get(v, v))
    return result


def ordered(t: Tensor) -> Tensor:
    """Integers in the order of the numbers, without a gap; −0 comes just before 0."""
    kind, least = (torch.int32, -(2**31)) if t.dtype == torch.float32 else (torch.int64, -(2**63))
    bits = t.view(kind)
    return torch.where(bits >= 0, bits, least - bits - 1).to(torch.int64)


@by_precision
@pytest.mark.parametrize(
    ("chunk", "form"), [(i % CHUNKS, form) for i, form in enumerate(FORMS)], ids=str
)
@has_torchs_arithmetic
def test_operation_in_a_cpu_kernel_is_torchs(chunk: int, form: Form, dtype: torch.dtype) -> None:
    expected = by_torch(form, dtype)
    x, y, z = operands(dtype).values()
    for way, in_place, _ in ways(form):
        if form.operation == "copy" and not in_place:
            continue  # tensors have it in place alone
        result = by_kernel(chunk, dtype)[str(form), way]
        apart = ordered(result) - ordered(expected)
        if form.operation in BY_VALUE:  # of 0 and −0 torch's choice depends on the place in memory
            apart[result == expected] = 0
        wrong = (apart.abs() > form.ulp) & ~(result.isnan() & expected.isnan())
        assert not [
            f"{way}: x={x[i]:.17g} y={y[i]:.17g} z={z[i]:.17g}: {result[i]:.17g}, "
            f"not {expected[i]:.17g}"
            for i in wrong.nonzero().flatten().tolist()
        ]


# Errors: at the step, with nothing moved and nothing counted


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


NUMBER = "known only when the kernel"
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


# Numbers


SPECIAL_NUMBERS = [
    -1, 3, 0, -0.0, 0.1, 1e-300, 1e-42, -2.0**70, 3e38, math.pi, math.inf, -math.inf, math.nan
]  # fmt: skip
TAKING_NUMBERS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "mul": lambda x, g, n: x.mul_(n),
    "div": lambda x, g, n: x.div_(n),
    "add": lambda x, g, n: x.add_(n),
    "alpha": lambda x, g, n: x.add_(g, alpha=n),
    "addcmul": lambda x, g, n: x.addcmul_(g, g, value=n),
    "addcdiv": lambda x, g, n: x.addcdiv_(g, x, value=n),
    "lerp": lambda x, g, n: x.lerp_(g, n),
    "clamp_min": lambda x, g, n: x.clamp_min_(n),
}


@has_torchs_arithmetic
@by_precision
@pytest.mark.parametrize("literal", [True, False], ids=["literals", "scalars"])
def test_special_numbers_are_what_they_are_to_the_loop(literal: bool, dtype: torch.dtype) -> None:
    numbers = {f"n{i}": n for i, n in enumerate(SPECIAL_NUMBERS)}
    asked = {f"{word}_{name}": (word, name) for word in TAKING_NUMBERS for name in numbers}

    def rule(p: Any, g: Any, **others: Any) -> None:
        for column, (word, name) in asked.items():
            number = numbers[name] if literal else others[name]
            TAKING_NUMBERS[word](others[column].copy_(p), g, number)

    states = []
    for engine in (LOOP, KERNEL):
        # Of a vector's length, for torch's code for the end of a tensor rounds differently.
        p = torch.linspace(-2, 3, 64, dtype=dtype).requires_grad_()
        p.grad = torch.linspace(3, -1.7, 64, dtype=dtype)
        ours = of_rule(
            rule,
            [p],
            columns=list(asked),
            scalars=lambda t, group: {} if literal else numbers,
            **engine,
        )
        ours.step()
        states.append(ours.state[p])
    for column, (word, name) in asked.items():
        loop, kernel = (state[f"state_{column}"] for state in states)
        assert same_values(loop + 0, kernel + 0), (word, numbers[name])  # −0: see `BY_VALUE`


def of_scalar(p: Any, g: Any, *, lr: Any) -> None:
    p.add_(g, alpha=lr)


def of_literal(p: Any, g: Any, *, lr: Any) -> None:
    p.add_(g, alpha=1e300)


@by_engine
@pytest.mark.parametrize("rule", [of_scalar, of_literal])
def test_number_beyond_float32_is_refused_as_torch_refuses_it(rule: Rule, engine: Group) -> None:
    ours = of_rule(rule, [p := leaf(1, 2, 3)], lr=1e300, **engine)
    with pytest.raises(RuntimeError, match="cannot be converted to type float without overflow"):
        ours.step()
    assert torch.equal(p, leaf(1, 2, 3))
    assert not ours.state[p] or ours.state[p]["step"] == 0


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


# Which rule it is


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


# Scalars worked out in C, as steps counted on a device use them


COUNTED: list[tuple[str, Make, Group]] = [
    *[(str(case), case.ours, {}) for case in cases.CASES],
    *[
        (f"{kind.__name__},{options}", partial(make, kind), options)
        for kind in (Adadelta, Adamax, Rprop, Lion)  # RAdam decides by the step
        for options in OPTIONS[kind]
    ],
]
COUNTS = [1.0, 2.0, 3.0, 10.0, 1000.0, 100_000.0]


def in_c(forms: Sequence[tuple[Any, Any, bool]], folder: Path) -> list[tuple[Group, Any]]:
    """Scalars of optimizers as one library computes them, from a count and options."""
    lines = ["#include <cmath>", "#include <cstdint>", "#include <cstring>", "using namespace std;"]
    lines += ["#define INLINE static inline"]
    lines += [Path(_kernels.__file__).with_name("kernel_types.h").read_text(encoding="utf-8")]
    traced = []
    for i, (scalars, form, counts) in enumerate(forms):
        results, text = _kernels.trace_scalars(scalars, form, counts, f"case_{i}")
        traced.append(results)
        lines += ["#undef OPTIONS", "#undef COUNTS", f"namespace case_{i} {{", *text, "}"]
        lines += [f'extern "C" void at_{i}(double t, const int64_t* options, double* numbers) {{']
        lines += [f"  case_{i}::numbers_at(t, options, numbers);", "}"]
    source, library = folder / "scalars.cpp", folder / "scalars.so"
    source.write_text("\n".join(lines), encoding="utf-8")
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "-w"]
    subprocess.run([*require_compiler(), *flags, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    functions: list[tuple[Group, Any]] = []
    for i, results in enumerate(traced):
        function = getattr(loaded, f"at_{i}")
        function.argtypes = [ctypes.c_double, ctypes.c_void_p, ctypes.c_void_p]
        functions.append((results, function))
    return functions


def evaluate(results: Group, function: Any, t: float, words: list[int]) -> Group:
    options, numbers = array("q", [*words, 0]), array("d", [math.nan] * (len(results) + 1))
    function(t, options.buffer_info()[0], numbers.buffer_info()[0])
    values = iter(numbers)
    return {
        name: value if value is None or isinstance(value, bool) else next(values)
        for name, value in results.items()
    }


def to_the_last_bit(scalars: Group) -> Group:
    return {
        name: value if value is None or isinstance(value, bool) else float(value).hex()
        for name, value in scalars.items()
    }


def test_scalars_in_c_are_those_in_python(tmp_path: Path) -> None:
    made = [make_one([leaf(1, 2)], **options) for _, make_one, options in COUNTED]
    given = [_kernels.options_of(optimizer.param_groups[0]) for optimizer in made]
    functions = in_c(
        [(o.scalars, form, o.counts_steps) for o, (form, _) in zip(made, given, strict=True)],
        tmp_path,
    )
    for (name, *_), optimizer, (_, words), (results, function) in zip(
        COUNTED, made, given, functions, strict=True
    ):
        scalars: Callable[..., Group] = optimizer.scalars
        for t in COUNTS:
            expected = scalars(t if optimizer.counts_steps else None, optimizer.param_groups[0])
            computed = evaluate(results, function, t, words)
            assert to_the_last_bit(computed) == to_the_last_bit(expected), f"{name} at step {t}"


TENSORS: list[tuple[Make, Group, list[str]]] = [
    (scratch.ScratchSGD, {"lr": 0.3, "weight_decay": 0.1}, ["lr"]),
    (scratch.ScratchAdaGrad, {"lr": 0.3, "lr_decay": 0.01}, ["lr"]),
    (scratch.ScratchRMSProp, {"lr": 0.3, "alpha": 0.7}, ["lr"]),
    (scratch.ScratchAdam, {"lr": 0.3}, ["lr"]),
    (scratch.ScratchAdam, {"lr": 0.3, "betas": (0.7, 0.9)}, ["betas"]),
    (scratch.ScratchAdam, {"lr": 0.3, "betas": (0.7, 0.9)}, ["lr", "betas"]),
    (scratch.ScratchAdamW, {"lr": 0.3, "weight_decay": 0.1}, ["lr"]),
    (Adamax, {"lr": 0.3}, ["lr"]),
    (Lion, {"lr": 0.3, "weight_decay": 0.1}, ["lr"]),
]


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    return tuple(map(change, value)) if isinstance(value, tuple) else change(value)


@by_precision
def test_scalars_in_c_round_as_options_that_are_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    made, forms, given = [], [], []
    for make_one, options, names in TENSORS:
        tensors = {n: each(options[n], partial(torch.tensor, dtype=dtype)) for n in names}
        optimizer = make_one([leaf(1, 2)], **(options | tensors))
        # Only on a device do options stay tensors. Meta tensors stay so, too; their addresses are
        # zero, and those of the true ones are put in.
        elsewhere = {n: each(value, lambda t: t.to("meta")) for n, value in tensors.items()}
        form, words = _kernels.options_of(optimizer.param_groups[0] | elsewhere)
        addresses: list[int] = []
        for name in optimizer.param_groups[0]:
            value = tensors.get(name, ())
            addresses += map(Tensor.data_ptr, value if isinstance(value, tuple) else (value,))
        assert words.count(0) == len(addresses) > 0
        remaining = iter(addresses)
        made.append(optimizer)
        given.append([next(remaining) if word == 0 else word for word in words])
        forms.append((optimizer.scalars, form, optimizer.counts_steps))
    for (*_, names), optimizer, words, (results, function) in zip(
        TENSORS, made, given, in_c(forms, tmp_path), strict=True
    ):
        scalars: Callable[..., Group] = optimizer.scalars
        for t in COUNTS:
            expected = scalars(t if optimizer.counts_steps else None, optimizer.param_groups[0])
            computed = evaluate(results, function, t, words)
            if "betas" not in names:
                assert to_the_last_bit(computed) == to_the_last_bit(expected), (optimizer, t)
                continue
            # torch's power of a tensor is SLEEF's, not that of the C library: 1 ulp.
            ulp = 2 * torch.finfo(dtype).eps
            assert computed.keys() == expected.keys()
            for name, value in expected.items():
                own = value if value is None else pytest.approx(float(value), rel=ulp)
                assert computed[name] == own, (optimizer, t, name)


def test_scalars_that_decide_by_the_step_cannot_be_counted_on_a_device() -> None:
    ours = RAdam([leaf(1, 2)])
    form, _ = _kernels.options_of(ours.param_groups[0])
    with pytest.raises(TypeError, match=f"{NUMBER} of radam"):
        _kernels.trace_scalars(ours.scalars, form, True, "radam")


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
