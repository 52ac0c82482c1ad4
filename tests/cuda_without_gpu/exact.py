"""CUDA's formulas in exact arithmetic, and not from the package's table of operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_scratch_optim import ScratchOptimizer

from ..cases import leaves, same_bits


def odd_sum(a: Tensor, b: Tensor) -> Tensor:
    """a + b in float64, rounded to odd: what is inexact gets an odd last bit.

    A number that is rounded so, and then to nearest in fewer digits, is as if rounded once.
    """
    s = a + b
    t = s - a
    error = (a - (s - t)) + (b - t)
    towards = torch.where(error > 0, math.inf, -math.inf).to(s)
    inexact = (error != 0) & s.isfinite() & (s.view(torch.int64) & 1 == 0)
    return torch.where(inexact, torch.nextafter(s, towards), s)


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a · b and its error, by Dekker's method of halves."""

    def halves(x: Tensor) -> tuple[Tensor, Tensor]:
        high = x * 134217729.0
        high = high - (high - x)
        return high, x - high

    p = a * b
    (a1, a2), (b1, b2) = halves(a), halves(b)
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a · b + c, rounded once (Boldo and Melquiond, 2008)."""
    a, b, c = torch.broadcast_tensors(a, b, c)
    if c.dtype == torch.float32:
        return odd_sum(a.double() * b.double(), c.double()).float()
    high, low = two_product(a, b)
    t_high, t_low = two_sum(c, low)
    v_high, v_low = two_sum(high, t_high)
    exact = v_high + odd_sum(t_low, v_low)
    # Nothing is rounded where the sum is zero, whose sign the parts have lost.
    return torch.where(exact.isfinite() & (exact != 0), exact, a * b + c)


def root(x: Tensor) -> Tensor:
    """The square root, correctly rounded, which torch's on a CPU need not be."""
    roots = [math.sqrt(v) if v >= 0 else math.nan for v in x.double().flatten().tolist()]
    return torch.tensor(roots, dtype=torch.float64).view(x.shape).to(x.dtype)


def one(x: Tensor) -> Tensor:
    return torch.ones_like(x)


def power(x: Tensor, exponent: Tensor) -> Tensor:
    special: dict[float, Callable[[], Tensor]] = {
        2: lambda: x * x,
        3: lambda: x * x * x,
        0.5: lambda: root(x),
        -1: lambda: one(x) / x,
        -2: lambda: one(x) / (x * x),
        -0.5: lambda: one(x) / root(x),
    }
    cheap = special.get(exponent.item())
    return cheap() if cheap else x.double().pow(exponent.double()).to(x.dtype)


def lerp(x: Tensor, end: Tensor, w: Tensor) -> Tensor:
    return torch.where(
        w.abs() < 0.5, fma(w, end - x, x), fma(-(end - x), 1 - w, end)
    )  # 1 − w is in the working precision


def addcmul(x: Tensor, a: Tensor, b: Tensor, value: Tensor) -> Tensor:
    return fma(a, b, x) if value == 1 else fma(value, a * b, x)


def through_double(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x.double()).to(x.dtype)


