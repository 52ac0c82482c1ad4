"""Each operation that a rule may use, in a kernel for a CPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from torch_scratch_optim._symbols import OPERATIONS

from .common import (
    KERNEL,
    LOOP,
    Group,
    Rule,
    by_engine,
    by_precision,
    has_torchs_arithmetic,
    leaf,
    of_rule,
    rounded_sqrt,
    same_values,
)

pytestmark = [pytest.mark.slow, pytest.mark.cpu]  # kernels in C++


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