# CUDA's formulas, on tensors of the working type.
FORMULAS: dict[str, Callable[..., Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": lambda x: (x > 0).to(x) - (x < 0).to(x),
    "sqrt": root,
    "rsqrt": lambda x: one(x) / root(x),
    "reciprocal": lambda x: one(x) / x,
    "exp": through_double(torch.exp),
    "log": through_double(torch.log),
    "copy": lambda x, other: other.expand(x.shape),
    "add": lambda x, other, alpha: fma(alpha, other, x),
    "sub": lambda x, other, alpha: fma(-alpha, other, x),
    "mul": torch.mul,
    "div": torch.div,
    "div_number": lambda x, other: x * (1.0 / other.double()).to(x.dtype),
    "pow": lambda x, exponent: x.double().pow(exponent.double()).to(x.dtype),
    "pow_number": power,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "clamp_min": torch.maximum,
    "clamp_max": torch.minimum,
    "lerp": lerp,
    "addcmul": addcmul,
    "addcdiv": lambda x, a, b, value: fma(value, a / b, x),
}
NAMED = {"add": "alpha", "sub": "alpha", "addcmul": "value", "addcdiv": "value"}


def working(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class Exact:
    """A tensor that a rule runs on, which does as CUDA's formulas say.

    Args:
        value: in the working type of `dtype`.
        dtype: of the tensor.
        rounded: round each result to `dtype`.
    """

    def __init__(self, value: Tensor, dtype: torch.dtype, rounded: bool) -> None:
        self.value, self.dtype, self.rounded = value.to(working(dtype)), dtype, rounded

    def __getattr__(self, word: str) -> Callable[..., Exact]:
        operation = word.removesuffix("_")

        def method(*others: Any, **named: Any) -> Exact:
            operands = [self, *others]
            dtypes = [o.dtype for o in operands if isinstance(o, Exact)]
            promoted = reduce(torch.promote_types, dtypes)
            dtype = self.dtype if word != operation else promoted
            meet = torch.float64 if torch.float64 in dtypes else torch.float32

            def tensor(o: Any) -> Tensor:
                value: Tensor = (
                    o.value if isinstance(o, Exact) else torch.tensor(o, dtype=torch.float64)
                )
                return value.to(meet)

            name = operation
            if operation in ("div", "pow") and not isinstance(others[0], Exact):
                name += "_number"
            if operation in NAMED:
                operands.append(named.pop(NAMED[operation], 1.0))
            assert not named
            value = FORMULAS[name](*map(tensor, operands)).to(working(dtype))
            result = Exact(value.to(dtype) if self.rounded else value, dtype, self.rounded)
            if word == operation:
                return result
            self.value = result.value
            return self

        return method


def run_exactly(
    rule: Callable[..., None],
    row: dict[str, Tensor],
    scalars: dict[str, Any],
    rounded: bool,
    *,
    inverse_scale: float | None = None,
    maximize: bool = False,
    l2: float | None = None,
) -> None:
    """Run a rule on one row, in place."""
    exact = {name: Exact(t.detach(), t.dtype, rounded) for name, t in row.items()}
    given = dict(exact)
    if inverse_scale is not None:
        given["g"] = given["g"].mul(inverse_scale)
    if maximize:
        given["g"] = given["g"].neg()
    if l2:
        given["g"] = given["g"].add(given["p"], alpha=l2)
    rule(**given, **scalars)
    with torch.no_grad():
        for name, tensor in row.items():
            if name != "g":
                tensor.copy_(exact[name].value)


def step_exactly(optimizer: Optimizer, rounded: bool, scale: float | None = None) -> None:
    """A step of one of our optimizers, whose own :meth:`step` is never called."""
    assert isinstance(optimizer, ScratchOptimizer)
    for group in optimizer.param_groups:
        symbols = optimizer.columns(group)
        # Parameters that take the same step, which are one row here.
        alike: dict[float | bool, list[dict[str, Tensor]]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            state = optimizer.state[p]
            t: float | bool = bool(symbols) and not state  # is it the first?
            if (symbols or optimizer.counts_steps) and not state:
                state.update(optimizer.new_state(p, group))
            if optimizer.counts_steps:
                state["step"] += 1
                t = state["step"].item()
            row = {"p": p, "g": p.grad} | {k: state[name] for k, name in symbols.items()}
            alike.setdefault(t, []).append(row)
        for t, rows in alike.items():
            if optimizer.counts_steps:
                scalars = optimizer.scalars(t, group)
            else:
                scalars = optimizer.scalars(0.0, group) | {"first": t}
            whole = {k: torch.cat([row[k].detach().flatten() for row in rows]) for k in rows[0]}
            run_exactly(
                optimizer.rule,
                whole,
                {k: v.item() if isinstance(v, Tensor) else v for k, v in scalars.items()},
                rounded,
                inverse_scale=None if scale is None else float(torch.tensor(1.0) / scale),
                maximize=group["maximize"],
                l2=None if group.get("decoupled_weight_decay") else float(group["weight_decay"]),
            )
            sizes = [row["p"].numel() for row in rows]
            for k, column in whole.items():
                for row, values in zip(rows, column.split(sizes), strict=True):
                    row[k].detach().copy_(values.view(row[k].shape))


def loop_exactly(rule: Callable[..., None], table: Any, scalars: dict[str, Any]) -> None:
    """For the package's loop, which on a CPU rounds by other formulas than on a GPU."""
    for row in table.rows():
        exact = {name: Exact(t.detach(), t.dtype, True) for name, t in row.items()}
        rule(**exact, **scalars)
        for name, tensor in row.items():
            tensor.detach().copy_(exact[name].value)


def canonical(t: Tensor) -> Tensor:
    """With one NaN for all: which one, and its sign, depends on the processor."""
    return torch.where(t.isnan(), torch.full_like(t, math.nan), t)


def assert_same(a: Tensor, b: Tensor, what: object = "") -> None:
    a, b = canonical(a.detach()), canonical(b.detach())
    if not same_bits(a, b):
        where = ((a != b) & ~(a.isnan() & b.isnan())).flatten().nonzero().flatten().tolist()
        raise AssertionError(f"{what} differs at {where[:9]} ({len(where)} of {a.numel()})")


def assert_same_state(ours: Optimizer, exact: Optimizer) -> None:
    for i, (p, q) in enumerate(zip(leaves(ours), leaves(exact), strict=True)):
        assert_same(p, q, f"parameter {i}")
        mine, theirs = ours.state.get(p, {}), exact.state.get(q, {})
        assert list(mine) == list(theirs)
        for name, value in theirs.items():
            assert_same(mine[name], value, f"{name} of parameter {i}")
